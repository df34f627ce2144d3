"""Parts of error messages: an error on one line, and what a misspelt word may have meant."""
from __future__ import annotations

import difflib
from collections.abc import Iterable

import timm

from .tree import PREFIX


def one_line(error: object) -> str:
    """The message of an error, or any other text, on one line."""
    return ' '.join(str(error).split())


def nearest(word: str, known: Iterable[str]) -> str:
    """A hint such as `; did you mean 'optim.lr'?` for a misspelt word; empty if no known word is similar."""
    matches = difflib.get_close_matches(word, list(known), n=3, cutoff=0.6)
    return f'; did you mean {" or ".join(repr(match) for match in matches)}?' if matches else ''


def unknown_architecture(name: str) -> str:
    """The message for a name that is no architecture of timm, with similar names."""
    hint = nearest(name, timm.list_models(exclude_filters=f'{PREFIX}*')) or ': see timm.list_models()'
    return f"timm has no architecture '{name}'{hint}"
