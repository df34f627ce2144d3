"""`compile: true`: the steps of a run that isn't compiled, without a graph break."""
from __future__ import annotations

import pytest
import timm
import torch
from torch import Tensor
from torch._dynamo.utils import counters

from tests.train.toys import make_model, make_trainer
from timm_collab.train import TrainError
from timm_collab.train.build import check_compile
from timm_collab.train.loop.trainer import Trainer
from timm_collab.train.run import train


def trained(config) -> tuple[dict[str, Tensor], list[float], Trainer]:
    model = make_model(heads=2)
    losses: list[float] = []
    trainer = make_trainer(config, model, lambda row: losses.append(row['train_loss']))
    trainer.fit()
    return model.state_dict(), losses, trainer


KEYS = ('--batch_size=16', '--epochs=4', '--objective.ramp_up_epochs=3', '--objective.temperature_from=4',
        '--objective.temperature_epochs=3')


@pytest.mark.parametrize(('backend', 'more'), [
    ('eager', ('--objective.hard=bce',)),
    ('aot_eager', ('--grad_checkpointing=branches', '--optim.freeze_trunk_epochs=1')),
    ('aot_eager', ('--objective.hard=elr', '--objective.targets=others', '--objective.balance=1')),
])
def test_the_steps_are_those_of_a_run_that_is_not_compiled(recipe, backend: str, more: tuple[str, ...]) -> None:
    expected, losses, _ = trained(recipe(*KEYS, *more))
    torch.compiler.reset()
    counters.clear()
    config = recipe(*KEYS, *more, '--compile=true', f'--compile_backend={backend}')
    state, compiled_losses, trainer = trained(config)
    assert compiled_losses == pytest.approx(losses, rel=1e-4)
    for name, tensor in state.items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-2, atol=1e-3)
    assert not counters['graph_break']
    # The model, frozen and free; the objective with beta and the temperature as constants and then as variables: not
    # one graph for every update.
    assert trainer.state.task._compiled_objective is not None
    assert 2 <= counters['stats']['unique_graphs'] <= 5
    assert trainer.num_updates == 12
    assert trainer.release() is trainer.state.model


def test_a_compiled_run_is_saved_as_any(recipe, tmp_path) -> None:
    torch.compiler.reset()
    train(recipe('--compile=true', '--compile_backend=eager', '--batch_size=64', '--ema.decay=0.5'))
    saved = timm.create_model(f'local-dir:{tmp_path / "run" / "pruned"}', pretrained=True)
    plain = timm.create_model('test_resnet', in_chans=1, num_classes=10)
    assert saved.state_dict().keys() == plain.state_dict().keys()


def test_what_cannot_compile_is_refused(recipe) -> None:
    with pytest.raises(TrainError, match=r"compile_backend 'inductr': torch .* has .*; did you mean 'inductor'\?"):
        check_compile(recipe('--compile=true', '--compile_backend=inductr'))
    with pytest.raises(TrainError, match='compile_backend and compile_mode need compile: write --compile true'):
        recipe('--compile_backend=eager')
    with pytest.raises(TrainError, match="compile_mode is for the backend inductor, got compile_backend 'eager'"):
        recipe('--compile=true', '--compile_backend=eager', '--compile_mode=reduce-overhead')
    check_compile(recipe('--compile_backend=inductor'))
