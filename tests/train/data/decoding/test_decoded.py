from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data.transforms import CenterCropOrPad
from torchvision import transforms

from timm_collab.train.config import DataConfig
from timm_collab.train.data.decoding import decoded as module
from timm_collab.train.data.decoding.decoded import SizesDifferError, decode_list, decode_tensor, probe
from timm_collab.train.data.decoding.image_split import ImageSplit
from timm_collab.train.data.sources import load_source
from timm_collab.train.errors import TrainError

NOTHING = transforms.Compose([])


@pytest.fixture
def folder(image_folder: Callable[..., Path]) -> Path:
    return image_folder(train=40)


def split(folder: Path, **keys: Any) -> ImageSplit:
    return load_source(DataConfig(path=str(folder), **keys)).train


def spoil(folder: Path, *numbers: int) -> None:
    for number in numbers:
        (folder / 'train' / 'dog' / f'{number}.png').write_bytes(b'no image at all')


@pytest.mark.parametrize('in_chans', [1, 3])
def test_images_keep_their_order(folder: Path, in_chans: int) -> None:
    images = split(folder, in_chans=in_chans)
    once = transforms.Compose([transforms.Resize((6, 7))])
    probed = probe(images, once)
    assert (probed.shape, probed.num_bytes) == ((6, 7, in_chans), 80 * 42 * in_chans)
    decoded = decode_tensor(images, once, probed.shape)
    assert isinstance(decoded.images, torch.Tensor) and decoded.images.shape == (80, in_chans, 6, 7)
    for index in (0, 41, 79):
        expected = np.asarray(once(images.image(index))).reshape(6, 7, in_chans).transpose(2, 0, 1)
        assert np.array_equal(decoded.images[index].numpy(), expected)
    assert decoded.split is images
    listed = decode_list(images, NOTHING).images
    assert all(np.array_equal(listed[index], images.image(index)) for index in range(80))


def test_image_of_another_size(folder: Path) -> None:
    images = split(folder)
    assert probe(images, NOTHING).shape == (8, 8, 3)
    Image.new('RGB', (9, 8)).save(folder / 'train' / 'cat' / '1.png')
    with pytest.raises(SizesDifferError):
        decode_tensor(images, NOTHING, (8, 8, 3))


def test_bad_image_is_named_or_left_out(folder: Path) -> None:
    images = split(folder)
    bad = [np.flatnonzero(images.labels == 1)[0], 79]
    names = [Path(images.encoded(np.array([row]))[0]['path']) for row in bad]
    for name in names:
        name.write_bytes(b'no image at all')
    for decode in (decode_list, lambda *args, **kwargs: decode_tensor(*args, (8, 8, 3), **kwargs)):
        with pytest.raises(TrainError, match=f"row {bad[0]} of split 'train' can't be decoded.*on_bad_image skip"):
            decode(images, NOTHING)
        decoded = decode(images, NOTHING, skip=True)
        assert np.array_equal(decoded.kept_N, np.setdiff1d(np.arange(80), bad))
        assert len(decoded.images) == len(decoded.split) == 78
        assert np.array_equal(decoded.split.labels, images.labels[decoded.kept_N])
        assert np.array_equal(decoded.images[50], (
            images.image(51) if decode is decode_list else np.asarray(images.image(51)).transpose(2, 0, 1)
        ))


def test_error_if_no_image_can_be_read(folder: Path) -> None:
    images = split(folder)
    for path in folder.rglob('*.png'):
        path.unlink()
    with pytest.raises(TrainError, match=r"can't be decoded.*FileNotFoundError"):
        probe(images, NOTHING)
    with pytest.raises(TrainError, match="none of 32 images of split 'train' can be decoded"):
        probe(images, NOTHING, skip=True)
    with pytest.raises(TrainError, match="none of the images of split 'train' can be decoded"):
        decode_tensor(images, NOTHING, (8, 8, 3), skip=True)


def test_cache_depends_on_content_and_transform(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, 'CACHED_BYTES', 0)
    calls = []
    examine = module.examine
    monkeypatch.setattr(module, 'examine', lambda *args: calls.append(1) or examine(*args))

    def count(images: ImageSplit, once: Any = NOTHING, shape: tuple[int, ...] = (8, 8, 3)) -> tuple[int, torch.Tensor]:
        calls.clear()
        result = decode_tensor(images, once, shape, folder=tmp_path / 'cache').images
        return len(calls), result

    images = split(folder)
    built, first = count(images)
    again, second = count(split(folder))
    assert (built, again) == (1, 0) and torch.equal(first, second)
    smaller = transforms.Compose([transforms.Resize((6, 6))])
    assert [count(images, smaller, (6, 6, 3))[0] for _ in range(2)] == [1, 0]
    assert count(images.take(np.arange(79)))[0] == 1
    assert count(images.take(np.arange(80)[::-1]))[0] == 1
    assert count(images.with_labels(1 - images.labels))[0] == 0
    borders = [transforms.Compose([CenterCropOrPad(12, fill=fill)]) for fill in (0, 255)]
    assert repr(borders[0]) == repr(borders[1])
    padded = [count(images, once, (12, 12, 3)) for once in (*borders, borders[0])]
    assert [built for built, _ in padded] == [1, 1, 0]
    assert [int(result[0, 0, 0, 0]) for _, result in padded] == [0, 255, 0]
    path = folder / 'train' / 'cat' / '0.png'
    with Image.open(path) as image:
        changed = image.transpose(Image.Transpose.ROTATE_90)
    changed.save(path)
    assert count(images)[0] == 1  # the same row of the same table, but another image


def test_cache_without_a_bad_image_does_not_hide_it(
        folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, 'CACHED_BYTES', 0)
    spoil(folder, 3)
    images = split(folder)
    for _ in range(2):
        assert len(decode_tensor(images, NOTHING, (8, 8, 3), skip=True, folder=tmp_path / 'cache').kept_N) == 79
    with pytest.raises(TrainError, match="can't be decoded"):
        decode_tensor(images, NOTHING, (8, 8, 3), folder=tmp_path / 'cache')


def test_cache_keeps_what_the_files_hold(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second run decodes nothing, reads every image once, and knows as much as the first."""
    monkeypatch.setattr(module, 'CACHED_BYTES', 0)
    spoil(folder, 3, 7)
    images = split(folder)
    plain = decode_tensor(images, NOTHING, (8, 8, 3), skip=True)
    reads: Counter[int] = Counter()
    encoded, decoded = ImageSplit.encoded, ImageSplit.decoded
    tried: list[int] = []
    monkeypatch.setattr(ImageSplit, 'encoded', lambda self, index_M: reads.update(index_M) or encoded(self, index_M))
    monkeypatch.setattr(ImageSplit, 'decoded', lambda self, *args: tried.append(args[0]) or decoded(self, *args))
    for is_warm in (False, True):
        reads.clear()
        tried.clear()
        found = decode_tensor(images, NOTHING, (8, 8, 3), skip=True, folder=tmp_path / 'cache')
        assert found.contents.facts() == plain.contents.facts() and found.contents.sizes == {(8, 8): 78}
        assert np.array_equal(found.contents.digest_N, plain.contents.digest_N)
        assert found.bad == plain.bad and [Path(image.file).name for image in found.bad] == ['3.png', '7.png']
        bad = [image.row for image in found.bad]
        if is_warm:
            assert tried == bad
            assert all(reads[index] == 1 for index in range(80) if index not in bad)


@pytest.mark.parametrize('bit_depth', [12, 16])
def test_cache_depends_on_the_bit_depth(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bit_depth: int) -> None:
    monkeypatch.setattr(module, 'CACHED_BYTES', 0)
    values = np.random.default_rng(0).integers(0, 4096, (4, 8, 8)).astype(np.uint16)
    for number, image in enumerate(values):
        (tmp_path / 'data' / str(number % 2)).mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(tmp_path / 'data' / str(number % 2) / f'{number}.png')
    for depth in (bit_depth, 28 - bit_depth):
        images = split(tmp_path / 'data', in_chans=1, bit_depth=depth)
        found = decode_tensor(images, NOTHING, (8, 8, 1), folder=tmp_path / 'cache')
        assert found.contents.largest == values.max() and found.contents.num_sixteen_bit == 4
        assert torch.equal(found.images[0, 0], torch.from_numpy((values[0] >> (depth - 8)).astype(np.uint8)))


def test_small_data_is_not_cached(folder: Path, tmp_path: Path) -> None:
    decode_tensor(split(folder), NOTHING, (8, 8, 3), folder=tmp_path / 'cache')
    assert not (tmp_path / 'cache').exists()
