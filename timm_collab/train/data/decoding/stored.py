"""What files tell of images without reading them: whether they have changed between two stops, or are in two splits.

Array names end in their shape: N examples.
"""
from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import numpy as np
import pyarrow.compute as pc

from ...errors import require
from .contents import Contents, digest
from .image_split import ImageSplit, Rows

_PARTS = 256
_FILES = 1024
_THREADS = 16  # on network drives a file's size takes long, and waiting for it no core


def stored(split: ImageSplit, contents: Contents | None) -> dict[str, Any]:
    """Describe the encoded images of a split, as plain data.

    Args:
        split: The examples.
        contents: What their files hold, if all were read.

    Returns:
        `digests`, a digest of the images' digests, if all were read. Otherwise `sizes`, a digest of the lengths of the
        encoded images; `times` if files hold them, digests of the modification times of up to 256 parts of them; and
        `tables` if tables hold some, a digest of the modification times of these.
    """
    if contents is not None:
        return {'digests': digest(contents.digest_N.tobytes()).hex()}
    size_N, time_N = _sizes_and_times(split)
    found: dict[str, Any] = {'sizes': digest(size_N.astype('<i8').tobytes()).hex()}
    if time_N.any():
        parts = (time_N[part::_PARTS].astype('<i8') for part in range(min(_PARTS, len(time_N))))
        found['times'] = [digest(part.tobytes()).hex()[:8] for part in parts]
    if not time_N.all() and split.rows.cache_files:
        tables = [os.stat(table['filename']).st_mtime_ns for table in split.rows.cache_files]
        found['tables'] = digest(np.array(sorted(tables), '<i8').tobytes()).hex()
    return found


def change(before: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """Compare two results of `stored`: what differs, None if nothing does.

    Where only modification times differ, images of one size may have been exchanged, or all files copied or extracted
    again, which is common and harmless. A copy has other times throughout, so times are a change only if they differ in
    some of the parts; `is_copy` tells the other case. A table was copied, or its images were exchanged.
    """
    if before.get('digests') != now.get('digests'):
        return 'images'
    if before.get('sizes') != now.get('sizes'):
        return 'sizes of images'
    share = _changed_times(before, now)
    return 'modification times of some images' if 0 < share < 1 else None


def is_copy(before: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    """Whether the modification times of all images differ, and nothing else."""
    return change(before, now) is None and _changed_times(before, now) == 1


def _changed_times(before: Mapping[str, Any], now: Mapping[str, Any]) -> float:
    pairs = list(zip(before.get('times', ()), now.get('times', ()), strict=False))
    if 'tables' in before and 'tables' in now:  # absent in checkpoints of older versions
        pairs.append((before['tables'], now['tables']))
    return sum(one != other for one, other in pairs) / max(len(pairs), 1)


def _sizes_and_times(split: ImageSplit) -> tuple[Rows, Rows]:
    """Length of each encoded image, -1 if unknown, and the modification time of its file or 0. Reads no image."""
    length = pc.binary_length(pc.struct_field(split.rows.data.column(split.image_column), 'bytes'))
    size_N = length.fill_null(-1).to_numpy().astype(np.int64)[split.table_row_N]
    time_N = np.zeros_like(size_N)
    in_files, paths = split.paths()

    def measure(start: int) -> None:
        for index, path in zip(in_files[start:start + _FILES], paths[start:start + _FILES], strict=True):
            try:
                status = os.stat(path)
            except OSError:  # it is missing, or not on this machine
                continue
            size_N[index], time_N[index] = status.st_size, status.st_mtime_ns

    with ThreadPoolExecutor(_THREADS) as pool:
        list(pool.map(measure, range(0, len(paths), _FILES)))
    return size_N, time_N


def shared_files(splits: Iterable[ImageSplit]) -> list[str]:
    """Refuse a file that is in two splits, by whatever links; a sentence for each split that has a file twice.

    Raises:
        TrainError: There is one.
    """
    real_folder = cache(os.path.realpath)

    def real(path: str) -> str:
        folder, name = os.path.split(path)
        file = os.path.join(real_folder(folder), name)
        if not os.path.islink(file):
            return file
        target = os.path.realpath(file)
        # The cache of the Hub stores files by content: equal images of two splits are one file there.
        return file if os.path.basename(os.path.dirname(target)) == 'blobs' else target

    first: dict[str, tuple[str, str]] = {}
    notes = []
    for split in splits:
        repeated = []
        for path in split.paths()[1]:
            here = split.name, path
            before = first.setdefault(real(path), here)
            if before is not here:
                repeated.append(path)
                require(before[0] == split.name,
                        f"'{path}' of split '{split.name}' is the same file as '{before[1]}' of split '{before[0]}', so"
                        ' that scores would be too good: remove it from one of them')
        if repeated:
            notes.append(f"images of split '{split.name}' repeating a file: {len(repeated):,}, such as '{repeated[0]}'")
    return notes
