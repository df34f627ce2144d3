from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor, nn

from tests.train.toys import make_model, make_trainer
from timm_collab.train import TrainError
from timm_collab.train.build import build_model
from timm_collab.train.loop.optim import FrozenTrunk, build_optimizer


def state(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def changed(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    return {name for name, tensor in before.items() if not torch.equal(tensor, after[name])}


def moving(state: dict[str, Tensor]) -> set[str]:
    """What moves by more than its rounding in every update: weights of layers and statistics of batches."""
    return {name for name, tensor in state.items() if tensor.ndim > 1 or 'running' in name or 'num_batches' in name}


@pytest.mark.parametrize('distributed', [False, True])
@pytest.mark.parametrize('optimizer', ['sgd', 'adamw', 'lamb'])
def test_the_trunk_stands_still_and_then_learns(recipe, distributed: bool, optimizer: str) -> None:
    config = recipe('--batch_size=16', '--epochs=3', '--optim.freeze_trunk_epochs=2', '--optim.weight_decay=0.1',
                    '--optim.clip_grad=1.0', f'--optim.name={optimizer}', '--optim.lr=0.01')
    model = make_model(heads=4)
    trunk, branches = model.nodes['trunk'], model.nodes['branch_1_0']
    found = [(state(trunk), state(branches))]
    trainer = make_trainer(config, model, lambda row: found.append((state(trunk), state(branches))))
    trainer.state.frozen_trunk.distributed = distributed  # how it is done, seen from one process
    trainer.fit()
    frozen, then = found[:3], found[2:]
    for (a, x), (b, y) in itertools.pairwise(frozen):
        assert changed(a, b) == set()
        assert moving(x) <= changed(x, y)
    (a, _), (b, _) = then
    assert moving(a) <= changed(a, b)


def test_both_ways_of_freezing_make_the_same_steps(recipe) -> None:
    config = recipe('--batch_size=16', '--epochs=2', '--optim.freeze_trunk_epochs=1', '--optim.clip_grad=0.5',
                    '--grad_accum_steps=2', '--ema.decay=0.5')
    states = []
    for distributed in (False, True):
        model = make_model(heads=4)
        trainer = make_trainer(config, model)
        trainer.state.frozen_trunk.distributed = distributed
        trainer.fit()
        states.append(state(model))
    assert changed(*states) == set()


def test_only_the_epoch_counts() -> None:
    """Applied again, late or in another order, the outcome is the same: a run may start from a checkpoint."""
    model = make_model(heads=4).train()
    trunk = model.nodes['trunk']
    frozen = FrozenTrunk(model, epochs=2, distributed=False)
    norms = [module for module in trunk.modules() if isinstance(module, nn.BatchNorm2d)]
    for epoch in (0, 0, 3, 1, 2, 0):
        model.train()
        frozen.begin_epoch(epoch)
        assert all(param.requires_grad == (epoch >= 2) for param in trunk.parameters())
        assert all(norm.training == (epoch >= 2) for norm in norms) and trunk.training
        assert all(param.requires_grad for param in model.nodes['branch_0_0'].parameters())


def test_without_it_nothing_is_touched() -> None:
    model = make_model(heads=4).train()
    model.nodes['trunk'].requires_grad_(False)  # somebody else's doing
    frozen = FrozenTrunk(model, epochs=0, distributed=False)
    frozen.begin_epoch(0)
    assert not any(param.requires_grad for param in model.nodes['trunk'].parameters())
    assert all(module.training for module in model.modules())


def test_nothing_is_computed_backward_through_a_frozen_trunk() -> None:
    model = make_model(heads=4).train()
    FrozenTrunk(model, epochs=1, distributed=False).begin_epoch(0)
    values = model.nodes['trunk'](torch.randn(2, 1, 32, 32))
    assert not any(value.requires_grad for value in values)


def test_there_has_to_be_a_trunk(recipe) -> None:
    config = recipe('--model.pattern=instances', '--optim.freeze_trunk_epochs=1')
    with pytest.raises(TrainError, match='these heads share no layers, there is no trunk to freeze'):
        build_optimizer(build_model(config.model, config.data, 10), config.optim)
    for argv in (['--model.heads=1'], ['--compare_single=true']):
        with pytest.raises(TrainError, match='freezes the layers that all heads share: one head alone'):
            recipe('--optim.freeze_trunk_epochs=1', *argv)
    with pytest.raises(TrainError, match=r'optim.freeze_trunk_epochs must be at least 0, got -1'):
        recipe('--optim.freeze_trunk_epochs=-1')
