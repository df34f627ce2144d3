"""A subset of the images of a split, each with the label to learn.

Array names end in their shape: N examples, M some of them.
"""
from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from io import BytesIO
from typing import Any, NamedTuple

import datasets
import numpy as np
import numpy.typing as npt
import pyarrow.compute as pc
from datasets.utils.file_utils import xopen
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from ...errors import TrainError, one_line
from ..labels.label_column import Labels

SHARD, KEY = '__url__', '__key__'
"""Columns of a WebDataset: the shard, and the name of the example in it."""

BASE64 = r'(data:image/[\w+]+;base64,)?(/9j/|iVBORw0KGgo|R0lGOD|UklGR|Qk|SUkqA|TU0AK)[\w+/=\s]{16,}$'
"""Pattern of images in base64: JPEG, PNG, GIF, WebP, BMP, TIFF."""

_HAS_FRAMES = ('GIF', 'PNG', 'TIFF', 'WEBP')
_SIXTEEN_BITS = re.compile(r';16[BLNS]')  # of Pillow's raw modes; a plain RGB;16 has 16 bits for all three
_NO_IMAGES = (
    (rb'version https://git-lfs', 'it is a pointer of Git LFS: run git lfs pull'),
    (rb'\s*<(!doctype )?html', 'it is a web page: download the image itself'),
    (rb'\w+://\S+\s*$', 'it is an address: download the image first'),
    (rb'.{4}ftyp(heic|heix|mif1)', "it is HEIC, which Pillow doesn't read: convert it to JPEG or PNG"),
    (BASE64.encode(), 'it is base64 text: decode it with base64.b64decode first'),
)
"""Beginnings of what is often found in place of an image."""

Rows = npt.NDArray[np.int64]
Encoded = dict[str, Any]
"""An image as it is stored: its bytes, or the path of the file that holds them."""


class BadImageError(TrainError):
    """An image can't be decoded.

    Attributes:
        reason: Why, without the name of the image.
    """

    reason = ''


class DepthError(ValueError):
    """An image doesn't fit `data.bit_depth`: a mistake of the recipe, which leaving the image out would hide."""


class BadImage(NamedTuple):
    """An image that can't be decoded and was left out.

    Args:
        split: Name of its split.
        row: Its row there.
        file: Its file, see `ImageSplit.file`.
        reason: Why it can't be decoded.
    """

    split: str
    row: int
    file: str
    reason: str

    @property
    def where(self) -> str:
        """Its file, or its row where that is unknown."""
        return self.file or f'row {self.row} of {self.split}'


class Found(NamedTuple):
    """What was found in the file of an image.

    Args:
        size: Width and height, upright.
        mode: Pillow's mode before the conversion; ending in `;16` where Pillow reduced 16-bit colour to 8 bits.
        is_turned: Whether its EXIF orientation turned or mirrored it, other than in TIFF files, which Pillow itself
            turns.
        is_animated: Whether the file holds further frames or pages; the first one is taken.
        largest: Largest value if values have 16 bits, of colour as far as its upper 8 bits tell; else None.
    """

    size: tuple[int, int]
    mode: str
    is_turned: bool
    is_animated: bool
    largest: int | None


class DecodedImage(NamedTuple):
    """An image, upright, with 8 bits per value; its encoded bytes; and what was found in them."""

    image: Image.Image
    content: bytes
    found: Found


def decode(encoded: Callable[[], Encoded | None], mode: str, where: Callable[[], str], bit_depth: int) -> DecodedImage:
    """Decode an image: turn it by its EXIF orientation, reduce it to 8 bits, and convert it as Pillow does.

    Pillow's conversion drops transparency: colours beneath transparent pixels are taken as they are stored.

    Args:
        encoded: Returns the image as it is stored.
        mode: PIL mode to convert it to, 'L' or 'RGB'.
        where: Returns the name of the image for the error message.
        bit_depth: Number of bits that 16-bit images use.

    Raises:
        BadImageError: The image can't be decoded.
        TrainError: It doesn't fit `bit_depth`.
    """
    content = b''
    try:
        content = read_encoded(encoded())
        return _decoded(content, mode, bit_depth)
    except DepthError as error:
        raise TrainError(f'{where()} {error}') from None
    except Exception as error:  # decoders raise many types
        reason = f'{type(error).__name__}: {one_line(error)}'
        if isinstance(error, UnidentifiedImageError):
            reason = next((text for start, text in _NO_IMAGES if re.match(start, content[:200], re.I | re.S)),
                          f"Pillow doesn't know its format, it begins with {content[:16]!r}")
        raised = BadImageError(f"{where()} can't be decoded ({reason}): repair or remove it, or write"
                               ' --data.on_bad_image skip')
        raised.reason = reason
        raise raised from error


def read_encoded(encoded: Encoded | None) -> bytes:
    """The encoded bytes of an image.

    Raises:
        ValueError: There are none.
        OSError: Its file can't be read.
    """
    cell = encoded or {'bytes': None, 'path': None}
    content, path = cell['bytes'], cell['path']
    if content is None and path is None:
        raise ValueError('it is missing')
    if content is None:
        opened = xopen if '://' in path else open  # on the Hub or in an archive, or on this machine
        with opened(path, 'rb') as file:
            content = file.read()
    if not content:
        raise ValueError('it is empty')
    return content


def _decoded(content: bytes, mode: str, bit_depth: int) -> DecodedImage:
    image: Image.Image = Image.open(BytesIO(content))
    file_mode, file_format = image.mode, image.format
    is_animated = is_deep_colour = is_sixteen = is_scaled = False
    if file_format != 'JPEG':  # which has neither; most images are one, and small ones are read in microseconds
        is_animated = file_format in _HAS_FRAMES and getattr(image, 'is_animated', False)
        tiles = getattr(image, 'tile', ())
        has_sixteen = any(_SIXTEEN_BITS.search(str(tile[3])) for tile in tiles)
        is_deep_colour = file_mode[0] != 'I' and has_sixteen
        # Mode I holds 16 bits of PGM files, which Pillow scales to 65535, signed TIFF, and PNG in older versions.
        is_scaled = file_mode == 'I' and any(tile[0] == 'ppm' for tile in tiles)
        is_sixteen = file_mode.startswith('I;16') or (
            file_mode == 'I' and (has_sixteen or is_scaled or file_format == 'PNG'))
    image.load()
    try:
        exif = image.getexif()
    except Exception:  # of many types: it is damaged, which Pillow itself ignores in JPEG files
        exif = Image.Exif()
    is_turned = bool(exif) and exif.get(ExifTags.Base.Orientation) in range(2, 9)
    if is_turned:
        image = ImageOps.exif_transpose(image)
    largest = None
    # Pillow clips values above 255 on conversion, which makes most images of 16 bits white.
    if is_sixteen:
        values, bit_depth = np.asarray(image), 16 if is_scaled else bit_depth
        largest = int(values.max())
        if values.min() < 0:
            raise ValueError(f'it has negative values, down to {values.min()}: shift them to start from 0')
        if largest >= 2**bit_depth:
            raise DepthError(f'has a value of {largest}, more than data.bit_depth {bit_depth} allows: write'
                             f' --data.bit_depth {largest.bit_length()}')
        image = Image.fromarray((values >> (bit_depth - 8)).astype(np.uint8))
    elif is_deep_colour:
        file_mode = f'{file_mode};16'
        largest = int(np.asarray(image).max()) * 256 + 255
        if bit_depth < 16:
            raise DepthError('has 16 bits per colour, of which Pillow reads the upper 8, so that data.bit_depth'
                             f" {bit_depth} can't be applied: convert it to 8 bits first")
    elif file_mode in ('I', 'F'):
        array = np.asarray(image)
        # From 0 to 1 it would be black, as would lists of such numbers.
        if not ((array >= 0) & (array <= 255) & (array == np.floor(array))).all() or array.max() == 1:
            raise ValueError(f'its values, 32 bits each from {array.min():g} to {array.max():g}, are not integers'
                             ' from 0 to 255: store it with 8 or 16 bits')
    found = Found(image.size, file_mode, is_turned, is_animated, largest)
    return DecodedImage(image.convert(mode), content, found)


@dataclass(frozen=True)
class ImageSplit:
    """Rows of one split of a dataset, and the label to learn for each.

    Args:
        name: Name of the split, for messages.
        rows: All rows of the split, images not decoded.
        image_column: Column of `rows` with the images.
        mode: PIL mode that images are converted to, 'L' or 'RGB'.
        row_N: Indices into `rows`.
        labels: Class index of each example, or a row of zeros and ones or of probabilities.
        bit_depth: Number of bits that 16-bit images use.
    """

    name: str
    rows: datasets.Dataset
    image_column: str
    mode: str
    row_N: Rows
    labels: Labels
    bit_depth: int = 16

    def __len__(self) -> int:
        return len(self.row_N)

    def take(self, index_M: Rows) -> ImageSplit:
        """A subset of the examples, in the given order."""
        return replace(self, row_N=self.row_N[index_M], labels=self.labels[index_M])

    def with_labels(self, labels: Labels) -> ImageSplit:
        """The same examples with other labels."""
        return replace(self, labels=labels)

    def located(self, index_M: Sequence[int]) -> tuple[str, list[int]]:
        """Where some of the examples come from: `rows`, and their indices in the dataset."""
        return 'rows', self.row_N[list(index_M)].tolist()

    def encoded(self, index_M: Rows) -> list[Encoded]:
        """Some of the images, as they are stored."""
        row_M = self.row_N[index_M]
        first, last = int(row_M.min()), int(row_M.max())
        if last - first < 2 * len(row_M):  # a slice is read without a copy of the encoded images, a selection with one
            cells = self.rows[first:last + 1][self.image_column]
            return [cells[row - first] for row in row_M.tolist()]
        return self.rows[row_M.tolist()][self.image_column]

    def image(self, index: int, encoded: Encoded | None = None) -> Image.Image:
        """Decode an image; arguments and errors are those of `decoded`."""
        return self.decoded(index, encoded).image

    def decoded(self, index: int, encoded: Encoded | None = None) -> DecodedImage:
        """Decode an image, and tell what was found in its file.

        Args:
            index: Index of the example.
            encoded: The image as it is stored, if it has been read already.

        Raises:
            BadImageError: The image can't be decoded; the message names it.
            TrainError: It doesn't fit `bit_depth`.
        """
        def read() -> Encoded:
            return self.encoded(np.array([index]))[0] if encoded is None else encoded

        return decode(read, self.mode, lambda: self.where(index), self.bit_depth)

    @property
    def table_row_N(self) -> Rows:
        """Indices into the table beneath `rows`, which may be a selection of it."""
        indices = self.rows._indices
        return self.row_N if indices is None else indices.column(0).to_numpy()[self.row_N]

    def paths(self) -> tuple[Rows, list[str]]:
        """Indices of the images that are files of their own, and the paths of these files. Reads no image."""
        column = self.rows.data.column(self.image_column)
        path, row_N = pc.struct_field(column, 'path'), self.table_row_N
        is_file = pc.and_(pc.is_null(pc.struct_field(column, 'bytes')), pc.is_valid(path))
        index_M = np.flatnonzero(is_file.to_numpy()[row_N])
        return index_M, path.take(row_N[index_M]).to_pylist()

    def file(self, index: int) -> str:
        """File of an image as far as it is known: its path, or shard and key in a WebDataset; else ''."""
        try:
            return file_name(self.rows[int(self.row_N[index])], self.image_column)
        except Exception:  # the image itself breaks the reader
            return ''

    def where(self, index: int) -> str:
        """Name of an image for messages."""
        file = self.file(index)
        name = "the image '{}'".format(file.replace('\n', r'\n')) if file else 'the image'
        return f"{name} in row {self.row_N[index]} of split '{self.name}'"

    def bad(self, index: int, error: BadImageError) -> BadImage:
        """The entry of an image that can't be decoded in the list of those left out."""
        return BadImage(self.name, int(self.row_N[index]), self.file(index), error.reason)


def file_name(row: dict[str, Any], image_column: str) -> str:
    """File of the image of a row: its path, or shard and key in a WebDataset; '' where it is unknown."""
    path = (row[image_column] or {}).get('path') or row.get(KEY)
    return ': '.join(str(each) for each in (row.get(SHARD), path) if each is not None)
