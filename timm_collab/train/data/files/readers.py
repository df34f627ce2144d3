"""From `data.path` to tables: the Hub, local files and folders, timm's readers, and the data shipped with the package.

From any source, a split becomes a `datasets.Dataset` of encoded images and labels, or an `IterableDataset` if streamed.
"""
from __future__ import annotations

import errno
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
from datasets.packaged_modules.imagefolder.imagefolder import ImageFolder
from huggingface_hub import hf_hub_download, metadata_load, snapshot_download
from huggingface_hub.errors import EntryNotFoundError
from PIL import Image

from ...config import DataConfig
from ...errors import TrainError, one_line, require
from .file_lists import is_list, open_lists
from .folders import Folder, Opened, open_files, open_images, scan, split_folders
from .shards import join_shards
from .tables import Tables, card_tables, find_data, make_builders
from .timm_readers import TIMM, open_timm
from .webdataset import with_labels

BUILTIN = 'builtin:'
_HUB_ID = re.compile(r'[\w-][\w.-]*/[\w-][\w.-]*')
_SAVED = ('dataset_dict.json', 'state.json')  # files of `save_to_disk` for several splits, for one


def open_splits(config: DataConfig) -> Opened:
    """Open the dataset that `data.path` names.

    Raises:
        TrainError: There is no such data, or it can't be read.
    """
    path = str(config.path)
    if path.startswith(TIMM):
        return open_timm(path.removeprefix(TIMM), config)
    place = _place(config)
    with _loading(path, is_hub=place is None):
        if place is None:
            return _from_hub(config)
        if _saved(place):
            return Opened(_named(datasets.load_from_disk(place)))
        found = _of_card(place, config) or find_data(place, config)
        if isinstance(found, Opened):
            return found
        if found.is_lists:
            opened = open_lists(found.files, config)
        else:
            built = make_builders(found, same_names=False)
            opened = Opened({
                split: with_labels(join_shards(_prepared(builder)[split], shards), config)
                for split, (builder, shards) in built.items()})
    return Opened(opened.splits, {**found.left_out, **opened.left_out}, found.notes + opened.notes)


def _prepared(builder: datasets.DatasetBuilder) -> dict[str, datasets.Dataset]:
    builder.download_and_prepare()
    return _named(builder.as_dataset())


def _named(found: datasets.Dataset | datasets.DatasetDict) -> dict[str, datasets.Dataset]:
    if isinstance(found, datasets.Dataset):
        return {str(found.split or 'train'): found}
    return {str(split): rows for split, rows in found.items()}


def _from_hub(config: DataConfig) -> Opened:
    builder = datasets.load_dataset_builder(config.path, config.name, revision=config.revision)
    if isinstance(builder, ImageFolder) and (root := _hub_folder(builder, config)):
        return open_images(root)
    found = _prepared(builder)
    require(len(found) > 0, f"data.path '{config.path}' contains no data")
    return Opened({split: with_labels(rows, config) for split, rows in found.items()})


def _hub_folder(builder: datasets.DatasetBuilder, config: DataConfig) -> Folder | None:
    """Download a folder of images of the Hub; None if its card has the files of each split, or it has other files.

    Without a card, `datasets` takes a split's name in any part of a path for the split.
    """
    keys: dict[str, Any] = dict(repo_id=config.path, repo_type='dataset', revision=config.revision)
    files = [str(file) for of_split in builder.config.data_files.values() for file in of_split]
    if not all(os.path.splitext(file)[1].lower() in Image.registered_extensions() for file in files):
        return None
    try:
        if _configurations(Path(hf_hub_download(filename='README.md', **keys))):
            return None
    except EntryNotFoundError:
        pass
    root = scan(snapshot_download(**keys))
    inner = [folder for folder in root.folders.values() if split_folders(folder) or len(folder.classes) > 1]
    return inner[0] if len(inner) == 1 and not split_folders(root) and len(root.classes) == 1 else root


@dataclass(frozen=True)
class Streams:
    """Splits that are read sequentially from where they are stored.

    Args:
        splits: The splits by name.
        digest: Identifies the files in their current version.
        lengths: Number of examples of the splits, where known.
        left_out: Number of files that are in no split, by reason.
        notes: What the user should know about how the data was read, a sentence each.
    """

    splits: dict[str, datasets.IterableDataset]
    digest: str
    lengths: dict[str, int]
    left_out: dict[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def open_streams(config: DataConfig) -> Streams:
    """Open the dataset that `data.path` names without downloading or copying it.

    Raises:
        TrainError: There is no such data, or it can't be streamed.
    """
    path = str(config.path)
    place = _place(config)
    in_place = (' which would be read class by class: leave out data.streaming, its files are opened as they are needed'
                ' without a copy')
    with _loading(path, is_hub=place is None):
        if place is None:
            builder = datasets.load_dataset_builder(path, config.name, revision=config.revision)
            require(not isinstance(builder, ImageFolder), f"data.streaming: '{path}' is a folder of images,{in_place}")
            known = {name: split.num_examples for name, split in (builder.info.splits or {}).items()}
            splits = {split: with_labels(rows, config) for split, rows in builder.as_streaming_dataset().items()}
            require(len(splits) > 0, f"data.path '{path}' contains no data")
            return Streams(splits, f'{builder.hash} {builder.config_id}', known)
        require(not _saved(place), f"data.streaming: '{path}' was written by save_to_disk and is never copied: leave"
                                   ' out data.streaming')
        found = _of_card(place, config) or find_data(place, config)
        if isinstance(found, Opened) or found.is_lists:
            kind = 'folder' if isinstance(found, Opened) else 'list'
            raise TrainError(f"data.streaming: '{path}' is a {kind} of images,{in_place}")
        built = make_builders(found, same_names=True)
        splits = {split: with_labels(builder.as_streaming_dataset(split=split), config)
                  for split, (builder, _) in built.items()}
        digest = ' '.join(f'{builder.hash} {builder.config_id}' for builder, _ in built.values())
        lengths = {split: sum(map(len, shards)) for split, (_, shards) in built.items()
                   if all(shard.num_rows is not None for shard in shards)}
    return Streams(splits, digest, lengths, found.left_out, found.notes)


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
    arguments = {'path': config.path, 'name': config.name, 'revision': config.revision,
                 'label_column': config.label_column, 'split': split, 'digest': streams.digest}
    with _loading(str(config.path), is_hub=_place(config) is None):
        return datasets.Dataset.from_generator(_streamed_rows, features=features, gen_kwargs=arguments)


def _streamed_rows(split: str, digest: str, **keys: Any) -> Iterator[Any]:
    """Rows for `from_generator`, which hashes the arguments; `digest` is only for that hash."""
    rows = open_streams(DataConfig(**keys)).splits[split]
    for column, feature in rows.features.items():
        if isinstance(feature, datasets.Image):
            rows = rows.cast_column(column, datasets.Image(decode=False))
    yield from rows


@contextmanager
def _loading(path: str, is_hub: bool) -> Iterator[None]:
    """Turn the errors of loaders, which have many types, into one about the path."""
    try:
        yield
    except TrainError:
        raise
    except Exception as error:
        if empty := re.search(r'Instruction "(\w+)" corresponds to no data', one_line(error)):
            raise TrainError(f"split '{empty.group(1)}' of data.path '{path}' is empty") from None
        cause: BaseException = error
        while isinstance(cause, datasets.exceptions.DatasetGenerationError) and cause.__cause__ is not None:
            cause = cause.__cause__
        where = 'from the Hub, and there is no local folder with that name' if is_hub else 'as a dataset'
        remedy = ''
        if isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT):
            remedy = (f": free space on the disk of '{datasets.config.HF_DATASETS_CACHE}', where tables are copied,"
                      ' or set HF_DATASETS_CACHE to another folder')
        if "don't share the same prefix or the same types" in str(cause):
            remedy = ': the first samples of a shard differ in their members, write all with the same extensions'
        elif 'invalid literal for int()' in str(cause):
            remedy = ': a member .cls holds an integer, store words as .txt and write --data.label_column txt'
        raise TrainError(f"data.path '{path}' can't be loaded {where} ({type(cause).__name__}: {one_line(cause)})"
                         f'{remedy}') from error


Place = str | list[str] | None
"""Where data is: a folder, files, or None for the Hub."""


def _place(config: DataConfig) -> Place:
    """Find what `data.path` names.

    Raises:
        TrainError: There is nothing with that name, or a key doesn't go with it.
    """
    path = str(config.path)
    require(config.root is None, f"data.root is for timm's readers, data.path timm:..., not for '{path}'")
    place = _local(path)
    if place is None:
        require(not has_magic(path), f"data.path '{path}' matches no file")
        require(_HUB_ID.fullmatch(path) is not None and not path.startswith('.'),
                f"data.path '{path}' does not exist: write an existing folder or file, builtin:digits, timm: and the"
                ' name of a reader, or a dataset of the Hub as user/name, such as uoft-cs/cifar10')
        return None
    require(config.revision is None, f"data.revision is for datasets of the Hub, and data.path '{path}' is local: leave"
                                     ' it out')
    return place


def _local(path: str) -> Place:
    if path.startswith(BUILTIN):
        return str(_builtin_folder(path.removeprefix(BUILTIN)))
    local = os.path.abspath(os.path.expanduser(path))
    if os.path.isdir(local):
        return local
    if os.path.isfile(local):
        return [local]
    return sorted(filter(os.path.isfile, glob(local, recursive=True))) or None if has_magic(local) else None


def _saved(place: Place) -> bool:
    """Whether a folder was written by `save_to_disk`."""
    return isinstance(place, str) and any((Path(place) / name).is_file() for name in _SAVED)


def _of_card(place: str | list[str], config: DataConfig) -> Opened | Tables | None:
    """The data that the card of a dataset names; None if there is no such card.

    Raises:
        TrainError: The card has several configurations and none was chosen, or data.name is set and there is none.
    """
    card = Path(place) / 'README.md' if isinstance(place, str) else None
    configs = _configurations(card) if card else {}
    if card is None or not configs:
        require(config.name is None, f"data.name is for datasets with several configurations, and data.path"
                                     f" '{config.path}' has none: leave it out")
        return None
    default = next((name for name, keys in configs.items() if keys.get('default') is True), 'default')
    name = config.name or (next(iter(configs)) if len(configs) == 1 else default)
    several = f'has several configurations: write --data.name with one of {", ".join(configs)}'
    require(name in configs, f"data.path '{config.path}' " + (
        several if len(configs) > 1 else f"has no configuration '{name}', only {', '.join(configs)}"))
    folder, patterns = card.parent / str(configs[name].get('data_dir') or ''), configs[name].get('data_files')
    if patterns is None:  # its splits are found as those of any folder
        require(folder.is_dir(), f"'{card}': data_dir of configuration '{name}' is no folder: correct or remove it")
        return find_data(str(folder), config)
    require(not has_magic(str(place)), f"data.path '{config.path}' has '[', '*' or '?' in its name, which"
                                       ' would be taken for a pattern: rename the folder')
    try:
        # Its files alone: what `datasets` caches for a configuration stays when its files change.
        builder = datasets.load_dataset_builder(str(place), name)
    except Exception:  # `datasets` says that it can't infer a format
        for pattern in _patterns(patterns):
            require(glob(str(folder / pattern), recursive=True),
                    f"'{card}': configuration '{name}' names '{pattern}', and there is no such file: correct it, or"
                    ' remove it')
        raise
    files = {str(split): [str(file) for file in found] for split, found in builder.config.data_files.items()}
    lists = {split: list(filter(is_list, found)) for split, found in files.items()}
    if isinstance(builder, ImageFolder) and not any(lists.values()):
        return open_files(files, str(config.path))
    return card_tables(lists if isinstance(builder, ImageFolder) else files, str(config.path), builder.info.features)


def _patterns(data_files: Any) -> list[str]:
    """The patterns in a card's `data_files`: one, a list, or one or more for each split."""
    if isinstance(data_files, dict):
        data_files = data_files.get('path', [])
    return [data_files] if isinstance(data_files, str) else [
        pattern for each in data_files for pattern in _patterns(each)]


def _configurations(card: Path) -> dict[str, dict[str, Any]]:
    """The configurations in the card of a dataset that name their files or folder."""
    if not card.is_file():
        return {}
    try:
        listed = (metadata_load(card) or {}).get('configs') or []
    except Exception as error:  # YAML's among them
        raise TrainError(f"the head of '{card}' can't be read ({one_line(error)}): repair or remove it") from error
    return {str(each.get('config_name', 'default')): each for each in listed
            if 'data_files' in each or 'data_dir' in each}


def _builtin_folder(name: str) -> Path:
    data = Path(str(resources.files('timm_collab') / 'data'))
    known = sorted(folder.name for folder in data.iterdir() if folder.is_dir())
    require(name in known, f"data.path '{BUILTIN}{name}': the data shipped with the package is"
                           f' {", ".join(BUILTIN + each for each in known)}')
    return data / name
