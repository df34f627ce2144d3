"""timm's readers: folders, tar files and the data sets of other libraries, as timm reads them."""
from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import timm.data
from PIL import Image
from torch.utils.data import IterableDataset

from ...config import DataConfig
from ...errors import TrainError, one_line, require
from .folders import Opened, canonical_split

TIMM = 'timm:'


def open_timm(name: str, config: DataConfig) -> Opened:
    """Open the splits that the recipe names. timm's readers return a split for any name, so none can be guessed.

    Args:
        name: Name of the reader.
        config: The data keys of the recipe.

    Raises:
        TrainError: A split can't be read, or is not one of its own.
    """
    roles = {'train': config.train_split, 'val': config.val_split, 'test': config.test_split}
    named = {role: split for role, split in roles.items() if split not in (None, 'auto')}
    root = None if config.root is None else str(Path(config.root).expanduser())
    found: dict[str, datasets.Dataset] = {}
    places: dict[str, str] = {}
    for role, split in named.items():
        try:
            dataset = timm.data.create_dataset(name, root=root, split=split, download=False)
        except Exception as error:  # every reader has its own types
            reason = one_line(error)
            raise TrainError(f"data.path '{TIMM}{name}': timm can't read split '{split}' from data.root '{root}'"
                             f' ({type(error).__name__}: {reason})') from error
        require(not isinstance(dataset, IterableDataset),
                f"data.path '{TIMM}{name}' is read sequentially, and training needs random access: name the"
                ' shards or files themselves as data.path')
        # A reader that finds no folder with the name of the split takes the whole root instead.
        place = str(split if '/' in name else dataset.reader.root)
        if place == root:
            _check_whole_root(root, role, str(split))
        require(place not in places, f"data.{role}_split: timm reads splits '{places.get(place)}' and '{split}' from"
                                     f" the same folder, '{place}'")
        places[place] = str(split)
        found[str(split)] = _table(dataset, name, root, str(split), config)
    return Opened(found)


def _check_whole_root(root: str, role: str, split: str) -> None:
    """Raise an error if timm found no folder for a split and would read those of all splits instead."""
    splits = sorted(entry.name for entry in os.scandir(root) if entry.is_dir() and canonical_split(entry.name)
                    and any(below.is_dir() for below in os.scandir(entry))) if os.path.isdir(root) else []
    require(not splits, f"data.{role}_split: timm finds no folder '{split}' in data.root '{root}' and would read all of"
                        f' {", ".join(splits)} together: write --data.{role}_split {" or ".join(splits)}')


def _table(dataset: Any, name: str, root: str | None, split: str, config: DataConfig) -> datasets.Dataset:
    reader = getattr(dataset, 'reader', dataset)
    indices = getattr(reader, 'class_to_idx', None) or getattr(reader, 'class_name_to_idx', None) or {}
    names = sorted(indices, key=indices.__getitem__)
    is_dense = bool(names) and sorted(indices.values()) == list(range(len(names)))
    features = datasets.Features({
        config.image_column: datasets.Image(),
        config.label_column: datasets.ClassLabel(names=[str(each) for each in names]) if is_dense
        else datasets.Value('int64'),
    })
    # Written to the cache of `datasets` under a hash of these arguments; the stamp changes with the data.
    arguments = {'name': name, 'root': root, 'split': split, 'columns': tuple(features), 'stamp': _stamp(root)}
    return datasets.Dataset.from_generator(_examples, features=features, gen_kwargs=arguments)


def _stamp(root: str | None) -> str:
    """Digest of the names and modification times of all files."""
    place = Path(root or '')
    files = [place] if place.is_file() else sorted(place.rglob('*')) if root else []
    return hashlib.sha256(''.join(f'{file}\0{file.stat().st_mtime_ns}\0' for file in files).encode()).hexdigest()


def _examples(
        name: str,
        root: str | None,
        split: str,
        columns: tuple[str, str],
        stamp: str,
) -> Iterator[dict[str, Any]]:
    """Rows for `from_generator`, which hashes the arguments; `stamp` is only for that hash."""
    dataset = timm.data.create_dataset(name, root=root, split=split, download=False)
    reader = getattr(dataset, 'reader', dataset)
    for index in range(len(dataset)):
        image, label = reader[index][:2]
        if isinstance(image, Image.Image):
            encoded = io.BytesIO()
            image.save(encoded, 'png')
            cell: dict[str, Any] = dict(bytes=encoded.getvalue(), path=None)
        else:
            with image:
                is_file = type(image) is io.BufferedReader  # a member of a tar file has a derived class
                cell = dict(bytes=None, path=str(image.name)) if is_file else dict(bytes=image.read(), path=None)
        yield dict(zip(columns, (cell, -1 if label is None else int(label)), strict=True))
