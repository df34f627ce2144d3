"""Draw part of a network's weights anew, in the architecture's own way, without paying for the rest."""
from __future__ import annotations

import copy
import functools
from collections import deque
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from ..split.meta import named_tensors, storage_key

_aten = torch.ops.aten
_OVERWRITES = frozenset({
    _aten.uniform_.default, _aten.normal_.default, _aten.zero_.default, _aten.fill_.Scalar, _aten.fill_.Tensor,
})


class Drawing:
    """A constructor of networks that can be asked for networks with only some of their weights drawn.

    The first network is recorded: which of the tensors that its constructor allocates end up under which name, and
    which of the writes to them counts (layers initialise their weights, and architectures do so again). In a later one
    the constructor runs again, and all other writes are left out. They are most of what a constructor costs.

    Args:
        create: Makes a network; it has to do the same each time but for the numbers it draws.
    """

    def __init__(self, create: Callable[[], nn.Module]):
        self._create = create
        self._allocated: list[_Allocation] = []
        self._names: list[frozenset[str]] = []

    def whole(self) -> nn.Module:
        """A network with all its weights drawn, recorded for `part`."""
        if torch.get_default_device().type == 'meta':  # there are no numbers to draw
            model = self._create()
            self._create = functools.partial(copy.deepcopy, copy.deepcopy(model))
            return model
        with _Recording() as recording:
            model = self._create()
        names: dict[int, set[str]] = {}
        for name, tensor in named_tensors(model):
            names.setdefault(storage_key(tensor), set()).add(name)
        self._names = [frozenset(names.get(key, ())) for key in recording.allocated]
        self._allocated = list(recording.allocated.values())
        for allocation in self._allocated:
            del allocation.tensor
        return model

    def part(self, paths: Collection[str]) -> nn.Module:
        """A network in which the modules and tensors at some paths are drawn and the others may hold anything.

        Args:
            paths: The modules, parameters and buffers that are wanted.
        """
        skips = []
        for allocation, names in zip(self._allocated, self._names, strict=True):
            wanted = not names or any(f'{name}.'.startswith(f'{path}.') for path in paths for name in names)
            skips.append(allocation.last_overwrite if wanted else allocation.writes)
        try:
            with _Sparing([allocation.shape for allocation in self._allocated], skips):
                return self._create()
        except _UnwrittenRead:
            return self._create()


class _UnwrittenRead(Exception):
    """Nothing may be left out: the constructor computes with what it wrote, or does otherwise than the first time."""


@dataclass
class _Allocation:
    """A tensor that was allocated without content, and what was written to it.

    Attributes:
        tensor: The tensor; while it's held, no other gets its memory.
        shape: Its shape.
        writes: The number of writes to it.
        last_overwrite: The number of writes before the last one that leaves nothing of them.
    """

    tensor: Tensor
    shape: torch.Size
    writes: int = 0
    last_overwrite: int = 0


class _Recording(TorchDispatchMode):
    """Follows the tensors that are allocated without content, by their storage, and the writes to them."""

    def __init__(self) -> None:
        super().__init__()
        self.allocated: dict[int, _Allocation] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func is _aten.empty.memory_format:
            self.allocated[storage_key(result)] = _Allocation(result, result.shape)
        elif _writes_first(func) and (written := self.allocated.get(storage_key(args[0]))):
            if func in _OVERWRITES and args[0].numel() == written.shape.numel():
                written.last_overwrite = written.writes
            written.writes += 1
        return result


class _Sparing(TorchDispatchMode):
    """Leaves out the first writes to each of the allocated tensors, as many as it is told."""

    def __init__(self, shapes: list[torch.Size], skips: list[int]):
        super().__init__()
        self.expected = deque(zip(shapes, skips, strict=True))
        self.skips: dict[int, int] = {}  # of the tensors whose content doesn't count yet, by their storage
        self.tensors: list[Tensor] = []  # while they are held, no other gets their memory

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is _aten.empty.memory_format:
            return self.allocate(func(*args, **(kwargs or {})))
        unwritten = [tensor for tensor in _tensors(args, kwargs) if storage_key(tensor) in self.skips]
        if unwritten and _writes_first(func) and unwritten[0] is args[0]:
            key = storage_key(args[0])
            if self.skips[key]:
                self.skips[key] -= 1
                return args[0]
            del self.skips[key], unwritten[0]
        if unwritten and not func.is_view:
            raise _UnwrittenRead
        return func(*args, **(kwargs or {}))

    def allocate(self, tensor: Tensor) -> Tensor:
        """Look up how many writes to a new tensor don't count."""
        shape, skip = self.expected.popleft() if self.expected else (None, 0)
        if tensor.shape != shape:
            raise _UnwrittenRead
        self.tensors.append(tensor)
        if skip:
            self.skips[storage_key(tensor)] = skip
        return tensor


@functools.cache
def _writes_first(func: Any) -> bool:
    """Whether an operation writes to its first argument, and that is a tensor."""
    first = func._schema.arguments[:1]
    return bool(first and first[0].alias_info and first[0].alias_info.is_write and str(first[0].type) == 'Tensor')


def _tensors(args: tuple[Any, ...], kwargs: dict[str, Any] | None) -> list[Tensor]:
    """The tensors among the arguments of an operation, which come one by one or in lists."""
    values = [*args, *kwargs.values()] if kwargs else args
    return [
        tensor
        for value in values
        for tensor in (value if isinstance(value, (list, tuple)) else (value,))
        if isinstance(tensor, Tensor)
    ]
