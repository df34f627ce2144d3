"""Top-1 accuracy and cross-entropy of every head and of their consensus.

Shapes: H heads, B batch, C classes, K = H + 1 predictions (the heads', then the consensus'),
N = K + H scores of an example (K right or wrong, H losses).
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
    """

    top1_H: list[float]
    loss_H: list[float]
    top1_consensus: float
    count: int

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
        loss_BH = torch.stack([F.cross_entropy(z_BC, target_B, reduction='none') for z_BC in logits_HBC], dim=1)
        # Loaders repeat examples so that every process has as many; this drops the repeats.
        scored_BN = accelerator.gather_for_metrics(torch.cat([correct_BK, loss_BH], dim=1))
        count += len(scored_BN)
        sums.append(scored_BN.sum(dim=0))
    model.train(was_training)
    # Added up in float64 on the host: not every device has it.
    means = (torch.stack(sums).cpu().double().sum(dim=0) / count).tolist()
    heads = len(means) // 2
    top1_K = [100.0 * share for share in means[:heads + 1]]
    return Scores(top1_K[:-1], means[heads + 1:], top1_K[-1], count)
