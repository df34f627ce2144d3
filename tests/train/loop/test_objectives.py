"""The objectives that a recipe can name, in the loop."""
from __future__ import annotations

import pytest
import timm
import timm.loss
import torch

from tests.train import toys
from timm_collab import CollaborativeLoss
from timm_collab.objective.baselines import GatedEnsembleLoss
from timm_collab.train import TrainError
from timm_collab.train.build import build_criterion
from timm_collab.train.loop.trainer import Trainer
from timm_collab.train.run import train


def make_trainer(config, heads: int = 3) -> Trainer:
    return toys.make_trainer(config, toys.make_model(heads))


@pytest.mark.parametrize('more', [(), ('--grad_accum_steps=2', '--optim.layer_decay=0.5', '--optim.name=adamw')])
def test_the_gate_learns_with_the_heads(recipe, more: tuple[str, ...]) -> None:
    trainer = make_trainer(recipe('--batch_size=16', '--epochs=2', '--objective.kind=gated', *more))
    gate = trainer.state.task.criterion.gate
    assert type(trainer.state.task.criterion) is GatedEnsembleLoss and not gate.weight.any()
    group = trainer.state.optimizer.param_groups[-1]
    assert {id(p) for p in group['params']} == {id(p) for p in gate.parameters()}
    row = trainer.fit()[-1]
    assert gate.weight.abs().max() > 0 and gate.weight.isfinite().all()
    assert group['lr'] < 0.02, 'it follows the schedule'
    assert len(row['train_soft_heads']) == 3
    # the teacher's own loss comes on top of the terms that are logged
    logged = 0.5 * sum(row['train_hard_heads']) + 0.5 * sum(row['train_soft_heads'])
    assert row['train_loss'] > logged + 0.5
    assert not any('gate' in name for name in trainer.release().state_dict())


def test_a_gated_run_is_saved_as_any(recipe, tmp_path) -> None:
    summary = train(recipe('--objective.kind=gated', '--batch_size=64', '--compare_single=true'))
    model = timm.create_model(f'local-dir:{tmp_path / "run" / "pruned"}', pretrained=True)
    assert sum(p.numel() for p in model.parameters()) == summary.parameters.kept
    assert summary.single is not None and summary.single.num_heads == 1


@pytest.mark.parametrize('mixes', [False, True])
def test_binary_cross_entropy_is_timms(recipe, mixes: bool) -> None:
    keys = ['--objective.hard=bce', '--objective.smoothing=0.1', '--objective.bce_sum=true']
    config = recipe(*keys, '--objective.bce_target_threshold=0.2').objective
    criterion = build_criterion(config, 4, 10, mixes)
    hard = criterion.criterion
    assert isinstance(hard, timm.loss.BinaryCrossEntropy) and criterion.multi_label
    assert (hard.smoothing, hard.target_threshold, hard.sum_classes) == (0.0 if mixes else 0.1, 0.2, True)


@pytest.mark.parametrize('total', [False, True])
@pytest.mark.parametrize('threshold', [None, 0.3])
@pytest.mark.parametrize('smoothing', [0.0, 0.1])
def test_binary_objective_equals_its_formula(recipe, total: bool, threshold: float | None, smoothing: float) -> None:
    """Class by class: -y log p - (1 - y) log(1 - p) against the label and against the others' mean logit."""
    keys = [] if threshold is None else [f'--objective.bce_target_threshold={threshold}']
    config = recipe('--objective.hard=bce', f'--objective.smoothing={smoothing}', '--objective.beta=0.3',
                    f'--objective.bce_sum={str(total).lower()}', '--objective.temperature=3',
                    '--objective.full_labels=false', *keys).objective
    heads, batch, classes = 3, 4, 5
    generator = torch.Generator().manual_seed(0)
    logits_HBC = (2 * torch.randn(heads, batch, classes, dtype=torch.float64, generator=generator)).requires_grad_()
    target_B = torch.tensor([0, 4, 2, 2])
    loss = build_criterion(config, heads, classes, mixes=False)(logits_HBC, target_B)

    def binary(y, z):
        p = 1 / (1 + torch.exp(-z))
        return -y * torch.log(p) - (1 - y) * torch.log(1 - p)

    expected = torch.zeros((), dtype=torch.float64)
    for h in range(heads):
        for b in range(batch):
            for c in range(classes):
                y = (1 - smoothing if c == target_B[b] else 0.0) + smoothing / classes
                y = y if threshold is None else float(y > threshold)
                mean = sum(logits_HBC[j, b, c].detach() for j in range(heads) if j != h) / (heads - 1)
                q = 1 / (1 + torch.exp(-mean / 3))
                own = 0.3 * binary(y, logits_HBC[h, b, c]) + 0.7 * 9 * binary(q, logits_HBC[h, b, c] / 3)
                expected = expected + own / (batch if total else batch * classes)
    # timm's loss smooths in float32
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    gradients = [torch.autograd.grad(value, logits_HBC)[0] for value in (loss, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize('more', [(), ('--augment.mixup=0.8', '--objective.bce_target_threshold=0.2')])
def test_a_run_may_learn_from_binary_cross_entropy(recipe, more: tuple[str, ...]) -> None:
    row = make_trainer(recipe('--batch_size=16', '--objective.hard=bce', '--objective.smoothing=0.1', *more)).fit()[-1]
    hard_H = torch.tensor(row['train_hard_heads'])
    assert (hard_H > 0).all() and (hard_H < 1.5).all(), 'the mean over classes of about log 2'


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize('temperature', [0.1, 2.0])
def test_extreme_logits_of_independent_classes_give_finite_numbers(dtype: torch.dtype, temperature: float) -> None:
    generator = torch.Generator().manual_seed(0)
    logits_HBC = (1e4 * torch.randn(4, 6, 11, generator=generator).sign()).to(dtype).requires_grad_()
    loss = CollaborativeLoss(timm.loss.BinaryCrossEntropy(0.1), temperature)(logits_HBC, torch.arange(6))
    loss.backward()
    assert loss.isfinite() and logits_HBC.grad.isfinite().all()


@pytest.mark.parametrize(('keys', 'message'), [
    (['--objective.kind=gated', '--objective.hard=bce'], 'objective.kind gated compares distributions over classes'),
    (['--objective.kind=mutual', '--objective.hard=bce'], 'objective.kind mutual compares distributions over classes'),
    (['--objective.bce_sum=true'], 'objective.bce_target_threshold and objective.bce_sum need objective.hard bce'),
    (['--objective.hard=bce', '--objective.bce_target_threshold=1'], r'bce_target_threshold must lie in \[0, 1\)'),
])
def test_objectives_that_contradict_themselves_are_refused(recipe, keys: list[str], message: str) -> None:
    with pytest.raises(TrainError, match=message):
        recipe(*keys)


@pytest.mark.parametrize(('keys', 'weights', 'balanced', 'expected'), [
    ((), None, False, (0.5, 0.25, 0.25, 0.0)),
    ((), None, True, (1 / 3, 1 / 3, 1 / 3, 0.0)),
    ((), (0.5, 1.0, 2.0, 1.0), False, (0.25, 0.25, 0.5, 0.0)),
    (('--objective.hard=elr', '--objective.elr_weight=7'), None, False, (0.5, 0.25, 0.25, 0.0)),
])
def test_prior_is_the_share_of_the_labels_that_are_learned(recipe, keys, weights, balanced, expected) -> None:
    config = recipe('--objective.balance=0.7', *keys).objective
    labels = torch.tensor([0, 0, 0, 0, 1, 1, 2, 2])
    weights = None if weights is None else torch.tensor(weights)
    term = build_criterion(config, 2, 4, False, weights, labels, balanced).regularizer
    assert term.prior_C.tolist() == pytest.approx(expected) and term.weight == 0.7
    assert not term.state_dict(), 'the prior follows from the labels'


def test_without_a_weight_there_is_no_term(recipe) -> None:
    assert build_criterion(recipe().objective, 2, 4, False).regularizer is None
