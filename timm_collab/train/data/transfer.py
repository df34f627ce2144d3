"""Transfer of small arrays to the training device."""
from __future__ import annotations

from typing import Any

import numpy.typing as npt
import torch
from torch import Tensor


def to_device(array: npt.NDArray[Any], device: torch.device) -> Tensor:
    """Copy an array to a device, as a tensor.

    A copy to a GPU from pageable memory waits for all queued work. From pinned memory it doesn't, so the next batch is
    made while the GPU still computes the last one.
    """
    tensor = torch.from_numpy(array)
    if device.type != 'cuda':
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)
