"""The divergence of the mean prediction from the classes' shares, compared with its formula in float64."""
from __future__ import annotations

import math

import pytest
import torch

from timm_collab.objective.baselines import GatedEnsembleLoss
from timm_collab.objective.class_balance import PriorDivergence
from timm_collab.objective.loss import CollaborativeLoss

H, B, C = 3, 6, 4
PRIOR_C = torch.tensor([0.5, 0.3, 0.2, 0.0], dtype=torch.float64)


def make_logits() -> torch.Tensor:
    return 3 * torch.randn(H, B, C, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_formula():
    logits = make_logits()
    for h, term in enumerate(PriorDivergence(PRIOR_C, 1.5)(logits).tolist()):
        mean = [sum(logits[h, b].softmax(dim=0)[k].item() for b in range(B)) / B for k in range(C)]
        expected = sum(q * math.log(q / p) for q, p in zip(PRIOR_C.tolist(), mean, strict=True) if q)
        assert term == pytest.approx(1.5 * expected, rel=1e-10)
    assert torch.autograd.gradcheck(PriorDivergence(PRIOR_C), logits.requires_grad_())


def test_mean_prediction_equal_to_the_prior_gives_zero():
    logits = (1000 * torch.eye(C, dtype=torch.float64))[[0, 0, 0, 0, 0, 1, 1, 1, 2, 2]].expand(2, -1, -1)
    assert PriorDivergence(PRIOR_C)(logits).abs().max() < 1e-12


def test_vanished_class_has_a_finite_gradient_that_brings_it_back():
    logits = torch.tensor([[[300.0, 0.0], [200.0, 0.0]]], requires_grad=True)  # in float32, p is 0
    loss = PriorDivergence(torch.tensor([0.5, 0.5]))(logits).sum()
    loss.backward()
    assert loss.isfinite() and logits.grad.isfinite().all()
    assert logits.grad[..., 1].sum() < -0.4


@pytest.mark.parametrize('make', [CollaborativeLoss, lambda **options: GatedEnsembleLoss(H, C, **options)])
def test_it_is_added_to_the_hard_term_alone(make):
    logits, target = make_logits(), torch.randint(C, (B,))
    term = PriorDivergence(PRIOR_C, 2.0)
    plain, balanced = make(beta=0.3), make(beta=0.3, regularizer=term)
    plain.double(), balanced.double()
    for one, other, more in zip(plain.terms(logits, target), balanced.terms(logits, target), (1, 0), strict=True):
        assert torch.allclose(other, one + more * term(logits), rtol=1e-12)
    difference = balanced(logits, target) - plain(logits, target)
    assert difference.item() == pytest.approx(balanced.hard_weight * term(logits).sum().item(), rel=1e-10)
    if make is CollaborativeLoss:
        alone = balanced(logits[:1], target) - plain(logits[:1], target)
        assert alone.item() == pytest.approx(term(logits[:1]).item(), rel=1e-10)


def test_low_precision_logits_are_computed_in_float32():
    logits = make_logits()
    term = PriorDivergence(PRIOR_C.float())
    rough = term(logits.bfloat16())
    assert rough.dtype == torch.float32
    assert torch.allclose(rough, term(logits.bfloat16().float()), rtol=1e-6)


@pytest.mark.parametrize(('prior', 'weight', 'message'), [
    (torch.tensor([0.5, 0.4]), 1.0, 'prior_C must have a share'),
    (torch.tensor([1.5, -0.5]), 1.0, 'prior_C must have a share'),
    (torch.tensor([0.5, 0.5]), -1.0, 'weight is -1.0'),
])
def test_settings_out_of_range_are_refused(prior, weight, message):
    with pytest.raises(ValueError, match=message):
        PriorDivergence(prior, weight)
