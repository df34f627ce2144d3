"""From tables to labelled images: the role of each split, the columns of images and labels.

Array names end in their shape: N examples, M some of them.
"""
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import datasets
import numpy as np

from ..config import DataConfig
from ..errors import nearest, require
from .image_column import image_rows
from .image_split import ImageSplit
from .labels import LabelForm, Labels, check_column, find_form, read_labels, stream_form
from .readers import Opened, Streams, download_split, open_splits, open_streams
from .streaming import StreamSplit

_AUTO_SPLITS = {'val': ('validation', 'val'), 'test': ('test',)}


@dataclass(frozen=True)
class Source:
    """A dataset as it was found: its splits, and the names of its classes if there are any.

    Args:
        train: The training split.
        val: The validation split.
        test: The test split.
        label_names: Names of the classes.
        given: Noisy labels of the whole training split, from `noise.column`.
        left_out: Number of files and rows that are in no split, by reason.
        notes: What the user should know about how the data was read, a sentence each.
    """

    train: ImageSplit | StreamSplit
    val: ImageSplit | None
    test: ImageSplit | None
    label_names: list[str] | None
    given: Labels | None = None
    left_out: dict[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def load_source(config: DataConfig, noise_column: str | None = None) -> Source:
    """Open the dataset of a recipe and check its splits, columns and labels.

    Images are not decoded yet, and class indices not yet checked against the number of classes.

    Args:
        config: The data keys of the recipe.
        noise_column: Another column with labels of the training split.

    Raises:
        TrainError: A split or column doesn't exist or doesn't contain what its key says.
    """
    opened, available = _open(config)
    names = {
        'train': config.train_split,
        'val': _split_name(config.val_split, 'val', available),
        'test': _split_name(config.test_split, 'test', available),
    }
    chosen = {role: name for role, name in names.items() if name is not None}
    for role, name in chosen.items():
        _check_split(name, f'data.{role}_split', available, config)
    config = _with_columns(config, available[config.train_split])
    require(len(set(chosen.values())) == len(chosen), f'the same split is used twice: {chosen}')

    train: StreamSplit | None = None
    if isinstance(opened, Streams):
        require('val' in chosen, "data.streaming: validation images can't be held out of a stream, and"
                                 f" '{config.path}' has no split 'validation' or 'val': write --data.val_split with"
                                 f' one of {", ".join(available)}')
        train, form = _stream(opened, config)
        found = {name: download_split(opened, name, config) for role, name in chosen.items() if role != 'train'}
    else:
        found = opened.splits
        form = find_form(found[config.train_split], config)
    splits = {role: _image_split(found[name], name, config, form) for role, name in chosen.items() if name in found}
    given = None
    if noise_column is not None:
        rows = found[config.train_split]
        check_column(rows, noise_column, 'noise.column')
        given = read_labels(rows, config.train_split, replace(config, label_column=noise_column), form)
    left_out, notes = ({}, ()) if isinstance(opened, Streams) else (opened.left_out, opened.notes)
    return Source(train or splits['train'], splits.get('val'), splits.get('test'), form.names, given, left_out, notes)


def load_split(config: DataConfig, name: str) -> tuple[ImageSplit, list[str] | None]:
    """Load any one split and the names of its classes.

    Raises:
        TrainError: As `load_source`.
    """
    opened, available = _open(config)
    _check_split(name, 'split', available, config)
    config = _with_columns(config, available[name])
    rows = download_split(opened, name, config) if isinstance(opened, Streams) else opened.splits[name]
    form = find_form(rows, config)
    return _image_split(rows, name, config, form), form.names


def _open(config: DataConfig) -> tuple[Streams | Opened, Mapping[str, Any]]:
    """The dataset that `data.path` names, and its splits by name."""
    if config.streaming:
        streams = open_streams(config)
        return streams, streams.splits
    opened = open_splits(config)
    return opened, opened.splits


def _with_columns(config: DataConfig, rows: datasets.Dataset | datasets.IterableDataset) -> DataConfig:
    """Replace default column names that don't exist by the only column of that type."""
    features = rows.features or {}  # unknown for some streams
    found = {}
    for key, kind in (('image_column', datasets.Image), ('label_column', datasets.ClassLabel)):
        default = getattr(DataConfig, key)
        candidates = [name for name, feature in features.items() if isinstance(feature, kind)]
        if getattr(config, key) == default and default not in features and len(candidates) == 1:
            found[key] = candidates[0]
    return replace(config, **found)


def _check_split(name: str, key: str, available: Mapping[str, Any], config: DataConfig) -> None:
    require(name in available, f"{key}: '{config.path}' has no split '{name}', it has {', '.join(available)}"
                               f'{nearest(name, available)}')


def _image_split(rows: datasets.Dataset, name: str, config: DataConfig, form: LabelForm) -> ImageSplit:
    require(len(rows) > 0, f"split '{name}' of data.path '{config.path}' is empty")
    return ImageSplit(
        name=name,
        rows=image_rows(rows, name, config.image_column),
        image_column=config.image_column,
        mode=_mode(config),
        row_N=np.arange(len(rows)),
        labels=read_labels(rows, name, config, form),
        bit_depth=config.bit_depth,
    )


def _mode(config: DataConfig) -> str:
    return 'L' if config.in_chans == 1 else 'RGB'


def _split_name(asked: str | None, role: str, found: Mapping[str, Any]) -> str | None:
    if asked != 'auto':
        return asked
    return next((name for name in _AUTO_SPLITS[role] if name in found), None)


def _stream(streams: Streams, config: DataConfig) -> tuple[StreamSplit, LabelForm]:
    name = config.train_split
    rows = streams.splits[name]
    require(rows.features is not None, f"data.streaming: the columns of split '{name}' of data.path '{config.path}' are"
                                       ' unknown before it is read: leave out data.streaming')
    form = stream_form(rows, config)
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
        mode=_mode(config),
        length=asked or known or 0,
        digest=streams.digest,
        bit_depth=config.bit_depth,
    )
    return split, form
