"""Losses for class labels of which some are wrong, in place of `nn.CrossEntropyLoss`.

They limit how much a label that the network doesn't believe can pull at it: the gradient of cross-entropy grows with
the loss of an example, so that late in training the wrong labels lead. Those of one head take class indices or class
probabilities; for probabilities, such as those of mixup or annotators, they are the expected loss over classes.

Shapes: H heads, B batch, C classes. p = softmax(z), y the label, t the target's probabilities.
"""
from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor, nn

from .baselines import divergence_from_others
from .loss import HeadsCriterion, at_least_float32, cross_entropy, mean_of_others

_LOG_ZERO = math.log(1e-4)  # of the probability that a label gives to other classes, in the reverse cross-entropy


class GeneralizedCrossEntropy(nn.Module):
    """Between cross-entropy (q -> 0) and mean absolute error (q = 1).

    Paper: `Generalized Cross Entropy Loss for Training Deep Neural Networks with Noisy Labels` -
    https://arxiv.org/abs/1805.07836, eq. 6, without truncation

        L = (1 - p_y^q) / q

    Args:
        q: Exponent, in (0, 1]; the paper uses 0.7.

    Raises:
        ValueError: q is out of range.
    """

    def __init__(self, q: float = 0.7) -> None:
        super().__init__()
        if not 0. < q <= 1.:
            raise ValueError(f'q is {q}; it must lie in (0, 1], the paper uses 0.7.')
        self.q = q

    def forward(self, logits_BC: Tensor, target: Tensor) -> Tensor:
        """Compute the mean loss of logits [B, C] and class indices [B] or probabilities [B, C]."""
        log_p_BC = at_least_float32(logits_BC).log_softmax(dim=-1)
        # exp(q log p) has a finite gradient where p underflows, p ** q does not.
        return _expected(lambda log_p: -torch.expm1(self.q * log_p) / self.q, log_p_BC, target)

    def extra_repr(self) -> str:
        """Return the settings, for printing the module."""
        return f'q={self.q}'


class _WithReverseCrossEntropy(nn.Module, ABC):
    """Weighted sum of a loss and the reverse cross-entropy, `A (1 - p_y)` with `A = -log 1e-4`."""

    def __init__(self, alpha: float, beta: float) -> None:
        super().__init__()
        if not (0. <= alpha < math.inf and 0. <= beta < math.inf and alpha + beta > 0.):
            raise ValueError(f'alpha is {alpha} and beta {beta}: weights must be at least 0, and one of them positive.')
        self.alpha = alpha
        self.beta = beta

    @abstractmethod
    def _active(self, log_p: Tensor, log_p_BC: Tensor) -> Tensor:
        """The other loss, by the log-probability of the label [B, 1], or of each class as the label [B, C]."""

    def forward(self, logits_BC: Tensor, target: Tensor) -> Tensor:
        """Compute the mean loss of logits [B, C] and class indices [B] or probabilities [B, C]."""
        log_p_BC = at_least_float32(logits_BC).log_softmax(dim=-1)
        return _expected(
            lambda log_p: self.alpha * self._active(log_p, log_p_BC) + self.beta * (_LOG_ZERO * torch.expm1(log_p)),
            log_p_BC,
            target,
        )

    def extra_repr(self) -> str:
        """Return the settings, for printing the module."""
        return f'alpha={self.alpha}, beta={self.beta}'


class SymmetricCrossEntropy(_WithReverseCrossEntropy):
    """Cross-entropy and the reverse cross-entropy, in which label and prediction change places.

    Paper: `Symmetric Cross Entropy for Robust Learning with Noisy Labels` - https://arxiv.org/abs/1908.06112, eq. 7

        L = alpha * CE + beta * RCE,    RCE = -sum_k p_k log t_k = A (1 - p_y),    A = -log 1e-4

    Args:
        alpha: Weight of the cross-entropy; the paper uses 0.1 on CIFAR-10 and 6 on CIFAR-100.
        beta: Weight of the reverse cross-entropy; the paper uses 1 on CIFAR-10 and 0.1 on CIFAR-100.

    Raises:
        ValueError: A weight is negative, or both are 0.
    """

    def __init__(self, alpha: float = 0.1, beta: float = 1.0) -> None:
        super().__init__(alpha, beta)

    def _active(self, log_p: Tensor, log_p_BC: Tensor) -> Tensor:
        return -log_p


class NormalizedCrossEntropy(_WithReverseCrossEntropy):
    """Normalised cross-entropy, a robust loss that learns actively, and reverse cross-entropy, one that does passively.

    Paper: `Normalized Loss Functions for Deep Learning with Noisy Labels` - https://arxiv.org/abs/2006.13554, eq. 5 and
    12, "NCE+RCE"

        L = alpha * NCE + beta * RCE,    NCE = log p_y / sum_k log p_k

    Args:
        alpha: Weight of the normalised cross-entropy; the paper uses 1 on CIFAR-10 and 10 on CIFAR-100.
        beta: Weight of the reverse cross-entropy; the paper uses 1 on CIFAR-10 and 0.1 on CIFAR-100.

    Raises:
        ValueError: A weight is negative, or both are 0.
    """

    def __init__(self, alpha: float = 1.0, beta: float = 1.0) -> None:
        super().__init__(alpha, beta)

    def _active(self, log_p: Tensor, log_p_BC: Tensor) -> Tensor:
        return log_p / log_p_BC.sum(dim=-1, keepdim=True)


class SmallLossSelection(HeadsCriterion):
    """Cross-entropy of the examples of a batch that the other heads find easy.

    Paper: `Co-teaching: Robust Training of Deep Neural Networks with Extremely Noisy Labels` -
    https://arxiv.org/abs/1804.06872, algorithm 1, with the heads of a tree for its two networks

        R_h = the keep * B examples with the smallest mean_{j != h} CE(y, z_j)
        L_h = mean over R_h of CE(y, z_h)

    A head alone selects by its own loss. The selection is made in the part of a batch that a process has.

    Args:
        noise_rate: Share of wrong labels, the share of the examples that is left out in the end.

    Attributes:
        keep: Share of the examples that is kept. The caller lowers it from 1 to 1 - noise_rate, as wrong labels have
            large losses only after the first epochs.

    Raises:
        ValueError: The noise rate is outside [0, 1).
    """

    def __init__(self, noise_rate: float) -> None:
        super().__init__()
        if not 0. <= noise_rate < 1.:
            raise ValueError(f'noise_rate is {noise_rate}; it must lie in [0, 1).')
        self.noise_rate = noise_rate
        self.keep = 1.

    def forward(
            self,
            logits_HBC: Tensor,
            target: Tensor,
            index_B: Tensor | None = None,
            share_BM: Tensor | None = None,
    ) -> Tensor:
        """Compute the hard term of each head [H], see `HeadsCriterion.forward`."""
        loss_HB = self._losses(at_least_float32(logits_HBC), target)
        difficulty_HB = loss_HB.detach()
        if len(loss_HB) > 1:
            difficulty_HB = self._difficulty(difficulty_HB)
        kept = max(1, round(self.keep * loss_HB.shape[1]))
        easiest_HK = difficulty_HB.topk(kept, dim=1, largest=False).indices
        return loss_HB.gather(1, easiest_HK).mean(dim=1)

    def _losses(self, logits_HBC: Tensor, target_B: Tensor) -> Tensor:
        """What each head learns from each example, [H, B]."""
        return cross_entropy(logits_HBC, target_B.expand(len(logits_HBC), -1))

    def _difficulty(self, loss_HB: Tensor) -> Tensor:
        """By what each of several heads selects examples, [H, B]."""
        return mean_of_others(loss_HB)

    def extra_repr(self) -> str:
        """Return the settings, for printing the module."""
        return f'noise_rate={self.noise_rate}'


class JointSelection(SmallLossSelection):
    """Labels and agreement of the heads, on the examples of a batch with the smallest sum of both.

    Paper: `Combating Noisy Labels by Agreement: A Joint Training Method with Co-Regularization` (JoCoR) -
    https://arxiv.org/abs/2003.02752, eq. 2 to 5, with the heads of a tree for its two networks

        l_h = (1 - agreement) * CE(y, z_h) + agreement * mean_{j != h} KL(p_j || p_h)
        R   = the keep * B examples with the smallest sum_h l_h
        L_h = mean over R of l_h

    For two heads the sum of L_h is the paper's loss: its two divergences are those of head 1 and of head 2. Both sides
    of a divergence have a gradient, unlike the soft term of `CollaborativeLoss`; the paper's loss is this term alone
    (`beta` 1). A head alone has nothing to agree with and learns the labels of small loss.

    Args:
        noise_rate: See `SmallLossSelection`.
        agreement: Weight of the agreement, lambda, in [0, 1]; the paper uses 0.9 on CIFAR-10, less for much noise, and
            0.85 on CIFAR-100.

    Raises:
        ValueError: The noise rate or the weight is out of range.
    """

    def __init__(self, noise_rate: float, agreement: float = 0.9) -> None:
        super().__init__(noise_rate)
        if not 0. <= agreement <= 1.:
            raise ValueError(f'agreement is {agreement}; it must lie in [0, 1], the paper uses 0.9.')
        self.agreement = agreement

    def _losses(self, logits_HBC: Tensor, target_B: Tensor) -> Tensor:
        hard_HB = super()._losses(logits_HBC, target_B)
        if len(logits_HBC) == 1:
            return hard_HB
        log_p_HBC = logits_HBC.log_softmax(dim=-1)
        apart_HB = divergence_from_others(log_p_HBC, log_p_HBC)
        return (1. - self.agreement) * hard_HB + self.agreement * apart_HB

    def _difficulty(self, loss_HB: Tensor) -> Tensor:
        return loss_HB.sum(dim=0).expand_as(loss_HB)

    def extra_repr(self) -> str:
        """Return the settings, for printing the module."""
        return f'{super().extra_repr()}, agreement={self.agreement}'


def _expected(loss_of: Callable[[Tensor], Tensor], log_p_BC: Tensor, target: Tensor) -> Tensor:
    """Mean over the batch of the loss of the labelled class, or of the expectation over class probabilities.

    The loss depends on the log-probability of the label; it is not computed for other classes where one is labelled.
    """
    if target.ndim == 1:
        return loss_of(log_p_BC.gather(1, target[:, None])).mean()
    return (loss_of(log_p_BC) * target).sum(dim=-1).mean()
