"""Tables of images with labels of any type."""
from __future__ import annotations

import re
import unicodedata
from pathlib import Path
from typing import Any

import datasets
import pytest

from timm_collab.train.config import DataConfig
from timm_collab.train.data.sources import Source
from timm_collab.train.errors import TrainError

CELL = {'bytes': b'not decoded here', 'path': None}


CONFIG = DataConfig(path='here')


NFC, NFD = (unicodedata.normalize(form, 'café') for form in ('NFC', 'NFD'))


def refuses(*parts: str) -> Any:
    """Expect an error with these parts in its message."""
    return pytest.raises(TrainError, match='.*'.join(map(re.escape, parts)))


def table(labels: list[Any], feature: Any = None, **others: list[Any]) -> datasets.Dataset:
    """Rows with labels; those of class labels are given by name."""
    features = None
    if feature is not None:
        inner = getattr(feature, 'feature', feature)
        if isinstance(inner, datasets.ClassLabel):
            place = {name: index for index, name in enumerate(inner.names)}
            labels = [[place[each] for each in label] if isinstance(label, list) else place.get(label, label)
                      for label in labels]
        features = datasets.Features(label=feature)
    rows = datasets.Dataset.from_dict({'label': labels}, features=features)
    rows = rows.add_column('image', [CELL] * len(rows), feature=datasets.Image())
    for name, column in others.items():
        rows = rows.add_column(name, column)
    return rows


def save(folder: Path, /, **splits: datasets.Dataset) -> DataConfig:
    datasets.DatasetDict(splits).save_to_disk(str(folder))
    return DataConfig(path=str(folder))


def classes(*names: str) -> datasets.ClassLabel:
    return datasets.ClassLabel(names=list(names))


def named(source: Source) -> dict[str, list[str]]:
    """The names of the labels in each split."""
    splits = {split.name: split for split in (source.train, source.val, source.test) if split is not None}
    return {name: [source.label_names[label] for label in split.labels] for name, split in splits.items()}
