"""Tables of images that tell their number, whose label is the number modulo 2."""
from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from PIL import Image

from timm_collab.train.config import DataConfig
from timm_collab.train.data.files.readers import open_splits


def png(number: int) -> bytes:
    encoded = io.BytesIO()
    Image.fromarray(np.full((4, 4, 3), number, np.uint8)).save(encoded, 'png')
    return encoded.getvalue()


def rows(*numbers: int, names: list[str] | None = None, **columns: list[Any]) -> datasets.Dataset:
    """Images that tell their number, whose label is the number modulo 2."""
    features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=names or ['even', 'odd']))
    cells = {'image': [{'bytes': png(number), 'path': None} for number in numbers],
             'label': [features['label'].str2int(('even', 'odd')[number % 2]) for number in numbers], **columns}
    for name in columns:
        features[name] = datasets.Value('int64')
    return datasets.Dataset.from_dict(cells, features=features)


def parquet(root: Path, name: str, *numbers: int, **keys: Any) -> Path:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    rows(*numbers, **keys).to_parquet(str(root / name))
    return root


def tar(root: Path, name: str, members: dict[str, bytes]) -> Path:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(root / name, 'w') as file:
        for member, data in members.items():
            info = tarfile.TarInfo(member)
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
    return root


def shard(*numbers: int, label: str = 'json') -> dict[str, bytes]:
    """Members of a shard, with the label as `.cls` or in `.json`."""
    members = {}
    for number in numbers:
        text = json.dumps({'label': number % 2, 'number': number}) if label == 'json' else str(number % 2)
        members |= {f'{number:03}.png': png(number), f'{number:03}.{label}': text.encode()}
    return members


def numbers(path: Path | str, **keys: Any) -> dict[str, list[int]]:
    """The numbers that the images of each split tell, after checking their labels."""
    found: dict[str, list[int]] = {}
    for split, table in open_splits(DataConfig(path=str(path), **keys)).splits.items():
        image = next(name for name, kind in table.features.items() if isinstance(kind, datasets.Image))
        found[split] = [int(np.asarray(each)[0, 0, 0]) for each in table[image]]
        feature = table.features['label']
        labels = feature.int2str(table['label']) if isinstance(feature, datasets.ClassLabel) else table['label']
        assert [{'even': 0, 'odd': 1}.get(each, each) for each in labels] == [number % 2 for number in found[split]]
    return found


def numbers_per_split(root: Path, **keys: Any) -> dict[str, int]:
    return {split: len(table) for split, table in open_splits(DataConfig(path=str(root), **keys)).splits.items()}
