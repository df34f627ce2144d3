"""From a column to labels: one class per image, any number of them with `data.multi_label`, or `data.soft_labels`.

Array names end in their shape: N examples, C classes, V distinct values, L entries of all lists together. `labels` are
class indices [N], zeros and ones [N, C], or probabilities [N, C].
"""
from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import datasets
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from torch import Tensor

from ...config import DataConfig
from ...errors import TrainError, nearest, require
from .class_names import ClassIndex, declared_names, label_of, listed, lookalikes, read_class_names
from .class_names import natural_order as natural_order

Labels = npt.NDArray[Any]
"""Class indices, int64 [N]; zeros and ones for several labels, uint8 [N, C]; or probabilities, float32 [N, C]."""

Ints = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class LabelForm:
    """Classes of a dataset and format of its labels, as found in its training split.

    Args:
        names: Names of the classes in the order of their indices; None if the data numbers them from 0.
        count: Number of classes; None if it is unknown.
        origin: Where they come from, for messages.
        width: Length of the rows, if labels are given as rows of numbers, one per class; None otherwise.
        notes: What the user should know about how the classes were found, a sentence each.
        numbered: Whether numbers without names may be class indices: not where the order comes from sorting names.
    """

    names: list[str] | None
    count: int | None = None
    origin: str = 'the training split'
    width: int | None = None
    notes: tuple[str, ...] = ()
    numbered: bool = True

    @property
    def index(self) -> ClassIndex:
        """The class indices of labels."""
        return ClassIndex(self.names, self.count, self.numbered)


def find_form(train: datasets.Dataset, config: DataConfig, given: LabelForm | None = None) -> LabelForm:
    """Find classes and format of the labels.

    Classes are those that are given, or that the column declares, or its distinct names in natural order. Numbers
    without names are indices if the number of classes is given, or if each from 0 on occurs; others are names.

    Lists are rows of zeros and ones if they contain nothing else and all have the same length of at least two.
    Otherwise they are lists of class indices or names.

    Args:
        train: The training split.
        config: The data keys of the recipe.
        given: The classes, or only their number, if they don't come from the data, see `given_form`.

    Raises:
        TrainError: There is no such column, or it contains no labels of the kind that the recipe says.
    """
    name = config.label_column
    check_column(train, name, 'data.label_column')
    feature = train.features[name]
    inner = getattr(feature, 'feature', None)  # for every type of list
    column = f"data.label_column '{name}'"
    given = given or LabelForm(None)
    if config.soft_labels:
        require(inner is not None, f'{column} contains {feature}, and data.soft_labels needs a list of numbers per'
                                   ' image, one per class: leave it out, or name another column')
        first: list[float] = next((value for value in _values(train, name) if value is not None), [])
        return replace(given, width=given.count if given.names else len(first))
    if not config.multi_label:
        require(inner is None, f'{column} contains lists: to learn several labels per image write --data.multi_label'
                               ' true --objective.hard bce; for votes or probabilities, --data.soft_labels true')
        return _with_classes(given, train, feature, config)
    require(inner is not None, f'{column} contains {feature}, one label per image: leave out data.multi_label')
    if declared_names(inner) is None and (width := _width(_values(train, name))) is not None:
        require(not given.names or given.count == width,
                f'{column} has rows of {width} zeros and ones, but {given.origin} has {given.count} classes')
        return replace(given, width=width)
    return _with_classes(given, train, inner, config)


def given_form(config: DataConfig, num_classes: int | None = None, names: Sequence[str] | None = None) -> LabelForm:
    """The classes that don't come from the data: those of a model, or else of `data.classes`; or only their number.

    Args:
        config: The data keys of the recipe.
        num_classes: Number of classes, if the recipe gives it.
        names: Names of the classes of a model.

    Raises:
        TrainError: There is no such file, or it has another number of classes.
    """
    if names is not None:
        return LabelForm(list(names), len(names), 'the run')
    if config.classes is None:
        return LabelForm(None, num_classes, 'the training split' if num_classes is None else 'model.num_classes')
    names = read_class_names(config.classes)
    require(num_classes in (None, len(names)), f"data.classes '{config.classes}' names {len(names)} classes, and"
                                               f' model.num_classes is {num_classes}: leave one of them out')
    return _named(names, LabelForm(None), f"data.classes '{config.classes}'")


def _with_classes(given: LabelForm, train: datasets.Dataset, feature: Any, config: DataConfig) -> LabelForm:
    """The given form, with the classes of a column, or of the lists in it, if it has none."""
    if given.names is not None:
        return given
    declared = declared_names(feature)
    origin = f"split '{config.train_split}'"
    if declared is not None:
        return _named(dict.fromkeys(declared), given, origin)
    if getattr(feature, 'dtype', None) == 'bool':
        return _named(['False', 'True'], given, origin)
    found, _, _ = _labels_in(train, config.train_split, config.label_column)
    texts = {label for label in found if isinstance(label, str)}
    if texts:
        order = natural_order(texts)
        first = next((f"'{one}' before '{other}'" for one, other in itertools.pairwise(order) if one > other), None)
        notes = () if first is None else (f'classes are in natural order, {first}: write --data.classes for another',)
        return replace(_named(order, given, origin, *notes), numbered=False)
    column = f"data.label_column '{config.label_column}'"
    numbers = sorted({label for label in found if isinstance(label, int)})
    notes = () if 'float' not in str(getattr(feature, 'dtype', '')) or not numbers else (
        f'{column} contains decimal numbers, all of them whole: they were read as integers',)
    if given.count is not None:
        return replace(given, notes=notes)
    if numbers == list(range(len(numbers))):
        return LabelForm(None, len(numbers), origin, notes=notes)
    return _named(map(str, numbers), given, origin, *notes,
                  f'{column} has {len(numbers)} different numbers ({listed(numbers)}), and each names a class: if they'
                  ' are class indices write --model.num_classes')


def _named(names: Iterable[str], given: LabelForm, origin: str, *notes: str) -> LabelForm:
    names = list(names)
    alike = lookalikes(names)
    return LabelForm(names, given.count or len(names), origin, notes=(*notes, *([alike] if alike else [])))


def stream_form(rows: datasets.IterableDataset, config: DataConfig, given: LabelForm) -> LabelForm:
    """Find the classes of a streamed split from its features, without reading any rows.

    Raises:
        TrainError: There is no such column, or it contains neither class indices nor names of given classes.
    """
    check_column(rows, config.label_column, 'data.label_column')
    if given.names is not None:
        return given
    feature = rows.features[config.label_column]
    declared = declared_names(feature)
    require(declared is not None or 'int' in str(getattr(feature, 'dtype', '')),
            f"data.streaming: data.label_column '{config.label_column}' contains {feature}, and streaming"
            ' needs class indices: write --data.classes with a file of the class names, name another column, or leave'
            ' data.streaming out')
    return given if declared is None else _named(dict.fromkeys(declared), given, f"split '{config.train_split}'")


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
        return read(_values(rows, config.label_column), split, form.width)
    if getattr(feature, 'dtype', None) == 'null':
        return np.zeros(len(rows), dtype=np.int64), np.ones(len(rows), dtype=bool)
    require(has_lists == config.multi_label,
            f"data.label_column '{config.label_column}' contains {feature} in split '{split}', unlike the training"
            ' split')
    labels, place_L, row_L = _labels_in(rows, split, config.label_column)
    class_L = _find(labels, place_L, row_L, split, form)
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


def _find(labels: list[str | int | None], place_L: Ints, row_L: Ints, split: str, form: LabelForm) -> Ints:
    """Class index of each label [L] from the distinct ones; -1 for none."""
    index = form.index
    classes = [-1 if label is None else index.find(label) for label in labels]
    unknown = [label for label, found in zip(labels, classes, strict=True) if found is None]
    if unknown:
        row = row_L[np.argmax(place_L == labels.index(unknown[0]))]
        others = f', nor are {listed(map(repr, unknown[1:]))}' if unknown[1:] else ''
        hint = nearest(str(unknown[0]), form.names or ())
        numbers = [label for label in unknown if isinstance(label, int)]
        if numbers and not form.numbered:
            hint = ', which have names: write --data.classes with a file of them in the order of these numbers'
        elif len(numbers) == len(unknown):
            hint = f': if these numbers are class indices write --model.num_classes {max(numbers) + 1} or more'
        elif not form.names:
            hint = ', which are numbered from 0: write --data.classes with a file of their names in that order'
        raise TrainError(f"label {unknown[0]!r} in row {row} of split '{split}' is none of the {form.count or 0}"
                         f' classes of {form.origin}{others}{hint}')
    return np.array([*classes, -1], dtype=np.int64)[place_L]


def _labels_in(rows: datasets.Dataset, split: str, name: str) -> tuple[list[str | int | None], Ints, Ints]:
    """The distinct labels in a column or in its lists, the place of each entry among them, and its row [L].

    Raises:
        TrainError: A value is not a label.
    """
    cells, feature = _column(rows, name), rows.features[name]
    inner = getattr(feature, 'feature', None)
    row_L = np.arange(len(cells)) if inner is None else pc.list_parent_indices(cells).to_numpy(zero_copy_only=False)
    encoded = (cells if inner is None else pc.list_flatten(cells)).dictionary_encode()
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
            f'{nearest(column, rows.column_names)}')


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


def _values(rows: datasets.Dataset, name: str) -> list[Any]:
    return _column(rows, name).to_pylist()


def _width(values: Sequence[Any]) -> int | None:
    given = [value for value in values if value is not None]
    widths = {len(value) for value in given}
    is_binary = len(widths) == 1 and all(each in (0, 1) for value in given for each in value)
    return width if is_binary and (width := widths.pop()) >= 2 else None


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
