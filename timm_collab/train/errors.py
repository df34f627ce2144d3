"""The one error that means: what you asked for can't be trained, and this is what to write instead."""
from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager


class TrainError(ValueError):
    """A mistake in a recipe, a command line or the data; its message is all that a user needs to see.

    Attributes:
        everywhere: Whether every process of the launch finds it, so that one of them may speak for all.
    """

    everywhere = False


@contextmanager
def found_everywhere() -> Iterator[None]:
    """Around what all processes do alike: an error in it is one that every process finds."""
    try:
        yield
    except TrainError as error:
        error.everywhere = True
        raise


def nearest(word: str, known: Iterable[str]) -> str:
    """A hint such as `; did you mean 'optim.lr'?` for a misspelt word, empty if nothing known comes close."""
    matches = difflib.get_close_matches(word, list(known), n=3, cutoff=0.6)
    return f'; did you mean {" or ".join(repr(match) for match in matches)}?' if matches else ''


def require(condition: object, message: str, error: type[TrainError] = TrainError) -> None:
    """Raise an error with a message unless a condition holds."""
    if not condition:
        raise error(message)
