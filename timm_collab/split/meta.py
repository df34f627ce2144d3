"""Networks without storage, and which of a network's tensors are the same."""
from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch._prims_common import suggest_memory_format
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode


def structural_copy(module: nn.Module, tensors: dict[int, Tensor]) -> nn.Module:
    """A deep copy of a module in which every parameter and buffer is replaced.

    Ties between tensors, aliases between modules and the persistence of buffers come along, and no data is copied.

    Args:
        module: The module to copy.
        tensors: The replacement of each parameter and buffer, by the `id` of the original.
    """
    return copy.deepcopy(module, dict(tensors))


def meta_twin(module: nn.Module) -> nn.Module:
    """The module without storage: every parameter and buffer on the meta device, everything else a copy."""
    twins: dict[int, Tensor] = {}
    with torch.inference_mode(False):
        for param in module.parameters():
            twins[id(param)] = nn.Parameter(torch.empty_like(param, device='meta'), requires_grad=param.requires_grad)
        for buffer in module.buffers():
            twins[id(buffer)] = torch.empty_like(buffer, device='meta')
    return structural_copy(module, twins)


def blank_images(model: nn.Module, *shape: int) -> Tensor:
    """Images on the meta device, of the type of the model's weights."""
    dtype = next((param.dtype for param in model.parameters() if param.is_floating_point()), None)
    return torch.empty(shape, dtype=dtype, device='meta')


@contextmanager
def on_meta() -> Iterator[None]:
    """While open, networks on the meta device run without leaving a trace: no gradients, no random numbers drawn."""
    with torch.inference_mode(False), torch.no_grad(), torch.random.fork_rng(devices=[]), _ShapesOnly():
        yield


# Layout of what these functions return, which has its first argument's shape. None: channels come last if they did.
_LIKE_INPUT = {
    F.batch_norm: torch.preserve_format,
    F.group_norm: None,
    F.layer_norm: torch.contiguous_format,
    F.rms_norm: None,
    F.normalize: torch.preserve_format,
    F.gelu: torch.preserve_format,
    F.hardtanh: torch.preserve_format,
    F.hardswish: torch.preserve_format,
    F.relu6: torch.preserve_format,
}
# Of those, where the argument `inplace` stands.
_INPLACE_AT = {F.hardtanh: 3, F.hardswish: 1, F.relu6: 1}


class _ShapesOnly(TorchFunctionMode):
    """While open, what networks do most on the meta device is only as dear as its answer, a tensor of some shape.

    PyTorch itself goes through the statistics, bounds and biases of a tensor without data, operation by operation, in
    Python.
    """

    def __torch_function__(
            self,
            func: Callable[..., Any],
            types: Any,
            args: tuple[Any, ...] = (),
            kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if args and type(args[0]) is Tensor and args[0].is_meta:
            if func in _LIKE_INPUT:
                at = _INPLACE_AT.get(func)
                if at is not None and kwargs.get('inplace', args[at] if len(args) > at else False):
                    return args[0].zero_()  # the cheapest way to have been written to
                return torch.empty_like(args[0], memory_format=_LIKE_INPUT[func] or suggest_memory_format(args[0]))
            if func is F.linear:  # a bias changes nothing that is seen here, multiply-adds included
                return func(args[0], args[1] if len(args) > 1 else kwargs['weight'])
        return func(*args, **kwargs)


def named_tensors(module: nn.Module) -> list[tuple[str, Tensor]]:
    """Every parameter and buffer, persistent or not, under each of its names."""
    return [*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False)]


def storage_key(tensor: Tensor) -> int:
    """What a tensor shares with its views and with nothing else."""
    return tensor.untyped_storage()._cdata
