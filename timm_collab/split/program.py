"""A traced graph divided at cuts, and the Python programs for the parts between them."""
from __future__ import annotations

import linecache
from bisect import bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from types import ModuleType
from typing import Any

from torch import Tensor, fx
from torch.utils._pytree import tree_leaves

from .meta import storage_key
from .tracing import Trace


class Program:
    """Straight-line Python for part of a trace, `function(modules, *values)`, compiled from its source.

    A program is pickled by its source.

    Args:
        source: The text of a function named `forward`.
        names: The global names it uses.
        mutates: For each leaf of its values, whether it is a tensor that the program modifies in place.
    """

    def __init__(self, source: str, names: dict[str, Any], mutates: tuple[bool, ...] = ()):
        self.source = source
        self.names = names
        self.mutates = mutates
        # A unique name in the line cache lets tracebacks show the generated line.
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
            name: _ModuleName(value.__name__) if isinstance(value, ModuleType) else value
            for name, value in self.names.items()
        }
        return _load_program, (self.source, names, self.mutates)


@dataclass(frozen=True)
class _ModuleName:
    """Stands for a Python module in a pickle: functions and classes can be pickled, modules can't."""

    module: str


def _load_program(source: str, names: dict[str, Any], mutates: tuple[bool, ...]) -> Program:
    names = {
        name: import_module(value.module) if isinstance(value, _ModuleName) else value
        for name, value in names.items()
    }
    return Program(source, names, mutates)


class CutTrace:
    """A trace divided into parts: the part of each node, and the values that are live at each cut.

    Cut i lies between part i - 1 and part i. Cut 0 comes after the input and before the first operation.

    Args:
        run: The trace, in one mode.
        positions: For each cut after the first, the number of operations before it, in ascending order.

    Attributes:
        num_parts: Number of parts.
        part: The part of each node; -1 for the input.
    """

    def __init__(self, run: Trace, positions: list[int]):
        self.graph = run.graph
        self.num_parts = len(positions) + 1
        self.part: dict[fx.Node, int] = {}
        for node in run.graph.nodes:
            self.part[node] = bisect_right(positions, node.meta['position'])
        for node in run.graph.nodes:
            if node.op == 'placeholder':
                self.part[node] = -1
            elif node.op == 'output':
                self.part[node] = self.num_parts - 1
            elif node.op == 'get_attr':  # a tensor belongs to the first part that uses it
                self.part[node] = min(self.part[user] for user in node.users)

    def uses(self) -> Iterator[tuple[int, str]]:
        """Yield the part and path of each use of a module, parameter or buffer."""
        for node, part in self.part.items():
            if node.op in ('call_module', 'get_attr'):
                yield part, str(node.target)

    def live_nodes(self, cut: int) -> list[fx.Node]:
        """List the nodes before a cut whose values are used after it."""
        return [
            node
            for node, part in self.part.items()
            if part < cut and any(self.part[user] >= cut for user in node.users)
        ]

    def program(self, start: int, stop: int) -> Program:
        """Generate the program between two cuts, from the values live at one to those live at the other."""
        graph = fx.Graph()
        copies: dict[fx.Node, fx.Node] = {}
        inputs = self.live_nodes(start)
        for node in inputs:
            copies[node] = graph.placeholder(node.name)
        inside = [node for node, part in self.part.items() if start <= part < stop and node.op != 'output']
        for node in inside:
            copies[node] = graph.node_copy(node, copies.__getitem__)
        if stop == self.num_parts:
            [output] = [node for node in self.graph.nodes if node.op == 'output']
            result = fx.node.map_arg(output.args[0], copies.__getitem__)
        else:
            result = tuple(copies[node] for node in self.live_nodes(stop))
        graph.output(result)
        code = graph.python_code(root_module='self')
        names = {name: value for name, value in code.globals.items() if name in code.src}
        written = set().union(*(node.meta['writes'] for node in inside))
        leaves = tree_leaves([node.meta['fresh'] for node in inputs])
        return Program(code.src, names, tuple(
            isinstance(leaf, Tensor) and storage_key(leaf) in written for leaf in leaves
        ))
