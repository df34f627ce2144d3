"""Value and gradient of the objective with cross-entropy in one pass, a few examples at a time.

Written as a sum of torch's functions, the objective keeps or makes about ten tensors of the logits' size and reads each
several times. Its gradient is known in closed form, with r_b the share of an example in the reduction and y_b the
target's distribution:

    dL / dz_hb = hard r_b (softmax(z_hb) - y_b) + soft T^2 / T r_b (softmax(z_hb / T) - q_hb)

so the forward pass computes it along with the value, and besides it nothing of the logits' size is made. It is one
formula for all devices, which a compiler can make a few loops of.

Shapes: H heads, B batch, C classes, N examples of a block; a 1 is a dimension kept for broadcasting.
"""
from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

BLOCK_ON_CPU, BLOCK = 2**19, 2**22
"""Numbers worked on at once: what a CPU's cache holds; on an accelerator enough to keep it busy."""

_LOG2_E = math.log2(math.e)  # exp2 is several times faster than exp on CPUs


@dataclass(frozen=True)
class Weights:
    """The numbers in the objective.

    Args:
        temperature: T.
        hard: Weight of the hard term.
        soft: Weight of the soft term.
        scale_by_t2: Whether the soft term is multiplied by T^2.
        sum_batch: Whether terms are summed over the batch, and not averaged.
        label_smoothing: Share of the target that is spread evenly over the classes.
        ignore_index: Class index of examples without a hard term.
    """

    temperature: float
    hard: float
    soft: float
    scale_by_t2: bool
    sum_batch: bool
    label_smoothing: float
    ignore_index: int


def collaborative_cross_entropy(
        logits_HBC: Tensor,
        target: Tensor,
        weights: Weights,
        terms: Terms,
) -> tuple[Tensor, Tensor, Tensor]:
    """The objective with `nn.CrossEntropyLoss` as the hard loss, of at least two heads.

    The gradient is handed over in the first backward pass; a second one through the same graph computes it again. It
    can't be differentiated twice, and says so.

    Args:
        logits_HBC: Logits of the heads, [H, B, C].
        target: Class indices [B], or class probabilities [B, C].
        weights: The numbers in it.
        terms: `terms_and_gradient`, or what a compiler made of it.

    Returns:
        The loss, one number; hard and soft terms of each head [H] as in `CollaborativeLoss.terms`, but without a
        gradient.
    """
    loss, hard_H, soft_H = _Objective.apply(logits_HBC, target, weights, terms)
    return loss, hard_H, soft_H


class _Objective(torch.autograd.Function):
    @staticmethod
    def forward(
            ctx: Any,
            logits_HBC: Tensor,
            target: Tensor,
            weights: Weights,
            terms: Terms,
    ) -> tuple[Tensor, Tensor, Tensor]:
        hard_H, soft_H, gradient_HBC = _compute(logits_HBC, target, weights, terms, ctx.needs_input_grad[0])
        ctx.save_for_backward(logits_HBC, target)
        ctx.weights, ctx.terms, ctx.gradient_HBC = weights, terms, gradient_HBC
        ctx.mark_non_differentiable(hard_H, soft_H)
        return (weights.hard * hard_H + weights.soft * soft_H).sum(), hard_H, soft_H

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, None, None, None]:
        if torch.is_grad_enabled():  # create_graph: what comes back would be a constant, silently
            raise RuntimeError('the objective in one pass has no second derivative: differentiate'
                               ' loss_fn.combine(*loss_fn.terms(logits, target)) instead')
        gradient_HBC, ctx.gradient_HBC = ctx.gradient_HBC, None
        logits_HBC, target = ctx.saved_tensors
        if gradient_HBC is None:
            gradient_HBC = _compute(logits_HBC, target, ctx.weights, ctx.terms, True)[2]
        assert gradient_HBC is not None
        if grad.device.type != 'cpu' or grad.item() != 1.:  # looking at it would stall an accelerator
            gradient_HBC.mul_(grad)
        return gradient_HBC.to(logits_HBC.dtype), None, None, None


def _compute(
        logits_HBC: Tensor,
        target: Tensor,
        weights: Weights,
        terms: Terms,
        with_gradient: bool,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Hard terms [H], soft terms [H], and the gradient of the loss [H, B, C] if it is asked for."""
    heads, batch, classes = logits_HBC.shape
    share_B = logits_HBC.new_ones(batch, dtype=_dtype(logits_HBC))  # of each example in the hard term
    if target.ndim == 1:
        counts_B = target != weights.ignore_index
        share_B = counts_B.to(share_B.dtype)
        target = target * counts_B  # an ignored index may lie outside; any other still fails on the device
    if not weights.sum_batch:
        share_B = share_B / (share_B.sum() if target.ndim == 1 else batch)
    soft_share = (weights.temperature ** 2 if weights.scale_by_t2 else 1.) / (1 if weights.sum_batch else batch)

    compiled = terms is not terms_and_gradient  # a compiler minds the CPU's cache, but can't write to part of a tensor
    numbers = BLOCK_ON_CPU if logits_HBC.device.type == 'cpu' and not compiled else BLOCK
    count = math.ceil(batch / max(1, numbers // (heads * classes)))
    if count == 1:
        return terms(logits_HBC, target, share_B, soft_share, weights, with_gradient, None)
    # Of one size where that can be: a compiler makes code for each.
    count = next((each for each in range(count, 2 * count) if batch % each == 0), count)
    gradient_HBC = logits_HBC.new_empty(logits_HBC.shape, dtype=share_B.dtype) if with_gradient else None
    found = []
    step = math.ceil(batch / count)
    for rows in (slice(start, start + step) for start in range(0, batch, step)):
        out_HNC = None if compiled or gradient_HBC is None else gradient_HBC[:, rows]
        hard_H, soft_H, gradient_HNC = terms(
            logits_HBC[:, rows], target[rows], share_B[rows], soft_share, weights, with_gradient, out_HNC)
        if compiled and gradient_HBC is not None and gradient_HNC is not None:
            gradient_HBC[:, rows] = gradient_HNC
        found.append((hard_H, soft_H))
    hard_H, soft_H = (torch.stack(blocks).sum(dim=0) for blocks in zip(*found, strict=True))
    return hard_H, soft_H, gradient_HBC


def terms_and_gradient(
        logits_HNC: Tensor,
        target: Tensor,
        share_N: Tensor,
        soft_share: float,
        weights: Weights,
        with_gradient: bool,
        out_HNC: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Compute the terms of some examples and the loss' gradient by their logits, without autograd.

    Args:
        logits_HNC: Logits of the heads, [H, N, C].
        target: Class indices [N], or class probabilities [N, C].
        share_N: Share of each example in the hard terms.
        soft_share: Share of each example in the soft terms, T^2 included.
        weights: The numbers in the objective.
        with_gradient: Whether the gradient is wanted.
        out_HNC: Where to write it, anywhere if None.

    Returns:
        Hard terms [H], soft terms [H], and the gradient [H, N, C] in float32 at least, None if it isn't wanted.
    """
    z_HNC = logits_HNC.to(_dtype(logits_HNC))
    others, classes = len(z_HNC) - 1, z_HNC.shape[-1]
    temperature, smoothing = weights.temperature, weights.label_smoothing
    is_square = temperature == 2.  # the paper's: exp(z) is the square of exp(z / T), no exponential
    hard_weight_N1 = weights.hard * share_N[:, None]

    # Differences from the largest logit: terms that are the difference of two of them keep all their digits. They lie
    # where the gradient is to be.
    g_HNC = z_HNC.new_empty(z_HNC.shape) if out_HNC is None else out_HNC
    torch.sub(z_HNC, z_HNC.amax(dim=-1, keepdim=True), out=g_HNC)
    if target.ndim == 1:
        index_HN1 = target.expand(others + 1, -1).unsqueeze(-1)
        aimed_HN1 = g_HNC.gather(-1, index_HN1)
        mass_N1 = torch.ones_like(hard_weight_N1)
    else:
        target = target.to(z_HNC.dtype)
        aimed_HN1 = (g_HNC * target).sum(dim=-1, keepdim=True)
        mass_N1 = (1. - smoothing) * target.sum(dim=-1, keepdim=True) + smoothing
    if smoothing:
        aimed_HN1 = (1. - smoothing) * aimed_HN1 + smoothing * g_HNC.mean(dim=-1, keepdim=True)

    # The head itself, at T and at 1.
    own_HNC = _exp(g_HNC, 1. / temperature)
    own_sum_HN1 = own_HNC.sum(dim=-1, keepdim=True)
    if is_square:
        sharp_sum_HN1 = _sum_of_squares(own_HNC)
    else:
        sharp_HNC = _exp(g_HNC, 1.)
        sharp_sum_HN1 = sharp_HNC.sum(dim=-1, keepdim=True)
    hard_HN1 = share_N[:, None] * (mass_N1 * sharp_sum_HN1.log() - aimed_HN1)

    # Its peers, who stay equal where they are: they are added up before anything is rounded.
    peers_HNC = g_HNC.sum(dim=0, keepdim=True) - g_HNC
    peers_HNC = _exp(peers_HNC.sub_(peers_HNC.amax(dim=-1, keepdim=True)), 1. / (temperature * others))
    peers_sum_HN1 = peers_HNC.sum(dim=-1, keepdim=True)
    agreed_HN1 = g_HNC.mul_(peers_HNC).sum(dim=-1, keepdim=True) / peers_sum_HN1
    soft_HN1 = soft_share * (own_sum_HN1.log() - agreed_HN1 / temperature)
    hard_H, soft_H = hard_HN1.sum(dim=(1, 2)), soft_HN1.sum(dim=(1, 2))
    if not with_gradient:
        return hard_H, soft_H, None

    soft_weight = weights.soft * soft_share / temperature
    toward_HN1 = hard_weight_N1 * mass_N1 / sharp_sum_HN1
    gradient_HNC = torch.mul(own_HNC if is_square else sharp_HNC, toward_HN1, out=g_HNC)
    if is_square:
        gradient_HNC.add_(soft_weight / own_sum_HN1).mul_(own_HNC)
    else:
        gradient_HNC.addcmul_(own_HNC, soft_weight / own_sum_HN1)
    gradient_HNC.addcmul_(peers_HNC, -soft_weight / peers_sum_HN1)
    if target.ndim == 1:
        gradient_HNC.scatter_add_(-1, index_HN1, (hard_weight_N1 * (smoothing - 1.)).expand(others + 1, -1, -1))
    else:
        gradient_HNC.addcmul_(target, hard_weight_N1, value=smoothing - 1.)
    if smoothing:
        gradient_HNC.sub_(hard_weight_N1 * (smoothing / classes))
    return hard_H, soft_H, gradient_HNC


def _exp(x: Tensor, factor: float) -> Tensor:
    """exp(factor x)."""
    if torch.compiler.is_compiling():
        return (x * factor).exp()  # which Inductor keeps where it's used again
    return (x * (factor * _LOG2_E)).exp2_()


def _sum_of_squares(x: Tensor) -> Tensor:
    if torch.compiler.is_compiling():
        return (x * x).sum(dim=-1, keepdim=True)
    return torch.linalg.vector_norm(x, dim=-1, keepdim=True).square()  # without the squares in memory


def _dtype(logits_HBC: Tensor) -> torch.dtype:
    return torch.promote_types(logits_HBC.dtype, torch.float32)


Terms = Callable[
    [Tensor, Tensor, Tensor, float, Weights, bool, 'Tensor | None'], tuple[Tensor, Tensor, 'Tensor | None']]
