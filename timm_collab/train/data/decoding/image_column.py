"""From a column of any type to one of encoded images: files, bytes, or numbers."""
from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ...errors import TrainError, require
from ..labels.label_column import check_column
from .image_split import BASE64, KEY, SHARD

_PROBE = 32
_STRIP = 16  # no image is this long and only 3 or 4 wide
_ADDRESS = re.compile(r'(https?|s3|gs|ftp)://')
_NUMBERS = re.compile(r'\s*\d+(\.0*)?([\s,;]+\d+(\.0*)?)+\s*')
_WRITE = 'or write bytes or image files there: datasets.Image describes both'


def number_depth(splits: Iterable[datasets.Dataset], column: str, bit_depth: int) -> int:
    """Bits per number, 8 or 16, of images that are lists or texts of numbers: one answer for all splits.

    Args:
        splits: All splits; those without such a column don't count.
        column: The column of images.
        bit_depth: Number of bits that the recipe says for images of 16 bits.
    """
    for rows in splits:
        feature = (rows.features or {}).get(column)
        if _is_numbers(feature):
            if (bit_depth < 16 and not _has_bytes(feature)) or _range(rows.data.column(column))[1] > 255:
                return 16
        elif bit_depth < 16 and _is_text(feature):
            return 16
    return 8


def image_rows(rows: Any, split: str, column: str, *others: str, depth: int = 8) -> Any:
    """Select the column of images, not decoded, those that name the files of a WebDataset, and others.

    Numbers become images: lists of lists as they are, a flat list or text of numbers as a grey square.

    Args:
        rows: Rows of the split, a `Dataset` or an `IterableDataset`.
        split: Name of the split, for messages.
        column: The column of images.
        others: Other columns to keep.
        depth: Bits per number of images that are numbers, see `number_depth`.

    Raises:
        TrainError: There is no such column, or it holds no images; the message says what it holds, and what to do.
    """
    check_column(rows, column, 'data.image_column')
    names = [name for name in (SHARD, KEY) if name in rows.column_names and name not in others]
    rows = rows.select_columns([column, *others, *names])
    feature = rows.features[column]
    where = f"data.image_column: column '{column}' of split '{split}' contains"
    if isinstance(rows, datasets.Dataset):
        texts = _texts(rows, column)
        if _is_numbers(feature) or (texts and all(map(_NUMBERS.fullmatch, texts))):
            return _from_numbers(rows, split, column, where, depth)
        _check_texts(texts, where)
    else:
        require(not _is_numbers(feature), f'{where} {feature}, not images: leave out data.streaming')
    if not isinstance(feature, datasets.Image):
        try:
            rows = rows.cast_column(column, datasets.Image())
        except Exception as error:  # pyarrow's, of several types
            raise TrainError(f'{where} {feature}, not images: name another column, {_WRITE}') from error
    rows = rows.cast_column(column, datasets.Image(decode=False))
    if isinstance(rows, datasets.Dataset):
        _check_files(rows, column, where)
    return rows


def _texts(rows: datasets.Dataset, column: str) -> list[str]:
    """A few of the texts of a column, none if it has another type."""
    if not _is_text(rows.features[column]):
        return []
    places = np.unique(np.linspace(0, max(len(rows) - 1, 0), _PROBE).astype(int))[:len(rows)]
    return [text for text in rows[places.tolist()][column] if text]


def _check_texts(texts: list[str], where: str) -> None:
    """Refuse texts that are images in base64."""
    require(not texts or not all(map(re.compile(BASE64).fullmatch, texts)),
            f"{where} texts such as '{texts[0][:24] if texts else ''}...', images in base64: decode them first, such as"
            ' rows.map(lambda row: {"image": base64.b64decode(row["image"])}), and save the result with to_parquet')


def _check_files(rows: datasets.Dataset, column: str, where: str) -> None:
    """Refuse addresses on the web, and texts that are no paths of files; single missing files are bad images."""
    paths = pc.struct_field(rows.data.column(column), 'path')
    in_files = pc.is_null(pc.struct_field(rows.data.column(column), 'bytes'))
    addresses = pc.match_substring_regex(paths, f'^{_ADDRESS.pattern}')
    found = paths.filter(pc.and_kleene(in_files, addresses))
    require(len(found) == 0, f"{where} {len(found):,} addresses such as '{found[0] if len(found) else ''}': training"
                             ' would load them again in every epoch, download the files first and write their paths')
    paths = paths.filter(in_files).drop_null()
    places = np.unique(np.linspace(0, max(len(paths) - 1, 0), _PROBE).astype(int))[:len(paths)]
    listed = paths.take(pa.array(places)).to_pylist()
    require(not listed or any('://' in path or Path(path).is_file() for path in listed),
            f"{where} texts such as '{listed[0] if listed else ''}', and there is no such file: name another column, or"
            f" write paths from the current folder, '{Path.cwd()}', or absolute ones")


def _is_numbers(feature: Any) -> bool:
    """Whether a feature is a list, at any depth, or an image-like array of numbers."""
    if isinstance(feature, (datasets.Array2D, datasets.Array3D)):
        return True
    inner = getattr(feature, 'feature', None)
    is_number = getattr(inner, 'dtype', '').startswith(('int', 'uint', 'float'))
    return inner is not None and (is_number or _is_numbers(inner))


def _has_bytes(feature: Any) -> bool:
    """Whether the numbers of a list or array are stored with 8 bits."""
    inner = getattr(feature, 'feature', None)
    return getattr(feature, 'dtype', '') == 'uint8' if inner is None else _has_bytes(inner)


def _from_numbers(rows: datasets.Dataset, split: str, column: str, where: str, depth: int) -> datasets.Dataset:
    """Encode lists, arrays or texts of numbers as images."""
    if not _is_text(rows.features[column]):
        smallest, largest, are_integers = _range(rows.data.column(column))
        require(are_integers and smallest >= 0 and 1 < largest < 2**16,
                f'{where} numbers from {smallest:g} to {largest:g}, and pixels are integers from 0 to 255, or to 65535:'
                ' scale them, such as by numpy.round(255 * numbers)')
    _check_alpha(rows, column, where)
    encoded = rows.with_format('numpy', columns=[column], output_all_columns=True).map(
        _encode,
        batched=True,
        with_indices=True,
        fn_kwargs={'column': column, 'depth': depth, 'split': split, 'where': where},
        features=datasets.Features({**rows.features, column: datasets.Image(decode=False)}),
        desc=f"images of split '{split}'",
    )
    return encoded.with_format(None)


def _is_text(feature: Any) -> bool:
    return getattr(feature, 'dtype', None) in ('string', 'large_string')


def _range(values: pa.ChunkedArray) -> tuple[float, float, bool]:
    """Smallest and largest of all numbers in lists, and whether all are integers."""
    found = []
    for chunk in values.chunks:
        while isinstance(chunk, pa.ExtensionArray) or pa.types.is_nested(chunk.type):
            chunk = chunk.storage if isinstance(chunk, pa.ExtensionArray) else chunk.flatten()
        if len(chunk) > chunk.null_count:
            ends = pc.min_max(chunk).as_py()
            is_float = pa.types.is_floating(chunk.type)
            found.append((ends['min'], ends['max'],
                          not is_float or pc.all(pc.equal(chunk.cast(pa.float64()), pc.floor(chunk))).as_py()))
    if not found:
        return 0, 0, False
    smallest, largest, are_integers = zip(*found, strict=True)
    return min(smallest), max(largest), all(are_integers)


def _encode(
        batch: dict[str, Any],
        indices: Sequence[int],
        column: str,
        depth: int,
        split: str,
        where: str,
) -> dict[str, Any]:
    """Encode a batch of lists, arrays or texts of numbers; None stays None."""
    cells: list[Any] = []
    for row, numbers in zip(indices, batch[column], strict=True):
        if numbers is None or (np.ndim(numbers) == 0 and not isinstance(numbers, str)):
            cells.append(None)
            continue
        try:
            if isinstance(numbers, str):
                numbers = _numbers_of(numbers)
            pixels = as_pixels(np.asarray(np.asarray(numbers).tolist(), dtype=np.float64), depth)
        except ValueError as error:
            raise TrainError(f'{where} numbers that are no image, in row {row}: {error}') from None
        cells.append(datasets.Image().encode_example(pixels))
    return {**batch, column: cells}


def _numbers_of(text: str) -> list[float]:
    return [float(each) for each in re.split(r'[\s,;]+', text.strip())]


def _check_alpha(rows: datasets.Dataset, column: str, where: str) -> None:
    """Refuse flat lists of opaque colours with alpha: 4 x S x S numbers are also a grey square of side 2 x S."""
    if _is_numbers(getattr(rows.features[column], 'feature', None)):  # lists of lists
        return
    places = np.unique(np.linspace(0, len(rows) - 1, _PROBE).astype(int)).tolist()
    flat = [np.asarray(_numbers_of(cell) if isinstance(cell, str) else cell) for cell in rows[places][column] if cell]
    quarters = [len(numbers) // 4 for numbers in flat if len(numbers) % 4 == 0]
    if not flat or len(quarters) < len(flat) or all((numbers == 255).all() for numbers in flat):
        return
    side = math.isqrt(quarters[0])
    by_pixel = all((numbers[3::4] == 255).all() for numbers in flat)
    by_colour = all((numbers[-quarter:] == 255).all() for numbers, quarter in zip(flat, quarters, strict=True))
    order = f'({side}, {side}, 4)' if by_pixel else f'(4, {side}, {side})'
    require(not by_pixel and not by_colour,
            f"{where} {len(flat[0]):,} numbers per image, of which a quarter is always 255, as in colours with alpha:"
            f" write numpy.reshape(row['image'], {order}) there, or ({2 * side}, {2 * side}) for a grey image")


def as_pixels(numbers: np.ndarray, depth: int = 8) -> np.ndarray:
    """Arrange numbers as an image, [height, width] or [height, width, 3 or 4].

    Args:
        numbers: A flat array, which is taken for a grey square; [height, width]; or with channels first or last.
            Dimensions of size 1 don't count.
        depth: Bits per number, 8 or 16.

    Raises:
        ValueError: They are no image, or their order is ambiguous; the message says what to write.
    """
    given = numbers.shape
    numbers = np.atleast_1d(numbers.squeeze())
    shape = numbers.shape
    side = math.isqrt(numbers.size)
    if len(shape) == 1 and side * side == numbers.size and side > 1:
        numbers = numbers.reshape(side, side)
    elif len(shape) == 1:
        side = math.isqrt(numbers.size // 3)
        if 3 * side * side == numbers.size and side > 1:
            raise ValueError(f'{numbers.size:,} may be {side} x {side} pixels, colour by colour or pixel by pixel:'
                             f" write numpy.reshape(row['image'], (3, {side}, {side})) or ({side}, {side}, 3) there")
        raise ValueError(f'{numbers.size:,} numbers are no square: write rows of pixels, lists of lists')
    elif len(shape) == 3:
        first, last = shape[0] in (3, 4), shape[2] in (3, 4)
        if first == last:
            raise ValueError(f'an array of {" x ".join(map(str, shape))} has its channels neither clearly first nor'
                             ' clearly last: write (height, width, 3)')
        numbers = numbers if last else numbers.transpose(1, 2, 0)
    elif len(shape) == 2:
        if min(shape) in (3, 4) and max(shape) >= _STRIP:
            size = '(height, width, {})' if shape[1] == min(shape) else '({}, height, width)'
            raise ValueError(f'{" x ".join(map(str, given))} numbers are the colours of {max(shape):,} pixels, and the'
                             f" height is unknown: write numpy.reshape(row['image'], {size.format(min(shape))}) there")
    else:
        raise ValueError(f'{len(shape)} dimensions: write (height, width) or (height, width, 3)')
    if numbers.size and not ((numbers >= 0) & (numbers < 2**depth) & (numbers == np.floor(numbers))).all():
        raise ValueError(f'pixels are integers from 0 to {2**depth - 1}, and these go from {numbers.min():g} to'
                         f' {numbers.max():g}')
    if depth == 16 and numbers.ndim == 3:
        raise ValueError('Pillow has no colour with 16 bits: scale the numbers to 255')
    return np.ascontiguousarray(numbers, dtype=np.uint8 if depth == 8 else np.uint16)
