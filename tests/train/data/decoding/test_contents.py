"""One pass over a split: digests, counts, duplicates, and the images that can't be decoded."""
from __future__ import annotations

import hashlib
import re
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
    images = [(split, *image) for split, each in enumerate(splits) for image in each]
    assert found.contradicting == sum(
        any(letter == other and label != other_label for _, other, other_label in images)
        for _, letter, label in images)
    assert found.across_contradicting == sum(
        any(split != other_split and letter == other and label != other_label
            for other_split, other, other_label in images)
        for split, letter, label in images if split > 0)
    assert len(found.examples) == min(found.across, 3) and len(found.contradictions) == min(found.contradicting, 3)
    for image, copy in found.examples:
        assert image.split('/')[0] != copy.split('/')[0] and image.split('/')[1][0] == copy.split('/')[1][0]
    for pair in found.contradictions:
        (letter, label), (other, other_label) = (_described(splits, each) for each in pair)
        assert letter == other and label != other_label


def _described(splits: list[list[tuple[str, int]]], image: str) -> tuple[str, int]:
    """The image that an example describes, which must be as it says."""
    found = re.fullmatch(r"'(\d+)/(\w)(\d+)' \(row (\d+) of split '(\d+)', label (\d+)\)", image)
    assert found and found[1] == found[5] and found[3] == found[4]
    letter, label = splits[int(found[1])][int(found[3])]
    assert (letter, label) == (found[2], int(found[6]))
    return letter, label


def test_copies_in_another_split_with_another_label_count_as_such() -> None:
    training, test = [(letter, 0) for letter in 'abcdefgh'], [*((letter, 1) for letter in 'abcde'), ('f', 0), ('g', 0)]
    found = duplicates([part('train', training), part('test', test)], ['cat', 'dog'])
    assert (found.within, found.across, found.contradicting, found.across_contradicting) == (0, 7, 10, 5)
    across, contradicting = found.notes()
    assert across.endswith('; scores on them are too good, except for 5 with another label there')
    assert contradicting == (
        "warning: images that have a copy with another label: 10, such as 'train/a0' (row 0 of split 'train', label"
        " cat) and 'test/a0' (row 0 of split 'test', label dog); at least one label of each pair is wrong")
    found = duplicates([part('train', training), part('test', test[:5])])
    assert 'they have another label there, so scores on them mean nothing' in found.notes()[0]


def test_a_file_with_two_labels_is_told_by_row_and_label() -> None:
    split, contents = part('train', [('a', 0), ('a', 2)])
    split.file = lambda index: 'x.jpg'
    [pair] = {*duplicates([(split, contents)]).contradictions[:1]}
    assert pair == ("'x.jpg' (row 0 of split 'train', label 0)", "'x.jpg' (row 1 of split 'train', label 2)")


def test_duplicates_of_rows_of_labels(folder: Path) -> None:
    split = load_source(DataConfig(path=str(folder))).train
    examined = examine(split, skip=True)
    split = split.take(examined.kept_N)
    found = duplicates([(split, examined.contents)])
    files = {folder / 'cat' / '0.png', folder / 'dog' / '1.png'}
    assert (found.within, found.across, found.contradicting) == (1, 0, 2)
    for pair in found.contradictions:
        assert {Path(each.split("'")[1]) for each in pair} == files
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
