"""Other ways for heads to learn from each other, on the same trees: what collaborative learning is compared with.

Shapes: H heads, B batch, C classes.
"""
from __future__ import annotations

from typing import Any

from torch import Tensor

from .loss import CollaborativeLoss, at_least_float32, leave_one_out_consensus


class MutualLearningLoss(CollaborativeLoss):
    """Deep Mutual Learning (Zhang et al. 2018): each head learns from the prediction of every other head.

    Paper: `Deep Mutual Learning` - https://arxiv.org/abs/1706.00384, eq. 5 and 6

        L_h = beta * CE(y, softmax(z_h)) + (1 - beta) * T^2 / (H - 1) * sum_{j != h} KL(p_j || p_h),
        p_j = softmax(z_j / T), without a gradient

    The paper's loss, `CE + mean KL`, is twice this one at beta = 0.5 and T = 1; its heads are separate networks that
    take turns, where those of a tree learn at once. It takes the arguments of `CollaborativeLoss`, and differs from it
    in averaging the predictions of the other heads instead of their logits.

    Raises:
        ValueError: If temperature is not positive and finite, beta is outside [0, 1], or labels are independent
            (`multi_label`), of which the paper says nothing.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.multi_label:
            raise ValueError('Mutual learning compares distributions over classes: it takes no independent labels.')

    def _soft_terms(self, logits_HBC: Tensor) -> Tensor:
        log_p_HBC = (at_least_float32(logits_HBC) / self.temperature).log_softmax(dim=-1)
        p_HBC = log_p_HBC.detach().exp()
        # The mean of KL(p_j || p_h) over j is the cross-entropy of the mean of p_j, less the mean entropy of p_j.
        peers_HBC = leave_one_out_consensus(p_HBC)
        entropy_HB = -(p_HBC * log_p_HBC.detach()).sum(dim=-1)
        entropy_of_peers_HB = (entropy_HB.sum(dim=0, keepdim=True) - entropy_HB) / (len(entropy_HB) - 1)
        soft_HB = -(peers_HBC * log_p_HBC).sum(dim=-1) - entropy_of_peers_HB
        soft_H = soft_HB.sum(dim=-1) if self._sum_batch else soft_HB.mean(dim=-1)
        return soft_H * self.temperature ** 2 if self.scale_by_t2 else soft_H
