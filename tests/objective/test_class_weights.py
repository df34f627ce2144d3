"""The weighted cross-entropy compared with its formula, one example at a time, in float64."""
from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from timm_collab.objective.baselines import GatedEnsembleLoss, MutualLearningLoss
from timm_collab.objective.class_balance import WeightedCrossEntropy
from timm_collab.objective.loss import CollaborativeLoss

H, B, C = 3, 6, 5
WEIGHT_C = torch.tensor([0.2, 1.0, 0.0, 3.0, 0.8], dtype=torch.float64)


def make_logits(dtype: torch.dtype = torch.float64) -> Tensor:
    return (3 * torch.randn(H, B, C, generator=torch.Generator().manual_seed(0), dtype=torch.float64)).to(dtype)


def make_target(kind: str) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    if kind == 'index':
        return torch.randint(C, (B,), generator=generator)
    return torch.randn(B, C, generator=generator, dtype=torch.float64).softmax(dim=1)


def reference(logits_BC: Tensor, target: Tensor, smoothing: float) -> float:
    """`sum_c w_c t_c l_c`, mean over the examples; t is smoothed as by PyTorch."""
    total = 0.0
    for z_C, t in zip(logits_BC, target, strict=True):
        t_C = [float(c == t) for c in range(C)] if t.ndim == 0 else t.tolist()
        log_sum = torch.log(torch.exp(z_C).sum()).item()
        for c in range(C):
            smooth = (1 - smoothing) * t_C[c] + smoothing / C
            total += WEIGHT_C[c].item() * smooth * (log_sum - z_C[c].item())
    return total / B


@pytest.mark.parametrize('kind', ['index', 'soft'])
@pytest.mark.parametrize('smoothing', [0.0, 0.1])
def test_it_is_its_formula(kind, smoothing):
    logits_HBC, target = make_logits(), make_target(kind)
    criterion = WeightedCrossEntropy(WEIGHT_C, smoothing)
    expected = [reference(logits_BC, target, smoothing) for logits_BC in logits_HBC]
    found = [criterion(logits_BC, target).item() for logits_BC in logits_HBC]
    assert found == pytest.approx(expected, rel=1e-10)
    hard_H, _ = CollaborativeLoss(criterion).terms(logits_HBC, target)
    assert hard_H.tolist() == pytest.approx(expected, rel=1e-10)
    alone = CollaborativeLoss(criterion)(logits_HBC[:1], target)
    assert alone.item() == pytest.approx(expected[0], rel=1e-10)


@pytest.mark.parametrize('kind', ['index', 'soft'])
def test_parts_of_a_batch_average_to_the_batch(kind):
    logits_BC, target = make_logits()[0].requires_grad_(), make_target(kind)
    criterion = WeightedCrossEntropy(WEIGHT_C)
    whole = torch.autograd.grad(criterion(logits_BC, target), logits_BC)[0]
    halves = sum(criterion(z_BC, t) for z_BC, t in zip(logits_BC.chunk(2), target.chunk(2), strict=True)) / 2
    torch.testing.assert_close(torch.autograd.grad(halves, logits_BC)[0], whole, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize('make', [CollaborativeLoss, MutualLearningLoss, lambda hard: GatedEnsembleLoss(H, C, hard)])
def test_weights_of_one_are_the_plain_loss_in_every_objective(make):
    logits_HBC, target = make_logits(torch.float32), make_target('index')
    plain, weighted = (make(hard)(logits_HBC, target) for hard in (None, WeightedCrossEntropy(torch.ones(C))))
    torch.testing.assert_close(weighted, plain)
    uneven = make(WeightedCrossEntropy(WEIGHT_C.float()))(logits_HBC, target)
    assert not torch.isclose(uneven, plain)


def test_low_precision_is_computed_in_float32():
    logits_BC = make_logits(torch.bfloat16)[0]
    criterion = WeightedCrossEntropy(WEIGHT_C.float())
    assert torch.equal(criterion(logits_BC, make_target('index')), criterion(logits_BC.float(), make_target('index')))
    assert isinstance(criterion, nn.CrossEntropyLoss)  # known to the objective as a loss for one class


def test_it_compiles_in_one_graph():
    objective = CollaborativeLoss(WeightedCrossEntropy(WEIGHT_C.float()))
    logits_HBC, target = make_logits(torch.float32), make_target('index')
    compiled = torch.compile(objective.evaluate, backend='eager', fullgraph=True)
    torch.testing.assert_close(compiled(logits_HBC, target)[0], objective(logits_HBC, target))
