"""Losses for wrong labels against their formulas in float64, their limits and their gradients."""
from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from timm_collab.objective.baselines import GatedEnsembleLoss
from timm_collab.objective.loss import CollaborativeLoss
from timm_collab.objective.robust import (
    GeneralizedCrossEntropy,
    JointSelection,
    NormalizedCrossEntropy,
    SmallLossSelection,
    SymmetricCrossEntropy,
)

A = -math.log(1e-4)


def gce(p, y, q):
    return (1 - p[y] ** q) / q


def sce(p, y, alpha, beta):
    log_label = [0.0 if k == y else math.log(1e-4) for k in range(len(p))]
    return -alpha * math.log(p[y]) - beta * sum(pk * log for pk, log in zip(p, log_label, strict=True))


def nce_rce(p, y, alpha, beta):
    reverse = A * (1 - p[y])
    return alpha * math.log(p[y]) / sum(math.log(pk) for pk in p) + beta * reverse


LOSSES = [
    (GeneralizedCrossEntropy(0.7), lambda p, y: gce(p, y, 0.7)),
    (GeneralizedCrossEntropy(1.0), lambda p, y: 1 - p[y]),
    (SymmetricCrossEntropy(0.1, 1.0), lambda p, y: sce(p, y, 0.1, 1.0)),
    (SymmetricCrossEntropy(6.0, 0.1), lambda p, y: sce(p, y, 6.0, 0.1)),
    (NormalizedCrossEntropy(1.0, 1.0), lambda p, y: nce_rce(p, y, 1.0, 1.0)),
    (NormalizedCrossEntropy(10.0, 0.1), lambda p, y: nce_rce(p, y, 10.0, 0.1)),
]


@pytest.mark.parametrize(('loss_fn', 'formula'), LOSSES, ids=lambda each: str(each) if hasattr(each, 'forward') else '')
def test_formula(loss_fn, formula):
    logits, target = 3 * torch.randn(16, 7, dtype=torch.float64), torch.randint(7, (16,))
    rows = zip(logits.softmax(dim=-1).tolist(), target.tolist(), strict=True)
    expected = sum(formula(p, y) for p, y in rows) / 16
    assert loss_fn(logits, target).item() == pytest.approx(expected, rel=1e-10)
    one_hot = F.one_hot(target, 7).double()
    assert loss_fn(logits, one_hot).item() == pytest.approx(expected, rel=1e-10)
    mixed = 0.3 * one_hot + 0.7 * one_hot.flip(0)
    both = 0.3 * loss_fn(logits, target) + 0.7 * loss_fn(logits, target.flip(0))
    assert loss_fn(logits, mixed).item() == pytest.approx(both.item(), rel=1e-10)
    assert torch.autograd.gradcheck(lambda z: loss_fn(z, target), logits.requires_grad_())


def test_generalized_cross_entropy_tends_to_cross_entropy():
    logits, target = torch.randn(16, 7, dtype=torch.float64), torch.randint(7, (16,))
    assert GeneralizedCrossEntropy(1e-7)(logits, target).item() == pytest.approx(
        F.cross_entropy(logits, target).item(), rel=1e-5)


@pytest.mark.parametrize('loss_fn', [loss_fn for loss_fn, _ in LOSSES], ids=str)
def test_confident_mistake_has_a_finite_gradient(loss_fn):
    logits = torch.tensor([[200.0, 0.0, 0.0], [0.0, 0.0, 200.0]], requires_grad=True)
    loss = loss_fn(logits, torch.tensor([1, 2]))
    loss.backward()
    assert loss.isfinite() and logits.grad.isfinite().all()


@pytest.mark.parametrize('loss_fn', [loss_fn for loss_fn, _ in LOSSES], ids=str)
def test_every_head_of_a_tree_learns_by_it(loss_fn):
    logits, target = torch.randn(4, 8, 5), torch.randint(5, (8,))
    hard_H, soft_H = CollaborativeLoss(loss_fn, beta=0.5).terms(logits, target)
    assert torch.equal(hard_H, torch.stack([loss_fn(z, target) for z in logits]))
    assert (soft_H > 0).all()


def test_small_losses_are_selected_by_the_other_heads():
    H, B = 3, 4
    logits, labels = 3 * torch.randn(H, B, 5, dtype=torch.float64), torch.randint(5, (B,))
    criterion = SmallLossSelection(0.5)
    loss = -logits.log_softmax(dim=-1)[:, range(B), labels]
    assert torch.allclose(criterion(logits, labels), loss.mean(dim=1))
    criterion.keep = 0.5
    for head, hard in enumerate(criterion(logits, labels)):
        others = loss[[h for h in range(H) if h != head]].mean(dim=0)
        assert hard.item() == pytest.approx(loss[head, others.argsort()[:2]].mean().item(), rel=1e-12)
    alone = criterion(logits[:1], labels)
    assert alone.item() == pytest.approx(loss[0].sort().values[:2].mean().item(), rel=1e-12)


@pytest.mark.parametrize('agreement', [0.0, 0.65, 0.9])
@pytest.mark.parametrize('keep', [1.0, 0.6])
def test_joint_selection_of_two_heads_is_the_loss_of_jocor(agreement, keep):
    B, C = 5, 4
    logits, labels = 3 * torch.randn(2, B, C, dtype=torch.float64), torch.randint(C, (B,))
    p = logits.softmax(dim=-1).tolist()
    joint = []
    for b, y in enumerate(labels.tolist()):
        apart = sum(p[i][b][k] * math.log(p[i][b][k] / p[1 - i][b][k]) for i in range(2) for k in range(C))
        joint.append((1 - agreement) * -math.log(p[0][b][y] * p[1][b][y]) + agreement * apart)
    kept = round(keep * B)
    criterion = JointSelection(0.4, agreement)
    criterion.keep = keep
    total = CollaborativeLoss(criterion, beta=1.0)
    assert total(logits, labels).item() == pytest.approx(sum(sorted(joint)[:kept]) / kept, rel=1e-10)
    assert torch.autograd.gradcheck(lambda z: total(z, labels), logits.requires_grad_())


def test_joint_selection_of_more_heads_is_its_formula():
    H, B, C = 4, 5, 3
    logits, labels = 2 * torch.randn(H, B, C, dtype=torch.float64), torch.randint(C, (B,))
    log_p = logits.log_softmax(dim=-1)
    loss = torch.zeros(H, B, dtype=torch.float64)
    for h in range(H):
        for b in range(B):
            apart = [F.kl_div(log_p[h, b], log_p[j, b], reduction='sum', log_target=True) for j in range(H) if j != h]
            loss[h, b] = 0.3 * -log_p[h, b, labels[b]] + 0.7 * sum(apart) / (H - 1)
    criterion = JointSelection(0.4, 0.7)
    criterion.keep = 0.6
    chosen = loss.sum(dim=0).argsort()[:3]
    assert torch.allclose(criterion(logits, labels), loss[:, chosen].mean(dim=1), rtol=1e-10)
    alone = criterion(logits[:1], labels)
    assert alone.item() == pytest.approx((-log_p[0, range(B), labels]).sort().values[:3].mean().item(), rel=1e-10)


def test_a_gated_ensemble_refuses_it():
    with pytest.raises(ValueError, match='SmallLossSelection does not know; use a criterion of one head'):
        GatedEnsembleLoss(3, 5, SmallLossSelection(0.4))


@pytest.mark.parametrize(('kind', 'settings'), [
    (GeneralizedCrossEntropy, (0.0,)),
    (GeneralizedCrossEntropy, (1.5,)),
    (GeneralizedCrossEntropy, (math.nan,)),
    (SymmetricCrossEntropy, (-1.0,)),
    (SymmetricCrossEntropy, (0.0, 0.0)),
    (NormalizedCrossEntropy, (math.inf,)),
    (SmallLossSelection, (1.0,)),
    (JointSelection, (0.4, 1.5)),
])
def test_settings_out_of_range_are_refused(kind, settings):
    with pytest.raises(ValueError, match=r'q is|alpha is|noise_rate is|agreement is'):
        kind(*settings)
