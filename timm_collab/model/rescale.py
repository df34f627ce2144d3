"""Backpropagation rescaling: the operator I of Song & Chai (2018, eq. 5) at every split."""
from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map


class _ScaleGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: float) -> Tensor:
        ctx.scale = scale
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0] * ctx.scale, None


def rescale_gradient(values: Any, scale: float) -> Any:
    """Return values unchanged and scale their gradient: I(x) = x, dI(x)/dx = scale.

    With scale 1/k before a split into k children, the layers before it receive the average of the children's gradients,
    as in a network with a single classifier. Their sum would grow with the number of heads.

    Args:
        values: A tensor, or tensors in nested tuples, lists and dicts. Other values are returned as they are.
        scale: Factor of the gradient, 1/k.
    """
    return tree_map(
        lambda v: _ScaleGradient.apply(v, scale) if isinstance(v, Tensor) and v.is_floating_point() else v,
        values,
    )
