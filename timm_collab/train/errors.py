"""The error for mistakes of the user: it says what is wrong and what to write instead."""
from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ..errors import nearest, one_line, unknown_architecture

__all__ = ['TrainError', 'found_everywhere', 'nearest', 'one_line', 'require', 'unknown_architecture']


class TrainError(ValueError):
    """A mistake in a recipe, a command line or the data; a user sees its message and no traceback.

    Attributes:
        everywhere: Whether all processes of the launch raise it, so that only one of them needs to print it.
    """

    everywhere = False


@contextmanager
def found_everywhere() -> Iterator[None]:
    """Mark errors of code that does the same in all processes: all of them raise it."""
    try:
        yield
    except TrainError as error:
        error.everywhere = True
        raise


def require(condition: bool, message: str) -> None:
    """Raise `TrainError` with a message if a condition is false."""
    if not condition:
        raise TrainError(message)
