"""How the keys of a recipe are declared: default, documentation and range."""
from __future__ import annotations

import dataclasses
import math
import operator
from typing import Any

from ..errors import TrainError

_COMPARE = {'ge': operator.ge, 'gt': operator.gt, 'le': operator.le, 'lt': operator.lt}


def key(default: Any, help: str, **bounds: float) -> Any:
    """Declare a key of a recipe.

    Args:
        default: Its default, or a function that makes it.
        help: Its documentation.
        bounds: Range of a number, by the names that pydantic uses: a lower bound `ge` or `gt`, and possibly an upper
            bound `le` or `lt`. `KeyGroup` checks it.
    """
    make = {'default_factory': default} if callable(default) else {'default': default}
    return dataclasses.field(**make, metadata={'help': help, 'bounds': bounds})


class KeyGroup:
    """Base of the dataclasses with keys. It raises `TrainError` for values outside the range of their key."""

    _prefix = ''

    def __post_init__(self) -> None:
        fields: tuple[dataclasses.Field[Any], ...] = dataclasses.fields(self)  # type: ignore[arg-type]
        for field in fields:
            value, bounds = getattr(self, field.name), field.metadata.get('bounds')
            if not bounds or not isinstance(value, int | float):  # None, or a word such as 'auto'
                continue
            if not math.isfinite(value):
                raise TrainError(f'{self._prefix}{field.name} must be a finite number, got {value}')
            if not all(_COMPARE[name](value, bound) for name, bound in bounds.items()):
                raise TrainError(f'{self._prefix}{field.name} must {_range_text(**bounds)}, got {value}')


def _range_text(
        ge: float | None = None,
        gt: float | None = None,
        le: float | None = None,
        lt: float | None = None,
) -> str:
    if le is None and lt is None:
        return f'be greater than {gt}' if ge is None else f'be at least {ge}'
    low = f'({gt}' if ge is None else f'[{ge}'
    high = f'{lt})' if le is None else f'{le}]'
    return f'lie in {low}, {high}'
