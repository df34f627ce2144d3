"""Scores of each class, from predicted classes and labels.

Shapes: K predictions, C classes, N examples. Labels count in rows, predictions in columns.
"""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

MATRIX_CLASSES = 100
"""Beyond, the confusion matrix would fill a summary."""


@dataclass(frozen=True)
class ByClass:
    """Predicted classes of a whole split.

    Args:
        predicted_NK: Class that each prediction gives each example.
        target_N: Class of each example.
        num_classes: Number of classes, C.
    """

    predicted_NK: Tensor
    target_N: Tensor
    num_classes: int

    def recall(self, prediction: int) -> list[float | None]:
        """Accuracy on the examples of each class [C], in percent; None for a class without examples."""
        is_right_N = self.predicted_NK[:, prediction] == self.target_N
        count_C, right_C = (
            torch.bincount(target, minlength=self.num_classes).tolist()
            for target in (self.target_N, self.target_N[is_right_N]))
        return [100.0 * right / count if count else None for right, count in zip(right_C, count_C, strict=True)]

    def accuracy(self, prediction: int) -> float:
        """Accuracy on all examples, in percent."""
        return 100.0 * (self.predicted_NK[:, prediction] == self.target_N).double().mean().item()

    def row(self, kept: int) -> dict[str, Any]:
        """Balanced accuracy of all predictions and the worst class of the kept head, as a row for logs.

        Args:
            kept: Index of the kept head; the consensus is the last prediction.
        """
        *balanced_H, consensus = (balanced(self.recall(each)) for each in range(self.predicted_NK.shape[1]))
        worst, label = min((value, label) for label, value in enumerate(self.recall(kept)) if value is not None)
        return {
            'balanced_heads': balanced_H,
            'balanced_consensus': consensus,
            'balanced_kept': balanced_H[kept],
            'worst_recall_kept': worst,
            'worst_class_kept': label,
        }

    def details(self, kept: int) -> dict[str, Any]:
        """Recall of each class and the confusion matrix of the kept head, for a summary."""
        matrix = None
        if self.num_classes <= MATRIX_CLASSES:
            matrix = confusion_matrix(self.target_N, self.predicted_NK[:, kept], self.num_classes).tolist()
        return {'recall_kept': self.recall(kept), 'confusion_kept': matrix}


def balanced(recall_C: Sequence[float | None]) -> float:
    """Balanced accuracy: the mean recall of the classes that have examples."""
    known = [value for value in recall_C if value is not None]
    return sum(known) / len(known)


def confusion_matrix(target_N: Tensor, predicted_N: Tensor, num_classes: int) -> Tensor:
    """Number of examples by their class (row) and the class predicted (column), [C, C]."""
    pairs_N = target_N.long() * num_classes + predicted_N
    return torch.bincount(pairs_N, minlength=num_classes ** 2).reshape(num_classes, num_classes)
