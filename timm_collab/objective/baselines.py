"""Other ways for heads to learn from each other, on the same trees: what collaborative learning is compared with.

Shapes: H heads, B batch, C classes.
"""
from __future__ import annotations

from typing import Any

from torch import Tensor, nn

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


class GatedEnsembleLoss(CollaborativeLoss):
    """On-the-Fly Native Ensemble (Lan et al. 2018): each head learns from a gated ensemble of all heads.

    Paper: `Knowledge Distillation by On-the-Fly Native Ensemble` - https://arxiv.org/abs/1806.04606, eq. 4 to 8

        g   = softmax( W [softmax(z_1), ..., softmax(z_H)] + b )        the gate, a weight for each head
        z_e = sum_h g_h z_h                                             the ensemble, the heads' teacher
        L_h = beta * CE(y, softmax(z_h)) + (1 - beta) * T^2 * KL(softmax(z_e / T) || softmax(z_h / T))
        L   = sum_h L_h + beta * CE(y, softmax(z_e))

    The paper's loss is twice this one at beta = 0.5. The teacher learns from the labels alone, which trains the gate
    and, through z_e, the heads; as a target it is a constant, like the consensus of `CollaborativeLoss`.

    The paper's gate reads the features that its branches share. On the trees of this package these have no common form:
    maps, tokens or several tensors, or nothing where heads share nothing. So the gate reads the heads' predictions, as
    constants. It has no batch norm, so that each example has a gate of its own, and starts as the plain mean.

    The gate's parameters are the only ones that an objective here has: give `parameters()` of this module to the
    optimizer along with the model's. They are no part of the model, and pruning it leaves nothing of them.

    Args:
        num_heads: Number of heads, H.
        num_classes: Number of classes, C.
        *args: For `CollaborativeLoss`.
        **kwargs: For `CollaborativeLoss`.

    Raises:
        ValueError: If temperature is not positive and finite, beta is outside [0, 1], or labels are independent
            (`multi_label`), of which the paper says nothing.
    """

    def __init__(self, num_heads: int, num_classes: int, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.multi_label:
            raise ValueError('A gated ensemble is compared as a distribution over classes: it takes no independent'
                             ' labels.')
        self.gate = nn.Linear(num_heads * num_classes, num_heads)
        nn.init.zeros_(self.gate.weight)
        nn.init.zeros_(self.gate.bias)

    def evaluate(self, logits_HBC: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Compute the training loss, the teacher's own included, and each head's terms, without a gradient.

        Args:
            logits_HBC: Logits of the heads, [H, B, C].
            target: What the criterion takes: class indices [B], or class probabilities [B, C].

        Raises:
            ValueError: If logits and target do not fit together, see the message.
        """
        hard_H, soft_H = self.terms(logits_HBC, target)
        loss = self.combine(hard_H, soft_H)
        if len(hard_H) > 1:
            loss = loss + self.hard_weight * self._hard_term(self.ensemble(logits_HBC), target)
        return loss, hard_H.detach(), soft_H.detach()

    def ensemble(self, logits_HBC: Tensor) -> Tensor:
        """The teacher's logits [B, C], at least in float32: the heads' [H, B, C], weighted by the gate."""
        logits_HBC = at_least_float32(logits_HBC)
        predicted_BHC = logits_HBC.detach().softmax(dim=-1).transpose(0, 1)
        gate_BH = at_least_float32(self.gate(predicted_BHC.flatten(1).to(self.gate.weight.dtype))).softmax(dim=-1)
        return (gate_BH.T.unsqueeze(-1) * logits_HBC).sum(dim=0)

    def _soft_terms(self, logits_HBC: Tensor) -> Tensor:
        log_teacher_BC = (self.ensemble(logits_HBC).detach() / self.temperature).log_softmax(dim=-1)
        log_p_HBC = (at_least_float32(logits_HBC) / self.temperature).log_softmax(dim=-1)
        soft_HB = (log_teacher_BC.exp() * (log_teacher_BC - log_p_HBC)).sum(dim=-1)
        soft_H = soft_HB.sum(dim=-1) if self._sum_batch else soft_HB.mean(dim=-1)
        return soft_H * self.temperature ** 2 if self.scale_by_t2 else soft_H
