"""Cut a network between modules of its main path into stretches that run one after the other, exactly as one.

`Chain` decides, once per architecture, what each stretch computes and which tensors it owns; `Segment` is a stretch
filled with the modules of one plain network, under their original names.
"""
from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from torch import Tensor, fx, nn
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

from ..tree import INPUT
from .meta import blank_images, meta_twin, on_meta, storage_key
from .program import Program
from .tracing import Trace, TraceError, trace


class SplitPointError(ValueError):
    """A place where this network can't be split.

    Args:
        message: Why it can't.
        name: The module it would be split after, where a single one is to blame.
    """

    def __init__(self, message: str, name: str | None = None):
        super().__init__(message)
        self.name = name


@dataclass(frozen=True)
class Stretch:
    """What lies between two cuts, for any network of one architecture.

    Attributes:
        train: The program in train mode.
        eval: The program in eval mode.
        contents: Paths of the modules, parameters and buffers it owns.
    """

    train: Program
    eval: Program
    contents: tuple[str, ...]

    def __deepcopy__(self, memo: dict[int, Any]) -> Stretch:
        return self


class Scope(nn.Module):
    """Holds modules and tensors under the name their parent had in the plain network."""


class Segment(Scope):
    """A stretch with weights: the modules and tensors it owns, taken over from a plain network.

    Takes the values that cross the cut before it and returns those that cross the cut after it, or the logits. Which
    values cross may be several tensors, in lists or tuples, and numbers.

    Args:
        stretch: What to compute.
        plain: A network of the architecture, whose modules move here; it's of no use afterwards.
        shares_input: Whether sibling segments read the same input, so that none may write to it.

    Attributes:
        stretch: What it computes.
    """

    def __init__(self, stretch: Stretch, plain: nn.Module, shares_input: bool):
        super().__init__()
        self.stretch = stretch
        self._shares_input = shares_input
        for path in stretch.contents:
            self._place(path, plain)
        self.train(plain.training)

    def forward(self, *values: Any, stretch: Stretch | None = None) -> Any:
        """From what crosses the cut before it to what crosses the cut after it, or the logits.

        Args:
            values: What crosses the cut before it.
            stretch: What to compute instead of what it was made for: the same at another input size.
        """
        stretch = self.stretch if stretch is None else stretch
        program = stretch.train if self.training else stretch.eval
        if self._shares_input:  # containers of its own, and tensors of its own where it writes to them
            leaves, layout = tree_flatten(values)
            leaves = [leaf.clone() if written else leaf for leaf, written in zip(leaves, program.mutates, strict=True)]
            values = tree_unflatten(leaves, layout)
        return program.function(self, *values)

    def _place(self, path: str, plain: nn.Module) -> None:
        *parents, name = path.split('.')
        scope: nn.Module = self
        owner = plain
        for parent in parents:
            owner = owner.get_submodule(parent)
            if parent not in scope._modules:
                scope.add_module(parent, Scope())
            scope = scope.get_submodule(parent)
            if not isinstance(scope, Scope):
                return  # the parent came along as a whole
        if name in owner._modules:
            scope.add_module(name, owner._modules[name])
        elif name in owner._parameters:
            scope.register_parameter(name, owner._parameters[name])
        else:
            scope.register_buffer(name, owner._buffers[name], name not in owner._non_persistent_buffers_set)


class Chain:
    """An architecture and the cuts that split it into a chain of stretches.

    Cut 0 is the input, cut i comes after the i-th of `names`, and the last, `end`, after the logits.

    Args:
        model: A plain network of the architecture; it's only looked at.
        names: The modules to cut after, in any order.
        input_size: Shape of one input, (channels, height, width).

    Attributes:
        template: The network on the meta device, see `timm_collab.split.meta.meta_twin`.
        names: The modules cut after, in forward order.

    Raises:
        SplitPointError: A name that is no module of the network, or one after which it can't be cut.
        TraceError: The network's forward can't be followed.
    """

    def __init__(self, model: nn.Module, names: Iterable[str], input_size: tuple[int, ...]):
        wanted = [name for name in dict.fromkeys(names) if name != INPUT]
        modules = dict(model.named_modules())
        for name in wanted:
            if not name or name not in modules:
                raise SplitPointError(f"'{name}' is no module of this network", name)
        self.template = meta_twin(model)
        self.input_size = input_size
        expand = {name[:dot] for name in wanted for dot in range(len(name)) if name[dot] == '.'}
        views = {}
        for training in (True, False):
            run = trace(self.template.train(training), expand, input_size)
            views[training] = run, {name: _end(run, name) for name in wanted}
        ends = views[True][1]
        self.names = tuple(sorted(wanted, key=ends.__getitem__))
        self._views = {
            training: CutView(run, [positions[name] for name in self.names])
            for training, (run, positions) in views.items()
        }
        self.end = len(self.names) + 1
        self._contents = self._partition()
        self._stretches: dict[tuple[int, int], Stretch] = {}
        self.template.train(model.training)

    def cut(self, name: str | None) -> int:
        """The number of the cut after a module; None is the end."""
        if name is None:
            return self.end
        return 0 if name == INPUT else self.names.index(name) + 1

    def stretch(self, start: int, stop: int) -> Stretch:
        """What lies between two cuts.

        Raises:
            SplitPointError: A stretch after the first that has nothing to learn: its copies would stay alike.
        """
        if (start, stop) not in self._stretches:
            contents = tuple(path for part in self._contents[start:stop] for path in part)
            tensors = (tensor for path in contents for tensor in held_tensors(self.template, path))
            if stop > 0 and not any(isinstance(tensor, nn.Parameter) for tensor in tensors):
                before, after = (INPUT, *self.names)[start], [*map(repr, (INPUT, *self.names)), 'the end'][stop]
                raise SplitPointError(f"there is no parameter between '{before}' and {after}", before)
            train, eval_ = (self._views[training].program(start, stop) for training in (True, False))
            self._stretches[start, stop] = Stretch(train, train if train == eval_ else eval_, contents)
        return self._stretches[start, stop]

    def run(self, cuts: Sequence[int], x: Tensor, model: nn.Module | None = None) -> Any:
        """Run a network of the architecture (default the template) stretch by stretch, in the mode it is in."""
        model = self.template if model is None else model
        values: Any = (x,)
        for start, stop in pairwise(cuts):
            stretch = self.stretch(start, stop)
            values = (stretch.train if model.training else stretch.eval).function(model, *values)
        return values

    def check(self, cuts: Sequence[int]) -> None:
        """Run the stretches between some cuts on the meta device, in both modes, at a batch size they weren't made at.

        Raises:
            TraceError: What comes out is not a vector of logits per image.
        """
        x = blank_images(self.template, 3, *self.input_size)
        classes = getattr(self.template, 'num_classes', 0)
        for training in (True, False):
            with on_meta():
                logits = self.run(cuts, x, self.template.train(training))
            shape = getattr(logits, 'shape', type(logits).__name__)
            if shape != (3, classes) or not classes:
                wanted = f'[3, {classes}]' if classes else '[3, num_classes]: give num_classes if it can classify'
                raise TraceError(f'it maps 3 images to {shape}, not to logits {wanted}')
        self.template.train()

    def _partition(self) -> list[tuple[str, ...]]:
        """The paths that each elementary stretch owns: every tensor in exactly one of them."""
        contents: list[dict[str, None]] = [{} for _ in range(self.end)]
        users: dict[int, dict[int, str]] = defaultdict(dict)
        for view in self._views.values():
            for part, path in view.fetches():
                contents[part].setdefault(path)
                for tensor in held_tensors(self.template, path):
                    users[id(tensor)].setdefault(part, path)
        for parts in users.values():
            if len(parts) > 1:
                (first, path), *_, (last, _) = sorted(parts.items())
                between = "' and '".join(self.names[first:last])
                raise SplitPointError(
                    f"the network can't be split after '{between}': '{path}' is used before and after it",
                    self.names[first],
                )
        # What no operation uses still belongs to the network: it stays in front, once.
        for path, tensor in (*self.template.named_parameters(), *self.template.named_buffers()):
            if id(tensor) not in users:
                contents[0].setdefault(path)
        return [tuple(sorted(part, key=lambda path: path.count('.'))) for part in contents]


class CutView:
    """A trace in one mode, cut: which elementary stretch each node belongs to and what crosses each cut."""

    def __init__(self, run: Trace, positions: list[int]):
        self.graph = run.graph
        self.parts = len(positions) + 1
        self.part: dict[fx.Node, int] = {}
        for node in run.graph.nodes:
            self.part[node] = bisect_right(positions, node.meta['position'])
        for node in run.graph.nodes:
            if node.op == 'placeholder':
                self.part[node] = -1
            elif node.op == 'output':
                self.part[node] = self.parts - 1
            elif node.op == 'get_attr':  # a tensor is fetched by whoever uses it first
                self.part[node] = min(self.part[user] for user in node.users)

    def fetches(self) -> Iterator[tuple[int, str]]:
        """The path of each module and tensor that is used, with the elementary stretch that uses it."""
        for node, part in self.part.items():
            if node.op in ('call_module', 'get_attr'):
                yield part, str(node.target)

    def crossing(self, cut: int) -> list[fx.Node]:
        """The nodes before a cut whose values are used after it."""
        return [
            node
            for node, part in self.part.items()
            if part < cut and any(self.part[user] >= cut for user in node.users)
        ]

    def program(self, start: int, stop: int) -> Program:
        """The program between two cuts."""
        graph = fx.Graph()
        copies: dict[fx.Node, fx.Node] = {}
        inputs = self.crossing(start)
        for node in inputs:
            copies[node] = graph.placeholder(node.name)
        inside = [node for node, part in self.part.items() if start <= part < stop and node.op != 'output']
        for node in inside:
            copies[node] = graph.node_copy(node, copies.__getitem__)
        if stop == self.parts:
            [output] = [node for node in self.graph.nodes if node.op == 'output']
            result = fx.node.map_arg(output.args[0], copies.__getitem__)
        else:
            result = tuple(copies[node] for node in self.crossing(stop))
        graph.output(result)
        code = graph.python_code(root_module='self')
        names = {name: value for name, value in code.globals.items() if name in code.src}
        written = set().union(*(node.meta['writes'] for node in inside))
        leaves = tree_leaves([node.meta['fresh'] for node in inputs])
        return Program(code.src, names, tuple(
            isinstance(leaf, Tensor) and storage_key(leaf) in written for leaf in leaves
        ))


def _end(run: Trace, name: str) -> int:
    """The number of operations done when a module is through, itself or, if it's only a container, its parts."""
    if name in run.ends:
        return run.ends[name]
    if name in run.calls:
        times = run.calls[name]
        raise SplitPointError(f"'{name}' is called {times} times: the network has no single place after it", name)
    parts = [path for path in run.calls if path.startswith(f'{name}.')]
    if not parts:
        raise SplitPointError(f"'{name}' is not on the main path of the network: nothing calls it by itself", name)
    return max(_end(run, path) for path in parts)


def held_tensors(template: nn.Module, path: str) -> Iterator[Tensor]:
    """The parameters and buffers at a path: a module's, or the one tensor that it names."""
    owner, _, name = path.rpartition('.')
    held = getattr(template.get_submodule(owner), name)
    if isinstance(held, nn.Module):
        yield from held.parameters()
        yield from held.buffers()
    else:
        yield held
