"""Columns of numbers become the images they are; what is no image is refused by what it is."""
from __future__ import annotations

import base64
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from timm_collab.train.config import DataConfig
from timm_collab.train.data.decoding.image_column import as_pixels
from timm_collab.train.data.decoding.image_split import ImageSplit
from timm_collab.train.data.sources import load_source, load_split
from timm_collab.train.errors import TrainError

Save = Callable[..., ImageSplit]
GREY_NHW = np.random.default_rng(0).integers(0, 256, (4, 6, 6))
COLOUR_NHWC = np.random.default_rng(1).integers(0, 256, (4, 5, 5, 3))
OPAQUE_NHWC = np.concatenate([COLOUR_NHWC, np.full((4, 5, 5, 1), 255)], 3)


@pytest.fixture
def save(tmp_path: Path) -> Save:
    """Write images as a parquet file and open it as a training split."""

    def save(images: list[Any], feature: Any = None, **keys: Any) -> ImageSplit:
        features = None if feature is None else datasets.Features(image=feature, label=datasets.Value('int64'))
        table = {'image': images, 'label': [index % 2 for index in range(len(images))]}
        (tmp_path / 'data').mkdir()
        datasets.Dataset.from_dict(table, features=features).to_parquet(str(tmp_path / 'data' / 'train.parquet'))
        return load_source(DataConfig(path=str(tmp_path / 'data'), **keys)).train

    return save


def opened(split: ImageSplit) -> np.ndarray:
    return np.stack([np.asarray(split.image(index)) for index in range(len(split))])


@pytest.mark.parametrize('images', [
    GREY_NHW.reshape(4, -1).tolist(),
    GREY_NHW.reshape(4, -1).astype(np.float32).tolist(),
    GREY_NHW.tolist(),
    GREY_NHW[..., None].tolist(),
    GREY_NHW[:, None].tolist(),
    GREY_NHW.reshape(4, 1, -1).tolist(),
    GREY_NHW.reshape(4, -1, 1).tolist(),
    [' '.join(map(str, image.ravel())) for image in GREY_NHW],
    [', '.join(map(str, image.ravel())) for image in GREY_NHW],
], ids=['flat', 'floats', 'rows', 'channel last', 'channel first', 'flat row',
        'flat column', 'text', 'text with commas'])
def test_numbers_of_a_grey_image(save: Save, images: list[Any]) -> None:
    split = save(images, in_chans=1)
    assert np.array_equal(opened(split), GREY_NHW)
    assert np.array_equal(split.labels, [0, 1, 0, 1])


@pytest.mark.parametrize(('images', 'feature'), [
    (COLOUR_NHWC.tolist(), None),
    (COLOUR_NHWC.transpose(0, 3, 1, 2).tolist(), None),
    (COLOUR_NHWC, datasets.Array3D((5, 5, 3), 'uint8')),
    (COLOUR_NHWC.transpose(0, 3, 1, 2), datasets.Array3D((3, 5, 5), 'uint8')),
], ids=['lists, channels last', 'lists, channels first', 'array, channels last', 'array, channels first'])
def test_numbers_of_a_colour_image(save: Save, images: Any, feature: Any) -> None:
    assert np.array_equal(opened(save(list(images), feature)), COLOUR_NHWC)


def test_array_of_two_dimensions(save: Save) -> None:
    assert np.array_equal(opened(save(list(GREY_NHW[:, :4]), datasets.Array2D((4, 6), 'int32'), in_chans=1)),
                          GREY_NHW[:, :4])


def test_numbers_of_sixteen_bits(save: Save) -> None:
    split = save((GREY_NHW * 16).tolist(), in_chans=1, bit_depth=12)
    assert np.array_equal(opened(split), GREY_NHW)
    assert split.decoded(0).found.largest == GREY_NHW[0].max() * 16


@pytest.mark.parametrize('other', ['validation', 'test'])
def test_splits_have_one_depth(tmp_path: Path, other: str) -> None:
    """A dark split, or one that was scaled, isn't read with another depth than the training split."""
    keys: dict[str, Any] = dict(path=str(tmp_path), in_chans=1)

    def write(split: str, images: Any) -> None:
        pq.write_table(pa.table({'image': images.tolist(), 'label': [0, 1, 0, 1]}), tmp_path / f'{split}.parquet')

    def read(split: str, **more: Any) -> Any:
        return opened(getattr(load_source(DataConfig(**keys, **more)), split))

    write('train', GREY_NHW * 4)
    write(other, GREY_NHW // 2)
    role = {'validation': 'val', 'test': 'test'}[other]
    assert np.array_equal(read('train', bit_depth=10), GREY_NHW)
    assert np.array_equal(read(role, bit_depth=10), GREY_NHW // 2 >> 2)
    assert np.array_equal(opened(load_split(DataConfig(**keys, bit_depth=10), other)[0]), GREY_NHW // 2 >> 2)
    write('train', GREY_NHW)
    assert np.array_equal(read(role), GREY_NHW // 2)
    write(other, GREY_NHW * 4)
    assert np.array_equal(read('train', bit_depth=10), GREY_NHW >> 2)


def test_numbers_of_eight_bits_have_no_other_depth(save: Save) -> None:
    images = [image.astype(np.uint8).tolist() for image in GREY_NHW]
    feature = datasets.List(datasets.List(datasets.Value('uint8')))
    assert np.array_equal(opened(save(images, feature, in_chans=1, bit_depth=12)), GREY_NHW)


def test_a_missing_row_is_a_bad_image(save: Save) -> None:
    split = save([GREY_NHW[0].ravel().tolist(), None, *GREY_NHW[2:].reshape(2, -1).tolist()], in_chans=1)
    assert np.array_equal(np.asarray(split.image(3)), GREY_NHW[3])
    with pytest.raises(TrainError, match=r"row 1 of split 'train' can't be decoded \(ValueError: it is missing"):
        split.image(1)


@given(st.integers(2, 12), st.integers(2, 12), st.sampled_from([(), (1,), (3,), (4,)]))
def test_an_image_is_itself(height: int, width: int, channels: tuple[int, ...]) -> None:
    pixels = np.random.default_rng(height).integers(0, 256, (height, width, *channels))
    if channels and height in (1, 3, 4) and channels != (1,):
        with pytest.raises(ValueError, match='neither clearly first nor clearly last'):
            as_pixels(pixels)
        return
    expected = pixels[..., 0] if channels == (1,) else pixels
    assert np.array_equal(as_pixels(pixels), expected)
    if height == width and not channels:
        assert np.array_equal(as_pixels(pixels.ravel()), pixels)


def encoded(kind: str = 'PNG') -> str:
    file = io.BytesIO()
    Image.fromarray(COLOUR_NHWC[0].astype(np.uint8)).resize((40, 40)).save(file, kind)
    return base64.b64encode(file.getvalue()).decode()


@pytest.mark.parametrize(('images', 'message'), [
    (COLOUR_NHWC.reshape(4, -1).tolist(), r"row 0: 75 may be 5 x 5 pixels, colour by colour or pixel by pixel: write"
                                          r" numpy.reshape\(row\['image'\], \(3, 5, 5\)\) or \(5, 5, 3\) there"),
    (COLOUR_NHWC.reshape(4, 25, 3).tolist(), r"row 0: 25 x 3 numbers are the colours of 25 pixels, and the height is"
                                             r" unknown: write numpy.reshape\(row\['image'\], \(height, width, 3\)\)"),
    (COLOUR_NHWC.reshape(4, 25, 3).transpose(0, 2, 1).tolist(), r'3 x 25 numbers.*\(3, height, width\)'),
    (COLOUR_NHWC.reshape(4, 1, 25, 3).tolist(), r'1 x 25 x 3 numbers.*\(height, width, 3\)'),
    (OPAQUE_NHWC.reshape(4, -1).tolist(), r'100 numbers per image, of which a quarter is always 255, as in colours with'
                                          r' alpha: write .*, \(5, 5, 4\)\) there, or \(10, 10\) for a grey image'),
    (OPAQUE_NHWC.transpose(0, 3, 1, 2).reshape(4, -1).tolist(), r'is always 255.* \(4, 5, 5\)\) there'),
    ([' '.join(map(str, image.ravel())) for image in OPAQUE_NHWC], r'is always 255.* \(5, 5, 4\)\) there'),
    ([[1, 2, 3, 4, 5]] * 4, 'row 0: 5 numbers are no square: write rows of pixels'),
    ([[1, 2, 3, 4]] * 3 + [[1, 2, 3]], 'row 3: 3 numbers are no square'),
    ((GREY_NHW / 255).tolist(), r'numbers from 0(\.\d+)? to 1, and pixels are integers from 0 to 255.*scale them'),
    ((GREY_NHW > 9).astype(int).tolist(), 'numbers from 0 to 1, and pixels are integers.*255 .* numbers'),
    ((GREY_NHW - 9).tolist(), 'numbers from -9 to 246, and pixels'),
    (['1 2 3 4', '1 2 3 400'] * 2, 'row 1: pixels are integers from 0 to 255, and these go from 1 to 400'),
    ([encoded()] * 4, r'images in base64: decode them first, such as rows\.map\(lambda'),
    ([f'data:image/jpeg;base64,{encoded("JPEG")}'] * 4, 'images in base64: decode them first'),
    (['https://example.org/1.png'] * 4, "4 addresses such as 'https://example.org/1.png'.* download the files first"),
    (['a cat', 'a dog'] * 2, "texts such as 'a cat', and there is no such file: name another column, or write paths"),
    ([3, 1] * 2, r"Value\('int64'\), not images: name another column"),
], ids=['colour', 'pixels', 'colours', 'row of pixels', 'alpha', 'alpha by colour', 'alpha in text', 'no square',
        'ragged', 'floats', 'zeros and ones', 'negative', 'text', 'base64', 'data url', 'web', 'no files', 'integers'])
def test_what_is_no_image_is_refused(save: Save, images: list[Any], message: str) -> None:
    with pytest.raises(TrainError, match=f"data.image_column: column 'image' of split 'train' contains.*{message}"):
        save(images)


def test_addresses_in_a_column_of_images_are_refused(tmp_path: Path) -> None:
    cells = [{'path': 's3://bucket/1.png', 'bytes': None}, {'path': 's3://bucket/2.png', 'bytes': b'here'}]
    pq.write_table(pa.table({'image': cells, 'label': [0, 1]}), tmp_path / 'train.parquet')
    with pytest.raises(TrainError, match=r"1 addresses such as 's3://bucket/1.png'"):
        load_source(DataConfig(path=str(tmp_path)))


def test_paths_of_files(save: Save, tmp_path: Path) -> None:
    paths = [str(tmp_path / f'{index}.png') for index in range(4)]
    for path, image in zip(paths, GREY_NHW.astype(np.uint8), strict=True):
        Image.fromarray(image).save(path)
    split = save(paths, in_chans=1)
    assert np.array_equal(opened(split), GREY_NHW)
    assert split.file(2) == paths[2]
