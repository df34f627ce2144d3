"""Split a network between modules of its main path into segments that run one after the other.

Running all segments in order is exactly the original network. `Chain` decides, once per architecture, what each
segment computes and which tensors it owns. `Segment` holds that part of one plain network, under the original names.
"""
from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from ..tree import INPUT
from .meta import blank_images, meta_twin, on_meta
from .program import CutTrace, Program
from .tracing import Trace, TraceError, trace


class SplitPointError(ValueError):
    """The network can't be split at the requested place.

    Args:
        message: The reason.
        name: The module after which it would be split, if the error is about a single one.
    """

    def __init__(self, message: str, name: str | None = None):
        super().__init__(message)
        self.name = name


@dataclass(frozen=True)
class Subgraph:
    """The operations between two cuts, for any network of one architecture.

    Attributes:
        train: The program in train mode.
        eval: The program in eval mode.
        contents: Paths of the modules, parameters and buffers that it owns.
    """

    train: Program
    eval: Program
    contents: tuple[str, ...]

    def __deepcopy__(self, memo: dict[int, Any]) -> Subgraph:
        return self


class Scope(nn.Module):
    """A container that has modules and tensors under the names of their parent in the plain network."""


class Segment(Scope):
    """A subgraph with weights: the modules and tensors that it owns, moved here from a plain network.

    Maps the values that are live at the cut before it to those live at the cut after it, or to the logits. Live values
    may be several tensors, in lists or tuples, and numbers.

    Args:
        subgraph: What to compute.
        plain: A network of the architecture, whose modules move here. It is unusable afterwards.
        shares_input: Whether sibling segments read the same input, so that none may modify it.

    Attributes:
        subgraph: What the segment computes.
    """

    def __init__(self, subgraph: Subgraph, plain: nn.Module, shares_input: bool):
        super().__init__()
        self.subgraph = subgraph
        self._shares_input = shares_input
        for path in subgraph.contents:
            self._place(path, plain)
        self.train(plain.training)

    def forward(self, *values: Any, subgraph: Subgraph | None = None) -> Any:
        """Compute the values that are live at the cut after the segment, or the logits.

        Args:
            values: The values that are live at the cut before it.
            subgraph: Computed instead of the segment's own: the same operations at another input size.
        """
        subgraph = self.subgraph if subgraph is None else subgraph
        program = subgraph.train if self.training else subgraph.eval
        if self._shares_input:  # rebuild the containers, and clone the tensors that the program writes to
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
                return  # already moved along with its parent
        if name in owner._modules:
            scope.add_module(name, owner._modules[name])
        elif name in owner._parameters:
            scope.register_parameter(name, owner._parameters[name])
        else:
            scope.register_buffer(name, owner._buffers[name], name not in owner._non_persistent_buffers_set)


class Chain:
    """An architecture and the cuts that divide it into a chain of subgraphs.

    Cut 0 is the input, cut i comes after the i-th of `names`, and the last one, `end`, after the logits.

    Args:
        model: A plain network of the architecture, which is not modified.
        names: The modules to cut after, in any order.
        input_size: Shape of one input, (channels, height, width).

    Attributes:
        template: The network on the meta device, see `timm_collab.split.meta.meta_twin`.
        names: The modules to cut after, in forward order.

    Raises:
        SplitPointError: A name is not a module of the network, or the network can't be split after it.
        TraceError: The network's forward can't be traced.
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
        runs = {}
        for training in (True, False):
            run = trace(self.template.train(training), expand, input_size)
            runs[training] = run, {name: _end(run, name) for name in wanted}
        ends = runs[True][1]
        self.names = tuple(sorted(wanted, key=ends.__getitem__))
        self._traces = {
            training: CutTrace(run, [positions[name] for name in self.names])
            for training, (run, positions) in runs.items()
        }
        self.end = len(self.names) + 1
        self._contents = self._partition()
        self._subgraphs: dict[tuple[int, int], Subgraph] = {}
        self.template.train(model.training)

    def cut(self, name: str | None) -> int:
        """Return the number of the cut after a module; None is the end."""
        if name is None:
            return self.end
        return 0 if name == INPUT else self.names.index(name) + 1

    def subgraph(self, start: int, stop: int) -> Subgraph:
        """Return the subgraph between two cuts.

        Raises:
            SplitPointError: It has no parameter, so its copies in several branches would stay identical.
        """
        if (start, stop) not in self._subgraphs:
            contents = tuple(path for part in self._contents[start:stop] for path in part)
            tensors = (tensor for path in contents for tensor in tensors_at(self.template, path))
            if stop > 0 and not any(isinstance(tensor, nn.Parameter) for tensor in tensors):
                before, after = (INPUT, *self.names)[start], [*map(repr, (INPUT, *self.names)), 'the end'][stop]
                raise SplitPointError(f"there is no parameter between '{before}' and {after}", before)
            train, eval_ = (self._traces[training].program(start, stop) for training in (True, False))
            self._subgraphs[start, stop] = Subgraph(train, train if train == eval_ else eval_, contents)
        return self._subgraphs[start, stop]

    def run(self, cuts: Sequence[int], x: Tensor, model: nn.Module | None = None) -> Any:
        """Run a network of the architecture (default the template) cut by cut, in the mode it is in."""
        model = self.template if model is None else model
        values: Any = (x,)
        for start, stop in pairwise(cuts):
            subgraph = self.subgraph(start, stop)
            values = (subgraph.train if model.training else subgraph.eval).function(model, *values)
        return values

    def check(self, cuts: Sequence[int]) -> None:
        """Run the subgraphs between some cuts on the meta device, in both modes, at another batch size than traced.

        Raises:
            TraceError: The result is not one vector of logits per image.
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
        self.template.train()  # as it was made

    def _partition(self) -> list[tuple[str, ...]]:
        """Assign every tensor to exactly one part, as the list of paths that each part owns."""
        contents: list[dict[str, None]] = [{} for _ in range(self.end)]
        users: dict[int, dict[int, str]] = defaultdict(dict)
        for run in self._traces.values():
            for part, path in run.uses():
                contents[part].setdefault(path)
                for tensor in tensors_at(self.template, path):
                    users[id(tensor)].setdefault(part, path)
        for parts in users.values():
            if len(parts) > 1:
                (first, path), *_, (last, _) = sorted(parts.items())
                between = "' and '".join(self.names[first:last])
                raise SplitPointError(
                    f"the network can't be split after '{between}': '{path}' is used before and after it",
                    self.names[first],
                )
        # Tensors that no operation uses are still part of the network: the first part owns them.
        for path, tensor in (*self.template.named_parameters(), *self.template.named_buffers()):
            if id(tensor) not in users:
                contents[0].setdefault(path)
        return [tuple(sorted(part, key=lambda path: path.count('.'))) for part in contents]


def _end(run: Trace, name: str) -> int:
    """Count the operations up to the end of a module, or of its last submodule if it is only a container."""
    if name in run.ends:
        return run.ends[name]
    if name in run.calls:
        times = run.calls[name]
        raise SplitPointError(f"'{name}' is called {times} times: the network has no single place after it", name)
    parts = [path for path in run.calls if path.startswith(f'{name}.')]
    if not parts:
        raise SplitPointError(f"'{name}' is not on the main path of the network: nothing calls it by itself", name)
    return max(_end(run, path) for path in parts)


def tensors_at(template: nn.Module, path: str) -> Iterator[Tensor]:
    """Yield the parameters and buffers at a path: those of a module, or the one tensor with that name."""
    owner, _, name = path.rpartition('.')
    value = getattr(template.get_submodule(owner), name)
    if isinstance(value, nn.Module):
        yield from value.parameters()
        yield from value.buffers()
    else:
        yield value
