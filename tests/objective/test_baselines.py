from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from timm_collab import CollaborativeTask
from timm_collab.objective.baselines import GatedEnsembleLoss, MutualLearningLoss


def logits(heads: int = 4, batch: int = 5, classes: int = 7) -> Tensor:
    return torch.randn(heads, batch, classes, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def reference(logits_HBC: Tensor, target_B: Tensor, temperature: float, beta: float, scale: float) -> Tensor:
    """Eq. 5 and 6 for each pair of heads, with detached peers."""
    total = logits_HBC.new_zeros(())
    for h, own_BC in enumerate(logits_HBC):
        pairs = [
            F.kl_div(
                F.log_softmax(own_BC / temperature, dim=-1),
                F.softmax(other_BC.detach() / temperature, dim=-1),
                reduction='batchmean',
            )
            for j, other_BC in enumerate(logits_HBC) if j != h
        ]
        total = total + beta * F.cross_entropy(own_BC, target_B) + (1 - beta) * scale * torch.stack(pairs).mean()
    return total


@pytest.mark.parametrize(('heads', 'temperature', 'beta', 'scale_by_t2'), [
    (2, 1., .5, True), (4, 1., .5, True), (4, 3., .2, True), (5, 3., .8, False),
])
def test_mutual_learning_matches_the_reference(heads: int, temperature: float, beta: float, scale_by_t2: bool) -> None:
    ours, theirs = (logits(heads).requires_grad_() for _ in range(2))
    target_B = torch.tensor([0, 6, 3, 3, 1])
    options = {'temperature': temperature, 'beta': beta, 'scale_by_t2': scale_by_t2, 'full_labels': False}
    loss = MutualLearningLoss(**options)(ours, target_B)
    expected = reference(theirs, target_B, temperature, beta, temperature ** 2 if scale_by_t2 else 1.)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-12)
    loss.backward()
    expected.backward()
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-10, atol=1e-12)


def test_identical_heads_have_no_soft_term() -> None:
    alike_HBC = logits(1).expand(3, -1, -1)
    hard_H, soft_H = MutualLearningLoss().terms(alike_HBC, torch.tensor([0, 1, 2, 3, 4]))
    torch.testing.assert_close(soft_H, torch.zeros_like(soft_H), rtol=0, atol=1e-12)
    assert (hard_H > 0).all()


def test_sum_over_the_batch() -> None:
    target_B = torch.tensor([0, 6, 3, 3, 1])
    mean_H = MutualLearningLoss().terms(logits(), target_B)[1]
    sum_H = MutualLearningLoss(nn.CrossEntropyLoss(reduction='sum')).terms(logits(), target_B)[1]
    torch.testing.assert_close(sum_H, 5 * mean_H)


def test_multi_label_is_not_supported() -> None:
    with pytest.raises(ValueError, match='does not support independent labels'):
        MutualLearningLoss(nn.BCEWithLogitsLoss())
    with pytest.raises(ValueError, match='does not support independent labels'):
        GatedEnsembleLoss(4, 7, nn.BCEWithLogitsLoss())


def test_mutual_learning_in_a_task() -> None:
    model = timm.create_model('collab_test_resnet', heads=3, num_classes=5)
    task = CollaborativeTask(model, MutualLearningLoss(temperature=1.), verbose=False).train()
    result = task(torch.randn(4, 3, 32, 32), torch.tensor([0, 1, 2, 3]))
    result['loss'].backward()
    assert result['soft'].shape == (3,) and all(param.grad is not None for param in model.parameters())


def make_gated(heads: int, classes: int = 7, **kwargs: Any) -> GatedEnsembleLoss:
    loss_fn = GatedEnsembleLoss(heads, classes, **kwargs).double()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for param in loss_fn.parameters():
            param.copy_(torch.randn(param.shape, generator=generator, dtype=torch.float64))
    return loss_fn


def gated_reference(
        logits_HBC: Tensor,
        target_B: Tensor,
        weight: Tensor,
        bias: Tensor,
        temperature: float,
        beta: float,
        scale: float,
) -> Tensor:
    """The formula for each example, head and class, written with exponentials and sums."""
    heads, batch, classes = logits_HBC.shape

    def distribution(z_C: list[Tensor], temperature: float = 1.) -> list[Tensor]:
        exps = [torch.exp(z / temperature) for z in z_C]
        return [exp / sum(exps) for exp in exps]

    total = logits_HBC.new_zeros(())
    for b in range(batch):
        predicted = [p.detach() for h in range(heads) for p in distribution(list(logits_HBC[h, b]))]
        scores = [sum(weight[h, i] * predicted[i] for i in range(heads * classes)) + bias[h] for h in range(heads)]
        gate = distribution(scores)
        teacher = [sum(gate[h] * logits_HBC[h, b, c] for h in range(heads)) for c in range(classes)]
        total = total - beta * torch.log(distribution(teacher)[target_B[b]]) / batch
        q = [p.detach() for p in distribution(teacher, temperature)]
        for h in range(heads):
            p = distribution(list(logits_HBC[h, b]), temperature)
            divergence = sum(q[c] * (torch.log(q[c]) - torch.log(p[c])) for c in range(classes))
            hard = -torch.log(distribution(list(logits_HBC[h, b]))[target_B[b]])
            total = total + (beta * hard + (1 - beta) * scale * divergence) / batch
    return total


@pytest.mark.parametrize(('heads', 'temperature', 'beta', 'scale_by_t2'), [
    (2, 1., .5, True), (4, 3., .2, True), (3, 2., .8, False), (3, 2., 1., True),
])
def test_gated_ensemble_matches_the_reference(heads: int, temperature: float, beta: float, scale_by_t2: bool) -> None:
    target_B = torch.tensor([0, 6, 3, 3, 1])
    loss_fn = make_gated(heads, temperature=temperature, beta=beta, scale_by_t2=scale_by_t2, full_labels=False)
    variables = [logits(heads).requires_grad_(), *loss_fn.parameters()]
    loss = loss_fn(variables[0], target_B)
    scale = temperature ** 2 if scale_by_t2 else 1.
    expected = gated_reference(variables[0], target_B, *variables[1:], temperature, beta, scale)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-12)
    gradients = (torch.autograd.grad(value, variables) for value in (loss, expected))
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


def test_initial_gate_is_the_mean() -> None:
    ensemble_BC = GatedEnsembleLoss(4, 7).double().ensemble(logits())
    torch.testing.assert_close(ensemble_BC, logits().mean(dim=0), rtol=1e-12, atol=1e-14)


def test_gate_learns_which_head_is_right() -> None:
    """Head 2 is right and the others guess: its weight grows when only the gate is trained."""
    generator = torch.Generator().manual_seed(5)
    target_B = torch.randint(7, (64,), generator=generator)
    logits_HBC = torch.randn(4, 64, 7, generator=generator)
    logits_HBC[2] += 4 * nn.functional.one_hot(target_B, 7)
    loss_fn = GatedEnsembleLoss(4, 7)
    optimizer = torch.optim.SGD(loss_fn.parameters(), lr=1.)
    for _ in range(50):
        optimizer.zero_grad()
        loss_fn(logits_HBC, target_B).backward()
        optimizer.step()
    share = (loss_fn.ensemble(logits_HBC) - logits_HBC.mean(dim=0)).norm()
    assert share > 1
    closest = min(range(4), key=lambda h: (loss_fn.ensemble(logits_HBC) - logits_HBC[h]).norm().item())
    assert closest == 2


def test_one_head_is_the_criterion() -> None:
    alone_HBC, target_B = logits(1), torch.tensor([0, 6, 3, 3, 1])
    assert torch.equal(make_gated(1)(alone_HBC, target_B), F.cross_entropy(alone_HBC[0], target_B))


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize('temperature', [.1, 2.])
@pytest.mark.parametrize('kind', ['mutual', 'gated'])
def test_extreme_logits_give_finite_numbers(dtype: torch.dtype, temperature: float, kind: str) -> None:
    logits_HBC = (1e4 * logits().sign()).to(dtype).requires_grad_()
    made = GatedEnsembleLoss(4, 7, temperature=temperature) if kind == 'gated' \
        else MutualLearningLoss(temperature=temperature)
    target_B = torch.tensor([0, 6, 3, 3, 1])
    loss = made(logits_HBC, target_B)
    loss.backward()
    assert loss.isfinite() and logits_HBC.grad.isfinite().all()


def test_task_checkpoint_has_the_gate() -> None:
    tasks = [
        CollaborativeTask(timm.create_model('collab_test_resnet', heads=2, num_classes=7), loss_fn, verbose=False)
        for loss_fn in (make_gated(2).float(), GatedEnsembleLoss(2, 7))
    ]
    state = tasks[0].get_checkpoint_state()
    tasks[1].load_checkpoint_state(state['state_dict'], state['task_state'])
    for a, b in zip(*(task.criterion.parameters() for task in tasks), strict=True):
        assert torch.equal(a, b)
    # an objective without parameters adds nothing to a checkpoint
    plain = CollaborativeTask(timm.create_model('collab_test_resnet', heads=2, num_classes=7), verbose=False)
    assert set(plain.get_task_state()) == {'kept_head', 'tree'}
