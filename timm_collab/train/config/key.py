"""How a key of the recipe is declared: its default and its only documentation."""
from __future__ import annotations

from dataclasses import field
from typing import Any


def key(default: Any, help: str) -> Any:
    """A documented key of the recipe with its default."""
    make = {'default_factory': default} if callable(default) else {'default': default}
    return field(**make, metadata={'help': help})
