"""Detailed scores of a classifier, overall and per class: accuracy and calibration, or mAP and F1.

Shapes: B batch, C classes, N bins; N examples in `MultiLabelScorer`.
"""
from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .by_class import balanced, confusion_matrix
from .metric import average_precision

BINS = 15
TOP = 5
CONFUSION_CLASSES = 200
"""Beyond, the confusion matrix is left out."""


class Scorer:
    """Accumulates scores of one classifier over batches, in float64 on the CPU.

    The expected calibration error is that of Guo et al. (2017, eq. 3). Examples are binned by their confidence, the
    probability of the predicted class, in N bins of equal width that include their upper bound. The error is the mean
    distance between a bin's accuracy and its mean confidence, weighted by its number of examples.

    Args:
        num_classes: Number of classes, C.
        bins: Number of bins, N.
    """

    def __init__(self, num_classes: int, bins: int = BINS) -> None:
        self.bins = bins
        self.nll = 0.0
        self.top5 = 0
        self.confusion_CC: Tensor | None = None
        if num_classes <= CONFUSION_CLASSES:
            self.confusion_CC = torch.zeros(num_classes, num_classes, dtype=torch.int64)
        self.count_C = torch.zeros(num_classes, dtype=torch.int64)
        self.correct_C = torch.zeros(num_classes, dtype=torch.int64)
        self.count_N = torch.zeros(bins, dtype=torch.int64)
        self.correct_N = torch.zeros(bins, dtype=torch.float64)
        self.confidence_N = torch.zeros(bins, dtype=torch.float64)

    def add(self, logits_BC: Tensor, target_B: Tensor) -> None:
        """Add a batch: logits [B, C] and class indices [B]."""
        logits_BC, target_B = logits_BC.detach().cpu().double(), target_B.cpu()
        log_prob_BC = logits_BC.log_softmax(dim=1)
        self.nll -= log_prob_BC.gather(1, target_B[:, None]).sum().item()
        confidence_B, predicted_B = log_prob_BC.exp().max(dim=1)
        correct_B = predicted_B == target_B
        top_BK = logits_BC.topk(min(TOP, logits_BC.shape[1]), dim=1).indices
        self.top5 += int((top_BK == target_B[:, None]).any(dim=1).sum())
        self.count_C += torch.bincount(target_B, minlength=len(self.count_C))
        self.correct_C += torch.bincount(target_B[correct_B], minlength=len(self.count_C))
        if self.confusion_CC is not None:
            self.confusion_CC += confusion_matrix(target_B, predicted_B, len(self.count_C))
        bin_B = ((confidence_B * self.bins).ceil().long() - 1).clamp(0, self.bins - 1)
        self.count_N += torch.bincount(bin_B, minlength=self.bins)
        self.correct_N.index_add_(0, bin_B, correct_B.double())
        self.confidence_N.index_add_(0, bin_B, confidence_B)

    @property
    def count(self) -> int:
        """Number of examples."""
        return int(self.count_C.sum())

    @property
    def examples_C(self) -> list[int]:
        """Number of examples of each class."""
        return self.count_C.tolist()

    @property
    def confusion(self) -> list[list[int]] | None:
        """Number of examples by their class (row) and the class predicted (column); None for many classes."""
        return None if self.confusion_CC is None else self.confusion_CC.tolist()

    @property
    def by_class_C(self) -> list[float | None]:
        """Accuracy on the examples of each class, in percent; None for a class without examples."""
        return [
            100.0 * correct / count if count else None
            for correct, count in zip(self.correct_C.tolist(), self.count_C.tolist(), strict=True)
        ]

    def result(self) -> dict[str, Any]:
        """Scores as plain data: accuracies and calibration error in percent, negative log-likelihood in nats."""
        return {
            'top1': 100.0 * self.correct_C.sum().item() / self.count,
            'balanced': balanced(self.by_class_C),
            'top5': 100.0 * self.top5 / self.count if len(self.count_C) > TOP else None,
            'nll': self.nll / self.count,
            'ece': 100.0 * (self.correct_N - self.confidence_N).abs().sum().item() / self.count,
        }


class MultiLabelScorer:
    """Accumulates scores of one classifier with independent classes, with the interface of `Scorer`.

    Average precision is `average_precision`, F1 is that of labels with a probability above 0.5. Means over classes are
    over those that occur.
    """

    confusion: list[list[int]] | None = None  # an image has no one class to be taken for another

    def __init__(self) -> None:
        self.logits: list[Tensor] = []
        self.labels: list[Tensor] = []

    def add(self, logits_BC: Tensor, target_BC: Tensor) -> None:
        """Add a batch: logits, and labels as zeros and ones, both [B, C]."""
        self.logits.append(logits_BC.detach().cpu())
        self.labels.append(target_BC.cpu())

    @property
    def count(self) -> int:
        """Number of examples."""
        return sum(map(len, self.labels))

    @property
    def examples_C(self) -> list[int]:
        """Number of examples with each label."""
        return torch.cat(self.labels).sum(dim=0, dtype=torch.float64).long().tolist()

    @property
    def by_class_C(self) -> list[float | None]:
        """Average precision of each class, in percent; None for a class without examples."""
        precision_C = 100.0 * average_precision(torch.cat(self.logits), torch.cat(self.labels))
        return [None if value != value else value for value in precision_C.tolist()]

    def result(self) -> dict[str, Any]:
        """Scores as plain data: mAP and F1 in percent, binary cross-entropy in nats, mean over examples and classes."""
        logits_NC, labels_NC = torch.cat(self.logits).double(), torch.cat(self.labels).double()
        predicted_NC = logits_NC > 0
        true_positives_C = (predicted_NC * labels_NC).sum(dim=0)
        positives_C = predicted_NC.sum(dim=0) + labels_NC.sum(dim=0)
        occurs_C = labels_NC.any(dim=0)
        known = [value for value in self.by_class_C if value is not None]
        return {
            'map': sum(known) / len(known) if known else None,
            'f1_micro': 200.0 * (true_positives_C.sum() / positives_C.sum().clamp(min=1)).item(),
            'f1_macro': 200.0 * (true_positives_C / positives_C)[occurs_C].mean().item() if known else None,
            'bce': F.binary_cross_entropy_with_logits(logits_NC, labels_NC).item(),
        }
