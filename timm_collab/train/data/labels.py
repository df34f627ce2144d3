"""From a column to labels: one class per image, or any number of labels with `data.multi_label`.

Array names end in their shape: N examples, C classes. `labels` are class indices [N], or zeros and ones [N, C].
"""
from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import datasets
import numpy as np
import numpy.typing as npt
from torch import Tensor

from ..config import DataConfig
from ..errors import TrainError, nearest, require

Labels = npt.NDArray[Any]
"""Class indices, int64 [N], or with several labels per image, zeros and ones, uint8 [N, C]."""

MAX_CLASSES = 10**6
"""Larger numbers are not taken for class indices."""


@dataclass(frozen=True)
class LabelForm:
    """Format of the labels of a dataset, as found in its training split.

    Args:
        names: Names of the classes, if there are any.
        width: Length of the rows, if several labels are given as rows of zeros and ones; None if they are listed.
    """

    names: list[str] | None
    width: int | None = None


def find_form(train: datasets.Dataset, config: DataConfig) -> LabelForm:
    """Find the format of the labels.

    Lists are rows of zeros and ones if they contain nothing else and all have the same length of at least two.
    Otherwise they are lists of class indices or names. Class names are those of the feature if it has any, or else the
    sorted texts of the training split.

    Raises:
        TrainError: There is no such column, or `data.multi_label` doesn't suit its labels.
    """
    check_column(train, config.label_column, 'data.label_column')
    feature = train.features[config.label_column]
    inner = getattr(feature, 'feature', None)  # for every type of list
    column = f"data.label_column '{config.label_column}'"
    if not config.multi_label:
        require(inner is None, f'{column} contains lists: to learn several labels per image write'
                               ' --data.multi_label true --objective.hard bce')
        inner = feature
    require(inner is not None, f'{column} contains {feature}, one label per image: leave out data.multi_label')
    if isinstance(inner, datasets.ClassLabel):
        return LabelForm(list(inner.names))
    if getattr(inner, 'dtype', None) in ('string', 'large_string'):
        if not config.multi_label:
            return LabelForm(sorted(name for name in train.unique(config.label_column) if name is not None))
        given = {name for listed in _values(train, config.label_column) for name in listed or ()}
        return LabelForm(sorted(name for name in given if name is not None))
    return LabelForm(None, _width(_values(train, config.label_column)) if config.multi_label else None)


def stream_form(rows: datasets.IterableDataset, config: DataConfig) -> LabelForm:
    """Find the format of the labels of a streamed split from its features, without reading any.

    Raises:
        TrainError: There is no such column, or it doesn't contain class indices.
    """
    check_column(rows, config.label_column, 'data.label_column')
    feature = rows.features[config.label_column]
    is_class = isinstance(feature, datasets.ClassLabel)
    require(is_class or 'int' in str(getattr(feature, 'dtype', '')),
            f"data.streaming: data.label_column '{config.label_column}' contains {feature}, and streaming"
            ' needs class indices: name another column, or leave data.streaming out')
    return LabelForm(list(feature.names) if is_class else None)


def read_labels(rows: datasets.Dataset, split: str, config: DataConfig, form: LabelForm) -> Labels:
    """Read the labels of a split. Several labels per image have a column per class of the split or of the format.

    Raises:
        TrainError: There is no such column, or a value in it is not a label; the message names value and row.
    """
    check_column(rows, config.label_column, 'data.label_column')
    values = _values(rows, config.label_column)
    if form.width is not None:
        return _rows_of_zeros_and_ones(values, split, form.width)
    index = {name: position for position, name in enumerate(form.names or ())}
    where = f"of split '{split}'"

    column = config.label_column
    instead = ''
    if split != config.train_split:
        instead = ('; if only the training split has these labels, name another column for the evaluation, and write'
                   f' --noise.kind column --noise.column {column}')

    def class_index(value: Any, row: int) -> int:
        if isinstance(value, str):
            require(value in index, f'label {value!r} in row {row} {where} is none of the {len(index)} classes of split'
                                    f" '{config.train_split}'")
            return index[value]
        require(isinstance(value, int), f'label {value!r} in row {row} {where} is neither a class index nor a name:'
                                        f" data.label_column '{column}' can't be learned{instead}")
        return int(value)

    if not config.multi_label:
        return np.asarray([class_index(value, row) for row, value in enumerate(values)], dtype=np.int64)
    listed: list[list[int]] = []
    for row, value in enumerate(values):
        require(isinstance(value, list), f'label {value!r} in row {row} {where} is not a list: an image without labels'
                                         ' has an empty one')
        listed.append([class_index(each, row) for each in value])
        for each in listed[-1]:
            require(0 <= each < MAX_CLASSES, f'label {each} in row {row} {where} is not a class index: check'
                                             ' data.label_column')
    num_classes = max((max(each, default=-1) for each in listed), default=-1) + 1
    labels_NC = np.zeros((len(listed), max(num_classes, len(index))), dtype=np.uint8)
    for row, indices in enumerate(listed):
        labels_NC[row, indices] = 1
    return labels_NC


def check_column(rows: datasets.Dataset | datasets.IterableDataset, column: str, key: str) -> None:
    """Raise an error if there is no such column."""
    require(column in rows.column_names,
            f"{key}: there is no column '{column}', the data has {', '.join(rows.column_names)}"
            f'{nearest(column, rows.column_names)}')


def natural_order(names: Iterable[str]) -> list[str]:
    """Sort names as people number them, `2` before `10`: the order of timm's readers."""
    def key(name: str) -> tuple[list[Any], str]:
        parts = re.split(r'(\d+)', name.lower())
        return [int(part) if place % 2 else part for place, part in enumerate(parts)], name

    return sorted(names, key=key)


def padded(labels: Labels, num_classes: int) -> Labels:
    """Add columns to labels [N, C] for classes that don't occur; class indices stay as they are."""
    missing = num_classes - labels.shape[1] if labels.ndim == 2 else 0
    return np.pad(labels, ((0, 0), (0, missing))) if missing > 0 else labels


def outside(labels: Labels, num_classes: int) -> tuple[int, int] | None:
    """Position and value of the first label outside [0, C); None if there is none."""
    if labels.ndim == 2:
        found = np.argwhere(labels[:, num_classes:])
        return (int(found[0, 0]), int(found[0, 1]) + num_classes) if len(found) else None
    bad = np.flatnonzero((labels < 0) | (labels >= num_classes))
    return (int(bad[0]), int(labels[bad[0]])) if len(bad) else None


def strata(labels: Labels) -> npt.NDArray[np.int64]:
    """Strata [N] for drawing examples: their class, or the rarest of several labels, or C without labels.

    A fraction of each stratum is then close to that fraction of each label, closest for rare labels.
    """
    if labels.ndim == 1:
        return labels
    order_C = labels.sum(axis=0, dtype=np.int64).argsort(kind='stable')
    rarest_N = order_C[labels[:, order_C].argmax(axis=1)]
    return np.where(labels.any(axis=1), rarest_N, labels.shape[1])


def as_target(labels: Tensor) -> Tensor:
    """Target for the objective: class indices as they are, zeros and ones as float32."""
    return labels.float() if labels.ndim == 2 else labels


def _values(rows: datasets.Dataset, column: str) -> list[Any]:
    return rows.with_format('arrow')[:][column].to_pylist()


def _width(values: Sequence[Any]) -> int | None:
    widths = {len(value) if isinstance(value, list) else 0 for value in values}
    is_binary = len(widths) == 1 and all(each in (0, 1) for value in values for each in value or ())
    return width if is_binary and (width := widths.pop()) >= 2 else None


def _rows_of_zeros_and_ones(values: Sequence[Any], split: str, width: int) -> Labels:
    for row, value in enumerate(values):
        fits = isinstance(value, list) and len(value) == width and all(each in (0, 1) for each in value)
        if not fits:
            raise TrainError(f"the labels in row {row} of split '{split}' are not a row of {width} zeros and ones"
                             f', as in the training split: {value!r}')
    return np.asarray(values, dtype=np.uint8).reshape(len(values), width)
