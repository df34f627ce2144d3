"""The cost of a network in multiply-adds."""
from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from ...split.meta import meta_twin, on_meta

FORWARDS_PER_STEP = 3
"""Cost of a training step in forward passes: the gradients of inputs and of weights cost about one each."""


def forward_multiply_adds(model: nn.Module, input_size: Sequence[int]) -> int:
    """Count the multiply-adds of a forward pass of one image, through all heads of a tree, on the meta device.

    Args:
        model: A head tree or any network, on any device.
        input_size: Channels, height, width.
    """
    from torch.utils.flop_counter import FlopCounterMode  # slow to import
    twin = meta_twin(model).eval().requires_grad_(False)  # the counter fails on parameters that are inputs
    forward = getattr(twin, 'forward_heads', twin)
    with on_meta():
        image = torch.empty(1, *input_size, device='meta')
        forward(image)  # a tree traces its network once per image size, which must not be counted
        with FlopCounterMode(display=False) as counter:
            forward(image)
    return counter.get_total_flops() // 2
