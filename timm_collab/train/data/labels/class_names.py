"""Names of classes: which are the same, and the class that a label names.

Classes are joined by name. Numbers mean something only together with the names that their own column declares.
"""
from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

import datasets

from ...errors import TrainError, one_line, require

_SHOWN = 5


def normal(name: str) -> str:
    """The form of a name that is compared: 'é' is one name whether it is written as one character or two (NFC)."""
    return unicodedata.normalize('NFC', name)


def natural_order(names: Iterable[str]) -> list[str]:
    """Sort names as people number them, `2` before `10`: the order of timm's readers."""
    def key(name: str) -> tuple[list[Any], str]:
        parts = re.split(r'(\d+)', name.lower())
        return [int(part) if place % 2 else part for place, part in enumerate(parts)], name

    return sorted(names, key=key)


def listed(names: Iterable[Any]) -> str:
    """The first few names, and how many more there are."""
    names = [str(name) for name in names]
    rest = f' and {len(names) - _SHOWN} more' if len(names) > _SHOWN else ''
    return ', '.join(names[:_SHOWN]) + rest


def lookalikes(names: Iterable[str]) -> str | None:
    """What to say of names that differ in case or surrounding blanks alone; None if there are none."""
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(name.strip().casefold(), []).append(name)
    pairs = [' and '.join(map(repr, group)) for group in groups.values() if len(group) > 1]
    return f'classes that differ in case or blanks alone are different classes: {listed(pairs)}' if pairs else None


def declared_names(feature: Any) -> list[str] | None:
    """The names that a column declares for its numbers; None if there are none."""
    return [normal(name) for name in feature.names] if isinstance(feature, datasets.ClassLabel) else None


def read_class_names(path: str) -> list[str]:
    """Read a file with a name per line, in UTF-8.

    Raises:
        TrainError: It can't be read, or a line is blank, or a name stands twice.
    """
    key = f"data.classes '{path}'"
    try:
        text = Path(path).expanduser().read_text(encoding='utf-8-sig')
    except (OSError, UnicodeDecodeError) as error:
        reason = 'it is not UTF-8' if isinstance(error, UnicodeDecodeError) else one_line(error)
        raise TrainError(f'{key}: {reason}; write a text file with the name of a class per line') from None
    names = [normal(line) for line in text.removesuffix('\n').split('\n')]
    first: dict[str, int] = {}
    for number, name in enumerate(names, start=1):
        require(name.strip(), f'{key}: line {number} is blank: write the name of a class per line')
        require(name not in first, f"{key}: '{name}' is in lines {first.get(name)} and {number}: a class has one line")
        first[name] = number
    require(len(names) >= 2, f'{key} names {len(names)} class: classification needs at least 2')
    return names


def label_of(value: Any, declared: Sequence[str] | None) -> str | int | None:
    """The name or number that a cell means; None if it is empty or -1.

    Args:
        value: The cell: a name, which may be bytes in UTF-8, a truth value, or a number, which may be stored as a
            decimal number.
        declared: Names that the column declares for its numbers.

    Raises:
        ValueError: It is none of these.
    """
    if isinstance(value, bytes):
        try:
            value = value.decode()
        except UnicodeDecodeError:
            raise ValueError('its bytes are no text in UTF-8') from None
    if isinstance(value, (float, Decimal)):
        if value != value:  # NaN
            return None
        value = int(value) if value % 1 == 0 else value
    if value is None or (isinstance(value, str) and value.strip() in ('', '-1')):
        return None
    if isinstance(value, (str, bool)):
        return normal(str(value))
    if not isinstance(value, int) or value < -1:
        raise ValueError('it is neither a class index nor a name')
    if value == -1:
        return None
    if declared is None:
        return value
    if value >= len(declared):
        raise ValueError(f'its column declares {len(declared)} classes, numbered from 0')
    return declared[value]


class ClassIndex:
    """Class indices of labels.

    A number without a name is the class of that name where all classes are named by numbers, and else an index.

    Args:
        names: Names of the classes in the order of their indices; None if they are numbered from 0.
        count: Number of classes; None if it is unknown.
        numbered: Whether numbers without names may be indices; not where the order of the names is ours alone.
        named: Names for numbers without names, where these are numbered in another order than the classes.
    """

    def __init__(
            self,
            names: Sequence[str] | None,
            count: int | None = None,
            numbered: bool = True,
            named: Sequence[str] | None = None,
    ) -> None:
        self.names = names
        self.count = count
        self.numbered = numbered
        self.named = named
        self._index = {name: place for place, name in enumerate(names or ())}
        self._by_name = are_numbers(names)

    def find(self, label: str | int) -> int | None:
        """The index of a class by its name or number; None if there is no such class."""
        if self.named is not None and isinstance(label, int):
            return self._index.get(self.name(label) or '')
        if self._by_name or (self.names and isinstance(label, str)):
            return self._index.get(str(label))
        if not self.numbered or not _is_number(str(label)):
            return None
        return int(label) if self.count is None or int(label) < self.count else None

    def name(self, number: int) -> str | None:
        """The name that `named` has for a number; None if it has none."""
        place = ClassIndex(self.named).find(number)
        return self.named[place] if self.named and place is not None and place < len(self.named) else None


@dataclass(frozen=True)
class LabelForm:
    """Classes of a dataset and format of its labels, as found in its training split.

    Args:
        names: Names of the classes in the order of their indices; None if the data numbers them from 0.
        count: Number of classes; None if it is unknown.
        origin: Where they come from, for messages.
        width: Length of the rows, if labels are given as rows of numbers, one per class; None otherwise.
        notes: What the user should know about how the classes were found, a sentence each.
        numbered: Whether numbers without names may be class indices: not where the order comes from sorting names, or
            from a model.
        named: Names for numbers without names, from `data.classes`, where a model has the classes.
    """

    names: list[str] | None
    count: int | None = None
    origin: str = 'the training split'
    width: int | None = None
    notes: tuple[str, ...] = ()
    numbered: bool = True
    named: list[str] | None = None

    @property
    def index(self) -> ClassIndex:
        """The class indices of labels."""
        return ClassIndex(self.names, self.count, self.numbered, self.named)


def are_numbers(names: Sequence[str] | None) -> bool:
    """Whether all classes are named by numbers; then a number means the class of that name."""
    return bool(names) and all(map(_is_number, names or ()))


def _is_number(name: str) -> bool:
    return name.isascii() and name.isdigit() and str(int(name)) == name
