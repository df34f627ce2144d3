"""From a column to labels: one class per image, any number of them with `data.multi_label`, or `data.soft_labels`.

Array names end in their shape: N examples, C classes, V distinct values, L entries of all lists together. `labels` are
class indices [N], zeros and ones [N, C], or probabilities [N, C].
"""
from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import datasets
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from torch import Tensor

from ...config import DataConfig
from ...errors import TrainError, nearest, one_line, require
from .class_names import LabelForm, are_numbers, declared_names, label_of, listed

Labels = npt.NDArray[Any]
"""Class indices, int64 [N]; zeros and ones for several labels, uint8 [N, C]; or probabilities, float32 [N, C]."""

Ints = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]


def read_labels(rows: datasets.Dataset, split: str, config: DataConfig, form: LabelForm) -> tuple[Labels, Mask]:
    """Read the labels of a split, and whether there is none [N]. Other splits may have class indices for soft labels.

    Several labels per image have a column per class of the split or of the format.

    Raises:
        TrainError: There is no such column, or a value in it is not a label; the message names value and row.
    """
    check_column(rows, config.label_column, 'data.label_column')
    feature = rows.features[config.label_column]
    has_lists = getattr(feature, 'feature', None) is not None
    if form.width is not None and (has_lists or config.multi_label):
        read = _probabilities if config.soft_labels else _zeros_and_ones
        rows_NC, missing_N = read(cells_in(rows, config.label_column), split, form.width)
        return _in_order(rows_NC, form), missing_N
    if getattr(feature, 'dtype', None) == 'null':
        return np.zeros(len(rows), dtype=np.int64), np.ones(len(rows), dtype=bool)
    require(has_lists == config.multi_label,
            f"data.label_column '{config.label_column}' contains {feature} in split '{split}', unlike the training"
            ' split')
    labels, place_L, row_L = labels_in(rows, split, config.label_column)
    class_L = _find(labels, place_L, row_L, f"split '{split}'", form, partial(_file, rows, config.image_column))
    if not config.multi_label:
        return np.maximum(class_L, 0), class_L < 0
    missing_N = ~_column(rows, config.label_column).is_valid().to_numpy(zero_copy_only=False)
    if (class_L < 0).any():
        raise TrainError(f"the list in row {row_L[np.argmax(class_L < 0)]} of split '{split}' has an empty label or -1:"
                         ' an image without labels has an empty list')
    num_classes = max(int(class_L.max(initial=-1)) + 1, len(form.names or ()))
    labels_NC = np.zeros((len(rows), num_classes), dtype=np.uint8)
    labels_NC[row_L, class_L] = 1
    return labels_NC, missing_N


def _in_order(labels: Labels, form: LabelForm) -> Labels:
    """Rows of numbers, one per name of `data.classes`, as rows of one per class of a model."""
    if form.named is None:
        return labels
    column = {name: place for place, name in enumerate(form.names or ())}
    unknown = [name for name in form.named if name not in column]
    require(not unknown, f'data.classes has names that are none of the classes of {form.origin}: {listed(unknown)}')
    found = np.zeros((len(labels), len(column)), dtype=labels.dtype)
    found[:, [column[name] for name in form.named]] = labels
    return found


def _file(rows: datasets.Dataset, column: str, row: int) -> str | None:
    """The file of the image in a row, if it has one of its own."""
    feature = (rows.features or {}).get(column)
    cell = cells_in(rows.select([row]), column)[0] if isinstance(feature, datasets.Image) else None
    return None if cell is None or cell['bytes'] is not None else cell['path']


def _find(
        labels: list[str | int | None],
        place_L: Ints,
        row_L: Ints,
        split: str,
        form: LabelForm,
        file_of: Callable[[int], str | None],
) -> Ints:
    """Class index of each label [L] from the distinct ones; -1 for none."""
    index = form.index
    classes = [-1 if label is None else index.find(label) for label in labels]
    unknown = [label for label, found in zip(labels, classes, strict=True) if found is None]
    if unknown:
        row = int(row_L[np.argmax(place_L == labels.index(unknown[0]))])
        others = f', nor are {listed(map(repr, unknown[1:]))}' if unknown[1:] else ''
        hint = nearest(str(unknown[0]), form.names or ())
        numbers = [label for label in unknown if isinstance(label, int)]
        if form.named is not None and isinstance(unknown[0], int):
            name = index.name(unknown[0])
            hint = f", data.classes has {f'the name {name!r} for it' if name else 'no name for it'}"
        elif numbers and not form.numbered:
            hint = ', which have names: write --data.classes with a file of them in the order of these numbers'
        elif len(numbers) == len(unknown):
            known = list(map(int, form.names)) if form.names and are_numbers(form.names) else range(form.count or 0)
            count = max([*known, *numbers]) + 1
            hint = f': if these numbers are class indices write --model.num_classes {count} or more'
            if known and min(numbers) < min(known):
                hint = (f': the classes of {form.origin} are numbered from {min(known)}, and those of this split from'
                        f' {min(numbers)}; number them alike, or{hint[1:]}')
        elif not form.names:
            hint = ', which are numbered from 0: write --data.classes with a file of their names in that order'
        elif not hint:
            hint = ': remove such images'
            if form.origin.startswith('data.classes'):
                hint += ', or add their class to the file'
            elif form.origin != 'the run':
                hint += ', or list all classes in a file for --data.classes'
        where = f"row {row} of {split}{f' ({file})' if (file := file_of(row)) else ''}"
        known_names = f' ({listed(map(repr, form.names))})' if form.names else ''
        raise TrainError(f'label {unknown[0]!r} in {where} is none of the {form.count or 0}'
                         f' classes of {form.origin}{known_names}{others}{hint}')
    return np.array([*classes, -1], dtype=np.int64)[place_L]


def labels_in(rows: datasets.Dataset, split: str, name: str) -> tuple[list[str | int | None], Ints, Ints]:
    """The distinct labels in a column or in its lists, the place of each entry among them, and its row [L].

    Raises:
        TrainError: A value is not a label.
    """
    cells, feature = _column(rows, name), rows.features[name]
    inner = getattr(feature, 'feature', None)
    row_L = np.arange(len(cells)) if inner is None else pc.list_parent_indices(cells).to_numpy(zero_copy_only=False)
    try:
        encoded = (cells if inner is None else pc.list_flatten(cells)).dictionary_encode()
    except pa.ArrowNotImplementedError:
        raise TrainError(f"data.label_column '{name}' contains {one_line(feature)} in split '{split}', which is neither"
                         ' a class index nor a name: name another column, or write a column with one of both') from None
    values = encoded.dictionary.to_pylist()
    place_L = encoded.indices.fill_null(len(values)).to_numpy(zero_copy_only=False)
    declared, labels = declared_names(feature if inner is None else inner), []
    for place, value in enumerate(values):
        try:
            labels.append(label_of(value, declared))
        except ValueError as error:
            raise TrainError(f"label {value!r} in row {row_L[np.argmax(place_L == place)]} of split '{split}': {error},"
                             f" so data.label_column '{name}' can't be learned") from None
    return labels, place_L, row_L


def check_column(rows: datasets.Dataset | datasets.IterableDataset, column: str, key: str) -> None:
    """Raise an error if there is no such column."""
    require(column in rows.column_names,
            f"{key}: there is no column '{column}', the data has {', '.join(rows.column_names)}"
            + (nearest(column, rows.column_names) or f': write --{key} with one of them'))


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


def hard_labels(labels: Labels) -> Labels:
    """The class with the largest probability, of equals the first; other labels as they are."""
    return labels.argmax(axis=1) if labels.dtype == np.float32 else labels


def tie_notes(labels: Labels, split: str) -> list[str]:
    """A sentence on soft labels of a split to evaluate on that have several largest probabilities; none without any."""
    if labels.dtype != np.float32:
        return []
    ties = int(((labels == labels.max(axis=1, keepdims=True)).sum(axis=1) > 1).sum())
    where = f'1 soft label of {split} has' if ties == 1 else f'{ties:,} soft labels of {split} have'
    return [f'{where} several largest values: evaluation takes the first class of these'] if ties else []


def classes_in(labels: Labels, num_classes: int) -> Mask:
    """Whether some example has the class [C]."""
    labels = hard_labels(labels)
    if labels.ndim == 1:
        return np.isin(np.arange(num_classes), labels)
    return np.asarray(padded(labels, num_classes)[:, :num_classes].any(axis=0))


def strata(labels: Labels) -> npt.NDArray[np.int64]:
    """Strata [N] for drawing examples: their class, or the rarest of several labels, or C without labels.

    A fraction of each stratum is then close to that fraction of each label, closest for rare labels.
    """
    labels = hard_labels(labels)
    if labels.ndim == 1:
        return labels
    order_C = labels.sum(axis=0, dtype=np.int64).argsort(kind='stable')
    rarest_N = order_C[labels[:, order_C].argmax(axis=1)]
    return np.where(labels.any(axis=1), rarest_N, labels.shape[1])


def as_target(labels: Tensor) -> Tensor:
    """Target for the objective: class indices as they are, rows of zeros and ones or of probabilities as float32."""
    return labels.float() if labels.ndim == 2 else labels


def _column(rows: datasets.Dataset, name: str) -> pa.Array:
    """The cells of a column."""
    cells = rows.select_columns([name]).with_format('arrow')[:][name]
    return cells.combine_chunks() if isinstance(cells, pa.ChunkedArray) else cells


def cells_in(rows: datasets.Dataset, name: str) -> list[Any]:
    """The cells of a column as Python's values."""
    return _column(rows, name).to_pylist()


def _zeros_and_ones(values: Sequence[Any], split: str, width: int) -> tuple[Labels, Mask]:
    """Several labels per image from rows of zeros and ones."""
    for row, value in enumerate(values):
        fits = value is None or (len(value) == width and all(each in (0, 1) for each in value))
        require(fits, f"the labels in row {row} of split '{split}' are not a row of {width} zeros and ones, as in the"
                      f' training split: {value!r}')
    missing_N = np.array([value is None for value in values], dtype=bool)
    filled = [[0] * width if value is None else value for value in values]
    return np.asarray(filled, dtype=np.uint8).reshape(len(values), width), missing_N


def _probabilities(values: Sequence[Any], split: str, width: int) -> tuple[Labels, Mask]:
    """Soft labels from rows of votes or probabilities, each divided by its sum."""
    missing_N = np.array([value is None for value in values], dtype=bool)
    votes_NC = np.ones((len(values), width))
    for row, value in enumerate(values):
        if value is None:
            continue
        fits = len(value) == width and all(isinstance(each, (int, float)) and 0 <= each < np.inf for each in value)
        require(fits and sum(value) > 0, f"the soft label in row {row} of split '{split}' is not a list of {width}"
                                         f' non-negative numbers, of which one at least is positive: {value!r}')
        votes_NC[row] = value
    return (votes_NC / votes_NC.sum(axis=1, keepdims=True)).astype(np.float32), missing_N
