"""Evaluation in training: score and loss of every head and of their consensus, and how often heads disagree.

Shapes: H heads, B batch, C classes, K = H + 1 predictions (the heads', then the consensus'),
M = H + 1 numbers of an example (H losses, the share of pairs of heads that disagree).
"""
from __future__ import annotations

from collections.abc import Iterable

import torch
from accelerate import Accelerator
from torch import Tensor

from ...model import CollabModel
from ..metrics.metric import TOP1, Metric, Scores


@torch.no_grad()  # in inference mode FSDP2 of a single process can't gather weights
def evaluate(
        model: CollabModel,
        loader: Iterable[tuple[Tensor, Tensor]],
        accelerator: Accelerator,
        metric: Metric = TOP1,
) -> Scores:
    """Score all heads of a model in eval mode, over all processes; the model's mode is restored.

    Args:
        model: A `CollabModel`, not wrapped.
        loader: Prepared loader of images [B, in_chans, height, width] and the targets that the metric takes.
        accelerator: The accelerator that prepared the loader.
        metric: What to score by.
    """
    was_training = model.training
    model.eval()
    evidence: list[Tensor] = []
    sums: list[Tensor] = []
    count = 0
    for images, target in loader:
        with accelerator.autocast():
            logits_HBC = model.forward_heads(images)
        logits_HBC = logits_HBC.float()
        logits_KBC = torch.cat([logits_HBC, logits_HBC.mean(dim=0, keepdim=True)])
        loss_BH = torch.stack([metric.losses(z_BC, target) for z_BC in logits_HBC], dim=1)
        numbers_BM = torch.cat([loss_BH, metric.disagreement(logits_HBC)[:, None]], dim=1)
        # Drops the examples that loaders repeat so that every process gets as many.
        batch, numbers_BM = accelerator.gather_for_metrics((metric.evidence(logits_KBC, target), numbers_BM))
        evidence.append(metric.store(batch))
        sums.append(numbers_BM.sum(dim=0))
        count += len(numbers_BM)
    model.train(was_training)
    # Summed in float64 on the CPU: not every device has it.
    *loss_H, disagreement = (torch.stack(sums).cpu().double().sum(dim=0) / count).tolist()
    *score_H, consensus = metric.scores(evidence)
    return Scores(
        score_H, loss_H, consensus, count, 100.0 * disagreement if len(loss_H) > 1 else None, metric,
        metric.by_class(evidence, logits_HBC.shape[-1]))
