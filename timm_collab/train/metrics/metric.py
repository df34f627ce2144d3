"""What heads are compared by: accuracy of images with one class, mean average precision of images with several labels.

Shapes: K predictions, H heads, B batch, C classes, N examples.
"""
from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

_COLUMNS = 64  # classes that are ranked at once


@dataclass(frozen=True)
class Metric(ABC):
    """A score in percent, of which more is better, and how it is spoken of.

    Args:
        key: What its keys begin with where scores are logged: `top1_kept`.
        name: How it heads a column.
        title: Its name in full.
        loss_name: The loss that decides between equals.
        final: What its keys begin with in a summary: `error_kept`.
        final_name: What the figures under these keys are called.
        train_key: Key of the score that is taken from batches while training.
        train_name: How that one heads a column.
        train_title: Its name in full.
        decisions: What two heads agree or disagree on.
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

    @property
    def rule(self) -> str:
        """How the kept head is chosen."""
        return (f'highest validation {self.title} after the last epoch; of equals the lowest {self.loss_name}, then the'
                ' first head')

    def row(self, score_H: Sequence[float], consensus: float, kept_head: int) -> dict[str, Any]:
        """Scores of the heads and of the consensus, as they are logged."""
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
        """A score as a summary has it; a second time gives the score again."""

    @abstractmethod
    def losses(self, logits_BC: Tensor, target: Tensor) -> Tensor:
        """Loss of each example [B]."""

    @abstractmethod
    def disagreement(self, logits_HBC: Tensor) -> Tensor:
        """For each example the share of the pairs of heads that decide differently [B], 0 of a single head."""

    @abstractmethod
    def in_training(self, logits_HBC: Tensor, target: Tensor) -> Tensor:
        """The score that is taken while training, of one batch, in percent, mean of the heads."""

    @abstractmethod
    def evidence(self, logits_KBC: Tensor, target: Tensor) -> Tensor:
        """What the score of a whole split needs to know of each example [B, ...]."""

    @abstractmethod
    def scores(self, evidence: list[Tensor]) -> list[float]:
        """Score of each of the K predictions, from the evidence of all batches."""

    def held(self, evidence: Tensor) -> Tensor:
        """Evidence as it waits for that of the other batches."""
        return evidence


class Accuracy(Metric):
    """The share of the images whose class is predicted; targets are class indices [B]."""

    def in_final(self, score: float) -> float:
        """Percent wrong from percent right, without the dust of the subtraction."""
        return round(100.0 - score, 6)

    def losses(self, logits_BC: Tensor, target: Tensor) -> Tensor:
        """Cross-entropy of each example [B], in nats."""
        return F.cross_entropy(logits_BC, target, reduction='none')

    def disagreement(self, logits_HBC: Tensor) -> Tensor:
        """The share of the pairs of heads whose predicted classes differ [B]."""
        predicted_HB = logits_HBC.argmax(dim=-1)
        heads = len(predicted_HB)
        differ_B = (predicted_HB[:, None] != predicted_HB[None]).sum(dim=(0, 1))
        return differ_B.float() / max(heads * (heads - 1), 1)

    def in_training(self, logits_HBC: Tensor, target: Tensor) -> Tensor:
        """Accuracy in a batch."""
        return 100.0 * (logits_HBC.argmax(dim=-1) == target).float().mean()

    def evidence(self, logits_KBC: Tensor, target: Tensor) -> Tensor:
        """Whether each prediction is right [B, K]."""
        return (logits_KBC.argmax(dim=-1) == target).T.byte().contiguous()  # not every backend gathers bool

    def scores(self, evidence: list[Tensor]) -> list[float]:
        """Accuracy of each prediction."""
        return (100.0 * torch.cat(evidence).cpu().double().mean(dim=0)).tolist()


class MeanAveragePrecision(Metric):
    """Average precision, mean over the classes that occur; targets are zeros and ones [B, C].

    The scores of all examples are kept, on the CPU: 4 bytes for each of N x C x (K + 1).
    """

    def in_final(self, score: float) -> float:
        """The score itself: what is missing to 100 is no error."""
        return round(score, 6)

    def losses(self, logits_BC: Tensor, target: Tensor) -> Tensor:
        """Binary cross-entropy of each example [B], in nats, mean over the classes."""
        return F.binary_cross_entropy_with_logits(logits_BC, target, reduction='none').mean(dim=-1)

    def disagreement(self, logits_HBC: Tensor) -> Tensor:
        """The share of the pairs of heads that say yes and no at 0.5 [B], mean over the classes."""
        heads = len(logits_HBC)
        yes_BC = (logits_HBC > 0).sum(dim=0)
        return (2 * yes_BC * (heads - yes_BC)).float().mean(dim=-1) / max(heads * (heads - 1), 1)

    def in_training(self, logits_HBC: Tensor, target: Tensor) -> Tensor:
        """F1 at 0.5 in a batch, over all its labels: ranking takes more images than a batch has."""
        yes_HBC, is_label_BC = logits_HBC > 0, target > 0.5
        right_H = (yes_HBC & is_label_BC).sum(dim=(1, 2))
        named_H = yes_HBC.sum(dim=(1, 2)) + is_label_BC.sum()
        return (200.0 * right_H / named_H.clamp(min=1)).mean()

    def evidence(self, logits_KBC: Tensor, target: Tensor) -> Tensor:
        """Scores and, last, labels of each example [B, K + 1, C]."""
        return torch.cat([logits_KBC, target[None].to(logits_KBC.dtype)]).transpose(0, 1).contiguous()

    def held(self, evidence: Tensor) -> Tensor:
        """On the CPU."""
        return evidence.cpu()

    def scores(self, evidence: list[Tensor]) -> list[float]:
        """Mean average precision of each prediction."""
        *logits, label_NC = torch.cat(evidence).unbind(dim=1)
        return [100.0 * average_precision(score_NC, label_NC).nanmean().item() for score_NC in logits]


def average_precision(score_NC: Tensor, label_NC: Tensor) -> Tensor:
    """Average precision of each class [C], in [0, 1]: the precision at every threshold, weighted by the recall it adds.

    `AP = sum_n (R_n - R_{n-1}) P_n` over the distinct scores from the highest down, without interpolation, which is
    scikit-learn's `average_precision_score`. Examples of one score pass the threshold together.

    Args:
        score_NC: Any scores that grow with the probability.
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
    # Where a threshold ends, for each example: at the next place whose successor has another score.
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
    """What is missing to 100 % in a logged row: the error, or 100 less the mean average precision.

    Args:
        row: Logged scores, the `val` or `test` of a summary.
        whose: Of the head that is `kept`, or of the `consensus`.
    """
    return round(100.0 - row[f'{metric_of(row).key}_{whose}'], 6)


def metric_of(row: Mapping[str, Any]) -> Metric:
    """The metric of logged scores: the `val` of a row of metrics, or a summary."""
    return MAP if f'{MAP.key}_kept' in row else TOP1


@dataclass(frozen=True)
class Scores:
    """Scores of a tree on one split.

    Args:
        score_H: Score of each head, in percent.
        loss_H: Mean loss of each head against the labels, in nats.
        consensus: Score of the consensus, the mean of all heads' logits, in percent.
        count: Number of examples, each counted once.
        disagreement: Decisions that two heads take differently, in percent, mean over all pairs of heads; None of a
            single head.
        metric: What the scores are.
    """

    score_H: list[float]
    loss_H: list[float]
    consensus: float
    count: int
    disagreement: float | None = None
    metric: Metric = TOP1

    @property
    def best_head(self) -> int:
        """Head with the highest score; of equals that with the lowest loss, then the first."""
        return min(range(len(self.score_H)), key=lambda head: (-self.score_H[head], self.loss_H[head], head))

    def row(self, kept_head: int) -> dict[str, Any]:
        """The scores as plain data, for a log."""
        return {
            **self.metric.row(self.score_H, self.consensus, kept_head),
            'loss_heads': self.loss_H,
            'disagreement': self.disagreement,
            'count': self.count,
        }
