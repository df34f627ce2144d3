"""One pass over a split: digests, counts, duplicates, and the images that can't be decoded."""
from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import ExifTags, Image

from timm_collab.train.config import DataConfig
from timm_collab.train.data.decoding.contents import Contents, duplicates, examine
from timm_collab.train.data.decoding.image_split import ImageSplit
from timm_collab.train.data.sources import load_source
from timm_collab.train.errors import TrainError

LETTERS = st.lists(st.tuples(st.sampled_from('abcde'), st.integers(0, 2)), min_size=1, max_size=8)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four images of each of two classes, of several sizes, modes and depths, and one that is none."""
    (tmp_path / 'data' / 'cat').mkdir(parents=True)
    (tmp_path / 'data' / 'dog').mkdir()
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    pixels = np.random.default_rng(0).integers(0, 256, (6, 9, 3)).astype(np.uint8)
    cat, dog = tmp_path / 'data' / 'cat', tmp_path / 'data' / 'dog'
    Image.fromarray(pixels).save(cat / '0.png')
    Image.fromarray(pixels).save(cat / '1.png', exif=exif)
    Image.fromarray(pixels[..., 0].astype(np.uint16) * 200).save(cat / '2.png')
    Image.fromarray(pixels).convert('P').save(cat / '3.png')
    frames = [Image.new('L', (4, 4), grey) for grey in (0, 100, 200)]
    frames[0].save(dog / '0.gif', save_all=True, append_images=frames[1:])
    (dog / '1.png').write_bytes((cat / '0.png').read_bytes())
    (dog / '2.png').write_bytes(b'no image')
    Image.new('L', (5, 5)).save(dog / '3.png')
    return tmp_path / 'data'


def test_everything_is_counted_in_one_pass(folder: Path) -> None:
    split = load_source(DataConfig(path=str(folder))).train
    kept = {}
    examined = examine(split, skip=True, keep=kept.__setitem__)
    contents = examined.contents
    assert (contents.num_turned, contents.num_sixteen_bit, contents.num_animated) == (1, 1, 1)
    assert contents.sizes == Counter({(9, 6): 4, (6, 9): 1, (4, 4): 1, (5, 5): 1})
    assert contents.modes == Counter({'RGB': 3, 'L': 1, 'I;16': 1, 'P': 2})
    assert contents.largest == split.decoded(_place(split, 'cat/2.png')).found.largest
    bad = _place(split, 'dog/2.png')
    assert examined.kept_N.tolist() == sorted(kept) == [index for index in range(8) if index != bad]
    assert [(image.split, image.row, image.file) for image in examined.bad] == [('train', bad, split.file(bad))]
    assert "doesn't know its format" in examined.bad[0].reason
    for place, index in enumerate(examined.kept_N.tolist()):
        assert np.array_equal(kept[index], split.image(index))
        content = Path(split.file(index)).read_bytes()
        assert contents.digest_N[place].tobytes() == hashlib.blake2b(content, digest_size=16).digest()
    with pytest.raises(TrainError, match=r"dog/2.png' in row \d of split 'train' can't be decoded"):
        examine(split)
    restored = Contents.from_facts(contents.digest_N, contents.facts())
    assert all(np.array_equal(getattr(restored, name), getattr(contents, name)) for name in vars(contents))


def _place(split: ImageSplit, name: str) -> int:
    return next(index for index in range(len(split)) if split.file(index).endswith(name))


def part(name: str, images: list[tuple[str, int]]) -> tuple[Any, Contents]:
    """A split whose images are letters, with a label each."""
    digests = b''.join(hashlib.blake2b(letter.encode(), digest_size=16).digest() for letter, _ in images)
    split = SimpleNamespace(
        name=name,
        labels=np.array([label for _, label in images], dtype=np.int64),
        row_N=np.arange(len(images)),
        file=lambda index: f'{name}/{images[index][0]}{index}',
    )
    return split, Contents(np.frombuffer(digests, dtype=np.uint8).reshape(-1, 16))


@given(st.lists(LETTERS, min_size=1, max_size=3))
def test_duplicates_are_what_they_are_called(splits: list[list[tuple[str, int]]]) -> None:
    found = duplicates([part(str(place), images) for place, images in enumerate(splits)])
    letters = [[letter for letter, _ in images] for images in splits]
    assert found.within == sum(len(each) - len(set(each)) for each in letters)
    assert found.across == sum(
        any(letter in other for other_place, other in enumerate(letters) if other_place != place)
        for place, each in enumerate(letters) if place > 0 for letter in each)
    assert found.contradicting == sum(
        len({other_label for other, other_label in images if other == letter}) > 1
        for images in splits for letter, _ in images)
    assert len(found.examples) == min(found.across, 3) and len(found.contradictions) == min(found.contradicting, 3)
    for image, copy in found.examples:
        assert image.split('/')[0] != copy.split('/')[0] and image.split('/')[1][0] == copy.split('/')[1][0]
    for image, copy in found.contradictions:
        assert image.split('/')[0] == copy.split('/')[0] and image.split('/')[1][0] == copy.split('/')[1][0]
        where, rows = int(image.split('/')[0]), [int(each.split('/')[1][1:]) for each in (image, copy)]
        assert len({splits[where][row][1] for row in rows}) == 2


def test_duplicates_of_rows_of_labels(folder: Path) -> None:
    split = load_source(DataConfig(path=str(folder))).train
    examined = examine(split, skip=True)
    split = split.take(examined.kept_N)
    found = duplicates([(split, examined.contents)])
    pair = {str(folder / 'cat' / '0.png'), str(folder / 'dog' / '1.png')}
    assert (found.within, found.across, found.contradicting) == (1, 0, 2)
    assert [set(each) for each in found.contradictions] == [pair, pair]
    one_hot = split.with_labels(np.eye(2, dtype=np.uint8)[split.labels])
    assert duplicates([(one_hot, examined.contents)]) == found
    assert duplicates([(split.with_labels(0 * split.labels), examined.contents)]).contradicting == 0


@pytest.mark.parametrize(('largest', 'bit_depth', 'advice'), [
    (4095, 16, r'their largest value is 4095: .*nearly black\. Write --data.bit_depth 12$'),
    (1000, 16, r'Write --data.bit_depth 10, or the 12 of the camera$'),
    (255, 16, 'Write --data.bit_depth 8, or'),
    (4095, 14, 'bit_depth 12$'), (4096, 14, None), (16384, 16, None), (16383, 16, 'bit_depth 14$'),
    (1023, 12, 'bit_depth 10$'), (1024, 12, None),
    (None, 16, None),
])
def test_depth_that_is_hardly_used_is_refused(largest: int | None, bit_depth: int, advice: str | None) -> None:
    contents = Contents(np.zeros((1, 16), np.uint8), num_sixteen_bit=1, largest=largest)
    if advice is None:
        contents.check_depth(bit_depth, 'train')
        return
    with pytest.raises(TrainError, match=advice):
        contents.check_depth(bit_depth, 'train')


def test_split_without_any_image(image_folder: Callable[..., Path]) -> None:
    folder = image_folder(train=3)
    for path in folder.rglob('*.png'):
        path.write_bytes(b'')
    with pytest.raises(TrainError, match="none of the images of split 'train' can be decoded"):
        examine(load_source(DataConfig(path=str(folder))).train, skip=True)
