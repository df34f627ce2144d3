"""`compile: true`: the steps of a run that isn't compiled, without a graph break."""
from __future__ import annotations

import pytest
import timm
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import Tensor
from torch._dynamo.utils import counters
from torch.utils.data import TensorDataset

from timm_collab.train import TrainError
from timm_collab.train.build import check_compile
from timm_collab.train.data.images import CachedImages, evaluation_loader, training_loader
from timm_collab.train.run import train
from timm_collab.train.trainer import Loaders, Trainer


def trained(config) -> tuple[dict[str, Tensor], list[float], Trainer]:
    generator = torch.Generator().manual_seed(0)
    data = torch.randn(48, 1, 16, 16, generator=generator), torch.randint(10, (48,), generator=generator)
    set_seed(0)
    model = timm.create_model('collab_test_resnet', heads=2, num_classes=10, in_chans=1)
    train_loader, sampler = training_loader(CachedImages(*data), config.batch_size, 0, config.seed)
    val = evaluation_loader(TensorDataset(data[0][:20], data[1][:20]), 8, 0)
    losses: list[float] = []
    trainer = Trainer(config, model, Loaders(train_loader, sampler, val, None), Accelerator(cpu=True),
                      lambda row: losses.append(row['train_loss']))
    trainer.fit()
    return model.state_dict(), losses, trainer


KEYS = ('--batch_size=16', '--epochs=4', '--objective.ramp_up_epochs=3', '--objective.temperature_from=4',
        '--objective.temperature_epochs=3')


@pytest.mark.parametrize(('backend', 'more'), [
    ('eager', ('--objective.hard=bce',)),
    ('aot_eager', ('--grad_checkpointing=branches', '--optim.freeze_trunk_epochs=1')),
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
    # The model, frozen and free; an objective that isn't computed in one pass, beta and the temperature as constants
    # and then as numbers: not one graph for every update.
    assert (trainer.task._compiled_objective is not None) == ('--objective.hard=bce' in more)
    assert 2 <= counters['stats']['unique_graphs'] <= 5
    assert trainer.num_updates == 12
    assert trainer.release() is trainer.model


def test_a_compiled_run_is_saved_as_any(recipe, tmp_path) -> None:
    torch.compiler.reset()
    train(recipe('--compile=true', '--compile_backend=eager', '--batch_size=64', '--ema.decay=0.5'))
    timm.create_model(f'local-dir:{tmp_path / "run" / "pruned"}', pretrained=True)


def test_what_cannot_compile_is_refused(recipe) -> None:
    with pytest.raises(TrainError, match=r"compile_backend 'inductr': torch .* has .*; did you mean 'inductor'\?"):
        check_compile(recipe('--compile=true', '--compile_backend=inductr'))
    with pytest.raises(TrainError, match='compile_backend and compile_mode need compile: write --compile true'):
        recipe('--compile_backend=eager')
    with pytest.raises(TrainError, match="compile_mode is for the backend inductor, got compile_backend 'eager'"):
        recipe('--compile=true', '--compile_backend=eager', '--compile_mode=reduce-overhead')
    check_compile(recipe('--compile_backend=inductor'))
