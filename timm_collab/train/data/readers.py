"""From `data.path` to tables: the Hub, local files and folders, timm's readers, and the data shipped with the package.

From any source, a split becomes a `datasets.Dataset` of encoded images and labels, or an `IterableDataset` if streamed.
"""
from __future__ import annotations

import hashlib
import io
import itertools
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from glob import glob, has_magic
from importlib import resources
from pathlib import Path
from typing import Any

import datasets
import timm.data
from datasets.packaged_modules.imagefolder.imagefolder import ImageFolder
from PIL import Image
from torch.utils.data import IterableDataset

from ..config import DataConfig
from ..errors import TrainError, one_line, require
from .class_names import join_files, names_differ

BUILTIN = 'builtin:'
TIMM = 'timm:'
_HUB_ID = re.compile(r'[\w-][\w.-]*/[\w-][\w.-]*')
_BUILDERS = {'.parquet': 'parquet', '.arrow': 'arrow', '.tar': 'webdataset'}
_TABLES = ('parquet', 'arrow')
_SAVED = ('dataset_dict.json', 'state.json')  # files of `save_to_disk` for several splits, for one


@dataclass(frozen=True)
class Opened:
    """A dataset as it was opened.

    Args:
        splits: The splits by name; with timm's readers, only those that the recipe names.
        left_out: Number of files that are in no split, by reason.
        notes: What the user should know about how the data was read, a sentence each.
    """

    splits: dict[str, datasets.Dataset]
    left_out: dict[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def open_splits(config: DataConfig) -> Opened:
    """Open the dataset that `data.path` names.

    Raises:
        TrainError: There is no such data, or it can't be read.
    """
    path = str(config.path)
    if path.startswith(TIMM):
        return Opened(_timm_splits(path.removeprefix(TIMM), config))
    target, kwargs = _checked_target(config)
    with _loading(path, is_hub=target is None):
        if kwargs is None:
            found = datasets.load_from_disk(target)
        elif target is None:
            found = datasets.load_dataset(path, config.name, revision=config.revision)
        else:
            found = datasets.load_dataset(target, **kwargs)
    if isinstance(found, datasets.Dataset):
        found = {str(found.split or 'train'): found}
    require(len(found) > 0, f"data.path '{path}' contains no data")
    of_tables = any(rows.info.builder_name in _TABLES for rows in found.values())
    if not of_tables or kwargs is None or target is None:
        return Opened(dict(found))
    files = _table_files(_builder(path, None, None))
    return Opened({name: join_files(rows, files[name]) if name in files else rows for name, rows in found.items()})


@dataclass(frozen=True)
class Streams:
    """Splits that are read sequentially from where they are stored.

    Args:
        splits: The splits by name.
        digest: Identifies the files in their current version.
        lengths: Number of examples of the splits, where known.
    """

    splits: dict[str, datasets.IterableDataset]
    digest: str
    lengths: dict[str, int]


def open_streams(config: DataConfig) -> Streams:
    """Open the dataset that `data.path` names without downloading or copying it.

    Raises:
        TrainError: There is no such data, or it can't be streamed.
    """
    path = str(config.path)
    target, kwargs = _checked_target(config)
    require(kwargs is not None or target is None,
            f"data.streaming: '{path}' was written by save_to_disk and is never copied: leave out data.streaming")
    with _loading(path, is_hub=target is None):
        builder = _builder(path, config.name, config.revision)
        splits = builder.as_streaming_dataset()
    require(not isinstance(builder, ImageFolder),
            f"data.streaming: '{path}' is a folder of images, which would be read class by class: leave out"
            ' data.streaming, its files are opened as they are needed without a copy')
    require(len(splits) > 0, f"data.path '{path}' contains no data")
    files = _table_files(builder)
    require(not names_differ(itertools.chain(*files.values())),
            f"data.streaming: the files of '{path}' declare different class names, or another order of them: leave out"
            ' data.streaming, then they are joined by name')
    return Streams(
        splits=dict(splits),
        digest=f'{builder.hash} {builder.config_id}',
        lengths={name: known.num_examples for name, known in (builder.info.splits or {}).items()},
    )


def download_split(streams: Streams, split: str, config: DataConfig) -> datasets.Dataset:
    """Write one split of a streamed dataset to the cache of `datasets`, with images as they are stored.

    Raises:
        TrainError: It can't be read.
    """
    features = datasets.Features({
        name: datasets.Image(decode=False) if isinstance(feature, datasets.Image) else feature
        for name, feature in (streams.splits[split].features or {}).items()
    })
    # The cached file is found by a hash of these arguments.
    arguments = {'path': config.path, 'name': config.name, 'revision': config.revision, 'split': split,
                 'digest': streams.digest}
    with _loading(str(config.path), is_hub=_target(str(config.path))[0] is None):
        return datasets.Dataset.from_generator(_streamed_rows, features=features, gen_kwargs=arguments)


def _streamed_rows(path: str, name: str | None, revision: str | None, split: str, digest: str) -> Iterator[Any]:
    rows = _builder(path, name, revision).as_streaming_dataset()[split]
    for column, feature in rows.features.items():
        if isinstance(feature, datasets.Image):
            rows = rows.cast_column(column, datasets.Image(decode=False))
    yield from rows


def _builder(path: str, name: str | None, revision: str | None) -> datasets.DatasetBuilder:
    target, kwargs = _target(path)
    if target is None:
        return datasets.load_dataset_builder(path, name, revision=revision)
    return datasets.load_dataset_builder(target, **kwargs or {})


def _table_files(builder: datasets.DatasetBuilder) -> dict[str, list[str]]:
    """The local files of each split that declare columns, parquet or arrow; none for other formats."""
    if builder.name not in _TABLES:
        return {}
    files = {str(split): list(map(str, found)) for split, found in (builder.config.data_files or {}).items()}
    return {split: found for split, found in files.items() if all(map(os.path.isfile, found))}


@contextmanager
def _loading(path: str, is_hub: bool) -> Iterator[None]:
    """Turn the errors of loaders, which have many types, into one about the path."""
    try:
        yield
    except Exception as error:
        reason = one_line(error)
        if empty := re.search(r'Instruction "(\w+)" corresponds to no data', reason):
            raise TrainError(f"split '{empty.group(1)}' of data.path '{path}' is empty") from None
        where = 'from the Hub, and there is no local folder with that name' if is_hub else 'as a dataset'
        raise TrainError(f"data.path '{path}' can't be loaded {where} ({type(error).__name__}: {reason})") from error


def _checked_target(config: DataConfig) -> tuple[str | None, dict[str, Any] | None]:
    """`_target` of the path of a recipe, after checking the keys that depend on it."""
    path = str(config.path)
    require(config.root is None, f"data.root is for timm's readers, data.path timm:..., not for '{path}'")
    target, kwargs = _target(path)
    require(target is None or (config.name is None and config.revision is None),
            f"data.name and data.revision are for datasets of the Hub, and data.path '{path}' is local: leave them out")
    return target, kwargs


def _target(path: str) -> tuple[str | None, dict[str, Any] | None]:
    """Arguments of `load_dataset` for a path. No target means the Hub; no arguments mean a folder of `save_to_disk`."""
    if path.startswith(BUILTIN):
        return str(_builtin_folder(path.removeprefix(BUILTIN))), {}
    local = Path(path).expanduser()
    if local.is_dir():
        return str(local), None if any((local / name).is_file() for name in _SAVED) else {}
    files = [str(local)] if local.is_file() else sorted(glob(str(local), recursive=True)) if has_magic(path) else []
    if files:
        suffixes = {Path(name).suffix for name in files}
        builder = _BUILDERS.get(suffixes.pop()) if len(suffixes) == 1 else None
        require(builder is not None, f"data.path '{path}' is a file that can't be read as data: name files of one type,"
                                     f' {", ".join(_BUILDERS)}, or their folder')
        assert builder is not None
        return builder, {'data_files': files}
    require(not has_magic(path), f"data.path '{path}' matches no file")
    require(_HUB_ID.fullmatch(path) is not None and not path.startswith('.'),
            f"data.path '{path}' does not exist: write an existing folder or file, builtin:digits, timm: and the name"
            ' of a reader, or a dataset of the Hub as user/name, such as uoft-cs/cifar10')
    return None, {}


def _builtin_folder(name: str) -> Path:
    data = Path(str(resources.files('timm_collab') / 'data'))
    known = sorted(folder.name for folder in data.iterdir() if folder.is_dir())
    require(name in known, f"data.path '{BUILTIN}{name}': the data shipped with the package is"
                           f' {", ".join(BUILTIN + each for each in known)}')
    return data / name


def _timm_splits(name: str, config: DataConfig) -> dict[str, datasets.Dataset]:
    """Open the splits that the recipe names. timm's readers return a split for any name, so none can be guessed."""
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
        require(place not in places, f"data.{role}_split: timm reads splits '{places.get(place)}' and '{split}' from"
                                     f" the same folder, '{place}'")
        places[place] = str(split)
        found[str(split)] = _table(dataset, name, root, str(split), config)
    return found


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
