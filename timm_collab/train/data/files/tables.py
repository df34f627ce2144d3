"""Tables of images: files of parquet and arrow, and WebDataset shards.

The split of a file is its folder's whole name, or the word with which its own name begins (`split_of_files`).
"""
from __future__ import annotations

import glob
import json
import os
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import datasets
from PIL import Image

from ...config import DataConfig
from ...errors import require
from .file_lists import LISTS, first_row, image_column, image_path, is_list
from .folders import SPLITS, Folder, Opened, canonical_split, open_images, scan, split_folders
from .shards import Shard, read_shards

BUILDERS = {'.parquet': 'parquet', '.arrow': 'arrow', '.tar': 'webdataset'}
"""The builder of `datasets` for each type of table that contains images."""

_CARDS = ('README.md', 'dataset_infos.json', 'LICENSE')
_PACKED = ('.zip', '.gz', '.tgz', '.bz2', '.xz', '.zst', '.7z', '.rar')
_SHARD = re.compile(r'(\w+(?:\.\w+)*)-\d{5}-of-\d{5}')


@dataclass(frozen=True)
class Tables:
    """Files of tables, or lists of images.

    Args:
        files: The files of each split.
        extension: The extension that all have.
        is_lists: Whether they are lists of images.
        left_out: Number of files that are in no split, by reason.
        notes: What the user should know about how the files were chosen, a sentence each.
        features: The columns, if a card describes them.
    """

    files: dict[str, list[str]]
    extension: str
    is_lists: bool
    left_out: dict[str, int]
    notes: tuple[str, ...] = ()
    features: datasets.Features | None = None


def find_data(place: str | list[str], config: DataConfig) -> Opened | Tables:
    """Find out what a folder or files contain: images in class folders, tables with images, or lists of images.

    Args:
        place: The folder, or the files.
        config: The data keys of the recipe.

    Raises:
        TrainError: They contain several of these.
    """
    path = str(config.path)
    if isinstance(place, list):
        return _tables(place, os.path.commonpath([os.path.dirname(file) for file in place]), path, Counter())
    root = scan(place)
    others = [file for folder in root.walk() for file in folder.others]
    tables = [file for file in others if os.path.splitext(file)[1].lower() in BUILDERS and not is_list(file)]
    near = [root, *(folder for name, folder in root.folders.items() if canonical_split(name))]
    lists = [file for folder in near for file in folder.others if is_list(file)]
    # With train.csv and test.csv, the folders train/ and test/ are no classes.
    has_classes = bool(split_folders(root)) or (
        len(root.classes) > 1 and not (lists and all(map(canonical_split, root.classes))))
    notes: list[str] = []
    if has_classes:
        beside = [file for folder in root.walk() if folder in near or not folder.all_images
                  for file in folder.others if file in tables]
        require(not beside, f"data.path '{path}' has both class folders and tables, such as"
                            f' {", ".join(os.path.relpath(file, place) for file in beside[:1])}: move one of them, or'
                            ' name the tables by a pattern')
        tables, (lists, notes) = [], _lists_of(root, lists, config)
    if not (tables or lists):
        opened = open_images(root)
        return replace(opened, notes=(*opened.notes, *notes))
    chosen = {*(tables or lists)}
    left_out = Counter(f'a file beside the tables ({os.path.splitext(file)[1] or "no extension"})'
                       for file in others if file not in chosen and os.path.basename(file) not in _CARDS)
    if tables:
        left_out['an image beside the tables'] += len(root.all_images)
    return _tables(sorted(chosen), place, path, left_out)


def _lists_of(root: Folder, lists: Sequence[str], config: DataConfig) -> tuple[list[str], list[str]]:
    """Which lists beside folders of images say what the images are, and a sentence for each that may be meant to.

    Raises:
        TrainError: A list names the images, and no labels.
    """
    known = {os.path.basename(image) for image in root.all_images}
    known |= {stem for name in known if not (stem := os.path.splitext(name)[0]).isdigit()}
    used, notes = [], []
    for file in lists:
        row, name = first_row(file), os.path.relpath(file, root.path)
        column = image_column(row, config)
        if column is not None and config.label_column in row:
            used.append(file)
            continue
        require(column is None or image_path(file, row[column]) is None,
                f"data.path '{config.path}' has folders of images and a list of them, '{name}', without a column"
                f" '{config.label_column}', it has {', '.join(row)}: name its labels as data.label_column, or if the"
                ' folders are the classes, move the list elsewhere')
        column = next((each for each, cell in row.items() if os.path.basename(str(cell)) in known), None)
        if column is not None:
            notes.append(f"folders are read as classes, and '{name}' isn't read, though its column '{column}' names"
                         f' images: if it has the labels, write paths from its own folder into a column file_name')
    return used, notes


def _tables(files: list[str], root: str, path: str, left_out: Counter[str]) -> Tables:
    cached = _cached(files)
    if cached and len(cached) < len(files):
        files = [file for file in files if file not in cached]
        left_out['a table that datasets cached beside those of save_to_disk'] += len(cached)
    extension = _one_type(files, path)
    by_split, unnamed = split_of_files(files, root)
    left_out['a table without the name of a split'] += len(unnamed)
    notes = []
    if unnamed:
        notes.append(f'{len(unnamed)} files are left out, because their names begin with no split and those of others'
                     f" do, such as '{os.path.basename(unnamed[0])}'")
    return Tables(by_split, extension, all(map(is_list, files)), dict(+left_out), tuple(notes))


def _cached(files: Sequence[str]) -> set[str]:
    """Which files are none of those that `save_to_disk` wrote: `map` and `filter` store theirs in the same folder."""
    found: dict[str, set[str] | None] = {}
    for folder in {os.path.dirname(file) for file in files}:
        try:
            state = json.loads(Path(folder, 'state.json').read_text(encoding='utf-8'))
            found[folder] = {each['filename'] for each in state['_data_files']}
        except (OSError, ValueError, LookupError, TypeError):  # of no saved dataset
            found[folder] = None
    return {file for file in files
            if (saved := found[os.path.dirname(file)]) is not None and os.path.basename(file) not in saved}


def card_tables(files: dict[str, list[str]], path: str, features: datasets.Features | None) -> Tables:
    """The files that a card names for each split, and the columns if it describes them.

    Raises:
        TrainError: They are of several types, or of one that can't be read.
    """
    together = [file for of_split in files.values() for file in of_split]
    return Tables(files, _one_type(together, path), all(map(is_list, together)), {}, features=features)


def _one_type(files: list[str], path: str) -> str:
    found = {os.path.splitext(file)[1].lower(): os.path.basename(file) for file in files}
    known = (*BUILDERS, *LISTS)
    require(len(found) < 2, f"data.path '{path}' has files of several types, such as {' and '.join(found.values())}:"
                            ' name files of one type, or move the others')
    [(extension, name)] = found.items()
    require(not extension or extension not in Image.registered_extensions(),
            f"data.path '{path}': '{name}' is an image: name the folder that has a folder for each class, or a CSV file"
            ' with the columns file_name and label')
    require(extension not in _PACKED, f"data.path '{path}': unpack '{name}' and name its folder")
    require(extension in known, f"data.path '{path}': '{name}' can't be read as data: name files of one type,"
                                f' {", ".join(known)}, or their folder')
    return extension


def split_of_files(files: Sequence[str], root: str) -> tuple[dict[str, list[str]], list[str]]:
    """Sort files into splits.

    A folder below the root whose whole name is that of a split holds files of that split. Otherwise the leading word of
    a file's name counts, alone or before a separator or digit: `train.parquet`, `train-00000-of-00005.parquet`,
    `test_01.tar`. What all names begin with, such as `cifar10_`, may stand before it. If no file has such a name, all
    are training data.

    Args:
        files: The files.
        root: The folder from which on their paths count.

    Returns:
        The files of each split, and those without the name of a split where others have one.

    Raises:
        TrainError: A file has the names of two splits, a split has two names, or they can't be told.
    """
    names = {file: os.path.splitext(os.path.basename(file))[0] for file in files}
    folders = {file: _word_of_folder(file, root) for file in files}
    leading = {file: _leading_word(name) for file, name in names.items()}
    if not any(leading.values()) and len(files) > 1:
        shared = re.match(r'(.*[-_. ])?', os.path.commonprefix(list(names.values())))  # noqa: RUF071, of names
        leading = {file: _leading_word(name[shared.end() if shared else 0:]) for file, name in names.items()}
    found: defaultdict[str | None, list[str]] = defaultdict(list)
    first: dict[str, tuple[str, str]] = {}  # word and file of each split
    for file in files:
        word = folders[file] or leading[file]
        split = canonical_split(word) if word else None
        require(leading[file] is None or canonical_split(str(leading[file])) == split,
                f"'{file}' is in a folder of split '{split}' and has the name '{leading[file]}' of another: rename it")
        found[split].append(file)
        if word and split:
            before, other = first.setdefault(split, (word, file))
            require(word == before, f"'{other}' and '{file}' are both the split '{split}', by the names '{before}' and"
                                    f" '{word}': rename one of them")
    unnamed = found.pop(None, [])
    if found:
        for file in list(unnamed):  # other splits of a dataset that was written by `datasets`
            if (shard := _SHARD.match(names[file])) and shard[1].isidentifier():
                found[shard[1]].append(file)
                unnamed.remove(file)
        order = dict.fromkeys([*SPLITS, *sorted(map(str, found))])
        return {split: sorted(found[split]) for split in order if split in found}, unnamed
    words = {name: {canonical_split(word) for word in re.split(r'[-_. \d]+', name)} - {None} for name in names.values()}
    inside = {frozenset(each) for each in words.values()}
    require(len(inside) < 2, f"files of several splits can't be told apart by their names, such as"
                             f' {", ".join(repr(name) for name, each in words.items() if each)[:200]}: let names begin'
                             ' with train, validation or test, or write them into folders with these names')
    return {'train': sorted(unnamed)} if unnamed else {}, []


def _word_of_folder(file: str, root: str) -> str | None:
    """The word for a split that is the whole name of a folder on the way to a file."""
    parts = os.path.relpath(os.path.dirname(file), root).split(os.sep)
    found = {split: part.lower() for part in parts if (split := canonical_split(part))}
    require(len(found) < 2, f"'{file}' is in folders of two splits, {' and '.join(sorted(found))}: move it")
    return next(iter(found.values()), None)


def _leading_word(name: str) -> str | None:
    """The word for a split with which a name begins."""
    word = re.match(r'[^\W\d_]+(?=[-_. \d]|$)', name)
    return word[0].lower() if word and canonical_split(word[0]) else None


def make_builders(tables: Tables, same_names: bool) -> dict[str, tuple[datasets.DatasetBuilder, list[Shard]]]:
    """Make a builder of `datasets` for each split, so that each keeps the classes of its own files; and read these.

    Args:
        tables: The files.
        same_names: Whether the files of a split must declare the same names of classes, as those that are streamed.

    Raises:
        TrainError: A shard is damaged, or the shards of a split differ in their columns.
    """
    builders: dict[str, tuple[datasets.DatasetBuilder, list[Shard]]] = {}
    for split, files in tables.files.items():
        for file in files:
            require('::' not in file, f"'{file}': '::' in a path stands for a file in an archive: rename it")
        shards = read_shards(files, tables.extension, f"the files of split '{split}'", same_names)
        own, features = shards[0].features, tables.features
        if features and any(isinstance(own.get(column), datasets.ClassLabel) and own[column] != feature
                                    for column, feature in features.items()):
            features = None  # the names that the files give to their numbers count
        escaped = [glob.escape(file) for file in files]  # `datasets` takes brackets for a pattern
        builders[split] = datasets.load_dataset_builder(
            BUILDERS[tables.extension], data_files={split: escaped}, features=features), shards
    return builders
