"""Weights moved in one kernel: the same steps, and only where those are sure."""
from __future__ import annotations

import pytest
import torch
from accelerate import Accelerator

from tests.train.toys import make_model, make_trainer
from timm_collab.train import TrainError
from timm_collab.train.loop import step
from timm_collab.train.loop.optim import SGD, build_optimizer, check_fused, fuse
from timm_collab.train.prepare import make_accelerator

FUSED = ('sgd', 'momentum', 'adam', 'adamw', 'adagrad', 'lookahead_adamw')


def kernels(optimizer) -> set[bool | None]:
    return {group.get('fused', 'none of its own') for group in optimizer.param_groups}


def trained(config) -> tuple[set[bool | None], dict[str, torch.Tensor]]:
    """How weights were moved, and what came of it, in float64."""
    model = make_model(heads=4).double()
    data = torch.randn(48, 1, 16, 16, generator=torch.Generator().manual_seed(0)).double(), torch.arange(48) % 10
    trainer = make_trainer(config, model, data=data)
    used = kernels(trainer.state.optimizer)
    trainer.fit()
    return used, model.state_dict()


def assert_same_steps(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
    torch.testing.assert_close(first, second, rtol=1e-9, atol=1e-11)
    start = make_model(heads=4).double().state_dict()
    assert sum(not torch.equal(start[key], tensor) for key, tensor in first.items()) > 0.9 * len(first)


@pytest.mark.parametrize('name', FUSED)
def test_the_same_steps(recipe, monkeypatch, name):
    config = recipe(f'--optim.name={name}', '--batch_size=16', '--epochs=3', '--optim.lr=0.005', '--optim.clip_grad=1')
    used, fused = trained(config)
    monkeypatch.setattr(step, 'fuse', lambda *args: None)
    used_otherwise, plain = trained(config)
    assert (used, used_otherwise) == ({True}, {None})
    assert_same_steps(fused, plain)


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
    assert kernels(trainer.state.optimizer) == before and True not in before
    trainer.fit()


@pytest.fixture
def scaled() -> Accelerator:
    """As on a GPU with fp16."""
    accelerator = Accelerator(cpu=True)
    accelerator.scaler = torch.amp.GradScaler('cpu')
    return accelerator


def test_not_where_a_first_step_may_overflow(recipe, scaled):
    trainer = make_trainer(recipe('--batch_size=16'), make_model(heads=4), accelerator=scaled)
    assert kernels(trainer.state.optimizer) == {None}


@pytest.mark.parametrize('name', [*sorted(SGD), 'lookahead_sgd'])
def test_refused_where_it_goes_wrong(recipe, scaled, name):
    fused = '--optim.kwargs={fused: true}', f'--optim.name={name}'
    with pytest.raises(TrainError, match=r'fused SGD spoils its momentum where fp16 overflows.*: leave it out'):
        check_fused(recipe(*fused), scaled)
    frozen = recipe(*fused, '--optim.freeze_trunk_epochs=1')
    with pytest.raises(TrainError, match=r'fused SGD takes no weights that start to learn later.*: leave it out'):
        make_accelerator(frozen)
    check_fused(recipe(*fused), Accelerator(cpu=True))
    check_fused(recipe(f'--optim.name={name}', '--optim.freeze_trunk_epochs=1'), scaled)


def test_what_is_refused_does_go_wrong():
    """A torch in which neither does any more needs no `check_fused`."""
    weight, other = (torch.nn.Parameter(torch.ones(3)) for _ in range(2))
    optimizer = torch.optim.SGD([weight, other], lr=0.1, momentum=0.9, fused=True)
    scaler = torch.amp.GradScaler('cpu')
    scaler.scale(weight.sum() * float('inf')).backward()
    scaler.step(optimizer)
    assert 'momentum_buffer' in optimizer.state[weight]  # of a step that was skipped
    weight.grad, other.grad = torch.ones(3), torch.ones(3)
    with pytest.raises(TypeError, match='expected Tensor'):
        optimizer.step()


@pytest.mark.parametrize('name', ['adam', 'adamw', 'adagrad'])
def test_the_others_take_weights_that_start_later(recipe, name):
    argv = ['--batch_size=16', '--epochs=2', '--optim.freeze_trunk_epochs=1', '--optim.lr=0.001',
            f'--optim.name={name}']
    used, fused = trained(recipe(*argv, '--optim.kwargs={fused: true}'))
    used_otherwise, plain = trained(recipe(*argv))
    assert (used, used_otherwise) == ({True}, {None})
    assert_same_steps(fused, plain)


def test_a_saved_state_brings_no_kernels_with_it(recipe):
    """What was saved on a CPU goes on with a GPU's, or with sharded weights."""
    config = recipe('--batch_size=16', '--epochs=2', '--optim.name=adamw', '--optim.lr=0.01')
    saved = make_trainer(config, make_model(heads=4))
    saved.fit()
    other = make_trainer(recipe(
        '--batch_size=16', '--epochs=2', '--optim.name=adamw', '--optim.kwargs={fused: false}'), make_model(heads=4))
    other.load_state_dict(saved.state_dict())
    assert kernels(saved.state.optimizer) == {True}
    assert kernels(other.state.optimizer) == {False}
    assert {group['lr'] for group in other.state.optimizer.param_groups} == {
        group['lr'] for group in saved.state.optimizer.param_groups}


def test_groups_that_are_added_later(recipe):
    weights = [torch.nn.Parameter(torch.ones(3)) for _ in range(2)]
    optimizer = torch.optim.SGD(weights[:1], lr=0.1, momentum=0.9)
    optimizer.add_param_group({'params': weights[1:]})
    fuse(optimizer, recipe(), Accelerator(cpu=True))
    assert kernels(optimizer) == {True}
    for weight in weights:
        weight.grad = torch.ones(3)
    optimizer.step()
    assert all(torch.allclose(weight, torch.tensor(0.9)) for weight in weights)
