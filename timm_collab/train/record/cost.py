"""What a network costs, in multiply-adds."""
from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from ...split.meta import meta_twin, on_meta

FORWARDS_OF_A_STEP = 3
"""A backward pass computes the gradients of inputs and of weights, each for about what the forward pass costs."""


def forward_multiply_adds(model: nn.Module, input_size: Sequence[int]) -> int:
    """Multiply-adds of a forward pass of one image, through all heads of a tree; nothing is computed.

    Args:
        model: A head tree or any network, on any device.
        input_size: Channels, height, width.
    """
    from torch.utils.flop_counter import FlopCounterMode  # slow to import
    twin = meta_twin(model).eval().requires_grad_(False)  # the counter can't follow a parameter that is an input
    forward = getattr(twin, 'forward_heads', twin)
    with on_meta():
        image = torch.empty(1, *input_size, device='meta')
        forward(image)  # a tree follows its network once for a new image size, and that isn't to be counted
        with FlopCounterMode(display=False) as counter:
            forward(image)
    return counter.get_total_flops() // 2
