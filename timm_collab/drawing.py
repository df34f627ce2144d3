"""Draw part of a network's weights anew, in the architecture's own way, without paying for the rest."""
from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from .tracing import storage_key


class Drawing:
    """A constructor of networks that can be asked for networks with only some of their weights drawn.

    The first network is recorded: which of the tensors that its constructor allocates end up under which name. In a
    later one the constructor runs again, and what it writes to the tensors nobody asked for is left out. Initialising
    random weights is most of what a constructor costs.

    Args:
        create: Makes a network; it has to do the same each time but for the numbers it draws.
    """

    def __init__(self, create: Callable[[], nn.Module]):
        self._create = create
        self._shapes: list[torch.Size] = []
        self._names: list[frozenset[str]] = []

    def whole(self) -> nn.Module:
        """A network with all its weights drawn, recorded for `part`."""
        with _Allocations() as allocations:
            model = self._create()
        names: dict[int, set[str]] = {}
        for name, tensor in named_tensors(model):
            names.setdefault(storage_key(tensor), set()).add(name)
        if all(tensor.is_meta for _, tensor in named_tensors(model)):
            self._create = functools.partial(copy.deepcopy, copy.deepcopy(model))  # it has no numbers to draw
            return model
        self._shapes = [tensor.shape for tensor in allocations.tensors]
        self._names = [frozenset(names.get(storage_key(tensor), ())) for tensor in allocations.tensors]
        return model

    def part(self, paths: Collection[str]) -> nn.Module:
        """A network in which the modules and tensors at some paths are drawn and the others may hold anything.

        Args:
            paths: The modules, parameters and buffers that are wanted.
        """
        idle = {
            index
            for index, names in enumerate(self._names)
            if names and not any(f'{name}.'.startswith(f'{path}.') for path in paths for name in names)
        }
        try:
            with _Idle(self._shapes, idle):
                return self._create()
        except _IdleTensorRead:
            return self._create()


class _IdleTensorRead(Exception):
    """Nothing may be left out: the constructor computes with what it wrote, or does otherwise than the first time."""


class _Allocations(TorchDispatchMode):
    """Keeps the tensors that are allocated without content, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.tensors: list[Tensor] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func is torch.ops.aten.empty.memory_format:
            self.tensors.append(result)
        return result


class _Idle(_Allocations):
    """Leaves out every write to some of the allocated tensors."""

    def __init__(self, shapes: list[torch.Size], idle: Collection[int]):
        super().__init__()
        self.shapes = shapes
        self.idle = idle
        self.storages: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        touched = [
            leaf
            for leaf in tree_leaves((args, kwargs))
            if isinstance(leaf, Tensor) and storage_key(leaf) in self.storages
        ]
        if touched and func._schema.is_mutable and touched[0] is args[0]:
            return args[0]
        if touched and not func.is_view:
            raise _IdleTensorRead
        known = len(self.tensors)
        result = super().__torch_dispatch__(func, types, args, kwargs)
        if len(self.tensors) > known:
            if known == len(self.shapes) or result.shape != self.shapes[known]:
                raise _IdleTensorRead
            if known in self.idle:
                self.storages.add(storage_key(result))
        return result


def named_tensors(module: nn.Module) -> list[tuple[str, Tensor]]:
    """Every parameter and buffer, persistent or not, under each of its names."""
    return [*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False)]
