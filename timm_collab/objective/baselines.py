"""Baselines for collaborative learning: other objectives by which the heads of a tree learn from each other.

Shapes: H heads, B batch, C classes.
"""
from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from .loss import CollaborativeLoss, HeadsCriterion, at_least_float32, mean_of_others


def divergence_from_others(peers_HBC: Tensor, log_p_HBC: Tensor) -> Tensor:
    """Mean over the other heads j of `KL(p_j || p_h)`, for each of at least two heads h and each example, [H, B].

    It is the cross-entropy of the mean of p_j minus the mean entropy of p_j, so the cost grows with H and not with H^2.

    Args:
        peers_HBC: log p_j of every head, [H, B, C]; detached, heads do not learn to move their targets.
        log_p_HBC: log p_h of every head, [H, B, C].
    """
    p_HBC = peers_HBC.exp()
    entropy_HB = -(p_HBC * peers_HBC).sum(dim=-1)
    return -(mean_of_others(p_HBC) * log_p_HBC).sum(dim=-1) - mean_of_others(entropy_HB)


class MutualLearningLoss(CollaborativeLoss):
    """Deep Mutual Learning (Zhang et al. 2018): each head learns from the prediction of every other head.

    Paper: `Deep Mutual Learning` - https://arxiv.org/abs/1706.00384, eq. 5 and 6

        L_h = beta * CE(y, softmax(z_h)) + (1 - beta) * T^2 / (H - 1) * sum_{j != h} KL(p_j || p_h),
        p_j = softmax(z_j / T), without a gradient

    The paper's loss, `CE + mean KL`, is twice this one at beta = 0.5 and T = 1. Its heads are separate networks that
    are updated in turn; those of a tree are updated together. The arguments are those of `CollaborativeLoss`, from
    which it differs in averaging the predictions of the other heads instead of their logits.

    Raises:
        ValueError: The temperature is not positive and finite, beta is outside [0, 1], or labels are independent
            (`multi_label`), which the paper does not cover.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.multi_label:
            raise ValueError('Mutual learning compares class distributions: it does not support independent labels.')

    def _soft_terms(self, logits_HBC: Tensor) -> Tensor:
        log_p_HBC = (logits_HBC / self.temperature).log_softmax(dim=-1)
        return divergence_from_others(log_p_HBC.detach(), log_p_HBC)


class GatedEnsembleLoss(CollaborativeLoss):
    """On-the-Fly Native Ensemble (Lan et al. 2018): each head learns from a gated ensemble of all heads.

    Paper: `Knowledge Distillation by On-the-Fly Native Ensemble` - https://arxiv.org/abs/1806.04606, eq. 4 to 8

        g   = softmax( W [softmax(z_1), ..., softmax(z_H)] + b )        the gate, a weight for each head
        z_e = sum_h g_h z_h                                             the ensemble, the heads' teacher
        L_h = beta * CE(y, softmax(z_h)) + (1 - beta) * T^2 * KL(softmax(z_e / T) || softmax(z_h / T))
        L   = sum_h L_h + beta * CE(y, softmax(z_e))

    The paper's loss is twice this one at beta = 0.5. The ensemble learns from the labels alone, which trains the gate
    and, through z_e, the heads. As a target it is detached, like the consensus of `CollaborativeLoss`.

    The paper's gate takes the features that the branches share. On the trees of this package these have no common
    form: maps, tokens, several tensors, or none at all. So the gate takes the detached predictions of the heads. It has
    no batch norm, so each example has its own gate, and it starts as the plain mean.

    This is the only objective with parameters. Give `parameters()` of this module to the optimizer along with those of
    the model. They are not part of the model, so pruning removes them.

    Args:
        num_heads: Number of heads, H.
        num_classes: Number of classes, C.
        *args: For `CollaborativeLoss`.
        **kwargs: For `CollaborativeLoss`.

    Raises:
        ValueError: The temperature is not positive and finite, beta is outside [0, 1], labels are independent
            (`multi_label`), which the paper does not cover, or the criterion is a `HeadsCriterion`.
    """

    def __init__(self, num_heads: int, num_classes: int, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.multi_label:
            raise ValueError('A gated ensemble predicts a class distribution: it does not support independent labels.')
        if isinstance(self.criterion, HeadsCriterion):
            raise ValueError(
                f'A gated ensemble learns from the labels as one more head, which {type(self.criterion).__name__} does '
                f'not know; use a criterion of one head.'
            )
        self.gate = nn.Linear(num_heads * num_classes, num_heads)
        nn.init.zeros_(self.gate.weight)
        nn.init.zeros_(self.gate.bias)

    def evaluate(
            self,
            logits_HBC: Tensor,
            target: Tensor,
            index_B: Tensor | None = None,
            share_BM: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Compute the training loss, including that of the ensemble, and the detached terms of each head.

        Args:
            logits_HBC: Logits of the heads, [H, B, C].
            target: Target of the criterion: class indices [B], or class probabilities [B, C].
            index_B: See `CollaborativeLoss.evaluate`.
            share_BM: See `CollaborativeLoss.evaluate`.

        Raises:
            ValueError: The shapes or dtypes of logits and target don't match.
        """
        hard_H, soft_H = self.terms(logits_HBC, target, index_B, share_BM)
        loss = self.combine(hard_H, soft_H)
        if len(hard_H) > 1:
            loss = loss + self.hard_weight * self._hard_term(self.ensemble(logits_HBC), target)
        return loss, hard_H.detach(), soft_H.detach()

    def ensemble(self, logits_HBC: Tensor) -> Tensor:
        """Compute the ensemble's logits [B, C]: those of the heads [H, B, C], weighted by the gate."""
        logits_HBC = at_least_float32(logits_HBC)
        predicted_BHC = logits_HBC.detach().softmax(dim=-1).transpose(0, 1)
        gate_BH = at_least_float32(self.gate(predicted_BHC.flatten(1).to(self.gate.weight.dtype))).softmax(dim=-1)
        return (gate_BH.T.unsqueeze(-1) * logits_HBC).sum(dim=0)

    def _soft_terms(self, logits_HBC: Tensor) -> Tensor:
        log_teacher_BC = (self.ensemble(logits_HBC).detach() / self.temperature).log_softmax(dim=-1)
        log_p_HBC = (logits_HBC / self.temperature).log_softmax(dim=-1)
        return (log_teacher_BC.exp() * (log_teacher_BC - log_p_HBC)).sum(dim=-1)
