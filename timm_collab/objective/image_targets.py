"""Objectives that remember what the network predicted for each training image, and keep it near that.

Networks learn what images have in common before they memorise wrong labels. A running average of the predictions of an
image, its target, is therefore right more often than a wrong label.

Shapes: H heads, B batch, C classes, N training images. p = softmax(z), y the label, sg = no gradient.
"""
from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from .loss import HeadsCriterion, at_least_float32, cross_entropy, mean_of_others

View = Literal['own', 'mean', 'others']
TARGETS_DTYPE = torch.float16
"""Of stored targets; bfloat16 would lose updates of less than 0.4 % of a target."""


class ImageTargets(HeadsCriterion):
    """Base of hard losses with a running target for each training image.

    A loss is computed in two steps, because several processes share the targets. `forward` takes the targets with this
    batch's predictions in them, and leaves the stored ones as they are. `store` writes those that it took, `latest`, or
    the result of `updated`, of the images of all processes.

    Args:
        num_images: Number of training images, N.
        num_classes: Number of classes, C.
        num_heads: Number of heads, H.
        momentum: Weight of the old target in an update, in [0, 1).
        view: Whose predictions make the target of a head: its own, the mean of all heads, or the mean of the others.
        dtype: Dtype of the stored targets.
        on_host: Keep the targets in host memory, wherever the module is moved. Each batch's targets are copied.

    Attributes:
        targets: The stored targets: [H, N, C], or [1, N, C] for the view `mean`.
        latest: What `updated` gives for the batch that `forward` was last called with.

    Raises:
        ValueError: The momentum is out of range, or a single head has no others.
    """

    targets: Tensor

    def __init__(
            self,
            num_images: int,
            num_classes: int,
            num_heads: int = 1,
            momentum: float = 0.7,
            view: View = 'own',
            dtype: torch.dtype = TARGETS_DTYPE,
            on_host: bool = False,
    ) -> None:
        super().__init__()
        if not 0. <= momentum < 1.:
            raise ValueError(f'momentum is {momentum}; it must lie in [0, 1).')
        if view == 'others' and num_heads < 2:
            raise ValueError("The view 'others' needs at least 2 heads.")
        self.momentum = momentum
        self.view = view
        self.on_host = on_host
        self.latest: Tensor | None = None
        stored = 1 if view == 'mean' else num_heads
        self.register_buffer('targets', torch.zeros(stored, num_images, num_classes, dtype=dtype))

    @property
    def is_updating(self) -> bool:
        """Whether `store` stores anything at present."""
        return True

    @torch.no_grad()
    def updated(self, logits_HBC: Tensor, index_B: Tensor) -> Tensor:
        """Targets of a batch with its predictions in them, in float32: [H, B, C], or [1, B, C] for the view `mean`."""
        return self._averaged(at_least_float32(logits_HBC).softmax(dim=-1), index_B)

    @torch.no_grad()
    def _averaged(self, p_HBC: Tensor, index_B: Tensor) -> Tensor:
        """Targets of a batch with these predictions in them, see `updated`."""
        predicted_HBC = self._predicted(p_HBC)
        if self.view == 'mean':
            predicted_HBC = predicted_HBC.mean(dim=0, keepdim=True)
        return self._stored(index_B, predicted_HBC).lerp_(predicted_HBC, 1. - self.momentum)

    def _taken(self, p_HBC: Tensor, index_B: Tensor) -> Tensor:
        """The targets that each head learns [H, B, C], which also become `latest`."""
        self.latest = self._averaged(p_HBC, index_B)
        return self.seen(self.latest, len(p_HBC))

    @torch.no_grad()
    def store(self, index_B: Tensor, updated_HBC: Tensor) -> None:
        """Store targets where `is_updating`; of an image that occurs several times in a batch, their mean."""
        if not self.is_updating:
            return
        image_M, place_B, count_M = index_B.unique(return_inverse=True, return_counts=True)
        if len(image_M) < len(index_B):
            sum_HMC = updated_HBC.new_zeros(len(updated_HBC), len(image_M), updated_HBC.shape[-1])
            index_B, updated_HBC = image_M, sum_HMC.index_add_(1, place_B, updated_HBC) / count_M[:, None]
        self.targets.index_copy_(1, index_B.to(self.targets.device), updated_HBC.to(self.targets))

    def seen(self, updated_HBC: Tensor, num_heads: int) -> Tensor:
        """The target of each head [H, B, C], by the view."""
        if self.view == 'others':  # the average over time is linear, so that of the others is the others' average
            return mean_of_others(updated_HBC)
        return updated_HBC.expand(num_heads, -1, -1)

    def _stored(self, index_B: Tensor, like: Tensor) -> Tensor:
        """Stored targets of a batch with the device and dtype of another tensor, [H, B, C] or [1, B, C]."""
        return self.targets.index_select(1, index_B.to(self.targets.device)).to(like)

    def _predicted(self, p_HBC: Tensor) -> Tensor:
        """What a target is averaged from, by the probabilities of the classes."""
        return p_HBC

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> ImageTargets:
        """Keep targets on the host where `on_host`: `to`, `cuda` and their like come through here."""
        return self if self.on_host else super()._apply(fn, recurse)

    def extra_repr(self) -> str:
        """Return the settings, for printing the module."""
        return f'momentum={self.momentum}, view={self.view!r}'


class EarlyLearningRegularization(ImageTargets):
    """Cross-entropy, and a term that keeps predictions near what they were early in training.

    Paper: `Early-Learning Regularization Prevents Memorization of Noisy Labels` - https://arxiv.org/abs/2007.00151,
    eq. 6 and 8; predictions are clamped to [1e-4, 1 - 1e-4] as in the authors' code

        t <- momentum * t + (1 - momentum) * sg(p / sum p)
        L = CE(y, p) + weight * mean_i log(1 - <t_i, p_i>)

    The targets start at 0, where the term has no effect.

    Targets of mixed images (`share_BM`) are mixed like their labels, as in the paper's ELR+. The stored ones are then
    taken as they are: a prediction for a mixture says little of its images. The caller stores predictions for the
    unmixed images before, those of the running average of the weights in ELR+.

    Args:
        *args: For `ImageTargets`. The paper uses a momentum of 0.7 on CIFAR-10, and 0.9 for asymmetric noise and on
            CIFAR-100.
        weight: Weight of the term, lambda; the paper uses 3 on CIFAR-10 (1 for asymmetric noise) and 7 on CIFAR-100. A
            large weight may give up a class that is easily confused.
        **kwargs: For `ImageTargets`.

    Raises:
        ValueError: The weight is negative, or an argument of `ImageTargets` is out of range.
    """

    def __init__(self, *args: Any, weight: float = 3.0, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if not 0. <= weight < math.inf:
            raise ValueError(f'weight is {weight}; it must be at least 0, the paper uses 3.')
        self.weight = weight

    def forward(
            self,
            logits_HBC: Tensor,
            target: Tensor,
            index_B: Tensor | None = None,
            share_BM: Tensor | None = None,
    ) -> Tensor:
        """Compute the hard term of each head [H], see `HeadsCriterion.forward`."""
        index_B = _given(index_B)
        log_p_HBC = at_least_float32(logits_HBC).log_softmax(dim=-1)
        p_HBC = log_p_HBC.exp()
        if share_BM is None:
            target_HBC = self._taken(p_HBC, index_B)
            hard_HB = -log_p_HBC.gather(-1, target.expand(len(p_HBC), -1)[..., None]).squeeze(-1)
        else:
            image_HMC = self.seen(self._stored(index_B, p_HBC), len(p_HBC))
            with torch.autocast(p_HBC.device.type, enabled=False):
                target_HBC = share_BM.to(p_HBC.dtype) @ image_HMC
            hard_HB = -(target.to(p_HBC.dtype) * log_p_HBC).sum(dim=-1)
        clamped_HBC = F.hardtanh(p_HBC, 1e-4, 1. - 1e-4)  # the backward pass of clamp takes several times as long
        kept_HB = torch.log1p(-(target_HBC * clamped_HBC).sum(dim=-1))
        return hard_HB.mean(dim=-1) + self.weight * kept_HB.mean(dim=-1)

    def _predicted(self, p_HBC: Tensor) -> Tensor:
        p_HBC = p_HBC.clamp(1e-4, 1. - 1e-4)
        return p_HBC.div_(p_HBC.sum(dim=-1, keepdim=True))

    def extra_repr(self) -> str:
        """Return the settings, for printing the module."""
        return f'weight={self.weight}, {super().extra_repr()}'


class SelfEnsembleLabelCorrection(ImageTargets):
    """Cross-entropy with the labels at first, then with targets into which the predictions are averaged.

    Paper: `SELC: Self-Ensemble Label Correction Improves Learning with Noisy Labels` - https://arxiv.org/abs/2205.01156,
    eq. 4 and 5

        t <- momentum * t + (1 - momentum) * sg(p), from one-hot labels
        L = -mean_i sum_k t_ik log p_ik

    Args:
        labels_N: Labels of the training images, where the targets start, [N].
        num_classes: Number of classes, C.
        num_heads: Number of heads, H.
        momentum: See `ImageTargets`; the paper uses 0.9.
        **kwargs: For `ImageTargets`.

    Attributes:
        correcting: Whether targets are learned and updated, or labels are learned. The caller sets it at the epoch when
            the network begins to memorise.

    Raises:
        ValueError: An argument of `ImageTargets` is out of range.
    """

    def __init__(
            self,
            labels_N: Tensor,
            num_classes: int,
            num_heads: int = 1,
            momentum: float = 0.9,
            **kwargs: Any,
    ) -> None:
        super().__init__(len(labels_N), num_classes, num_heads, momentum, **kwargs)
        self.targets[:] = F.one_hot(labels_N, num_classes).to(self.targets.dtype)
        self.correcting = False

    @property
    def is_updating(self) -> bool:
        """Whether targets are learned, and no longer labels."""
        return self.correcting

    def forward(
            self,
            logits_HBC: Tensor,
            target: Tensor,
            index_B: Tensor | None = None,
            share_BM: Tensor | None = None,
    ) -> Tensor:
        """Compute the hard term of each head [H], see `HeadsCriterion.forward`."""
        index_B = _given(index_B)
        if share_BM is not None:
            raise ValueError('SELC corrects the label of an image, and mixed images have two: do not mix images.')
        logits_HBC = at_least_float32(logits_HBC)
        if not self.correcting:
            return cross_entropy(logits_HBC, target.expand(len(logits_HBC), -1)).mean(dim=-1)
        log_p_HBC = logits_HBC.log_softmax(dim=-1)
        target_HBC = self._taken(log_p_HBC.exp(), index_B)
        return -(target_HBC * log_p_HBC).sum(dim=-1).mean(dim=-1)


def _given(index_B: Tensor | None) -> Tensor:
    if index_B is None:
        raise ValueError('This objective has a target for each training image: pass the index of each image.')
    return index_B
