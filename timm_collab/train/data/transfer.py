"""Small arrays on their way to the training device."""
from __future__ import annotations

from typing import Any

import numpy.typing as npt
import torch
from torch import Tensor


def to_device(array: npt.NDArray[Any], device: torch.device) -> Tensor:
    """An array as a tensor on the device.

    A copy to a GPU from memory that may be paged waits until the GPU has done all it was given, so it goes by way of
    memory that may not: the batches of a small network are then made while the GPU still computes the last one.
    """
    tensor = torch.from_numpy(array)
    if device.type != 'cuda':
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)
