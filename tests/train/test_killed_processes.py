"""Real processes, killed at random moments; the same command ends with the weights of a run that wasn't killed."""
from __future__ import annotations

import json
import random
import re
import signal
import time
from pathlib import Path

import pytest
import torch
from accelerate.utils import is_torch_version
from safetensors.torch import load_file

from tests.fork_server import Launch, Process
from tests.train import sharded
from timm_collab.train.distributed.sharding import TORCH

EPOCHS = 12
RECIPE = [
    '--model.name=collab_test_resnet', '--model.heads=2', '--model.kwargs={drop_rate: 0.2}',
    '--data.path=builtin:digits', '--data.in_chans=1', '--data.img_size=16', '--data.max_train_samples=128',
    '--data.test_split=null', '--augment.crop=pad', '--noise.rate=0.2', f'--epochs={EPOCHS}', '--batch_size=32',
    '--optim.lr=0.01', '--ema.decay=0.9', '--grad_accum_steps=2', '--augment.mixup=0.2', '--cpu_threads=1',
    '--checkpoint.every_updates=3', '--max_loss=1e6', '--plots=false',
]


def start(folder: Path, output: str, processes: int, fsdp2: bool = False) -> Launch:
    program = 'tests.train.sharded' if fsdp2 else 'timm_collab.train'
    return Launch(['-m', program, *RECIPE, f'--output={folder / output}'], folder, processes,
                  sharded.settings() if fsdp2 else None)


def wait_for_epoch(rank: Process) -> None:
    """Wait until a rank has reported an epoch."""
    while not re.search(rf'^ *\d+/{EPOCHS} ', rank.output(), re.MULTILINE):
        assert rank.poll() is None, f'it ended before an epoch did: {rank.errors()[-3000:]}'
        time.sleep(0.02)


def kill_and_resume(folder: Path, processes: int, draw: random.Random, fsdp2: bool = False) -> None:
    """Kill a rank, tell another to stop, resume, and compare with a run that nothing happened to.

    Between evaluations each rank has BatchNorm statistics, and running averages of them, of its own.
    """
    start(folder, 'whole', processes, fsdp2).finish()
    moments = []
    for number in (signal.SIGKILL, signal.SIGTERM):
        launch = start(folder, 'run', processes, fsdp2)
        wait_for_epoch(launch.ranks[0])
        moments.append((draw.randrange(processes), draw.random() / 4))
        time.sleep(moments[-1][1])
        launch.ranks[moments[-1][0]].send_signal(number)
        if number == signal.SIGTERM:
            assert launch.wait() == [75] * processes, (moments, launch.errors()[-3000:])
            assert 'stopped and saved after' in launch.ranks[0].output()
        launch.kill()  # as a launcher does
    assert 'resuming after' in start(folder, 'run', processes, fsdp2).finish()

    whole, run = (load_file(folder / name / 'tree.safetensors') for name in ('whole', 'run'))
    assert all(torch.equal(tensor, run[name]) for name, tensor in whole.items()), moments
    logs = [
        [json.loads(line) for line in (folder / name / 'metrics.jsonl').read_text().splitlines()]
        for name in ('whole', 'run')
    ]
    for row in logs[0] + logs[1]:
        del row['images_per_second'], row['wait_seconds']
    assert logs[0] == logs[1] and len(logs[0]) == EPOCHS, moments


@pytest.mark.multiprocess
@pytest.mark.parametrize('processes', [1, 2])
def test_killed_once_it_ends_the_same(tmp_path: Path, draw_seed: int, processes: int) -> None:
    kill_and_resume(tmp_path, processes, random.Random(draw_seed))


@pytest.mark.slow
@pytest.mark.multiprocess
@pytest.mark.parametrize('repeat', range(4))
@pytest.mark.parametrize('processes', [1, 2])
def test_killed_at_more_random_moments_it_ends_the_same(
        tmp_path: Path, draw_seed: int, processes: int, repeat: int,
) -> None:
    kill_and_resume(tmp_path, processes, random.Random(f'{draw_seed}/{repeat}'))


@pytest.mark.slow
@pytest.mark.multiprocess
@pytest.mark.skipif(is_torch_version('<', TORCH), reason=f'FSDP2 is offered with torch {TORCH} or later')
def test_killed_with_shards_it_ends_the_same(tmp_path: Path, draw_seed: int) -> None:
    kill_and_resume(tmp_path, 2, random.Random(draw_seed), fsdp2=True)
