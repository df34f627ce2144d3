"""Value and gradient of the objective with cross-entropy in one pass, a few examples at a time.

Written as a sum of torch's functions, the objective keeps or makes about ten tensors of the logits' size and reads each
several times. Its gradient is known in closed form, with r_b the share of an example in the reduction and y_b the
target's distribution:

    dL / dz_hb = hard r_b (softmax(z_hb) - y_b) + soft T^2 / T r_b (softmax(z_hb / T) - q_hb)

so the forward pass computes it along with the value, and besides it nothing of the logits' size is made.

Shapes: H heads, B batch, C classes, N examples of a block; a 1 is a dimension kept for broadcasting.
"""
from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

BLOCK_ON_CPU, BLOCK = 2**19, 2**26
"""Numbers worked on at once: what a CPU's cache holds; on an accelerator enough to keep it busy."""

_LOG2_E = math.log2(math.e)  # exp2 is several times faster than exp on CPUs
_UNDERFLOW = 1e-20  # sums above have all their digits


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


def collaborative_cross_entropy(logits_HBC: Tensor, target: Tensor, weights: Weights) -> tuple[Tensor, Tensor, Tensor]:
    """The objective with `nn.CrossEntropyLoss` as the hard loss, of at least two heads.

    The gradient is handed over in the first backward pass; a second one through the same graph computes it again. It
    can't be differentiated twice, and says so.

    Args:
        logits_HBC: Logits of the heads, [H, B, C].
        target: Class indices [B], or class probabilities [B, C].
        weights: The numbers in it.

    Returns:
        The loss, one number; hard and soft terms of each head [H] as in `CollaborativeLoss.terms`, but without a
        gradient.
    """
    loss, hard_H, soft_H = _Objective.apply(logits_HBC, target, weights)
    return loss, hard_H, soft_H


class _Objective(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits_HBC: Tensor, target: Tensor, weights: Weights) -> tuple[Tensor, Tensor, Tensor]:
        hard_H, soft_H, gradient_HBC = _compute(logits_HBC, target, weights, ctx.needs_input_grad[0])
        ctx.save_for_backward(logits_HBC, target)
        ctx.weights, ctx.gradient_HBC = weights, gradient_HBC
        ctx.mark_non_differentiable(hard_H, soft_H)
        return (weights.hard * hard_H + weights.soft * soft_H).sum(), hard_H, soft_H

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, None, None]:
        if torch.is_grad_enabled():  # create_graph: what comes back would be a constant, silently
            raise RuntimeError('the objective in one pass has no second derivative: differentiate'
                               ' loss_fn.combine(*loss_fn.terms(logits, target)) instead')
        gradient_HBC, ctx.gradient_HBC = ctx.gradient_HBC, None
        logits_HBC, target = ctx.saved_tensors
        if gradient_HBC is None:
            gradient_HBC = _compute(logits_HBC, target, ctx.weights, True)[2]
        assert gradient_HBC is not None
        if grad.device.type != 'cpu' or grad.item() != 1.:  # looking at it would stall an accelerator
            gradient_HBC.mul_(grad)
        return gradient_HBC.to(logits_HBC.dtype), None, None


def _compute(
        logits_HBC: Tensor,
        target: Tensor,
        weights: Weights,
        with_gradient: bool,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Hard terms [H], soft terms [H], and the gradient of the loss [H, B, C] if it is asked for."""
    heads, batch, classes = logits_HBC.shape
    dtype = torch.promote_types(logits_HBC.dtype, torch.float32)
    temperature, smoothing = weights.temperature, weights.label_smoothing

    share_B = logits_HBC.new_ones(batch, dtype=dtype)  # of each example in the hard term
    if target.ndim == 1:
        counts_B = target != weights.ignore_index
        share_B = counts_B.to(dtype)
        target = target.long() * counts_B  # an ignored index may lie outside; any other still fails on the device
    if not weights.sum_batch:
        share_B = share_B / (share_B.sum() if target.ndim == 1 else batch)
    soft_share = (temperature ** 2 if weights.scale_by_t2 else 1.) / (1 if weights.sum_batch else batch)
    soft_weight = weights.soft * soft_share / temperature

    step = min(max(1, (BLOCK_ON_CPU if logits_HBC.device.type == 'cpu' else BLOCK) // (heads * classes)), batch)
    gradient_HBC = logits_HBC.new_empty(logits_HBC.shape, dtype=dtype) if with_gradient else None
    is_square = temperature == 2.  # the paper's: exp(z) is the square of exp(z / T), no exponential
    # For a head's own exponentials at T, its peers', its own at 1; differences lie where the gradient is to be, if any.
    work = [logits_HBC.new_empty((heads, step, classes), dtype=dtype) for _ in range(4 - is_square - with_gradient)]
    # Sums over classes; what is made of them is made once, after the last block.
    top_HB1, aimed_HB1, mean_HB1, agreed_HB1, peers_HB1, own_HB1, sum_HB1 = (
        logits_HBC.new_empty((heads, batch, 1), dtype=dtype) for _ in range(7))
    scale = _LOG2_E / temperature

    hard_weight_B1 = weights.hard * share_B[:, None]
    if target.ndim == 1:
        weight_B1 = torch.ones_like(hard_weight_B1)
    else:
        target = target.to(dtype)
        weight_B1 = (1. - smoothing) * target.sum(dim=-1, keepdim=True) + smoothing

    for start in range(0, batch, step):
        rows = slice(start, start + step)
        z_HNC = logits_HBC[:, rows].to(dtype)
        own_HNC, peers_HNC, *others = (block_HNC[:, :z_HNC.shape[1]] for block_HNC in work)
        d_HNC = others.pop() if gradient_HBC is None else gradient_HBC[:, rows]
        top_HN1, own_HN1, sum_HN1 = top_HB1[:, rows], own_HB1[:, rows], sum_HB1[:, rows]

        # Differences from the largest logit: terms that are the difference of two of them keep all their digits.
        g_HNC = torch.sub(z_HNC, torch.amax(z_HNC, dim=-1, keepdim=True, out=top_HN1), out=d_HNC)
        if target.ndim == 2:
            _sum(torch.mul(g_HNC, target[rows], out=own_HNC), aimed_HB1[:, rows])
        if smoothing:
            torch.mean(g_HNC, dim=-1, keepdim=True, out=mean_HB1[:, rows])

        # The head itself, at T and at 1.
        _sum(torch.mul(g_HNC, scale, out=own_HNC).exp2_(), own_HN1)
        if is_square:
            torch.linalg.vector_norm(own_HNC, dim=-1, keepdim=True, out=sum_HN1).square_()
        else:
            sharp_HNC = torch.mul(g_HNC, _LOG2_E, out=others[0]).exp2_()
            _sum(sharp_HNC, sum_HN1)

        peers_HN1 = _exponentials_of_peers(g_HNC, scale / (heads - 1), peers_HNC, peers_HB1[:, rows])
        _sum(g_HNC.mul_(peers_HNC), agreed_HB1[:, rows])

        if gradient_HBC is not None:  # where the differences were
            toward_HN1, soft_HN1 = hard_weight_B1[rows] * weight_B1[rows] / sum_HN1, soft_weight / own_HN1
            if is_square:
                torch.mul(own_HNC, toward_HN1, out=d_HNC).add_(soft_HN1).mul_(own_HNC)
            else:
                torch.mul(sharp_HNC, toward_HN1, out=d_HNC).addcmul_(own_HNC, soft_HN1)
            d_HNC.addcmul_(peers_HNC, -soft_weight / peers_HN1)
            if target.ndim == 2:
                d_HNC.addcmul_(target[rows], hard_weight_B1[rows], value=smoothing - 1.)
            if smoothing:
                d_HNC.sub_(hard_weight_B1[rows] * (smoothing / classes))

    if target.ndim == 1:
        index_HB1 = target.expand(heads, -1).unsqueeze(-1)
        aimed_HB1 = logits_HBC.gather(-1, index_HB1).to(dtype) - top_HB1
        if gradient_HBC is not None:
            gradient_HBC.scatter_add_(-1, index_HB1, (hard_weight_B1 * (smoothing - 1.)).expand(heads, -1, -1))
    if smoothing:
        aimed_HB1 = (1. - smoothing) * aimed_HB1 + smoothing * mean_HB1
    hard_H = (share_B[:, None] * (weight_B1 * sum_HB1.log() - aimed_HB1)).sum(dim=(1, 2))
    soft_H = soft_share * (own_HB1.log() - agreed_HB1 / peers_HB1 / temperature).sum(dim=(1, 2))
    return hard_H, soft_H, gradient_HBC


def _sum(values_HNC: Tensor, out_HN1: Tensor) -> Tensor:
    return torch.sum(values_HNC, dim=-1, keepdim=True, out=out_HN1)


def _exponentials_of_peers(g_HNC: Tensor, to_mean: float, out_HNC: Tensor, sum_HN1: Tensor) -> Tensor:
    """The consensus of the others, but for a factor that an example's classes share, and its sum over them [H, N, 1].

    Args:
        g_HNC: Differences from the largest logit.
        to_mean: What makes of a sum of logits an exponent of 2.
        out_HNC: Where to.
        sum_HN1: Where their sum is written, and what is returned.
    """
    total_1NC = g_HNC.sum(dim=0, keepdim=True)
    if g_HNC.device.type == 'cpu':
        # Sums of such differences are 0 at most: nothing overflows, and where all of a row underflows its sum tells.
        torch.add(to_mean * total_1NC, g_HNC, alpha=-to_mean, out=out_HNC).exp2_()
        if _sum(out_HNC, sum_HN1).amin() > _UNDERFLOW:  # looking at it would stall an accelerator
            return sum_HN1
    torch.sub(total_1NC, g_HNC, out=out_HNC)
    out_HNC.sub_(out_HNC.amax(dim=-1, keepdim=True)).mul_(to_mean).exp2_()
    return _sum(out_HNC, sum_HN1)
