"""WebDataset shards: whether a tar file is whole, and which members of its samples hold images and labels."""
from __future__ import annotations

import os
import tarfile
from collections.abc import Sequence
from typing import Any

import datasets
from PIL import Image

from ...config import DataConfig
from ...errors import require

_END_OF_ARCHIVE = bytes(1024)
_COMPRESSED = (b'\x1f\x8b', b'BZh', b'\xfd7zXZ', b'(\xb5/\xfd')


def check_end(file: str) -> None:
    """Raise an error if a tar file lacks the zeros at its end: readers take what there is for the whole."""
    with open(file, 'rb') as opened:
        head = opened.read(512)
        require(not head.startswith(_COMPRESSED), f"shard '{file}' is compressed, and where it ends can't be checked:"
                                                  ' unpack it to a plain tar file')
        size = opened.seek(0, os.SEEK_END)
        opened.seek(max(0, size - len(_END_OF_ARCHIVE)))
        require(opened.read() == _END_OF_ARCHIVE, f"shard '{file}' is truncated, it has no end-of-archive mark: copy or"
                                                  ' download it again')
        require(any(head), f"shard '{file}' is empty: write it again, or remove it")


def with_labels(rows: Any, config: DataConfig) -> Any:
    """Name the columns of WebDataset shards as those of other tables.

    Each key of the `.json` files becomes a column. `.cls` becomes the column `label`, whatever the `.json` files say.

    Raises:
        TrainError: Samples differ in the extension of their images.
    """
    features = dict(rows.features or {})
    if '__url__' not in features:  # of no WebDataset
        return rows
    is_stream = isinstance(rows, datasets.IterableDataset)
    if not is_stream:
        _check_images(rows)
    wanted = DataConfig.label_column
    by_class = config.label_column == wanted and wanted not in features and 'cls' in features
    keys = features['json'] if isinstance(features.get('json'), dict) else {}
    added = {key: feature for key, feature in keys.items()
             if key not in features and not (by_class and key == wanted)}
    lines = [config.label_column] if features.get(config.label_column) == datasets.Value('string') else []
    if is_stream and (added or lines):
        for column, feature in features.items():
            if isinstance(feature, datasets.Image):  # or else `map` would decode it
                features[column] = datasets.Image(decode=False)
                rows = rows.cast_column(column, features[column])
        rows = rows.map(_lifted, fn_kwargs={'keys': list(added), 'lines': lines},
                        features=datasets.Features({**features, **added}))
    elif added or lines:
        cells = rows.select_columns([*(['json'] if added else []), *lines]).with_format('arrow')[:].to_pylist()
        lifted = [_lifted(row, list(added), lines) for row in cells]
        order = [*rows.column_names, *added]
        for column in (*added, *lines):
            rows = rows.remove_columns([column] if column in features else [])
            rows = rows.add_column(column, [row[column] for row in lifted], feature={**added, **features}[column])
        rows = rows.select_columns(order)
    return rows.rename_column('cls', wanted) if by_class else rows


def _lifted(row: dict[str, Any], keys: Sequence[str], lines: Sequence[str]) -> dict[str, Any]:
    """The keys of a `.json` file as columns, and text files without the end of their line."""
    found = {key: (row['json'] or {}).get(key) for key in keys}
    return found | {column: None if row[column] is None else row[column].rstrip('\r\n') for column in lines}


def _check_images(rows: datasets.Dataset) -> None:
    """Raise an error for the first sample that has an image, but not by the extension that the first samples have.

    `datasets` takes the columns from the first samples, and drops members with another extension.
    """
    images = [column for column, feature in (rows.features or {}).items() if isinstance(feature, datasets.Image)]
    for column in images:
        cells = rows.select_columns([column, '__key__', '__url__']).with_format('arrow')[:]
        missing_N = cells[column].is_null().to_numpy()
        if not missing_N.any():
            continue
        count, place = int(missing_N.sum()), int(missing_N.argmax())
        key, shard = cells['__key__'][place].as_py(), str(cells['__url__'][place].as_py())
        others = _members(shard, key) - {column, *(rows.features or {})}
        pictures = sorted(each for each in others if f'.{each.lower()}' in Image.registered_extensions())
        require(not pictures,
                f"shard '{shard}': the image of sample '{key}' is .{' and .'.join(pictures)}, and those of the first"
                f' samples are .{column}, which {count} of {len(rows)} samples lack: write all with one extension')


def _members(shard: str, key: str) -> set[str]:
    """The extensions of the members of a sample."""
    if not os.path.isfile(shard):
        return set()
    with tarfile.open(shard) as members:
        names = [os.path.split(name) for name in members.getnames()]
    return {name.partition('.')[2] for folder, name in names
            if os.path.join(folder, name.partition('.')[0]) == key}
