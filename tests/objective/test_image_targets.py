"""Objectives that remember each training image, against loops over their formulas in float64."""
from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from timm_collab.objective.image_targets import EarlyLearningRegularization, ImageTargets, SelfEnsembleLabelCorrection
from timm_collab.objective.loss import CollaborativeLoss

N, H, B, C = 12, 3, 4, 5
VIEWS = ('own', 'mean', 'others')


def batches(seed: int = 0, heads: int = H) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Logits, labels and indices of two epochs."""
    rng = torch.Generator().manual_seed(seed)
    labels_N = torch.randint(C, (N,), generator=rng)
    order = torch.cat([torch.randperm(N, generator=rng), torch.randperm(N, generator=rng)]).split(B)
    return [(3 * torch.randn(heads, B, C, generator=rng, dtype=torch.float64), labels_N[index_B], index_B)
            for index_B in order]


def learn(criterion: ImageTargets, data: list[tuple[Tensor, Tensor, Tensor]]) -> list[Tensor]:
    """The hard terms of all batches; targets are stored after each."""
    terms = []
    for logits, labels, index in data:
        terms.append(criterion(logits, labels, index))
        if criterion.is_updating:
            assert torch.allclose(criterion.latest, criterion.updated(logits, index), rtol=1e-6, atol=1e-6)
        criterion.store(index, criterion.updated(logits, index))
    return terms


def view_of(own: list[list[float]], head: int, view: str) -> list[float]:
    """The target of a head from those of all heads."""
    chosen = {'own': [own[head]], 'mean': own, 'others': own[:head] + own[head + 1:]}[view]
    return [sum(column) / len(chosen) for column in zip(*chosen, strict=True)]


@pytest.mark.parametrize('view', VIEWS)
def test_early_learning_regularization_is_its_formula(view):
    weight, momentum = 3.0, 0.7
    criterion = EarlyLearningRegularization(N, C, H, momentum, view, torch.float64, weight=weight)
    target = [[[0.0] * C for _ in range(H)] for _ in range(N)]
    for hard_H, (logits, labels, index) in zip(learn(criterion, batches()), batches(), strict=True):
        expected = [0.0] * H
        for b, image in enumerate(index.tolist()):
            clamped = [[min(max(p, 1e-4), 1 - 1e-4) for p in logits[h, b].softmax(dim=0).tolist()] for h in range(H)]
            for h in range(H):
                target[image][h] = [momentum * t + (1 - momentum) * p / sum(clamped[h])
                                    for t, p in zip(target[image][h], clamped[h], strict=True)]
            for h in range(H):
                t = view_of(target[image], h, view)
                agreement = sum(a * p for a, p in zip(t, clamped[h], strict=True))
                cross_entropy = -logits[h, b].log_softmax(dim=0)[labels[b]].item()
                expected[h] += (cross_entropy + weight * math.log(1 - agreement)) / B
        assert hard_H.tolist() == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize('view', VIEWS)
def test_self_ensemble_label_correction_is_its_formula(view):
    momentum, data = 0.9, batches()
    labels_N = torch.empty(N, dtype=torch.long)
    for _, labels, index in data:
        labels_N[index] = labels
    criterion = SelfEnsembleLabelCorrection(labels_N, C, H, momentum, view=view, dtype=torch.float64)
    logits, labels, index = data[0]
    plain = -logits.log_softmax(dim=-1)[:, range(B), labels].mean(dim=1)
    assert torch.allclose(criterion(logits, labels, index), plain, rtol=1e-10)
    criterion.store(index, criterion.updated(logits, index))
    criterion.correcting = True
    target = [[[float(k == labels_N[i]) for k in range(C)] for _ in range(H)] for i in range(N)]
    for hard_H, (logits, _, index) in zip(learn(criterion, data), data, strict=True):
        expected = [0.0] * H
        for b, image in enumerate(index.tolist()):
            for h in range(H):
                target[image][h] = [momentum * t + (1 - momentum) * p for t, p in zip(
                    target[image][h], logits[h, b].softmax(dim=0).tolist(), strict=True)]
            for h in range(H):
                log_p = logits[h, b].log_softmax(dim=0).tolist()
                expected[h] -= sum(t * p for t, p in zip(view_of(target[image], h, view), log_p, strict=True)) / B
        assert hard_H.tolist() == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize('view', VIEWS)
def test_targets_of_mixed_images_are_mixed_like_their_labels(view):
    weight, data = 3.0, batches()
    criterion = EarlyLearningRegularization(N, C, H, 0.7, view, torch.float64, weight=weight)
    learn(criterion, data)
    before = criterion.targets.clone()
    logits, labels, index = data[0]
    stored = before.expand(H, -1, -1)[:, index].transpose(0, 1).tolist()  # image, head, class
    share = [[0.7, 0.0, 0.0, 0.3], [0.0, 1.0, 0.0, 0.0], [0.0, 0.6, 0.4, 0.0]]  # the third part of a batch
    expected = [0.0] * H
    for b, row in enumerate(share):
        for h in range(H):
            seen = [view_of(each, h, view) for each in stored]
            log_p = logits[h, b].log_softmax(dim=0).tolist()
            p = [min(max(math.exp(value), 1e-4), 1 - 1e-4) for value in log_p]
            agreement = sum(row[m] * seen[m][k] * p[k] for m in range(B) for k in range(C))
            cross_entropy = -sum(row[m] * log_p[labels[m]] for m in range(B))
            expected[h] += (cross_entropy + weight * math.log(1 - agreement)) / len(share)
    share_BM = torch.tensor(share, dtype=torch.float64)
    target_BC = share_BM @ torch.nn.functional.one_hot(labels, C).double()
    hard_H = criterion(logits[:, :3], target_BC, index, share_BM)
    assert hard_H.tolist() == pytest.approx(expected, rel=1e-10)
    assert torch.equal(criterion.targets, before)
    labels_N = torch.zeros(N, dtype=torch.long)
    with pytest.raises(ValueError, match='do not mix images'):
        SelfEnsembleLabelCorrection(labels_N, C, H)(logits[:, :3], target_BC, index, share_BM)


def test_targets_in_host_memory_stay_there_and_are_the_same():
    one, other = (EarlyLearningRegularization(N, C, H, on_host=on_host) for on_host in (False, True))
    assert EarlyLearningRegularization(N, C, H).to('meta').targets.is_meta
    assert other.to('meta').double().targets.dtype == torch.float16 and not other.targets.is_meta
    for hard_H, same_H in zip(learn(one, batches()), learn(other, batches()), strict=True):
        assert torch.equal(hard_H, same_H)
    assert torch.equal(one.targets, other.targets)
    assert 'targets' in other.state_dict()


def test_targets_have_no_gradient():
    logits, labels, index = batches()[0]
    logits = logits / 3  # so that no prediction is clamped
    criterion = EarlyLearningRegularization(N, C, H, dtype=torch.float64)
    criterion.store(index, logits.softmax(dim=-1))
    logits.requires_grad_()
    target_HBC = criterion.updated(logits, index)
    assert not target_HBC.requires_grad
    criterion(logits, labels, index).sum().backward()
    p = logits.detach().softmax(dim=-1)
    agreement = (target_HBC * p).sum(dim=-1, keepdim=True)
    by_hand = (p - torch.nn.functional.one_hot(labels, C)
               - criterion.weight * p * (target_HBC - agreement) / (1 - agreement)) / B
    assert torch.allclose(logits.grad, by_hand, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize('view', VIEWS)
def test_processes_that_share_a_batch_store_what_one_stores(view):
    one = EarlyLearningRegularization(N, C, H, view=view)
    two = EarlyLearningRegularization(N, C, H, view=view)
    learn(one, batches())
    for logits, _, index in batches():
        parts = [two.updated(logits[:, part], index[part]) for part in (slice(0, B // 2), slice(B // 2, B))]
        two.store(index, torch.cat(parts, dim=1))
    assert torch.equal(one.targets, two.targets)


def test_image_that_a_batch_has_twice_gets_the_mean():
    criterion = EarlyLearningRegularization(N, C, 1, dtype=torch.float64)
    logits = torch.randn(1, 2, C, dtype=torch.float64)
    index = torch.tensor([7, 7])
    updated = criterion.updated(logits, index)
    criterion.store(index, updated)
    assert torch.allclose(criterion.targets[0, 7], updated[0].mean(dim=0), rtol=1e-12)
    assert not criterion.targets[0, :7].any()


def test_memory_and_state():
    assert EarlyLearningRegularization(N, C, H, view='mean').targets.shape == (1, N, C)
    criterion = EarlyLearningRegularization(N, C, H)
    assert (criterion.targets.shape, criterion.targets.dtype) == ((H, N, C), torch.float16)
    learn(criterion, batches())
    restored = EarlyLearningRegularization(N, C, H)
    restored.load_state_dict(criterion.state_dict())
    assert torch.equal(restored.targets, criterion.targets) and criterion.targets.any()


def test_half_precision_stays_near_double():
    half, double = (EarlyLearningRegularization(N, C, H, dtype=dtype) for dtype in (torch.float16, torch.float64))
    data = batches() * 20
    for rough, exact in zip(learn(half, data), learn(double, data), strict=True):
        assert torch.allclose(rough, exact, rtol=2e-2, atol=2e-2)


def test_tree_learns_by_them():
    logits, labels, index = batches()[0]
    criterion = EarlyLearningRegularization(N, C, H)
    hard_H, soft_H = CollaborativeLoss(criterion).terms(logits, labels, index)
    assert torch.equal(hard_H, criterion(logits, labels, index)) and (soft_H > 0).all()
    with pytest.raises(ValueError, match='pass the index of each image'):
        CollaborativeLoss(criterion)(logits, labels)


@pytest.mark.parametrize(('make', 'message'), [
    (lambda: EarlyLearningRegularization(N, C, momentum=1.0), 'momentum is 1.0'),
    (lambda: EarlyLearningRegularization(N, C, weight=-1.0), 'weight is -1.0'),
    (lambda: EarlyLearningRegularization(N, C, 1, view='others'), 'needs at least 2 heads'),
])
def test_settings_out_of_range_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
