"""Metric that heads are compared by: accuracy, or mean average precision for images with several labels.

Shapes: K predictions, H heads, B batch, C classes, N examples.
"""
from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .by_class import ByClass

_COLUMNS = 64  # classes ranked at once


@dataclass(frozen=True)
class Metric(ABC):
    """A score in percent, where higher is better, and its names in logs, tables and plots.

    Args:
        key: Prefix of its keys in logs, as in `top1_kept`.
        name: Short name, for columns.
        title: Full name.
        loss_name: Name of the loss that breaks ties.
        final: Prefix of its keys in a summary, as in `error_kept`.
        final_name: Name of the values in a summary.
        train_key: Key of the score on training batches.
        train_name: Short name of that score.
        train_title: Full name of that score.
        decisions: What heads agree or disagree on.
    """

    key: str
    name: str
    title: str
    loss_name: str
    final: str
    final_name: str
    train_key: str
    train_name: str
    train_title: str
    decisions: str

    def rule(self, epochs: str) -> str:
        """Rule by which the kept head is chosen.

        Args:
            epochs: After which epochs heads are compared, such as `the last epoch`.
        """
        return (f'highest validation {self.title} after {epochs}; of equals the lowest {self.loss_name}, then the first'
                ' head')

    def row(self, score_H: Sequence[float], consensus: float, kept_head: int) -> dict[str, Any]:
        """Scores of the heads and of the consensus, as a row for logs."""
        return {
            f'{self.key}_heads': score_H,
            f'{self.key}_consensus': consensus,
            f'{self.key}_kept': score_H[kept_head],
        }

    def heads(self, row: Mapping[str, Any]) -> list[float]:
        """Score of each head in a logged row."""
        return row[f'{self.key}_heads']

    def kept(self, row: Mapping[str, Any]) -> float:
        """Score of the kept head in a logged row."""
        return row[f'{self.key}_kept']

    def consensus(self, row: Mapping[str, Any]) -> float:
        """Score of the consensus in a logged row."""
        return row[f'{self.key}_consensus']

    @abstractmethod
    def in_final(self, score: float) -> float:
        """Convert a score to its form in a summary. The conversion is its own inverse."""

    @abstractmethod
    def losses(self, logits_BC: Tensor, target: Tensor) -> Tensor:
        """Loss of each example [B]."""

    @abstractmethod
    def disagreement(self, logits_HBC: Tensor) -> Tensor:
        """Fraction of pairs of heads that disagree, per example [B]; 0 for a single head."""

    @abstractmethod
    def in_training(self, logits_HBC: Tensor, target: Tensor) -> Tensor:
        """Score of a training batch in percent, mean over the heads."""

    @abstractmethod
    def evidence(self, logits_KBC: Tensor, target: Tensor) -> Tensor:
        """What the score of a whole split needs per example, [B, ...]."""

    @abstractmethod
    def scores(self, evidence: list[Tensor]) -> list[float]:
        """Score of each of the K predictions, from the evidence of all batches."""

    def by_class(self, evidence: list[Tensor], num_classes: int) -> ByClass | None:
        """The K predictions by class, from the evidence of all batches; None where an image has several labels."""
        return None

    def store(self, evidence: Tensor) -> Tensor:
        """Prepare evidence for storage until all batches are evaluated."""
        return evidence


class Accuracy(Metric):
    """Fraction of images whose class is predicted.

    Targets are class indices [B], or class probabilities [B, C], of which the largest counts.
    """

    def in_final(self, score: float) -> float:
        """Error from accuracy, without the rounding error of the subtraction."""
        return round(100.0 - score, 6)

    def losses(self, logits_BC: Tensor, target: Tensor) -> Tensor:
        """Cross-entropy of each example [B], in nats."""
        return F.cross_entropy(logits_BC, target, reduction='none')

    def disagreement(self, logits_HBC: Tensor) -> Tensor:
        """Fraction of pairs of heads whose predicted classes differ [B]."""
        predicted_HB = logits_HBC.argmax(dim=-1)
        heads = len(predicted_HB)
        differ_B = (predicted_HB[:, None] != predicted_HB[None]).sum(dim=(0, 1))
        return differ_B.float() / max(heads * (heads - 1), 1)

    def in_training(self, logits_HBC: Tensor, target: Tensor) -> Tensor:
        """Accuracy in a batch, mean over the heads."""
        return 100.0 * (logits_HBC.argmax(dim=-1) == _classes(target)).float().mean()

    def evidence(self, logits_KBC: Tensor, target: Tensor) -> Tensor:
        """Predicted classes and, as the last column, the class of each example [B, K + 1]."""
        return torch.cat([logits_KBC.argmax(dim=-1), _classes(target)[None]]).T.int().contiguous()

    def scores(self, evidence: list[Tensor]) -> list[float]:
        """Accuracy of each prediction."""
        *predicted, target_N = torch.cat(evidence).cpu().unbind(dim=1)
        return [(100.0 * (each == target_N).double().mean()).item() for each in predicted]

    def by_class(self, evidence: list[Tensor], num_classes: int) -> ByClass:
        """The predictions by class."""
        found = torch.cat(evidence).cpu()
        return ByClass(found[:, :-1], found[:, -1], num_classes)


class MeanAveragePrecision(Metric):
    """Average precision, mean over classes that occur; targets are zeros and ones [B, C].

    The scores of all examples are stored on the CPU: 4 bytes times N x C x (K + 1).
    """

    def in_final(self, score: float) -> float:
        """The score itself, because 100 minus mAP is not an error."""
        return round(score, 6)

    def losses(self, logits_BC: Tensor, target: Tensor) -> Tensor:
        """Binary cross-entropy of each example [B], in nats, mean over the classes."""
        return F.binary_cross_entropy_with_logits(logits_BC, target, reduction='none').mean(dim=-1)

    def disagreement(self, logits_HBC: Tensor) -> Tensor:
        """Fraction of pairs of heads whose decisions at 0.5 differ [B], mean over the classes."""
        heads = len(logits_HBC)
        yes_BC = (logits_HBC > 0).sum(dim=0)
        return (2 * yes_BC * (heads - yes_BC)).float().mean(dim=-1) / max(heads * (heads - 1), 1)

    def in_training(self, logits_HBC: Tensor, target: Tensor) -> Tensor:
        """F1 at 0.5 over all labels of a batch, which is too small for a ranking."""
        yes_HBC, is_label_BC = logits_HBC > 0, target > 0.5
        true_positives_H = (yes_HBC & is_label_BC).sum(dim=(1, 2))
        positives_H = yes_HBC.sum(dim=(1, 2)) + is_label_BC.sum()
        return (200.0 * true_positives_H / positives_H.clamp(min=1)).mean()

    def evidence(self, logits_KBC: Tensor, target: Tensor) -> Tensor:
        """Scores and, as the last row, labels of each example [B, K + 1, C]."""
        return torch.cat([logits_KBC, target[None].to(logits_KBC.dtype)]).transpose(0, 1).contiguous()

    def store(self, evidence: Tensor) -> Tensor:
        """Move evidence to the CPU."""
        return evidence.cpu()

    def scores(self, evidence: list[Tensor]) -> list[float]:
        """Mean average precision of each prediction."""
        *logits, label_NC = torch.cat(evidence).unbind(dim=1)
        return [100.0 * average_precision(score_NC, label_NC).nanmean().item() for score_NC in logits]


def _classes(target: Tensor) -> Tensor:
    return target if target.ndim == 1 else target.argmax(dim=1)


def average_precision(score_NC: Tensor, label_NC: Tensor) -> Tensor:
    """Average precision of each class [C] in [0, 1]: precision at every threshold, weighted by the increase of recall.

    `AP = sum_n (R_n - R_{n-1}) P_n` over the distinct scores in descending order, without interpolation, as in
    scikit-learn's `average_precision_score`. Examples with equal scores pass the threshold together.

    Args:
        score_NC: Any scores that increase with the probability.
        label_NC: 1 for a label, 0 for none.

    Returns:
        float64; NaN for a class that no example has.
    """
    parts = zip(score_NC.split(_COLUMNS, dim=1), label_NC.split(_COLUMNS, dim=1), strict=True)
    return torch.cat([_average_precision(*part) for part in parts])


def _average_precision(score_NC: Tensor, label_NC: Tensor) -> Tensor:
    score_NC, order_NC = score_NC.sort(dim=0, descending=True)
    hit_NC = label_NC.gather(0, order_NC).double()
    place_N1 = torch.arange(len(score_NC), device=score_NC.device)[:, None]
    precision_NC = hit_NC.cumsum(dim=0) / (place_N1 + 1)
    # Last place with the same score as each example.
    ends_NC = torch.ones_like(score_NC, dtype=torch.bool)
    ends_NC[:-1] = score_NC[1:] != score_NC[:-1]
    end_NC = torch.where(ends_NC, place_N1, len(score_NC)).flip(0).cummin(dim=0).values.flip(0)
    return (hit_NC * precision_NC.gather(0, end_NC)).sum(dim=0) / hit_NC.sum(dim=0)


TOP1 = Accuracy(
    key='top1', name='top-1', title='accuracy', loss_name='cross-entropy', final='error', final_name='error',
    train_key='train_top1', train_name='top-1', train_title='accuracy', decisions='images',
)
MAP = MeanAveragePrecision(
    key='map', name='mAP', title='mean average precision', loss_name='binary cross-entropy', final='map',
    final_name='mAP', train_key='train_f1', train_name='F1', train_title='F1 at 0.5', decisions='labels',
)


def metric_for(multi_label: bool) -> Metric:
    """The metric for images with one class, or with several labels."""
    return MAP if multi_label else TOP1


def shortfall(row: Mapping[str, Any], whose: str = 'kept') -> float:
    """100 minus the score in a logged row: the error, or 100 minus the mean average precision.

    Args:
        row: Logged scores, the `val` or `test` of a summary.
        whose: `kept` for the kept head, or `consensus`.
    """
    return round(100.0 - row[f'{metric_of(row).key}_{whose}'], 6)


def metric_of(row: Mapping[str, Any]) -> Metric:
    """The metric of logged scores: the `val` of a row of metrics, or a summary."""
    return MAP if f'{MAP.key}_kept' in row else TOP1


def best_head(score_H: Sequence[float], loss_H: Sequence[float]) -> int:
    """Head with the highest score; ties are broken by the lowest loss, then by the lowest index."""
    return min(range(len(score_H)), key=lambda head: (-score_H[head], loss_H[head], head))


@dataclass(frozen=True)
class Scores:
    """Scores of a tree on one split.

    Args:
        score_H: Score of each head, in percent.
        loss_H: Mean loss of each head against the labels, in nats.
        consensus: Score of the consensus, the mean of all heads' logits, in percent.
        count: Number of examples, each counted once.
        disagreement: Decisions on which two heads differ, in percent, mean over all pairs of heads; None for a single
            head.
        metric: The metric.
        by_class: The predictions by class, where an image has one.
    """

    score_H: list[float]
    loss_H: list[float]
    consensus: float
    count: int
    disagreement: float | None = None
    metric: Metric = TOP1
    by_class: ByClass | None = None

    @property
    def best_head(self) -> int:
        """Head with the highest score; ties are broken by the lowest loss, then by the lowest index."""
        return best_head(self.score_H, self.loss_H)

    def row(self, kept_head: int) -> dict[str, Any]:
        """The scores as plain data for logs."""
        return {
            **self.metric.row(self.score_H, self.consensus, kept_head),
            **({} if self.by_class is None else self.by_class.row(kept_head)),
            'loss_heads': self.loss_H,
            'disagreement': self.disagreement,
            'count': self.count,
        }

    def row_on(self, target_N: Tensor | None, kept_head: int) -> dict[str, Any] | None:
        """The accuracies by other labels of the same examples [N] as plain data for logs; None without labels."""
        if self.by_class is None or target_N is None:
            return None
        other = replace(self.by_class, target_N=target_N)
        *score_H, consensus = (other.accuracy(each) for each in range(len(self.score_H) + 1))
        return {**self.metric.row(score_H, consensus, kept_head), **other.row(kept_head), 'count': self.count}

    def details(self, kept_head: int) -> dict[str, Any]:
        """What a summary has beyond the row: the scores of the kept head by class."""
        return {} if self.by_class is None else self.by_class.details(kept_head)
