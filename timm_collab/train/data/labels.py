"""From a column to labels: one class an image, or, with `data.multi_label`, any number of labels.

Array names end in their shape, N examples and C classes; `labels` are class indices [N], or zeros and ones [N, C].
"""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import datasets
import numpy as np
import numpy.typing as npt
from torch import Tensor

from ..config import DataConfig
from ..errors import TrainError, nearest, require

Labels = npt.NDArray[Any]
"""Class indices, int64 [N]; of several labels, zeros and ones, uint8 [N, C]."""

MAX_CLASSES = 10**6
"""Larger numbers are no class indices."""


@dataclass(frozen=True)
class LabelForm:
    """How a data set writes its labels down, as found in its training split.

    Args:
        names: Names of the classes, if they have any.
        width: Numbers in a row of zeros and ones, where several labels are written so; None where they are listed.
    """

    names: list[str] | None
    width: int | None = None


def find_form(train: datasets.Dataset, config: DataConfig) -> LabelForm:
    """See how labels are written down.

    Lists are taken for rows of zeros and ones if all of them have one length, of two at least, and nothing else in
    them; for lists of class indices or names otherwise. Class names are those of the feature if it has any, else, for
    labels written as text, the sorted texts of training.

    Raises:
        TrainError: The column isn't there, or holds labels of the other kind.
    """
    check_column(train, config.label_column, 'data.label_column')
    feature = train.features[config.label_column]
    inner = getattr(feature, 'feature', None)  # of lists, of whichever kind
    column = f"data.label_column '{config.label_column}'"
    if not config.multi_label:
        require(inner is None, f'{column} holds lists: to learn several labels of an image write --data.multi_label'
                               ' true --objective.hard bce')
        inner = feature
    require(inner is not None, f'{column} holds {feature}, one label of each image: leave out data.multi_label')
    if isinstance(inner, datasets.ClassLabel):
        return LabelForm(list(inner.names))
    if getattr(inner, 'dtype', None) in ('string', 'large_string'):
        if not config.multi_label:
            return LabelForm(sorted(name for name in train.unique(config.label_column) if name is not None))
        given = {name for listed in _values(train, config.label_column) for name in listed or ()}
        return LabelForm(sorted(name for name in given if name is not None))
    return LabelForm(None, _width(_values(train, config.label_column)) if config.multi_label else None)


def stream_form(rows: datasets.IterableDataset, config: DataConfig) -> LabelForm:
    """How a split that is read from front to back writes labels down, of which none has been read.

    Raises:
        TrainError: The column isn't there, or holds something else than class indices.
    """
    check_column(rows, config.label_column, 'data.label_column')
    feature = rows.features[config.label_column]
    is_class = isinstance(feature, datasets.ClassLabel)
    require(is_class or 'int' in str(getattr(feature, 'dtype', '')),
            f"data.streaming: data.label_column '{config.label_column}' holds {feature}, and what is read from front to"
            ' back needs class indices: name another column, or leave data.streaming out')
    return LabelForm(list(feature.names) if is_class else None)


def read_labels(rows: datasets.Dataset, split: str, config: DataConfig, form: LabelForm) -> Labels:
    """The labels of a split; several have as many columns as there are classes in it, or in the form.

    Raises:
        TrainError: The column isn't there, or something in it is no label; the message names value and row.
    """
    check_column(rows, config.label_column, 'data.label_column')
    values = _values(rows, config.label_column)
    if form.width is not None:
        return _rows_of_zeros_and_ones(values, split, form.width)
    index = {name: position for position, name in enumerate(form.names or ())}
    where = f"of split '{split}'"

    column = config.label_column
    instead = (f'; if it has labels to learn from and not to be judged by, name another, and write --noise.kind column'
               f' --noise.column {column}') * (split != config.train_split)

    def class_index(value: Any, row: int) -> int:
        if isinstance(value, str):
            require(value in index, f'label {value!r} in row {row} {where} is none of the {len(index)} classes of split'
                                    f" '{config.train_split}'")
            return index[value]
        require(isinstance(value, int), f'label {value!r} in row {row} {where} is neither a class index nor a name:'
                                        f" data.label_column '{column}' can't be learnt{instead}")
        return int(value)

    if not config.multi_label:
        return np.asarray([class_index(value, row) for row, value in enumerate(values)], dtype=np.int64)
    listed: list[list[int]] = []
    for row, value in enumerate(values):
        require(isinstance(value, list), f'label {value!r} in row {row} {where} is no list: an image without labels has'
                                         ' an empty one')
        listed.append([class_index(each, row) for each in value])
        for each in listed[-1]:
            require(0 <= each < MAX_CLASSES, f'label {each} in row {row} {where} is no class index: check'
                                             ' data.label_column')
    num_classes = max((max(each, default=-1) for each in listed), default=-1) + 1
    labels_NC = np.zeros((len(listed), max(num_classes, len(index))), dtype=np.uint8)
    for row, indices in enumerate(listed):
        labels_NC[row, indices] = 1
    return labels_NC


def check_column(rows: datasets.Dataset | datasets.IterableDataset, column: str, key: str) -> None:
    """Refuse a column that isn't there."""
    require(column in rows.column_names,
            f"{key}: there is no column '{column}', the data has {', '.join(rows.column_names)}"
            f'{nearest(column, rows.column_names)}')


def padded(labels: Labels, num_classes: int) -> Labels:
    """Labels [N, C] with columns for classes that don't occur; class indices as they are."""
    missing = num_classes - labels.shape[1] if labels.ndim == 2 else 0
    return np.pad(labels, ((0, 0), (0, missing))) if missing > 0 else labels


def outside(labels: Labels, num_classes: int) -> tuple[int, int] | None:
    """Position and value of the first label outside [0, C), None if there is none."""
    if labels.ndim == 2:
        found = np.argwhere(labels[:, num_classes:])
        return (int(found[0, 0]), int(found[0, 1]) + num_classes) if len(found) else None
    bad = np.flatnonzero((labels < 0) | (labels >= num_classes))
    return (int(bad[0]), int(labels[bad[0]])) if len(bad) else None


def strata(labels: Labels) -> npt.NDArray[np.int64]:
    """What examples are drawn by [N]: their class; of several labels the rarest, C of none.

    A share of each stratum is then close to a share of each label, and rare labels are the closest.
    """
    if labels.ndim == 1:
        return labels
    order_C = labels.sum(axis=0, dtype=np.int64).argsort(kind='stable')
    rarest_N = order_C[labels[:, order_C].argmax(axis=1)]
    return np.where(labels.any(axis=1), rarest_N, labels.shape[1])


def as_target(labels: Tensor) -> Tensor:
    """What the objective takes: class indices as they are, zeros and ones as float32."""
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
            raise TrainError(f"the labels in row {row} of split '{split}' are no row of {width} zeros and ones, as"
                             f' those to train on are: {value!r}')
    return np.asarray(values, dtype=np.uint8).reshape(len(values), width)
