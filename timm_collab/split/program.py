"""A stretch of a traced graph as a Python function that pickles by its source."""
from __future__ import annotations

import linecache
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from types import ModuleType
from typing import Any


class Program:
    """Straight-line Python for a stretch of a trace, `function(modules, *values)`, compiled from its source.

    Args:
        source: The text of a function named `forward`.
        names: The global names it uses.
        mutates: For each leaf of its values, whether it's a tensor that the stretch writes to in place.
    """

    def __init__(self, source: str, names: dict[str, Any], mutates: tuple[bool, ...] = ()):
        self.source = source
        self.names = names
        self.mutates = mutates
        # A name of its own in the line cache lets tracebacks show the generated line.
        filename = f'<timm_collab {hash(source):x}>'
        linecache.cache[filename] = (len(source), None, source.splitlines(keepends=True), filename)
        scope = dict(names)
        exec(compile(source, filename, 'exec'), scope)
        self.function: Callable[..., Any] = scope['forward']

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Program)
            and (self.source, self.names, self.mutates) == (other.source, other.names, other.mutates)
        )

    def __hash__(self) -> int:
        return hash(self.source)

    def __reduce__(self) -> tuple[Any, ...]:
        names = {
            name: _ByName(value.__name__) if isinstance(value, ModuleType) else value
            for name, value in self.names.items()
        }
        return _load_program, (self.source, names, self.mutates)


@dataclass(frozen=True)
class _ByName:
    """Stands for a Python module in a pickle, which takes functions and classes but no modules."""

    module: str


def _load_program(source: str, names: dict[str, Any], mutates: tuple[bool, ...]) -> Program:
    names = {
        name: import_module(value.module) if isinstance(value, _ByName) else value
        for name, value in names.items()
    }
    return Program(source, names, mutates)
