"""Real processes, one or two, killed at random moments; the same command ends with the weights of a run that wasn't."""
from __future__ import annotations

import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from accelerate.utils import is_torch_version
from safetensors.torch import load_file

from tests.train import sharded
from timm_collab.train.distributed.sharding import TORCH

ROOT = Path(__file__).parents[2]
EPOCHS = 20
RECIPE = [
    '--model.name=collab_test_resnet', '--model.heads=2', '--model.kwargs={drop_rate: 0.2}',
    '--data.path=builtin:digits', '--data.in_chans=1', '--data.img_size=16', '--data.max_train_samples=128',
    '--data.test_split=null', '--augment.crop=pad', '--noise.rate=0.2', f'--epochs={EPOCHS}', '--batch_size=32',
    '--optim.lr=0.01', '--ema.decay=0.9', '--grad_accum_steps=2', '--augment.mixup=0.2', '--cpu_threads=1',
    '--checkpoint.every_updates=3', '--max_loss=1e6',
]


def start(folder: Path, output: str, processes: int, shared_out_by: str | None = None) -> list[subprocess.Popen[str]]:
    """One process a rank, as a launcher starts them."""
    program, variables = {
        None: ('timm_collab.train', dict),
        'FSDP2': ('tests.train.sharded', sharded.settings),
    }[shared_out_by]
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    started = []
    for rank in range(processes):
        environment = {
            **os.environ, 'PYTHONPATH': str(ROOT), 'OMP_NUM_THREADS': '1', 'ACCELERATE_USE_CPU': 'true',
            'HF_DATASETS_CACHE': str(folder / 'cache'), 'HF_HUB_OFFLINE': '1', 'CUDA_VISIBLE_DEVICES': '',
            **variables(),
        }
        if processes > 1:
            environment |= {
                'RANK': str(rank), 'LOCAL_RANK': str(rank), 'WORLD_SIZE': str(processes),
                'LOCAL_WORLD_SIZE': str(processes), 'MASTER_ADDR': '127.0.0.1', 'MASTER_PORT': str(port),
            }
        started.append(subprocess.Popen(
            [sys.executable, '-m', program, *RECIPE, f'--output={folder / output}'], env=environment,
            cwd=folder, stdout=subprocess.PIPE if rank == 0 else subprocess.DEVNULL, stderr=subprocess.PIPE, text=True))
    return started


def finish(ranks: list[subprocess.Popen[str]]) -> list[str]:
    """Wait for all to end well; what the first printed."""
    outputs = [rank.communicate(timeout=240) for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0] * len(ranks), outputs[0][1][-3000:]
    return outputs[0][0].splitlines()


def wait_for_epoch(rank: subprocess.Popen[str]) -> None:
    for line in rank.stdout:
        if re.match(rf' *\d+/{EPOCHS} ', line):
            return
    raise AssertionError(f'it ended before an epoch did: {rank.stderr.read()[-3000:]}')


def end(ranks: list[subprocess.Popen[str]]) -> None:
    for rank in ranks:
        rank.kill()
        rank.communicate()


@pytest.mark.parametrize(('processes', 'shared_out_by'), [
    (1, None), (2, None),
    pytest.param(2, 'FSDP2', marks=pytest.mark.skipif(
        is_torch_version('<', TORCH), reason=f'FSDP2 is offered with torch {TORCH} or later')),
])
def test_killed_at_random_moments_it_ends_the_same(tmp_path: Path, processes: int, shared_out_by: str | None) -> None:
    """First a rank is killed, then another is told to stop: between evaluations each has BatchNorm statistics, and
    running averages of them, of its own."""
    draw = random.Random(time.time_ns())
    finish(start(tmp_path, 'whole', processes, shared_out_by))
    moments = []
    for signal_number in (signal.SIGKILL, signal.SIGTERM):
        ranks = start(tmp_path, 'run', processes, shared_out_by)
        wait_for_epoch(ranks[0])
        moments.append((draw.randrange(processes), draw.random() / 4))
        time.sleep(moments[-1][1])
        ranks[moments[-1][0]].send_signal(signal_number)
        if signal_number == signal.SIGTERM:
            outputs = [rank.communicate(timeout=120) for rank in ranks]
            assert [rank.returncode for rank in ranks] == [75] * processes, (moments, outputs[0][1][-3000:])
            assert 'stopped and saved after' in outputs[0][0]
        end(ranks)  # as a launcher does
    lines = finish(start(tmp_path, 'run', processes, shared_out_by))
    assert any(line.startswith('resuming after') for line in lines)

    whole, run = (load_file(tmp_path / name / 'tree.safetensors') for name in ('whole', 'run'))
    assert all(torch.equal(tensor, run[name]) for name, tensor in whole.items()), moments
    logs = [
        [json.loads(line) for line in (tmp_path / name / 'metrics.jsonl').read_text().splitlines()]
        for name in ('whole', 'run')
    ]
    for row in logs[0] + logs[1]:
        del row['images_per_second']
    assert logs[0] == logs[1] and len(logs[0]) == EPOCHS, moments
