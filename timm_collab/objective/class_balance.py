"""What makes up for classes of unequal size, or keeps a class from vanishing: weights, and a prior.

Shapes: H heads, B batch, C classes.
"""
from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .loss import at_least_float32


class WeightedCrossEntropy(nn.CrossEntropyLoss):
    """Cross-entropy with a weight per class, averaged over the examples: `sum_i w_{y_i} l_i / B`.

    `nn.CrossEntropyLoss` divides by the sum of the batch's weights instead. That makes an example count more in a batch
    of frequent classes, and the result depend on how a batch is divided among processes and passes. Weights with a mean
    of 1 over the training examples give losses of the size of the plain cross-entropy. Class probabilities [B, C] and
    label smoothing are weighted as by `nn.CrossEntropyLoss`, class by class: `sum_c w_c t_c l_c`.

    Args:
        weight_C: Weight of each class.
        label_smoothing: See `nn.CrossEntropyLoss`.
    """

    def __init__(self, weight_C: Tensor, label_smoothing: float = 0.0) -> None:
        super().__init__(weight_C, label_smoothing=label_smoothing)

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """Compute the loss of logits [B, C] and class indices [B] or class probabilities [B, C], one number."""
        logits_BC = at_least_float32(input)
        weight_C = self.get_buffer('weight').to(logits_BC.dtype)
        loss_B = F.cross_entropy(logits_BC, target, weight_C, reduction='none', label_smoothing=self.label_smoothing)
        return loss_B.mean()


class PriorDivergence(nn.Module):
    """Divergence of a head's mean prediction over the batch from the share that each class should have.

    Paper: `Joint Optimization Framework for Learning with Noisy Labels` - https://arxiv.org/abs/1803.11364, L_p;
    DivideMix (https://arxiv.org/abs/2002.07394) has it too

        L_h = weight * sum_k prior_k log(prior_k / mean_i p_hik)

    Losses that trust the network's own predictions may give up a class that is easily confused: the term grows without
    bound as the class vanishes from the predictions. The mean is over the examples that are passed, which are those of
    one process and one accumulation step.

    Args:
        prior_C: Share of each class, [C]; a class with 0 has no term.
        weight: Weight of the term; DivideMix uses 1.

    Raises:
        ValueError: The prior is no distribution, or the weight is negative.
    """

    prior_C: Tensor

    def __init__(self, prior_C: Tensor, weight: float = 1.0) -> None:
        super().__init__()
        if prior_C.ndim != 1 or not (prior_C >= 0).all() or not math.isclose(prior_C.sum().item(), 1., abs_tol=1e-4):
            raise ValueError(f'prior_C must have a share of each class [C] with a sum of 1, got {prior_C}.')
        if not 0. <= weight < math.inf:
            raise ValueError(f'weight is {weight}; it must be at least 0, DivideMix uses 1.')
        self.register_buffer('prior_C', prior_C, persistent=False)  # follows from the training labels
        self.weight = weight

    def forward(self, logits_HBC: Tensor) -> Tensor:
        """Compute the term of each head [H] from the logits [H, B, C]."""
        log_p_HBC = at_least_float32(logits_HBC).log_softmax(dim=-1)
        prior_C = self.prior_C.to(log_p_HBC.dtype)
        # In logarithms, so that the gradient is finite where all of a class's predictions underflow.
        log_mean_HC = log_p_HBC.logsumexp(dim=1) - math.log(log_p_HBC.shape[1])
        return self.weight * (torch.special.xlogy(prior_C, prior_C) - prior_C * log_mean_HC).sum(dim=-1)

    def extra_repr(self) -> str:
        """Return the settings, for printing the module."""
        return f'weight={self.weight}'
