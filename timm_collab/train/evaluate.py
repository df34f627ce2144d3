"""Top-1 accuracy and cross-entropy of every head and of their consensus, and how often heads disagree.

Shapes: H heads, B batch, C classes, K = H + 1 predictions (the heads', then the consensus'),
N = K + H + 1 scores of an example (K right or wrong, H losses, the share of pairs of heads that disagree).
"""
from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn as nn
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor


@dataclass(frozen=True)
class Scores:
    """Scores of a tree on one split.

    Args:
        top1_H: Accuracy of each head, in percent.
        loss_H: Mean cross-entropy of each head, in nats.
        top1_consensus: Accuracy of the consensus, the mean of all heads' logits, in percent.
        count: Number of examples, each counted once.
        disagreement: Examples for which two heads predict different classes, in percent, mean over all pairs of heads;
            None of a single head.
    """

    top1_H: list[float]
    loss_H: list[float]
    top1_consensus: float
    count: int
    disagreement: float | None = None

    @property
    def best_head(self) -> int:
        """Head with the highest accuracy; of equals that with the lowest cross-entropy, then the first."""
        return min(range(len(self.top1_H)), key=lambda head: (-self.top1_H[head], self.loss_H[head], head))

    def row(self, kept_head: int) -> dict[str, Any]:
        """The scores as plain data, for a log."""
        return {
            'top1_heads': self.top1_H,
            'top1_consensus': self.top1_consensus,
            'top1_kept': self.top1_H[kept_head],
            'loss_heads': self.loss_H,
            'disagreement': self.disagreement,
            'count': self.count,
        }


@torch.inference_mode()
def evaluate(model: nn.Module, loader: Iterable[tuple[Tensor, Tensor]], accelerator: Accelerator) -> Scores:
    """Score all heads of a model in eval mode, over all processes; the model's mode is put back.

    Args:
        model: `CollabModel`, not wrapped.
        loader: Prepared loader of images [B, in_chans, height, width] and class indices [B].
        accelerator: What the loader was prepared by.
    """
    was_training = model.training
    model.eval()
    sums: list[Tensor] = []
    count = 0
    for images, target_B in loader:
        with accelerator.autocast():
            logits_HBC = model.forward_heads(images)  # type: ignore[operator]
        logits_HBC = logits_HBC.float()
        predicted_KBC = torch.cat([logits_HBC, logits_HBC.mean(dim=0, keepdim=True)])
        correct_BK = (predicted_KBC.argmax(dim=-1) == target_B).T.contiguous()
        disagreement_B = pairs_that_differ(predicted_KBC[:-1].argmax(dim=-1))
        loss_BH = torch.stack([F.cross_entropy(z_BC, target_B, reduction='none') for z_BC in logits_HBC], dim=1)
        # Loaders repeat examples so that every process has as many; this drops the repeats.
        scored_BN = accelerator.gather_for_metrics(torch.cat([correct_BK, loss_BH, disagreement_B[:, None]], dim=1))
        count += len(scored_BN)
        sums.append(scored_BN.sum(dim=0))
    model.train(was_training)
    # Added up in float64 on the host: not every device has it.
    means = (torch.stack(sums).cpu().double().sum(dim=0) / count).tolist()
    heads = len(means) // 2 - 1
    top1_K = [100.0 * share for share in means[:heads + 1]]
    disagreement = 100.0 * means[-1] if heads > 1 else None
    return Scores(top1_K[:-1], means[heads + 1:-1], top1_K[-1], count, disagreement)


def pairs_that_differ(predicted_HB: Tensor) -> Tensor:
    """For each example the share of the pairs of heads whose predicted classes differ [B], 0 of a single head."""
    heads = len(predicted_HB)
    differ_B = (predicted_HB[:, None] != predicted_HB[None]).sum(dim=(0, 1))
    return differ_B.float() / max(heads * (heads - 1), 1)
