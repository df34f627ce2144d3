"""WebDataset shards: whether a tar file is whole, and which members of its samples are the columns of images and labels."""
from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import datasets

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

    Each key of the `.json` files becomes a column. If there is no column `label` then, `.cls` becomes it.
    """
    features = dict(rows.features or {})
    if '__url__' not in features:  # of no WebDataset
        return rows
    keys = features.get('json')
    if isinstance(keys, dict):
        added = {key: feature for key, feature in keys.items() if key not in features}
        if isinstance(rows, datasets.IterableDataset):
            for column, feature in features.items():
                if isinstance(feature, datasets.Image):  # or else `map` would decode it
                    features[column] = datasets.Image(decode=False)
                    rows = rows.cast_column(column, features[column])
            rows = rows.map(_lifted, fn_kwargs={'keys': list(added)}, features=datasets.Features({**features, **added}))
        else:
            cells = rows.select_columns(['json']).with_format('arrow')[:]['json'].to_pylist()
            for key, feature in added.items():
                rows = rows.add_column(key, [(cell or {}).get(key) for cell in cells], feature=feature)
        features |= added
    wanted = DataConfig.label_column
    if config.label_column == wanted and wanted not in features and 'cls' in features:
        rows = rows.rename_column('cls', wanted)
    return rows


def _lifted(row: dict[str, Any], keys: Sequence[str]) -> dict[str, Any]:
    return {key: (row['json'] or {}).get(key) for key in keys}
