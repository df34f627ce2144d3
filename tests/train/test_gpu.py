"""Runs on a GPU: exact resume with its kernels and in its precisions, and one process of FSDP2 over NCCL."""
from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.train.distributed.test_sharded import assert_same_weights
from tests.train.killed import KilledError, assert_same_run
from tests.train.sharded import settings
from timm_collab.train.run import train

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')
ROOT = Path(__file__).parents[2]
KEYS = [
    '--epochs=2', '--max_loss=1e6', '--augment.no_aug=false', '--augment.crop=pad', '--noise.rate=0.4',
    '--model.kwargs={drop_rate: 0.2, drop_path_rate: 0.2}', '--ema.decay=0.9', '--augment.mixup=0.8',
    '--checkpoint.every_updates=2', '--deterministic=true', '--plots=false', '--data.img_size=32',
    '--channels_last=true',
]
SETTINGS = {
    'float32': ['--grad_accum_steps=2'],
    'bf16': ['--mixed_precision=bf16', '--optim.clip_grad=1'],
    'fp16': ['--mixed_precision=fp16', '--optim.clip_grad=1'],
    'compiled': ['--mixed_precision=bf16', '--compile=true'],
    'graphs': ['--mixed_precision=bf16', '--compile=true', '--compile_mode=reduce-overhead'],
}


@pytest.mark.parametrize('setting', SETTINGS)
def test_killed_again_and_again_it_ends_the_same(recipe, tmp_path, kill_at, setting):
    argv = [*KEYS, *SETTINGS[setting]]  # 4 updates an epoch
    kill_at(1000)
    train(recipe(*argv, f'--output={tmp_path / "whole"}'))
    for count in (3, 3):
        kill_at(count)
        with pytest.raises(KilledError):
            train(recipe(*argv))
    kill_at(1000)
    train(recipe(*argv))
    assert_same_run(tmp_path / 'whole', tmp_path / 'run')


def test_fsdp2_over_nccl(tmp_path):
    """One process, for want of a second GPU: nothing is shared out, but all of it goes the way of shards."""
    recipe = [
        '--model.name=collab_test_resnet', '--model.heads=4', '--data.path=builtin:digits', '--data.in_chans=1',
        '--data.img_size=16', '--data.max_train_samples=128', '--data.max_val_samples=130', '--augment.crop=pad',
        '--noise.rate=0.2', '--epochs=2',
        '--batch_size=32', '--optim.lr=0.01', '--ema.decay=0.9', '--plots=false', '--deterministic=true',
    ]
    for output, more in (('sharded', settings()), ('whole', {})):
        environment = {**os.environ, **more, 'PYTHONPATH': f'{ROOT}:{os.environ.get("PYTHONPATH", "")}',
                       'HF_DATASETS_CACHE': str(tmp_path / 'cache'), 'HF_HUB_OFFLINE': '1',
                       'NVIDIA_TF32_OVERRIDE': '0'}  # rounding to 10 bits would make a difference of the last one large
        done = subprocess.run(
            [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc_per_node=1', '-m',
             'timm_collab.train', *recipe, f'--output={output}'],
            capture_output=True, text=True, env=environment, cwd=tmp_path, timeout=300)
        assert done.returncode == 0, done.stderr[-4000:]
    assert_same_weights(tmp_path / 'sharded', tmp_path / 'whole')
