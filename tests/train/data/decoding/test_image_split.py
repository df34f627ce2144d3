"""Images as they are meant: upright, of any depth and mode, decoded to eight bits or refused."""
from __future__ import annotations

import io
import struct
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import numpy.typing as npt
import pytest
from PIL import ExifTags, Image

from timm_collab.train.config import DataConfig
from timm_collab.train.data.decoding.image_split import DecodedImage, decode
from timm_collab.train.data.sources import load_source
from timm_collab.train.errors import TrainError

RAMP = np.arange(64).reshape(8, 8) * 4  # 0 to 252
NOISE_HWC = np.random.default_rng(0).integers(0, 256, (6, 9, 3)).astype(np.uint8)


def saved(image: Image.Image | npt.NDArray[np.generic], kind: str = 'PNG', **options: Any) -> bytes:
    file = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(file, kind, **options)
    return file.getvalue()


def read(content: bytes, mode: str = 'RGB', bit_depth: int = 16) -> DecodedImage:
    return decode(lambda: {'bytes': content, 'path': None}, mode, lambda: 'the image', bit_depth)


def decoded(values: npt.NDArray[np.generic], kind: str = 'tiff', bit_depth: int = 16) -> npt.NDArray[np.uint8]:
    return np.asarray(read(saved(values, kind), 'L', bit_depth).image)


def png_of_sixteen_bits(values_HWC: npt.NDArray[np.uint16]) -> bytes:
    """A PNG file, which Pillow can't write with 16 bits per colour."""
    height, width, channels = values_HWC.shape

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack('>I', len(content)) + name + content + struct.pack('>I', zlib.crc32(name + content))

    header = struct.pack('>IIBBBBB', width, height, 16, {1: 0, 2: 4, 3: 2, 4: 6}[channels], 0, 0, 0)
    rows = b''.join(b'\0' + row.astype('>u2').tobytes() for row in values_HWC)
    return b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', header) + chunk(b'IDAT', zlib.compress(rows)) + chunk(b'IEND', b'')


@pytest.mark.parametrize('kind', ['png', 'tiff'])
def test_sixteen_bit_images_keep_their_upper_eight_bits(kind: str) -> None:
    assert np.array_equal(decoded((RAMP * 256 + 255).astype(np.uint16), kind), RAMP)


@pytest.mark.parametrize('bit_depth', [8, 12, 16])
@pytest.mark.parametrize('largest', [300, 4095, 65535])
def test_sixteen_bit_pgm_files_have_the_largest_value_that_they_say(largest: int, bit_depth: int) -> None:
    """Pillow scales values to 65535, unless they are so already."""
    values = np.round(RAMP / 255 * largest)
    content = f'P5 8 8 {largest}\n'.encode() + values.astype('>u2').tobytes()
    if largest == 65535 and bit_depth < 16:
        with pytest.raises(TrainError, match=f'more than data.bit_depth {bit_depth} allows: write --data.bit_depth 16'):
            read(content, 'L', bit_depth)
        return
    image, _, found = read(content, 'L', bit_depth)
    assert np.abs(np.asarray(image).astype(int) - values / largest * 255).max() <= 1
    assert found.mode == 'I' and found.largest == pytest.approx(values.max() / largest * 65535, abs=1)


def test_dark_sixteen_bit_pgm_files_are_dark() -> None:
    content = b'P5 8 8 65535\n' + np.full((8, 8), 200, '>u2').tobytes()
    image, _, found = read(content, 'L')
    assert not np.asarray(image).any() and found.largest == 200
    assert np.array_equal(np.asarray(read(content, 'L', 8).image), np.full((8, 8), 200))


def test_signed_sixteen_bit_tiff_files() -> None:
    """Pillow reads them as 32 bits."""
    def signed(values: npt.NDArray[np.generic]) -> bytes:
        return saved(values.astype(np.uint16), 'TIFF', tiffinfo={339: 2})

    image, _, found = read(signed(RAMP * 128), 'L', 15)
    assert np.array_equal(np.asarray(image), RAMP) and found.mode == 'I' and found.largest == RAMP.max() * 128
    with pytest.raises(TrainError, match='it has negative values, down to -4: shift them to start from 0'):
        read(signed(-RAMP[:1, :2]), 'L')


@pytest.mark.parametrize('bit_depth', range(8, 17))
def test_bit_depth_is_what_becomes_white(bit_depth: int) -> None:
    values = RAMP * 2**(bit_depth - 8) + 2**(bit_depth - 8) - 1
    assert np.array_equal(decoded(values.astype(np.uint16), 'png', bit_depth), RAMP)
    assert read(saved(values.astype(np.uint16)), 'L').found.largest == values.max()


def test_a_value_above_the_bit_depth_is_an_error() -> None:
    """Whether bad images are skipped or not: the recipe is wrong, not the image."""
    values = np.full((2, 2), 4096, np.uint16)
    with pytest.raises(TrainError, match=r'^the image has a value of 4096, more than data.bit_depth 12 allows: write'
                                         r' --data.bit_depth 13$') as raised:
        decoded(values, bit_depth=12)
    assert type(raised.value) is TrainError
    assert np.array_equal(decoded(values - 1, bit_depth=12), np.full((2, 2), 255))


@pytest.mark.parametrize('channels', [2, 3, 4])
def test_colour_of_sixteen_bits(channels: int) -> None:
    values_HWC = np.random.default_rng(0).integers(0, 2**16, (4, 5, channels)).astype(np.uint16)
    image, _, found = read(png_of_sixteen_bits(values_HWC))
    expected = values_HWC[..., [0, 0, 0]] if channels == 2 else values_HWC[..., :3]
    assert np.array_equal(np.asarray(image), expected >> 8)
    assert found.mode.endswith(';16') and found.largest == (values_HWC.max() >> 8) * 256 + 255
    with pytest.raises(TrainError, match=r'has 16 bits per colour, of which Pillow reads the upper 8.* convert it to'):
        read(png_of_sixteen_bits(values_HWC), bit_depth=12)


@pytest.mark.parametrize('dtype', [np.int32, np.float32])
def test_thirty_two_bit_images_with_values_below_256(dtype: type[np.generic]) -> None:
    assert np.array_equal(decoded(RAMP.astype(dtype)), RAMP)


@pytest.mark.parametrize('values', [
    (RAMP * 256).astype(np.int32), (RAMP - 1).astype(np.int32), (RAMP / 252).astype(np.float32),
    (RAMP > 9).astype(np.float32), (RAMP > 9).astype(np.int32), (RAMP * 256).astype(np.float32),
    np.full((8, 8), np.nan, np.float32),
])
def test_thirty_two_bit_images_with_other_values_are_refused(values: npt.NDArray[np.generic]) -> None:
    """Clipped they'd be white, or black, without a word."""
    with pytest.raises(TrainError, match=r"the image can't be decoded .*are not integers from 0 to 255: store it"):
        decoded(values)


TURNED = {  # what a viewer shows of an image that is stored as it is here
    1: lambda image: image,
    2: lambda image: image[:, ::-1],
    3: lambda image: image[::-1, ::-1],
    4: lambda image: image[::-1],
    5: lambda image: image.transpose(1, 0, 2),
    6: lambda image: np.rot90(image, -1),
    7: lambda image: image[::-1, ::-1].transpose(1, 0, 2),
    8: lambda image: np.rot90(image, 1),
}


@pytest.mark.parametrize('kind', ['PNG', 'TIFF', 'WEBP'])
@pytest.mark.parametrize('orientation', [*range(1, 9), 0, 9])
def test_exif_orientation(orientation: int, kind: str) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    options = {'lossless': True} if kind == 'WEBP' else {}
    image, _, found = read(saved(NOISE_HWC, kind, exif=exif, **options))
    expected = TURNED.get(orientation, TURNED[1])(NOISE_HWC)
    assert np.array_equal(np.asarray(image), expected)
    assert found.is_turned == (orientation in range(2, 9) and kind != 'TIFF')  # which Pillow turns on its own
    assert found.size == image.size == expected.shape[1::-1]


def test_exif_orientation_of_a_grey_image_of_sixteen_bits() -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    image, _, found = read(saved((NOISE_HWC[..., 0].astype(np.uint16) * 256), exif=exif), 'L')
    assert np.array_equal(np.asarray(image), np.rot90(NOISE_HWC[..., 0], -1))
    assert found.is_turned and found.mode.startswith('I')


@pytest.mark.filterwarnings('ignore:Corrupt EXIF data')
def test_broken_exif_data_turn_nothing() -> None:
    image, _, found = read(saved(NOISE_HWC, exif=b'Exif\x00\x00MM\x00*\xff\xff\xff\xff'))
    assert np.array_equal(np.asarray(image), NOISE_HWC) and not found.is_turned


@pytest.mark.filterwarnings('ignore:Corrupt EXIF data')
@pytest.mark.parametrize('kind', ['PNG', 'WEBP', 'JPEG'])
@pytest.mark.parametrize('exif', [b'Exif\0\0garbage!', b'Exif\0\0MM\0*\0\0', b'xx', b'Exif\0\0'])
def test_an_image_with_damaged_exif_data_is_one(kind: str, exif: bytes) -> None:
    plain = saved(NOISE_HWC, kind, **({'lossless': True} if kind == 'WEBP' else {}))
    image, _, found = read(saved(NOISE_HWC, kind, exif=exif, **({'lossless': True} if kind == 'WEBP' else {})))
    assert np.array_equal(np.asarray(image), np.asarray(Image.open(io.BytesIO(plain)))) and not found.is_turned


def palette(transparency: int | bytes | None) -> Image.Image:
    image = Image.fromarray(np.arange(6, dtype=np.uint8).reshape(2, 3), 'P')
    image.putpalette(NOISE_HWC[0, :6].tobytes())
    if transparency is not None:
        image.info['transparency'] = transparency
    return image


@pytest.mark.filterwarnings('ignore:Palette images with Transparency')
@pytest.mark.parametrize('transparency', [None, 2, bytes([0, 128, 255])])
def test_palette_takes_its_colours_whatever_is_transparent(transparency: int | bytes | None) -> None:
    image = palette(transparency)
    options = {} if transparency is None else {'transparency': transparency}
    assert np.array_equal(np.asarray(read(saved(image, **options)).image), NOISE_HWC[0, :6].reshape(2, 3, 3))


def test_transparent_pixels_have_the_colours_that_are_stored() -> None:
    alpha = np.linspace(0, 255, 54).astype(np.uint8).reshape(6, 9, 1)
    assert np.array_equal(np.asarray(read(saved(np.concatenate([NOISE_HWC, alpha], 2))).image), NOISE_HWC)
    grey = Image.merge('LA', [Image.fromarray(NOISE_HWC[..., 0]), Image.fromarray(alpha[..., 0])])
    image, _, found = read(saved(grey), 'L')
    assert np.array_equal(np.asarray(image), NOISE_HWC[..., 0]) and found.mode == 'LA'


def test_one_bit_is_black_and_white() -> None:
    mask = NOISE_HWC[..., 0] > 127
    image, _, found = read(saved(Image.fromarray(mask)), 'L')
    assert np.array_equal(np.asarray(image), mask * np.uint8(255)) and found.mode == '1'


@pytest.mark.parametrize('kind', ['JPEG', 'TIFF'])
def test_cmyk_has_the_colours_of_its_inks(kind: str) -> None:
    """Pillow writes the inverted inks of Adobe's JPEG files, and reads them so."""
    inks = Image.new('CMYK', (8, 8), (0, 255, 255, 0))  # magenta and yellow: red
    image, _, found = read(saved(inks, kind))
    assert np.abs(np.asarray(image).astype(int) - (255, 0, 0)).max() <= 2 and found.mode == 'CMYK'


@pytest.mark.parametrize(('kind', 'options'), [
    ('GIF', {}), ('WEBP', {'lossless': True}), ('TIFF', {}), ('PNG', {}),
])
def test_first_frame_of_several(kind: str, options: dict[str, Any]) -> None:
    frames = [Image.new('RGB', (4, 4), colour) for colour in ('red', 'blue', 'lime')]
    content = saved(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    image, _, found = read(content)
    assert np.array_equal(np.asarray(image), np.asarray(frames[0])) and found.is_animated
    assert not read(saved(frames[0], kind)).found.is_animated


@pytest.mark.parametrize(('kind', 'options'), [
    ('JPEG', {}), ('JPEG', {'progressive': True}), ('PNG', {}), ('GIF', {}), ('WEBP', {}), ('BMP', {}), ('TIFF', {}),
])
@pytest.mark.parametrize('share', [0.3, 0.6, 0.9])
def test_truncated_image_is_an_error(kind: str, options: dict[str, Any], share: float) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8)
    content = saved(pixels, kind, **options)
    with pytest.raises(TrainError, match=r"the image can't be decoded"):
        read(content[:int(share * len(content))])


def test_missing_image() -> None:
    for cell in (None, {'bytes': None, 'path': None}):
        with pytest.raises(TrainError, match=r"the image can't be decoded \(ValueError: it is missing\)"):
            decode(lambda cell=cell: cell, 'L', lambda: 'the image', 16)


@pytest.mark.parametrize(('content', 'reason'), [
    (b'', 'ValueError: it is empty'),
    (b'version https://git-lfs.github.com/spec/v1\noid sha256:0', 'it is a pointer of Git LFS: run git lfs pull'),
    (b'<!DOCTYPE html>\n<html>', 'it is a web page: download the image itself'),
    (b'https://example.org/1.png\n', 'it is an address: download the image first'),
    (b'\0\0\0\x18ftypheic\0\0\0\0', "it is HEIC, which Pillow doesn't read: convert it to JPEG or PNG"),
    (b'/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDAAgGBgcGBQgHBwcJ', 'it is base64 text: decode it'),
    (b'nothing known', "Pillow doesn't know its format, it begins with b'nothing known'"),
])
def test_what_is_no_image_is_named(content: bytes, reason: str) -> None:
    with pytest.raises(TrainError) as raised:
        read(content)
    assert f"the image can't be decoded ({reason}" in str(raised.value)


def test_the_name_of_a_bad_image_is_one_line(tmp_path: Path) -> None:
    paths = [str(tmp_path / name / '0.png') for name in ('a', 'two\nlines')]
    for path in map(Path, paths):
        path.parent.mkdir()
        path.write_bytes(b'')
    datasets.Dataset.from_dict({'image': paths, 'label': [0, 1]}).to_parquet(str(tmp_path / 'train.parquet'))
    with pytest.raises(TrainError) as raised:
        load_source(DataConfig(path=str(tmp_path / 'train.parquet'))).train.image(1)
    assert len(str(raised.value).splitlines()) == 1 and r'two\nlines/0.png' in str(raised.value)


def test_bad_images_are_named_by_file_by_shard_and_key_or_by_row(
        image_folder: Callable[..., Path], tmp_path: Path) -> None:
    file = image_folder(train=3) / 'train' / 'cat' / '1.png'
    file.write_bytes(b'')
    split = load_source(DataConfig(path=str(tmp_path / 'images'))).train
    index = next(index for index in range(6) if split.file(index) == str(file))
    with pytest.raises(TrainError, match=f"^the image '{file}' in row {index} of split 'train' can't"):
        split.image(index)

    (tmp_path / 'shards').mkdir()
    shard = tmp_path / 'shards' / 'train.tar'
    with tarfile.open(shard, 'w') as tar:
        for key in range(4):
            parts = {'cls': str(key % 2).encode(), 'png': saved(NOISE_HWC) if key != 2 else b'no'}
            for suffix, content in parts.items():
                member = tarfile.TarInfo(f'a/{key}.{suffix}')
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    split = load_source(DataConfig(path=str(shard), image_column='png', label_column='cls')).train
    assert split.file(1) == f'{shard}: a/1.png'
    with pytest.raises(TrainError, match=f"^the image '{shard}: a/2.png' in row 2 of split 'train' can't"):
        split.image(2)
