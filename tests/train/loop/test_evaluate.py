from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from timm_collab.train.loop.evaluate import Scores, evaluate


class FixedHeads(nn.Module):
    """Logits of three heads looked up by the number that each 'image' is."""

    def __init__(self, logits_HNC: torch.Tensor):
        super().__init__()
        self.logits_HNC = logits_HNC

    def forward_heads(self, images_B: torch.Tensor) -> torch.Tensor:
        assert not self.training
        return self.logits_HNC[:, images_B.long()]


@pytest.mark.parametrize('batch_size', [7, 10, 50])
def test_scores_against_direct_computation(batch_size):
    generator = torch.Generator().manual_seed(0)
    logits_HNC = torch.randn(3, 50, 4, generator=generator)
    target_N = torch.randint(4, (50,), generator=generator)
    accelerator = Accelerator(cpu=True)
    loader = accelerator.prepare(DataLoader(TensorDataset(torch.arange(50), target_N), batch_size=batch_size))
    model = FixedHeads(logits_HNC).train()
    scores = evaluate(model, loader, accelerator)

    assert scores.count == 50
    assert scores.score_H == pytest.approx([100 * (z.argmax(1) == target_N).double().mean().item() for z in logits_HNC])
    assert scores.loss_H == pytest.approx([F.cross_entropy(z, target_N).item() for z in logits_HNC])
    consensus_N = logits_HNC.mean(dim=0).argmax(dim=1)
    assert scores.consensus == pytest.approx(100 * (consensus_N == target_N).double().mean().item())
    pairs = [(0, 1), (0, 2), (1, 2)]
    differ = [(logits_HNC[a].argmax(1) != logits_HNC[b].argmax(1)).double().mean().item() for a, b in pairs]
    assert scores.disagreement == pytest.approx(100 * sum(differ) / 3)
    assert model.training


def test_a_single_head_has_none_to_disagree_with():
    accelerator = Accelerator(cpu=True)
    loader = accelerator.prepare(DataLoader(TensorDataset(torch.arange(4), torch.tensor([0, 1, 0, 1])), batch_size=3))
    scores = evaluate(FixedHeads(torch.eye(2).repeat(1, 2, 1)), loader, accelerator)
    assert scores.disagreement is None
    assert scores.score_H == [100.0] == [scores.consensus]


@pytest.mark.parametrize(('top1', 'loss', 'best'), [
    ([80.0, 90.0, 85.0], [1.0, 1.0, 1.0], 1),
    ([90.0, 90.0, 85.0], [1.0, 0.5, 0.1], 1),
    ([90.0, 90.0, 90.0], [1.0, 1.0, 1.0], 0),
])
def test_best_head(top1, loss, best):
    assert Scores(top1, loss, 0.0, 10).best_head == best


def test_row_reports_the_kept_head():
    row = Scores([80.0, 90.0], [1.0, 0.5], 95.0, 10, 12.5).row(0)
    assert row == {
        'top1_heads': [80.0, 90.0], 'top1_consensus': 95.0, 'top1_kept': 80.0, 'loss_heads': [1.0, 0.5],
        'disagreement': 12.5, 'count': 10,
    }
