"""The classes of a dataset and the format of its labels, from its training split and the recipe."""
from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import datasets

from ...config import DataConfig
from ...errors import require
from .class_names import LabelForm, are_numbers, declared_names, listed, lookalikes, natural_order, read_class_names
from .label_column import cells_in, check_column, labels_in

_NUMBERS = ('int', 'uint', 'float', 'decimal')


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
        first: list[float] = next((value for value in cells_in(train, name) if value is not None), [])
        return _with_rows(given, len(given.named or given.names or first), column)
    if not config.multi_label:
        require(inner is None, f'{column} contains lists: to learn several labels per image write --data.multi_label'
                               ' true --objective.hard bce; for votes or probabilities, --data.soft_labels true')
        return _with_classes(given, train, feature, config)
    require(inner is not None, f'{column} contains {feature}, one label per image: leave out data.multi_label')
    if declared_names(inner) is None and (width := _width(cells_in(train, name))) is not None:
        known = len(given.named or given.names or ())
        require(known in (0, width),
                f'{column} has rows of {width} zeros and ones, but {given.origin} has {known} classes')
        return _with_rows(given, width, column)
    return _with_classes(given, train, inner, config)


def number_notes(columns: Mapping[str, Any], config: DataConfig, form: LabelForm) -> list[str]:
    """A sentence for each column of numbers without names that are joined with the names of other columns.

    Args:
        columns: Types of the columns, by what they are called in a message.
        config: The data keys of the recipe.
        form: The classes.
    """
    bare = [where for where, feature in columns.items() if _is_bare(feature)]
    if not form.names or form.width is not None or form.names == list(map(str, range(len(form.names)))):
        return []
    if config.classes is not None:  # which says what numbers mean, unless it has numbers itself
        bare = bare if are_numbers(form.names) else []
    elif f"split '{config.train_split}'" in bare:  # the names are the numbers
        return []
    meaning = f"indices of the classes of {form.origin}, 0 for '{form.names[0]}'"
    if are_numbers(form.names):
        meaning = (f"names of classes of {form.origin}, so that {form.names[0]} is the class '{form.names[0]}' with the"
                   ' index 0')
    return [f'{where} has numbers without names: they are taken for {meaning}' for where in bare]


def _is_bare(feature: Any) -> bool:
    """Whether a column has numbers, or lists of them, without names."""
    inner = getattr(feature, 'feature', feature)
    return declared_names(inner) is None and str(getattr(inner, 'dtype', '')).startswith(_NUMBERS)


def given_form(config: DataConfig, num_classes: int | None = None, names: Sequence[str] | None = None) -> LabelForm:
    """The classes that don't come from the data: those of a model, or else of `data.classes`; or only their number.

    Args:
        config: The data keys of the recipe.
        num_classes: Number of classes, if the recipe gives it.
        names: Names of the classes of a model. Then `data.classes` says what numbers without names mean.

    Raises:
        TrainError: There is no such file, or it has another number of classes.
    """
    if names is not None:
        named = None if config.classes is None else read_class_names(config.classes)
        numbered = list(names) == list(map(str, range(len(names))))
        return LabelForm(list(names), len(names), 'the run', numbered=numbered, named=named)
    if config.classes is None:
        return LabelForm(None, num_classes, 'the training split' if num_classes is None else 'model.num_classes')
    names = read_class_names(config.classes)
    require(num_classes in (None, len(names)), f"data.classes '{config.classes}' names {len(names)} classes, and"
                                               f' model.num_classes is {num_classes}: leave one of them out')
    return _named(names, LabelForm(None), f"data.classes '{config.classes}'")


def _with_classes(given: LabelForm, train: datasets.Dataset, feature: Any, config: DataConfig) -> LabelForm:
    """The given form, with the classes of a column, or of the lists in it, if it has none."""
    declared = declared_names(feature)
    if given.names is not None:  # other splits of data that declares names may have their indices
        return replace(given, numbered=given.numbered or declared is not None)
    origin = f"split '{config.train_split}'"
    if declared is not None:
        return _named(dict.fromkeys(declared), given, origin)
    if getattr(feature, 'dtype', None) == 'bool':
        return _named(['False', 'True'], given, origin)
    found, _, _ = labels_in(train, config.train_split, config.label_column)
    texts = {label for label in found if isinstance(label, str)}
    if texts:
        order = natural_order(texts)
        first = next((f"'{one}' before '{other}'" for one, other in itertools.pairwise(order) if one > other), None)
        notes = () if first is None else (f'classes are in natural order, {first}: write --data.classes for another',)
        return replace(_named(order, given, origin, *notes), numbered=False)
    column = f"data.label_column '{config.label_column}'"
    numbers = sorted({label for label in found if isinstance(label, int)})
    notes = () if not str(getattr(feature, 'dtype', '')).startswith(('float', 'decimal')) or not numbers else (
        f'{column} contains decimal numbers, all of them whole: they were read as integers',)
    if given.count is not None:
        return replace(given, notes=notes)
    if numbers == list(range(len(numbers))):
        return LabelForm(None, len(numbers), origin, notes=notes)
    return _named(map(str, numbers), given, origin, *notes,
                  f'{column} has {len(numbers)} different numbers ({listed(numbers)}), and each names a class: if they'
                  ' are class indices write --model.num_classes')


def _with_rows(given: LabelForm, width: int, column: str) -> LabelForm:
    require(given.names is None or given.numbered or given.named is not None,
            f'{column} has rows of {width} numbers, one per class, and the classes of {given.origin} have names: write'
            ' --data.classes with a file of them in the order of these numbers')
    return replace(given, width=width)


def _named(names: Iterable[str], given: LabelForm, origin: str, *notes: str) -> LabelForm:
    names = list(names)
    alike = lookalikes(names)
    return LabelForm(names, given.count or len(names), origin, notes=(*notes, *([alike] if alike else [])))


def _width(values: Sequence[Any]) -> int | None:
    given = [value for value in values if value is not None]
    widths = {len(value) for value in given}
    is_binary = len(widths) == 1 and all(each in (0, 1) for value in given for each in value)
    return width if is_binary and (width := widths.pop()) >= 2 else None


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
