"""From tables to labelled images: the role of each split, the columns of images and labels.

Array names end in their shape: N examples, M some of them.
"""
from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import datasets
import numpy as np
import numpy.typing as npt

from ..config import DataConfig
from ..errors import TrainError, nearest, require
from .decoding.image_column import image_rows, number_depth
from .decoding.image_split import ImageSplit
from .decoding.stored import shared_files
from .files.folders import SPLITS
from .files.readers import Opened, Streams, download_split, open_splits, open_streams
from .labels.class_names import LabelForm, listed
from .labels.label_column import Labels, Mask, check_column, classes_in, hard_labels, read_labels, tie_notes
from .labels.label_form import find_form, given_form, number_notes, stream_form
from .loading.streaming import StreamSplit

_SPLIT_NAMES = {'train': SPLITS['train'], 'val': SPLITS['validation'], 'test': SPLITS['test']}
"""Names of the splits for each role, the preferred one first; in any case, e.g. `Val`."""


@dataclass(frozen=True)
class Source:
    """A dataset as it was found: its splits, and the names of its classes if there are any.

    Args:
        train: The training split.
        val: The validation split.
        test: The test split.
        label_names: Names of the classes.
        given: Noisy labels of all rows of the training split, from `noise.column`.
        not_given: Rows of the training split without a noisy label.
        left_out: Number of files and rows that are in no split, by reason.
        notes: What the user should know about how the data was read, a sentence each.
    """

    train: ImageSplit | StreamSplit
    val: ImageSplit | None
    test: ImageSplit | None
    label_names: list[str] | None
    given: Labels | None = None
    not_given: Mask | None = None
    left_out: dict[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def load_source(
        config: DataConfig,
        noise_column: str | None = None,
        num_classes: int | None = None,
        class_names: Sequence[str] | None = None,
        opened: Streams | Opened | None = None,
) -> Source:
    """Open the dataset of a recipe and check its splits, columns and labels.

    Classes are joined by name, with those of the training split. Images are not decoded yet.

    Args:
        config: The data keys of the recipe.
        noise_column: Another column with labels of the training split.
        num_classes: Number of classes, if the recipe gives it.
        class_names: Names of the classes in the order of their indices, if a model has them already.
        opened: The dataset, if it is open already.

    Raises:
        TrainError: A split or column doesn't exist or doesn't contain what its key says.
    """
    opened = opened or open_data(config)
    available: Mapping[str, Any] = opened.splits
    chosen = _choose_splits(config, available)
    config = replace(config, train_split=chosen['train'])
    config = with_columns(config, available[config.train_split])
    given = given_form(config, num_classes, class_names)

    stream: StreamSplit | None = None
    if isinstance(opened, Streams):
        require('val' in chosen, "data.streaming: validation images can't be held out of a stream, and"
                                 f" '{config.path}' has no split 'validation' or 'val': write --data.val_split with"
                                 f' one of {", ".join(available)}')
        stream, form = _stream(opened, config, given)
        found = {name: download_split(opened, name, config) for role, name in chosen.items() if role != 'train'}
    else:
        found = opened.splits
        form = find_form(found[config.train_split], config, given)
    left_out, notes = {**opened.left_out, **_unused_splits(opened, chosen, config)}, (*opened.notes, *form.notes)
    depth = number_depth(
        [found[name] for name in chosen.values() if name in found], config.image_column, config.bit_depth)
    splits = {role: _image_split(found[name], name, config, form, depth, role)
              for role, name in chosen.items() if name in found}
    ties = [note for role, split in splits.items() if role != 'train'
            for note in tie_notes(split.labels, f"split '{split.name}'")]
    splits = {role: split if role == 'train' else split.with_labels(hard_labels(split.labels))
              for role, split in splits.items()}
    notes = (*notes, *ties, *shared_files(splits.values()))
    columns = {f"split '{name}'": found[name].features[config.label_column]
               for name in chosen.values() if name in found}
    unlabelled = sum(len(split.rows) - len(split) for split in splits.values())
    noisy, not_noisy = None, None
    if noise_column is not None:
        rows, train = found[config.train_split], splits['train']
        check_column(rows, noise_column, 'noise.column')
        try:
            noisy, not_noisy = read_labels(rows, train.name, replace(config, label_column=noise_column), form)
        except TrainError as error:
            raise TrainError(f'noise.column: {error}') from None
        columns[f"noise.column '{noise_column}'"] = rows.features[noise_column]
        _check_missing(train.row_N[not_noisy[train.row_N]], len(train), train.name, f"noise.column '{noise_column}'",
                       config)
    return Source(
        train=stream or splits['train'],
        val=splits.get('val'),
        test=splits.get('test'),
        label_names=form.names,
        given=noisy,
        not_given=not_noisy,
        left_out={**left_out, 'no label': unlabelled} if unlabelled else left_out,
        notes=(*notes, *number_notes(columns, config, form), *_absent_classes(splits, form)),
    )


def load_split(
        config: DataConfig,
        name: str,
        num_classes: int | None = None,
        class_names: Sequence[str] | None = None,
        opened: Streams | Opened | None = None,
) -> tuple[ImageSplit, list[str] | None]:
    """Load any one split for evaluation, and the names of its classes.

    Args:
        config: The data keys of a recipe.
        name: Name of the split.
        num_classes: Number of classes, if a model has it.
        class_names: Names of the classes of the model.
        opened: The dataset, if it is open already.

    Raises:
        TrainError: As `load_source`.
    """
    opened = opened or open_data(config)
    available: Mapping[str, Any] = opened.splits
    name = _existing(name, available)
    if name == _SPLIT_NAMES['test'][0] and name not in available and len(available) == 1:
        name = next(iter(available))  # a test set of its own has no need to say so
    _check_split(name, '--split', available, config)
    config = with_columns(replace(config, train_split=name), available[name])
    rows = download_split(opened, name, config) if isinstance(opened, Streams) else opened.splits[name]
    form = find_form(rows, config, given_form(config, num_classes, class_names))
    depth = number_depth([rows], config.image_column, config.bit_depth)
    split = _image_split(rows, name, config, form, depth)
    return split.with_labels(hard_labels(split.labels)), form.names


def open_data(config: DataConfig) -> Streams | Opened:
    """Open the dataset that `data.path` names, streamed or not.

    Raises:
        TrainError: There is no such data, or it can't be read.
    """
    return open_streams(config) if config.streaming else open_splits(config)


def with_columns(config: DataConfig, rows: datasets.Dataset | datasets.IterableDataset) -> DataConfig:
    """Replace default column names that don't exist by the only column of that type."""
    features = rows.features or {}  # unknown for some streams
    found = {}
    for key, kind in (('image_column', datasets.Image), ('label_column', datasets.ClassLabel)):
        default = getattr(DataConfig, key)
        candidates = [name for name, feature in features.items() if isinstance(feature, kind)]
        if getattr(config, key) == default and default not in features and len(candidates) == 1:
            found[key] = candidates[0]
    return replace(config, **found)


def _choose_splits(config: DataConfig, available: Mapping[str, Any]) -> dict[str, str]:
    """The name of the split for each role that has one.

    Raises:
        TrainError: There is no such split, or one would have two roles.
    """
    asked = {'train': config.train_split, 'val': config.val_split, 'test': config.test_split}
    chosen: dict[str, str] = {}
    for role, name in asked.items():
        if name is None:
            continue
        found = _existing(_SPLIT_NAMES[role][0] if name == 'auto' else name, available)
        if name == 'auto':
            if found not in available:
                continue
            alike = [each for each in available if each.lower() in _SPLIT_NAMES[role]]
            require(len(alike) == 1, f"'{config.path}' has {len(alike)} splits for one purpose,"
                                     f' {" and ".join(alike)}: write --data.{role}_split with one of them')
        _check_split(found, f'data.{role}_split', available, config)
        other = next((role for role, name in chosen.items() if name == found), None)
        effect = {'val': 'hold out a part of the training split', 'test': 'do without a test split'}
        require(other is None, f"the same split is used twice: '{found}' would be both {other} and {role} split; write"
                               f' --data.{role}_split null to {effect.get(role)}, or name another of'
                               f' {", ".join(available)}')
        chosen[role] = found
    return chosen


def _unused_splits(opened: Streams | Opened, chosen: Mapping[str, str], config: DataConfig) -> dict[str, int]:
    """Number of rows of the splits without a role, by reason, but for those that the recipe does without."""
    declined = {name for role, names in _SPLIT_NAMES.items() if getattr(config, f'{role}_split') is None
                for name in names}
    lengths = (opened.lengths if isinstance(opened, Streams) else
               {name: len(rows) for name, rows in opened.splits.items()})
    return {f"a row of split '{name}', which is not used": count for name, count in lengths.items()
            if count and name not in chosen.values() and name.lower() not in declined}


def _existing(name: str, available: Iterable[str]) -> str:
    """The split that a name means: that of this name, or else the one with another name for the same role."""
    if name in available:
        return name
    alike = next((names for names in _SPLIT_NAMES.values() if name.lower() in names), (name,))
    found = [each for wanted in alike for each in available if each.lower() == wanted]
    return found[0] if found else name


def _check_split(name: str, key: str, available: Mapping[str, Any], config: DataConfig) -> None:
    option = f'--{key.removeprefix("--")}'
    remedy = f'{option} {next(iter(available), "")}' if len(available) == 1 else f'{option} with one of them'
    require(name in available, f"{key}: '{config.path}' has no split '{name}', it has {', '.join(map(repr, available))}"
                               + (nearest(name, available) or f': write {remedy}'))


def _image_split(
        rows: datasets.Dataset,
        name: str,
        config: DataConfig,
        form: LabelForm,
        depth: int,
        role: str = 'test',
) -> ImageSplit:
    """The images of a split that have a label."""
    require(len(rows) > 0, f"split '{name}' of data.path '{config.path}' is empty")
    labels, missing_N = read_labels(rows, name, config, form)
    row_N = np.flatnonzero(~missing_N)
    hint = '' if role == 'train' else (
        f': it is unlabelled, write --data.{role}_split null; or if only the training split has these labels, name'
        f' another column for the evaluation, and write --noise.kind column --noise.column {config.label_column}')
    column = f"data.label_column '{config.label_column}'"
    _check_missing(np.flatnonzero(missing_N), len(rows), name, column, config, hint)
    return ImageSplit(
        name=name,
        rows=image_rows(rows, name, config.image_column, depth=depth),
        image_column=config.image_column,
        mode='L' if config.in_chans == 1 else 'RGB',
        row_N=row_N,
        labels=labels[row_N],
        bit_depth=config.bit_depth,
    )


def _check_missing(
        row_M: npt.NDArray[np.int64],
        count: int,
        split: str,
        column: str,
        config: DataConfig,
        if_none: str = '',
) -> None:
    """Raise an error for rows without a label, unless the recipe skips them and there are others."""
    require(len(row_M) < count, f"no row of split '{split}' has a label in {column}{if_none}")
    require(config.on_missing_label == 'skip' or len(row_M) == 0,
            f"{len(row_M)} of {count} rows of split '{split}' have no label in {column} (rows {listed(row_M)}, counted"
            ' from 0 within the split): write --data.on_missing_label skip to leave them out')


def _absent_classes(splits: Mapping[str, ImageSplit], form: LabelForm) -> list[str]:
    """A sentence for each split that lacks classes; where training lacks a class, others may."""
    notes: list[str] = []
    if form.count is None:
        return notes
    names = form.names or list(map(str, range(form.count)))
    expected_C = np.ones(len(names), dtype=bool)
    for split in splits.values():
        present_C = classes_in(split.labels, len(names))
        if (absent_M := np.flatnonzero(expected_C & ~present_C)).size:
            notes.append(f"split '{split.name}' has no image of {len(absent_M)} of {len(names)} classes:"
                         f' {listed(names[index] for index in absent_M)}')
        if split is splits.get('train'):
            expected_C = present_C
    return notes


def _stream(streams: Streams, config: DataConfig, given: LabelForm) -> tuple[StreamSplit, LabelForm]:
    name = config.train_split
    rows = streams.splits[name]
    require(rows.features is not None, f"data.streaming: the columns of split '{name}' of data.path '{config.path}' are"
                                       ' unknown before it is read: leave out data.streaming')
    form = stream_form(rows, config, given)
    known = streams.lengths.get(name)
    asked = config.num_train_samples
    require(known is not None or asked is not None,
            f"data.streaming: '{config.path}' doesn't give the number of images in split '{name}': write"
            ' --data.num_train_samples with the number per epoch')
    require(known is None or asked is None or asked <= known,
            f"data.num_train_samples {asked}: split '{name}' has {known} images")
    split = StreamSplit(
        name=name,
        rows=image_rows(rows, name, config.image_column, config.label_column),
        image_column=config.image_column,
        label_column=config.label_column,
        mode='L' if config.in_chans == 1 else 'RGB',
        length=asked or known or 0,
        digest=streams.digest,
        classes=form.index,
        skips_missing=config.on_missing_label == 'skip',
        bit_depth=config.bit_depth,
    )
    return split, form
