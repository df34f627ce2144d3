"""Weights moved in one kernel: the same steps, and only where those are sure."""
from __future__ import annotations

import pytest
import torch
from accelerate import Accelerator

from tests.train.toys import make_model, make_trainer
from timm_collab.train import updater
from timm_collab.train.build import build_optimizer, fuse

FUSED = ('sgd', 'momentum', 'adam', 'adamw', 'adagrad', 'lookahead_adamw')


def kernels(optimizer) -> set[bool | None]:
    return {group.get('fused', 'none of its own') for group in optimizer.param_groups}


@pytest.mark.parametrize('name', FUSED)
def test_the_same_steps(recipe, monkeypatch, name):
    config = recipe(f'--optim.name={name}', '--batch_size=16', '--epochs=3', '--optim.lr=0.005', '--optim.clip_grad=1')
    models = []
    for fused in (False, True):
        if not fused:
            monkeypatch.setattr(updater, 'fuse', lambda optimizer: None)
        models.append(make_model(heads=4).double())
        data = torch.randn(48, 1, 16, 16, generator=torch.Generator().manual_seed(0)).double(), torch.arange(48) % 10
        trainer = make_trainer(config, models[-1], data=data)
        assert kernels(trainer.updater.optimizer) == {True if fused else None}
        trainer.fit()
        monkeypatch.undo()
    plain, fused = (model.state_dict() for model in models)
    torch.testing.assert_close(fused, plain, rtol=1e-9, atol=1e-12)
    moved = make_model(heads=4).double().state_dict()
    assert sum(not torch.equal(moved[key], tensor) for key, tensor in fused.items()) > 0.9 * len(fused)


@pytest.mark.parametrize('argv', [
    ['--optim.kwargs={fused: false}'],
    ['--optim.kwargs={foreach: true}'],
    ['--optim.freeze_trunk_epochs=1'],  # whose weights have no momentum when the others have
    ['--optim.name=lamb'],
], ids=lambda argv: argv[0].removeprefix('--optim.'))
def test_left_as_it_is(recipe, argv):
    config = recipe('--batch_size=16', '--epochs=2', *argv)
    trainer = make_trainer(config, make_model(heads=4))
    before = kernels(build_optimizer(make_model(heads=4), config.optim))
    assert kernels(trainer.updater.optimizer) == before and True not in before
    trainer.fit()


def test_not_where_a_first_step_may_overflow(recipe):
    """PyTorch's fused SGD would leave its momentum whatever the memory held."""
    accelerator = Accelerator(cpu=True)
    accelerator.scaler = torch.amp.GradScaler('cpu')
    trainer = make_trainer(recipe('--batch_size=16'), make_model(heads=4), accelerator=accelerator)
    assert kernels(trainer.updater.optimizer) == {None}


def test_a_saved_state_brings_no_kernels_with_it(recipe):
    """What was saved on a CPU goes on with a GPU's, or with sharded weights."""
    config = recipe('--batch_size=16', '--epochs=2', '--optim.name=adamw', '--optim.lr=0.01')
    saved = make_trainer(config, make_model(heads=4))
    saved.fit()
    other = make_trainer(recipe(
        '--batch_size=16', '--epochs=2', '--optim.name=adamw', '--optim.kwargs={fused: false}'), make_model(heads=4))
    other.load_state_dict(saved.state_dict())
    assert kernels(saved.updater.optimizer) == {True}
    assert kernels(other.updater.optimizer) == {False}
    assert {group['lr'] for group in other.updater.optimizer.param_groups} == {
        group['lr'] for group in saved.updater.optimizer.param_groups}


def test_groups_that_are_added_later():
    weights = [torch.nn.Parameter(torch.ones(3)) for _ in range(2)]
    optimizer = torch.optim.SGD(weights[:1], lr=0.1, momentum=0.9)
    optimizer.add_param_group({'params': weights[1:]})
    fuse(optimizer)
    assert kernels(optimizer) == {True}
    for weight in weights:
        weight.grad = torch.ones(3)
    optimizer.step()
    assert all(torch.allclose(weight, torch.tensor(0.9)) for weight in weights)
