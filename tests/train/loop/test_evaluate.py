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


def test_balanced_accuracy_and_recall_of_each_class():
    # Head 0 always says class 0, head 1 is right but for one example of class 2, head 2 always says class 1.
    target_N = torch.tensor([0] * 6 + [1] * 3 + [2])
    predicted_HN = torch.tensor([[0] * 10, [0] * 6 + [1] * 3 + [0], [1] * 10])
    logits_HNC = F.one_hot(predicted_HN, 4).float()  # no example has class 3
    accelerator = Accelerator(cpu=True)
    loader = accelerator.prepare(DataLoader(TensorDataset(torch.arange(10), target_N), batch_size=4))
    scores = evaluate(FixedHeads(logits_HNC), loader, accelerator)
    row = scores.row(1)
    assert row['top1_heads'] == pytest.approx([60, 90, 30])
    assert row['balanced_heads'] == pytest.approx([100 / 3, 200 / 3, 100 / 3]) and row['balanced_kept'] == 200 / 3
    # The mean of the logits says 0 to examples of class 0 and 2, and 1 to those of class 1.
    assert row['balanced_consensus'] == pytest.approx(200 / 3)
    assert (row['worst_recall_kept'], row['worst_class_kept']) == (0.0, 2)
    assert scores.details(1) == {
        'recall_kept': [100.0, 100.0, 0.0, None],
        'confusion_kept': [[6, 0, 0, 0], [0, 3, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]],
    }
    assert scores.details(2)['confusion_kept'] == [[0, 6, 0, 0], [0, 3, 0, 0], [0, 1, 0, 0], [0, 0, 0, 0]]


def test_a_matrix_of_many_classes_is_left_out():
    accelerator = Accelerator(cpu=True)
    loader = accelerator.prepare(DataLoader(TensorDataset(torch.arange(4), torch.tensor([0, 100, 3, 3])), batch_size=4))
    details = evaluate(FixedHeads(torch.zeros(1, 4, 101)), loader, accelerator).details(0)
    assert details['confusion_kept'] is None
    assert {label: value for label, value in enumerate(details['recall_kept']) if value is not None} == {
        0: 100.0, 3: 0.0, 100: 0.0}


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
