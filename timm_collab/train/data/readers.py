"""From `data.path` to tables: the Hub, local files and folders, timm's readers, and the data shipped with the package.

Whatever it comes from, a split ends up as a `datasets.Dataset` of encoded images and labels.
"""
from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Iterator
from glob import glob, has_magic
from importlib import resources
from pathlib import Path
from typing import Any

import datasets
import timm.data
from PIL import Image
from torch.utils.data import IterableDataset

from ..config import DataConfig
from ..errors import TrainError, require

BUILTIN = 'builtin:'
TIMM = 'timm:'
_HUB_ID = re.compile(r'[\w-][\w.-]*/[\w-][\w.-]*')
_BUILDERS = {'.parquet': 'parquet', '.arrow': 'arrow', '.tar': 'webdataset'}
_SAVED = ('dataset_dict.json', 'state.json')  # what `save_to_disk` leaves in the folder of several splits, of one


def open_splits(config: DataConfig) -> dict[str, datasets.Dataset]:
    """Open whatever `data.path` names.

    Returns:
        The splits by name; of a reader of timm's, those that the recipe names.

    Raises:
        TrainError: There is no such data, or it can't be read.
    """
    path = str(config.path)
    if path.startswith(TIMM):
        return _timm_splits(path.removeprefix(TIMM), config)
    require(config.root is None, f"data.root is for timm's readers, data.path timm:..., not for '{path}'")
    target, kwargs = _target(path)
    is_hub = target is None
    require(is_hub or (config.name is None and config.revision is None),
            f"data.name and data.revision choose from a data set of the Hub, and data.path '{path}' is local")
    try:
        if kwargs is None:
            found = datasets.load_from_disk(target)
        elif is_hub:
            found = datasets.load_dataset(path, config.name, revision=config.revision)
        else:
            found = datasets.load_dataset(target, **kwargs)
    except Exception as error:  # the loaders raise many unrelated types, all about this path
        reason = ' '.join(str(error).split())
        if empty := re.search(r'Instruction "(\w+)" corresponds to no data', reason):
            raise TrainError(f"split '{empty.group(1)}' of data.path '{path}' is empty") from None
        where = 'from the Hub, and no local folder has that name' if is_hub else 'as a data set'
        raise TrainError(f"data.path '{path}' can't be loaded {where} ({type(error).__name__}: {reason})") from error
    if isinstance(found, datasets.Dataset):
        found = {str(found.split or 'train'): found}
    require(len(found) > 0, f"data.path '{path}' holds no data")
    return dict(found)


def _target(path: str) -> tuple[str | None, dict[str, Any] | None]:
    """What `load_dataset` is given for a path: None for the Hub; arguments None for what `save_to_disk` has written."""
    if path.startswith(BUILTIN):
        return str(_builtin_folder(path.removeprefix(BUILTIN))), {}
    local = Path(path).expanduser()
    if local.is_dir():
        return str(local), None if any((local / name).is_file() for name in _SAVED) else {}
    files = [str(local)] if local.is_file() else sorted(glob(str(local), recursive=True)) if has_magic(path) else []
    if files:
        suffixes = {Path(name).suffix for name in files}
        builder = _BUILDERS.get(suffixes.pop()) if len(suffixes) == 1 else None
        require(builder is not None, f"data.path '{path}' is a file that can't be read as data: name files of one kind,"
                                     f' {", ".join(_BUILDERS)}, or the folder that holds them')
        assert builder is not None
        return builder, {'data_files': files}
    require(not has_magic(path), f"data.path '{path}' matches no file")
    require(_HUB_ID.fullmatch(path) is not None and not path.startswith('.'),
            f"data.path '{path}' does not exist: write an existing folder or file, builtin:digits, timm: and the name"
            ' of a reader, or a data set of the Hub as user/name, e.g. uoft-cs/cifar10')
    return None, {}


def _builtin_folder(name: str) -> Path:
    data = Path(str(resources.files('timm_collab') / 'data'))
    known = sorted(folder.name for folder in data.iterdir() if folder.is_dir())
    require(name in known, f"data.path '{BUILTIN}{name}': the data shipped with the package is"
                           f' {", ".join(BUILTIN + each for each in known)}')
    return data / name


def _timm_splits(name: str, config: DataConfig) -> dict[str, datasets.Dataset]:
    """timm's readers give a split for every name, so only those that are named are opened."""
    roles = {'train': config.train_split, 'val': config.val_split, 'test': config.test_split}
    named = {role: split for role, split in roles.items() if split not in (None, 'auto')}
    root = None if config.root is None else str(Path(config.root).expanduser())
    found: dict[str, datasets.Dataset] = {}
    places: dict[str, str] = {}
    for role, split in named.items():
        try:
            dataset = timm.data.create_dataset(name, root=root, split=split, download=False)
        except Exception as error:  # of every reader's own type
            reason = ' '.join(str(error).split())
            raise TrainError(f"data.path '{TIMM}{name}': timm can't read split '{split}' from data.root '{root}'"
                             f' ({type(error).__name__}: {reason})') from error
        require(not isinstance(dataset, IterableDataset),
                f"data.path '{TIMM}{name}' is read from front to back, and training draws examples in an order of its"
                ' own: name the shards or files themselves as data.path')
        # A reader of folders that finds no folder of the split's name takes the whole root instead.
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
    # Written to the cache of `datasets` under a hash of these arguments; the stamp tells whether the data is another.
    arguments = {'name': name, 'root': root, 'split': split, 'columns': tuple(features), 'stamp': _stamp(root)}
    return datasets.Dataset.from_generator(_examples, features=features, gen_kwargs=arguments)


def _stamp(root: str | None) -> str:
    """A digest of the names and times of all files."""
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
    """Rows for `from_generator`, which hashes the arguments: `stamp` is there for that alone."""
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
                is_file = type(image) is io.BufferedReader  # a member of a tar file is of a class derived from it
                cell = dict(bytes=None, path=str(image.name)) if is_file else dict(bytes=image.read(), path=None)
        yield dict(zip(columns, (cell, -1 if label is None else int(label)), strict=True))

