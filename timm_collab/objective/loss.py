"""The objective of collaborative learning: every head learns from the label and from the consensus of its peers.

Paper: `Collaborative Learning for Deep Neural Networks` - https://arxiv.org/abs/1805.11761

With H heads, logits z_h, label y, temperature T and weight beta:

    q_h = softmax( mean_{j != h} z_j / T )                          a constant, no gradient
    L_h = beta * CE(y, softmax(z_h)) + (1 - beta) * T^2 * CE(q_h, softmax(z_h / T))
    L   = sum_h L_h

The soft terms hardly move the mean of the heads. With the labels at weight beta, the mean thus learns them at beta
times the rate of a single network, which hurts in a short schedule. `full_labels`, the default, divides the loss by
beta: the labels have weight 1, as in a single network, and the consensus has weight (1 - beta) / beta. The paper's
objective is `CollaborativeLoss(beta=0.5, full_labels=False)`.

Shapes: H heads, B batch, C classes.
"""
from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import timm.loss
import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Looked up by name, as the oldest supported timm lacks some of them.
_MULTI_LABEL_CRITERIA = (nn.BCEWithLogitsLoss, nn.MultiLabelSoftMarginLoss) + tuple(
    getattr(timm.loss, name)
    for name in (
        'AsymmetricLossMultiLabel',
        'BinaryCrossEntropy',
        'DistributionBalancedLoss',
        'PolyBinaryCrossEntropy',
        'TwoWayLoss',
        'ZlprLoss',
    )
    if hasattr(timm.loss, name)
)


def leave_one_out_consensus(logits_HBC: Tensor) -> Tensor:
    """Average, for each head, the logits of all other heads.

    Each mean is the sum over all heads minus the head's own logits, so the cost grows with H and not with H^2.

    Args:
        logits_HBC: Logits of at least two heads, [H, B, C].

    Returns:
        `mean_{j != h} z_j` for every h, [H, B, C], detached: otherwise heads would also learn to move their targets.
        The dtype is float64 for float64 logits, and float32 for all others.

    Raises:
        ValueError: The logits are not a floating-point [H, B, C] tensor, or have a single head.
    """
    _check_logits(logits_HBC)
    num_heads = logits_HBC.shape[0]
    if num_heads < 2:
        raise ValueError('The consensus of the other heads needs logits of at least 2 heads, got 1.')
    return mean_of_others(at_least_float32(logits_HBC.detach()))


class HeadsCriterion(nn.Module, ABC):
    """Base of hard losses that see all heads at once, or that need to know which images a batch has."""

    @abstractmethod
    def forward(
            self,
            logits_HBC: Tensor,
            target: Tensor,
            index_B: Tensor | None = None,
            share_BM: Tensor | None = None,
    ) -> Tensor:
        """Compute the hard term of each head [H].

        Args:
            logits_HBC: Logits of the heads, [H, B, C].
            target: Class indices [B], or class probabilities [B, C] if images are mixed.
            index_B: Index of each example in the training data [B].
            share_BM: Share of M images in each example [B, M], if images are mixed; index_B then has these M images.
        """


class CollaborativeLoss(nn.Module):
    """Sum over heads of a hard loss on the target and a soft loss on the consensus of the other heads.

    The hard term of a head is `criterion(logits_BC, target)`, for any criterion. The soft term is the cross-entropy
    with the leave-one-out consensus, both at temperature T, summed over classes. Both are computed in float32 at least.
    With one head there is no consensus, and the loss is `criterion(logits_HBC[0], target)` with weight 1, in the dtype
    of the logits.

    For independent binary labels (`multi_label`) each class has its own Bernoulli consensus,
    `q = sigmoid(mean_{j != h} z_j / T)`. The soft term is the binary cross-entropy of q and `sigmoid(z_h / T)`.

    The soft term is reduced like the hard term, so that beta balances terms of one scale. Over the batch it is the
    mean, or the sum if `criterion.reduction` is 'sum'. Over independent classes it is the mean, like the default of
    binary criteria, or the sum if the criterion sums classes (`sum_classes`, or a `reduction` of 'batchmean' or 'sum').

    Class indices outside [0, C) raise an error if the target is on the CPU. On an accelerator the check would
    synchronize at every step, so there, and in compiled code, the data loader has to guarantee valid indices. Indices
    equal to `criterion.ignore_index`, if the criterion has it, are valid: they skip the hard term only.

    Args:
        criterion: Hard loss of one head, which maps [B, C] logits and the target to one number, or a `HeadsCriterion`.
            Defaults to `nn.CrossEntropyLoss()`, which takes class indices and class probabilities.
        temperature: T, which divides the logits on both sides of the soft term.
        beta: Weight of the hard term; the soft term has 1 - beta. 1 trains every head on the target alone.
        scale_by_t2: Multiply the soft term by T^2, so that the size of its gradient doesn't depend on T
            (https://arxiv.org/abs/1503.02531, section 2).
        multi_label: Whether classes are independent binary labels. None detects it from the criterion: true for the
            sigmoid losses of torch and timm, false for any other.
        full_labels: Divide the loss by beta: the hard term has weight 1, the soft term (1 - beta) / beta.
        regularizer: A further part of the hard terms, which maps logits [H, B, C] to a term of each head [H], such as
            `PriorDivergence`.

    Raises:
        ValueError: The temperature is not positive and finite, beta is outside [0, 1], or 0 with `full_labels`.

    Examples:

        ```python
        loss_fn = CollaborativeLoss(timm.loss.LabelSmoothingCrossEntropy(0.1), temperature=2.0)
        logits_HBC = torch.randn(4, 8, 10, requires_grad=True)
        loss_fn(logits_HBC, torch.randint(10, (8,))).backward()
        ```
    """

    def __init__(
            self,
            criterion: Callable[[Tensor, Tensor], Tensor] | None = None,
            temperature: float = 2.0,
            beta: float = 1 / 3,
            scale_by_t2: bool = True,
            multi_label: bool | None = None,
            full_labels: bool = True,
            regularizer: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__()
        if not 0. < temperature < float('inf'):
            raise ValueError(f'temperature is {temperature}; it must be a positive number, the paper uses 2.')
        if not 0. <= beta <= 1.:
            raise ValueError(f'beta is {beta}; it must lie in [0, 1], 1 is the hard loss alone, the paper uses 0.5.')
        if full_labels and beta == 0.:
            raise ValueError('beta is 0, so labels have no weight, but full_labels divides by it; use a beta above 0, '
                             'or full_labels=False.')
        self.criterion = nn.CrossEntropyLoss() if criterion is None else criterion
        self.temperature = temperature
        self.beta = beta
        self.scale_by_t2 = scale_by_t2
        self.full_labels = full_labels
        self.regularizer = regularizer
        self.multi_label = isinstance(criterion, _MULTI_LABEL_CRITERIA) if multi_label is None else multi_label

        # The asymmetric loss of older timm versions sums over everything, and has no `reduction`.
        default = 'sum' if isinstance(self.criterion, timm.loss.AsymmetricLossMultiLabel) else None
        reduction = getattr(self.criterion, 'reduction', default)
        self._sum_batch = reduction == 'sum'
        self._sum_classes = reduction in ('sum', 'batchmean') or getattr(self.criterion, 'sum_classes', False)
        if isinstance(self.criterion, nn.MultiLabelSoftMarginLoss):
            self._sum_classes = False  # it averages over classes for every reduction

    @property
    def hard_weight(self) -> float:
        """Weight of the hard terms, if there are several heads."""
        return 1. if self.full_labels else self.beta

    @property
    def soft_weight(self) -> float:
        """Weight of the soft terms."""
        return (1. - self.beta) / self.beta if self.full_labels else 1. - self.beta

    def forward(
            self,
            logits_HBC: Tensor,
            target: Tensor,
            index_B: Tensor | None = None,
            share_BM: Tensor | None = None,
    ) -> Tensor:
        """Compute the training loss, one number.

        Args:
            logits_HBC: Logits of the heads, [H, B, C].
            target: Target of the criterion: class indices [B], or class probabilities or binary labels [B, C].
            index_B: Index of each example in the training data [B], for criteria that need it.
            share_BM: Share of M images in each example [B, M], if images are mixed; index_B then has these M images.

        Raises:
            ValueError: The shapes or dtypes of logits and target don't match.
        """
        return self.evaluate(logits_HBC, target, index_B, share_BM)[0]

    def evaluate(
            self,
            logits_HBC: Tensor,
            target: Tensor,
            index_B: Tensor | None = None,
            share_BM: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Compute the training loss and its terms; the arguments are those of `forward`.

        Returns:
            The loss, one number, and the hard and soft terms [H] of `terms`, detached.

        Raises:
            ValueError: The shapes or dtypes of logits and target don't match.
        """
        hard_H, soft_H = self.terms(logits_HBC, target, index_B, share_BM)
        return self.combine(hard_H, soft_H), hard_H.detach(), soft_H.detach()

    def terms(
            self,
            logits_HBC: Tensor,
            target: Tensor,
            index_B: Tensor | None = None,
            share_BM: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Compute each head's hard and soft term, before they are weighted.

        Args:
            logits_HBC: Logits of the heads, [H, B, C].
            target: Target of the criterion: class indices [B], or class probabilities or binary labels [B, C].
            index_B: Index of each example in the training data [B], for criteria that need it.
            share_BM: Share of M images in each example [B, M], if images are mixed; index_B then has these M images.

        Returns:
            Hard terms [H], and soft terms [H] with the factor T^2 if `scale_by_t2`. The soft terms are zeros if they
            have no effect: with one head, or beta = 1.

        Raises:
            ValueError: The shapes or dtypes of logits and target don't match.
        """
        _check_logits(logits_HBC)
        target = self._checked_target(logits_HBC, target)
        if len(logits_HBC) > 1:
            logits_HBC = at_least_float32(logits_HBC)
            target = at_least_float32(target) if target.is_floating_point() else target
        if isinstance(self.criterion, HeadsCriterion):
            hard_H = self.criterion(logits_HBC, target, index_B, share_BM)
        else:
            hard_H = torch.stack([self._hard_term(logits_BC, target) for logits_BC in logits_HBC.unbind()])
        if self.regularizer is not None:
            hard_H = hard_H + self.regularizer(logits_HBC)
        if len(hard_H) == 1 or self.beta == 1.:
            return hard_H, torch.zeros_like(hard_H)
        soft_HB = self._soft_terms(logits_HBC)
        soft_H = soft_HB.sum(dim=-1) if self._sum_batch else soft_HB.mean(dim=-1)
        if self.scale_by_t2:
            soft_H = soft_H * self.temperature ** 2
        return hard_H, soft_H

    def combine(self, hard_H: Tensor, soft_H: Tensor) -> Tensor:
        """Weight the terms returned by `terms`, and sum them over the heads.

        Args:
            hard_H: Hard terms, [H].
            soft_H: Soft terms, [H].
        """
        if len(hard_H) == 1:
            return hard_H[0]
        return (self.hard_weight * hard_H + self.soft_weight * soft_H).sum()

    def _hard_term(self, logits_BC: Tensor, target: Tensor) -> Tensor:
        hard = self.criterion(logits_BC, target)
        if hard.ndim:
            raise ValueError(
                f"The criterion must return one number for [B, C] logits, got shape {list(hard.shape)}; "
                f"use reduction='mean'."
            )
        return hard

    def _soft_terms(self, logits_HBC: Tensor) -> Tensor:
        """Each head's soft term per example, [H, B], without the factor T^2.

        This is what a subclass overrides whose heads learn something else from each other.
        """
        consensus_HBC = leave_one_out_consensus(logits_HBC) / self.temperature
        logits_HBC = logits_HBC / self.temperature
        if self.multi_label:
            soft_HBC = F.binary_cross_entropy_with_logits(logits_HBC, consensus_HBC.sigmoid(), reduction='none')
            return soft_HBC.sum(dim=-1) if self._sum_classes else soft_HBC.mean(dim=-1)
        # Summed over classes, like the cross-entropy of the hard term.
        return cross_entropy(logits_HBC, consensus_HBC.softmax(dim=-1))

    def _checked_target(self, logits_HBC: Tensor, target: Tensor) -> Tensor:
        """Check the target, and convert class indices to int64: smaller types may lack some classes or ignore_index."""
        _, batch, num_classes = logits_HBC.shape
        if target.ndim not in (1, 2):
            raise ValueError(
                f'target must be class indices [B] or one row per example [B, C], got shape {list(target.shape)}.')
        if target.shape[0] != batch:
            raise ValueError(
                f'logits have batch {batch}, target has {target.shape[0]}; '
                f'all heads have the same examples, so give one target per example.'
            )
        if target.ndim == 2:
            if not target.is_floating_point():
                raise ValueError(f'A [B, C] target must be floating point, got {target.dtype}; use target.float().')
            if target.shape[1] != num_classes:
                raise ValueError(f'logits have {num_classes} classes, target has {target.shape[1]}.')
            return target
        if target.is_floating_point() or target.is_complex() or target.dtype == torch.bool:
            raise ValueError(f'Class indices must be integers, got {target.dtype}; use target.long().')
        target = target.long()
        if target.device.type == 'cpu' and not torch.compiler.is_compiling():
            valid_B = (target >= 0) & (target < num_classes)
            if (ignore_index := getattr(self.criterion, 'ignore_index', None)) is not None:
                valid_B |= target == ignore_index
            if not valid_B.all():
                raise ValueError(
                    f'target has class {target[~valid_B][0].item()}, but the logits have {num_classes} classes: '
                    f'class indices must lie in [0, {num_classes}).'
                )
        return target

    def extra_repr(self) -> str:
        """Return the settings, for printing the module."""
        return (
            f'temperature={self.temperature}, beta={self.beta}, scale_by_t2={self.scale_by_t2}, '
            f'multi_label={self.multi_label}, full_labels={self.full_labels}'
        )


def mean_of_others(values: Tensor) -> Tensor:
    """Average, for each of at least two heads, the values of all other heads, [H, ...]."""
    return (values.sum(dim=0, keepdim=True) - values).div_(len(values) - 1)


def cross_entropy(logits_HBC: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy of each head and example [H, B], with class indices [H, B] or probabilities [H, B, C]."""
    loss_N = F.cross_entropy(logits_HBC.flatten(0, 1), target.flatten(0, 1), reduction='none')
    return loss_N.unflatten(0, logits_HBC.shape[:2])


def _check_logits(logits_HBC: Tensor) -> None:
    if logits_HBC.ndim != 3 or not logits_HBC.shape[0] or not logits_HBC.shape[1]:
        raise ValueError(
            f'logits must be [H, B, C] with at least one head and one example, got shape {list(logits_HBC.shape)}; '
            f'for [B, C] logits of a single head use logits.unsqueeze(0).'
        )
    if not logits_HBC.is_floating_point():
        raise ValueError(f'logits must be floating point, got {logits_HBC.dtype}.')


def at_least_float32(x: Tensor) -> Tensor:
    """Return float64 unchanged, and any other floating-point tensor in float32."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
