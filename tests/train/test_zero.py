"""With DeepSpeed's ZeRO 1 and 2, two processes that hold half of an optimizer's state train as two that hold all."""
from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate.utils import DeepSpeedPlugin, DistributedType, DynamoBackend, is_deepspeed_available
from safetensors.torch import load_file

from tests.train.test_sharded import assert_same_weights
from tests.train.zeroed import settings
from timm_collab.cli import launch
from timm_collab.train import TrainError, zero
from timm_collab.train.parse import parse_config
from timm_collab.train.prepare import make_accelerator
from timm_collab.train.zero import OPTIMIZERS, ZeroAccelerator, check_zero, prepare_zero
from timm_collab.train.zero_optimizer import ZeroOptimizer

needs_deepspeed = pytest.mark.skipif(not is_deepspeed_available(), reason='DeepSpeed is not installed: extra deepspeed')
ROOT = Path(__file__).parents[2]
RECIPE = [
    '--model.name=collab_test_resnet', '--model.heads=4', '--data.path=builtin:digits', '--data.in_chans=1',
    '--data.img_size=16', '--data.max_train_samples=128', '--augment.crop=pad', '--noise.rate=0.2', '--epochs=2',
    '--batch_size=32', '--optim.lr=0.01', '--optim.layer_decay=0.9', '--ema.decay=0.9', '--grad_accum_steps=2',
    '--channels_last=true', '--cpu_threads=1', '--plots=false',
    '--optim.kwargs={fused: false}',  # as it is on GPUs, and with DeepSpeed
]


def run(program: list[str], folder: Path, shared_out: bool = True, **variables: str) -> str:
    """What two processes printed."""
    environment = {
        **os.environ, 'ACCELERATE_USE_CPU': 'true', **(settings() if shared_out else {}), 'PYTHONPATH': str(ROOT),
        'OMP_NUM_THREADS': '1', 'HF_DATASETS_CACHE': str(folder / 'cache'), 'HF_HUB_OFFLINE': '1',
        'CUDA_VISIBLE_DEVICES': '', **variables,
    }
    done = subprocess.run(
        [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc_per_node=2', *program],
        capture_output=True, text=True, env=environment, cwd=folder, timeout=300)
    assert done.returncode == 0, done.stderr[-12000:]
    return done.stdout


ROUNDED = {'clipped', 'madgrad', 'madgradw', 'parts', 'statistics'}
"""Cases with sums of another order, or (madgrad) a cube root; all others are to be equal bit for bit."""


def all_cases(folder: Path) -> dict[str, tuple[str, int, dict[str, str], list[str]]]:
    """By name, the network, the stage, variables of the launch and keys of the recipe."""
    cases = {name: ('collab_test_vit', 2, {}, [f'--optim.name={name}', '--optim.lr=1e-3']) for name in OPTIMIZERS}
    for stage in (1, 2):
        for what, network, argv in (
            ('momentum', 'collab_test_vit', ['--optim.name=momentum', '--optim.layer_decay=0.7']),
            ('bf16', 'collab_test_vit', ['--optim.name=adamw', '--mixed_precision=bf16']),
            ('taught', 'one', ['--model.heads=1', '--optim.name=adamw', '--teacher.name=resnet18']),
            ('clipped', 'collab_test_vit', ['--optim.name=adamw', '--optim.clip_grad=0.1']),
            ('parts', 'collab_test_vit', ['--grad_accum_steps=2', '--augment.mixup=0.2']),
            ('statistics', 'collab_test_resnet', ['--ema.decay=0.9', '--grad_checkpointing=branches']),
        ):
            cases[f'{what}-{stage}'] = (network, stage, {}, ['--optim.lr=1e-3', *argv])
    launched = {'ACCELERATE_MIXED_PRECISION': 'bf16'}
    cases['bf16-1'] = ('collab_test_vit', 1, launched, ['--optim.name=adamw', '--optim.lr=1e-3'])
    (folder / 'settings.json').write_text(json.dumps({
        'train_micro_batch_size_per_gpu': 'auto',
        'zero_optimization': {'stage': 2, 'round_robin_gradients': True, 'reduce_bucket_size': 1000,
                              'allgather_bucket_size': 3000, 'reduce_scatter': False},
    }))
    own = {'ACCELERATE_DEEPSPEED_CONFIG_FILE': str(folder / 'settings.json')}
    cases['own'] = ('collab_test_vit', 2, own, ['--optim.name=adamw', '--optim.lr=1e-3', '--optim.layer_decay=0.7'])
    return cases


@needs_deepspeed
def test_steps_and_checkpoints_are_those_of_whole_state(tmp_path: Path) -> None:
    """Every optimizer, and all else of an update; the program itself looks whether a run goes on bit for bit."""
    cases = json.dumps(all_cases(tmp_path))
    run(['-m', 'tests.train.zero_steps', 'zero', cases, 'zero'], tmp_path)
    run(['-m', 'tests.train.zero_steps', 'whole', cases], tmp_path, shared_out=False)
    shared_out, whole = (load_file(tmp_path / f'{name}.safetensors') for name in ('zero', 'whole'))
    assert shared_out.keys() == whole.keys()
    assert {name.split('/')[0] for name in whole} == json.loads(cases).keys() > OPTIMIZERS
    for name, tensor in whole.items():
        if name.split('/')[0].split('-')[0] not in ROUNDED:
            assert torch.equal(shared_out[name], tensor), name
        elif 'running' not in name:  # DDP has the main process's statistics everywhere
            torch.testing.assert_close(shared_out[name], tensor, rtol=1e-5, atol=1e-6, msg=name)
    rest = [json.loads((tmp_path / f'{name}.json').read_text()) for name in ('zero', 'whole')]
    assert rest[0] == rest[1]


@pytest.fixture(scope='module')
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A run whose optimizer state is shared out, and the same one whose state isn't."""
    folder = tmp_path_factory.mktemp('zero')
    run(['-m', 'tests.train.zeroed', *RECIPE, '--output=zero'], folder, ACCELERATE_DEEPSPEED_ZERO_STAGE='1')
    run(['-m', 'timm_collab.train', *RECIPE, '--output=whole'], folder, shared_out=False)
    return folder / 'zero', folder / 'whole'


@needs_deepspeed
def test_a_run_is_that_of_whole_state(runs: tuple[Path, Path]) -> None:
    shared_out, plain = (
        [json.loads(line) for line in (folder / 'metrics.jsonl').read_text().splitlines()] for folder in runs
    )
    assert len(shared_out) == len(plain) == 2
    for a, b in zip(shared_out, plain, strict=True):
        assert a['train_loss'] == pytest.approx(b['train_loss'], rel=1e-5)
        assert a['val']['loss_heads'] == pytest.approx(b['val']['loss_heads'], rel=1e-3)
    assert_same_weights(*runs, atol=5e-5)


@needs_deepspeed
@pytest.mark.parametrize('shared_out', [True, False])
def test_a_run_goes_on_from_the_other_kind(runs: tuple[Path, Path], tmp_path: Path, shared_out: bool) -> None:
    other = runs[1 if shared_out else 0]
    shutil.copytree(other, tmp_path / other.name)
    (tmp_path / other.name / 'summary.json').unlink()
    shutil.rmtree(sorted((tmp_path / other.name / 'checkpoints').glob('*/'))[-1])
    module = 'tests.train.zeroed' if shared_out else 'timm_collab.train'
    printed = run(['-m', module, *RECIPE, f'--output={other.name}'], tmp_path, shared_out)
    assert 'going on after 4 updates' in printed
    assert_same_weights(tmp_path / other.name, other, atol=5e-5)


def zero_accelerator(precision: str = 'no', plugin: DeepSpeedPlugin | None = None, **settings: Any) -> ZeroAccelerator:
    """As it is with these settings of DeepSpeed, without any process."""
    plugin = plugin or DeepSpeedPlugin(hf_ds_config={'zero_optimization': {'stage': 2}, **settings})
    plugin.set_mixed_precision('no')
    accelerator = object.__new__(ZeroAccelerator)
    accelerator.precision = precision
    accelerator.state = SimpleNamespace(
        distributed_type=DistributedType.DEEPSPEED, deepspeed_plugin=plugin, parallelism_config=None,
        dynamo_plugin=SimpleNamespace(backend=DynamoBackend.NO))
    return accelerator


@pytest.mark.parametrize(('argv', 'precision', 'settings', 'message'), [
    ([], 'no', {'zero_optimization': {'stage': 3}}, 'ZeRO stage 3 .*launch with accelerate/fsdp2'),
    ([], 'no', {'zero_optimization': {'stage': 0}}, 'ZeRO stage 0 .*write zero_stage 1 or 2'),
    ([], 'no', {'zero_optimization': {'stage': 2, 'offload_optimizer': {'device': 'cpu'}}}, 'offloading to the CPU'),
    ([], 'no', {'zero_optimization': {'stage': 2, 'overlap_comm': True}}, 'its setting zero_optimization.overlap_comm'),
    ([], 'no', {'torch_autocast': {'enabled': True}}, 'its setting torch_autocast is not proven'),
    ([], 'no', {'bf16': {'enabled': True}}, 'write mixed_precision bf16 in the recipe'),
    ([], 'no', {'gradient_accumulation_steps': 4}, 'write grad_accum_steps in the recipe'),
    ([], 'no', {'gradient_clipping': 1.0}, 'write optim.clip_grad in the recipe'),
    (['--optim.clip_grad=0.5'], 'no', {'gradient_clipping': 1.0}, 'write optim.clip_grad in the recipe'),
    ([], 'fp16', {}, 'mixed_precision fp16 is not proven with DeepSpeed: write bf16'),
    (['--compile=true'], 'no', {}, 'compile is not proven with DeepSpeed'),
    (['--sync_bn=true'], 'no', {}, 'sync_bn is not proven'),
    (['--objective.kind=gated'], 'no', {}, 'its gate is no part of the model'),
    (['--optim.freeze_trunk_epochs=1', '--compare_single=false'], 'no', {},
     'optim.freeze_trunk_epochs is not proven .*accelerate/ddp'),
    (['--optim.clip_mode=value', '--optim.clip_grad=0.1'], 'no', {}, 'optim.clip_mode value .*clip by norm'),
    (['--optim.name=lamb'], 'no', {}, 'optim.name lamb is not proven with DeepSpeed: write one of .*adamw'),
])
def test_what_is_not_proven_is_refused(argv, precision, settings, message):
    with pytest.raises(TrainError, match=message) as caught:
        check_zero(zero_accelerator(precision, **settings), parse_config(['--config=quickstart', *argv]))
    assert '\n' not in str(caught.value)


@pytest.mark.parametrize('stage', ['1', '2'])
def test_what_is_proven_passes(stage, monkeypatch):
    config = parse_config(['--config=quickstart', '--optim.clip_grad=1.0', '--grad_accum_steps=2'])
    own = {'stage': int(stage), 'round_robin_gradients': True, 'reduce_bucket_size': 1e6}
    check_zero(zero_accelerator('bf16', zero_optimization=own, gradient_clipping=1.0), config)
    for name, value in {**settings(), 'ACCELERATE_DEEPSPEED_ZERO_STAGE': stage}.items():
        monkeypatch.setenv(name, value)
    check_zero(zero_accelerator(plugin=DeepSpeedPlugin()), config)


@pytest.mark.parametrize('name', ['deepspeed', 'transformers'])
def test_a_missing_package_is_told_before_the_launch(name, monkeypatch):
    for each in ('deepspeed', 'transformers'):
        monkeypatch.setattr(zero, f'is_{each}_available', lambda there=each != name: there)
    monkeypatch.setenv('ACCELERATE_USE_DEEPSPEED', 'true')
    config = parse_config(['--config=quickstart'])
    message = rf'(?i){name} is not installed, .*: pip install "timm-collab\[deepspeed\]"'
    with pytest.raises(TrainError, match=message):
        make_accelerator(config)
    with pytest.raises(TrainError, match=message):
        launch.launch(launch.find_launch(None, 'accelerate/deepspeed'), [])


@needs_deepspeed
def test_an_old_package_is_refused(monkeypatch):
    monkeypatch.setattr(zero, 'DEEPSPEED', '99.0')
    with pytest.raises(TrainError, match=r'DeepSpeed 99\.0 or later is proven: update it'):
        launch.launch(launch.find_launch(None, 'accelerate/deepspeed'), [])


@needs_deepspeed
def test_several_machines_start_by_themselves(tmp_path):
    file = tmp_path / 'two.yaml'
    text = (ROOT / 'recipes' / 'accelerate' / 'deepspeed.yaml').read_text()
    file.write_text(text.replace('num_machines: 1', 'num_machines: 2') + '  deepspeed_multinode_launcher: pdsh\n')
    with pytest.raises(TrainError, match='write deepspeed_multinode_launcher: standard in deepspeed_config'):
        launch.launch(['--config_file', str(file)], [])


@needs_deepspeed
def test_without_gpus_the_shipped_settings_are_refused(tmp_path):
    command = ['train', '--launch=accelerate/deepspeed', '--num-processes=2', '--config=quickstart', '--output=run']
    done = subprocess.run(
        [sys.executable, '-m', 'timm_collab', *command], capture_output=True, text=True, cwd=tmp_path, timeout=120,
        env={**os.environ, 'PYTHONPATH': str(ROOT), 'CUDA_VISIBLE_DEVICES': '', 'DS_ACCELERATOR': 'cpu'})
    assert done.returncode == 2, done.stderr[-3000:]
    assert 'error: DeepSpeed was asked for, but these processes would train without it: it needs GPUs' in done.stderr
    assert 'Traceback' not in done.stderr and not (tmp_path / 'run').exists()


def test_a_checkpoint_of_weights_updated_more_and_less_often_is_refused():
    optimizer = object.__new__(ZeroOptimizer)
    optimizer.parameters = [[torch.nn.Parameter(torch.ones(2)) for _ in range(2)]]
    state = {index: {'step': torch.tensor(float(index)), 'exp_avg': torch.zeros(2)} for index in range(2)}
    with pytest.raises(TrainError, match='some weights of this checkpoint were updated more often than others'):
        optimizer.partitioned({'state': state, 'param_groups': [{'lr': 0.1, 'params': [0, 1]}]})


def test_an_optimizer_with_an_empty_group_is_refused():
    model = torch.nn.Linear(2, 2)
    optimizer = torch.optim.SGD([{'params': [*model.parameters()]}, {'params': []}])
    with pytest.raises(TrainError, match=r'write optim\.weight_decay 0'):
        prepare_zero(zero_accelerator(), model, optimizer, parse_config(['--config=quickstart']))
