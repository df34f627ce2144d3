"""Copies of networks without storage, and the identity of a network's tensors."""
from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


def structural_copy(module: nn.Module, tensors: dict[int, Tensor]) -> nn.Module:
    """Deep-copy a module and replace every parameter and buffer.

    The copy has the same tied tensors, module aliases and non-persistent buffers. No tensor data is copied.

    Args:
        module: The module to copy.
        tensors: The replacement of each parameter and buffer, keyed by the `id` of the original.
    """
    return copy.deepcopy(module, dict(tensors))


def meta_twin(module: nn.Module) -> nn.Module:
    """Copy a module to the meta device: parameters and buffers have no storage, everything else is copied."""
    twins: dict[int, Tensor] = {}
    with torch.inference_mode(False):
        for param in module.parameters():
            twins[id(param)] = nn.Parameter(torch.empty_like(param, device='meta'), requires_grad=param.requires_grad)
        for buffer in module.buffers():
            twins[id(buffer)] = torch.empty_like(buffer, device='meta')
    return structural_copy(module, twins)


def blank_images(model: nn.Module, *shape: int) -> Tensor:
    """Create images on the meta device, in the dtype of the model's weights."""
    dtype = next((param.dtype for param in model.parameters() if param.is_floating_point()), None)
    return torch.empty(shape, dtype=dtype, device='meta')


@contextmanager
def on_meta() -> Iterator[None]:
    """Run networks on the meta device without side effects: no gradients, and the random state is restored."""
    with torch.inference_mode(False), torch.no_grad(), torch.random.fork_rng(devices=[]):
        yield


def named_tensors(module: nn.Module) -> list[tuple[str, Tensor]]:
    """List every parameter and buffer, persistent or not, under each of its names."""
    return [*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False)]


def storage_key(tensor: Tensor) -> int:
    """Return a key that identifies the storage of a tensor: equal for views of one tensor, and only for those."""
    return tensor.untyped_storage()._cdata
