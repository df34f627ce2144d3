"""With FSDP2, two processes that hold half of everything train as two that hold all of it do."""
from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from accelerate.utils import FullyShardedDataParallelPlugin, is_torch_version
from safetensors import safe_open
from safetensors.torch import load_file

from tests.fork_server import Launch
from tests.train.sharded import settings
from timm_collab.train import TrainError
from timm_collab.train.config.parse import parse_config
from timm_collab.train.distributed.sharding import OPTIMIZERS, TORCH, check_sharding, gather_state

pytestmark = pytest.mark.skipif(is_torch_version('<', TORCH), reason=f'FSDP2 is offered with torch {TORCH} or later')
RECIPE = [
    '--model.name=collab_test_resnet', '--model.heads=4', '--data.path=builtin:digits', '--data.in_chans=1',
    '--data.img_size=16', '--data.max_train_samples=128', '--data.max_val_samples=130', '--augment.crop=pad',
    '--noise.rate=0.2', '--epochs=2',
    '--batch_size=32', '--optim.lr=0.01', '--optim.layer_decay=0.9', '--ema.decay=0.9', '--grad_accum_steps=2',
    '--grad_checkpointing=branches', '--optim.freeze_trunk_epochs=1', '--channels_last=true', '--cpu_threads=1',
    '--plots=false',
]


def start(program: list[str], folder: Path, sharded: bool = True, processes: int = 2) -> Launch:
    """Start ranks with FSDP2 or with DDP."""
    return Launch(program, folder, processes, settings() if sharded else None)


@pytest.fixture(scope='module')
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A run whose weights are sharded, and the same one whose weights aren't."""
    folder = tmp_path_factory.mktemp('sharded')
    start(['-m', 'tests.train.sharded', *RECIPE, '--output=sharded'], folder).finish()
    start(['-m', 'timm_collab.train', *RECIPE, '--output=whole'], folder, sharded=False).finish()
    return folder / 'sharded', folder / 'whole'


def newest(folder: Path) -> Path:
    return sorted((folder / 'checkpoints').glob('*/'))[-1]


def assert_same_weights(first: Path, second: Path, atol: float = 1e-5) -> None:
    """Up to the order of sums; DDP averages the batches' statistics of the main process alone."""
    for file in ('tree.safetensors', 'pruned/model.safetensors'):
        a, b = load_file(first / file), load_file(second / file)
        assert a.keys() == b.keys()
        for name, tensor in a.items():
            if 'running' not in name:
                torch.testing.assert_close(tensor, b[name], rtol=1e-4, atol=atol)


@pytest.mark.multiprocess
def test_one_process_alone(tmp_path: Path) -> None:
    """FSDP2 fills the weights that it gathers in a way of its own, where there is nobody to gather them from."""
    short = [*RECIPE, '--epochs=1', '--optim.freeze_trunk_epochs=0']
    start(['-m', 'tests.train.sharded', *short, '--output=sharded'], tmp_path, processes=1).finish()
    start(['-m', 'timm_collab.train', *short, '--output=whole'], tmp_path, sharded=False, processes=1).finish()
    assert_same_weights(tmp_path / 'sharded', tmp_path / 'whole')


@pytest.mark.multiprocess
def test_the_run_is_that_of_whole_weights(runs: tuple[Path, Path]) -> None:
    sharded, plain = (
        [json.loads(line) for line in (folder / 'metrics.jsonl').read_text().splitlines()] for folder in runs
    )
    assert len(sharded) == len(plain) == 2
    for a, b in zip(sharded, plain, strict=True):
        assert a['train_loss'] == pytest.approx(b['train_loss'], rel=1e-5)
        assert a['val']['loss_heads'] == pytest.approx(b['val']['loss_heads'], rel=1e-4)
    assert_same_weights(*runs)


@pytest.mark.multiprocess
def test_a_checkpoint_is_that_of_whole_weights(runs: tuple[Path, Path]) -> None:
    shapes = []
    for folder in runs:
        with safe_open(newest(folder) / 'tensors.safetensors', 'pt') as file:
            shapes.append({name: tuple(file.get_slice(name).get_shape()) for name in file.keys()})  # noqa: SIM118
    assert shapes[0] == shapes[1]
    assert any(name.startswith('optimizer.state.') for name in shapes[0])
    assert any(name.startswith('ema.') for name in shapes[0])


@pytest.mark.multiprocess
@pytest.mark.parametrize('sharded', [True, False])
def test_a_run_goes_on_from_the_other_kind(runs: tuple[Path, Path], tmp_path: Path, sharded: bool) -> None:
    other = runs[1 if sharded else 0]
    shutil.copytree(other, tmp_path / other.name)
    (tmp_path / other.name / 'summary.json').unlink()
    shutil.rmtree(newest(tmp_path / other.name))
    module = 'tests.train.sharded' if sharded else 'timm_collab.train'
    printed = start(['-m', module, *RECIPE, f'--output={other.name}'], tmp_path, sharded).finish()
    assert 'resuming after 4 updates' in printed
    assert_same_weights(tmp_path / other.name, other)


TRAIN = """
import sys
import torch
from safetensors.torch import save_file
from torch.distributed.tensor import DTensor
from tests.train.sharded import pretend
from tests.train.toys import make_data, make_model, make_trainer
from timm_collab.train.config.parse import parse_config
from timm_collab.train.prepare import make_accelerator

output, names, *options = sys.argv[1:]
if 'sharded' in options:
    pretend()
results = {}
for name, clip in [*((name, 'norm') for name in names.split(',')), ('sgd', 'value')]:
    config = parse_config([
        '--model.name=collab_test_vit', '--data.path=-', '--epochs=1', '--batch_size=16', f'--optim.name={name}',
        '--optim.lr=0.001', '--optim.clip_grad=0.1', f'--optim.clip_mode={clip}', '--ema.decay=0.8'])
    images, target = make_data(32)
    model = make_model(2, 'collab_test_vit', img_size=32, qkv_bias=False).double()
    accelerator = make_accelerator(config)
    trainer = make_trainer(config, model, data=(images.double(), target), accelerator=accelerator)
    trainer.fit()
    state = trainer.state
    if 'sharded' in options:
        for each in (state.model, state.ema.module):
            parameters = list(each.parameters())
            held = sum(parameter.to_local().numel() for parameter in parameters)
            assert held <= 0.55 * sum(parameter.numel() for parameter in parameters), name
        for parameter, values in state.optimizer.optimizer.state.items():
            for key, value in values.items():
                assert getattr(value, 'ndim', 0) == 0 or value.placements == parameter.placements, (name, key)
    state = trainer.state_dict()
    if not accelerator.is_main_process and 'sharded' in options:
        assert all(value is None for key, value in state['model'].items() if 'nodes' in key), name
        trainer.release()
        continue
    tensors = {f'state.{key}': value for key, value in state['model'].items()}
    tensors |= {f'{index}.{key}': value for index, values in state['optimizer']['state'].items()
                for key, value in values.items() if isinstance(value, torch.Tensor)}
    results |= {f'{name}.{clip}.{key}': value.detach().clone() for key, value in tensors.items()}
    results |= {f'{name}.{clip}.released.{key}': value for key, value in trainer.release().state_dict().items()}
if accelerator.is_main_process:
    save_file(results, output)
"""


@pytest.mark.multiprocess
@pytest.mark.parametrize('names', [
    pytest.param(['adamw', 'sgd'], id='two'), pytest.param(sorted(OPTIMIZERS), id='all', marks=pytest.mark.slow)])
def test_optimizers_and_clipping_in_float64(tmp_path: Path, names: list[str]) -> None:
    (tmp_path / 'program.py').write_text(TRAIN)
    start(['program.py', 'sharded.safetensors', ','.join(names), 'sharded'], tmp_path).finish()
    start(['program.py', 'whole.safetensors', ','.join(names)], tmp_path, sharded=False).finish()
    sharded, plain = (load_file(tmp_path / f'{name}.safetensors') for name in ('sharded', 'whole'))
    assert sharded.keys() == plain.keys()
    assert {name.split('.')[0] for name in sharded} == set(names)
    for name, tensor in plain.items():
        # The order of sums; some torch adds up norms of shards in float32.
        is_weight = 'state' in name or 'released' in name
        torch.testing.assert_close(sharded[name], tensor, rtol=1e-5, atol=1e-6 if is_weight else 1e-5, msg=name)


@pytest.mark.multiprocess
def test_a_network_that_can_not_be_sharded_is_refused(tmp_path: Path) -> None:
    said = start(['-m', 'tests.train.sharded', *RECIPE, '--model.name=collab_test_nfnet',
                  '--model.kwargs={skipinit: true}', '--output=run'], tmp_path).fail()
    assert re.search("error: FSDP2 can't shard this network: .*scalar.*launch with accelerate/ddp", said), said
    assert not list((tmp_path / 'run').glob('checkpoints/*'))


def test_what_is_not_sharded_is_passed_through() -> None:
    tensor = torch.ones(2)
    state = gather_state({'a': [tensor, 1, 'x'], 'b': None})
    assert state['a'][0] is tensor
    assert state == {'a': [tensor, 1, 'x'], 'b': None}


@pytest.mark.parametrize(('argv', 'plugin', 'precision', 'message'), [
    ([], {}, 'fp16', 'write bf16'),
    ([], {'cpu_offload': True}, 'no', 'fsdp_offload_params'),
    ([], {'activation_checkpointing': True}, 'no', 'write --grad_checkpointing true instead'),
    (['--compile=true'], {}, 'no', 'compile is not supported with FSDP2'),
    (['--objective.kind=gated'], {}, 'no', 'its gate is no part of the model'),
    (['--optim.clip_mode=agc', '--optim.clip_grad=0.1'], {}, 'no', 'clip by norm or value'),
    (['--optim.name=adafactor'], {}, 'no', 'optim.name adafactor is not supported with FSDP2: write one of .*adamw'),
])
def test_what_is_not_proven_is_refused(argv, plugin, precision, message):
    state = SimpleNamespace(fsdp_plugin=FullyShardedDataParallelPlugin(fsdp_version=2, **plugin))
    accelerator = SimpleNamespace(is_fsdp2=True, state=state, mixed_precision=precision, parallelism_config=None)
    config = parse_config(['--config=quickstart', '--config=methods/clean', *argv])
    with pytest.raises(TrainError, match=message):
        check_sharding(accelerator, config)


def test_sharding_that_was_asked_for_and_is_not_there_is_refused(monkeypatch):
    monkeypatch.setenv('ACCELERATE_USE_FSDP', 'true')
    with pytest.raises(TrainError, match='FSDP was asked for, but these processes would train without it'):
        check_sharding(Accelerator(cpu=True), parse_config(['--config=quickstart']))
