"""A disk that fills up while a run trains: a small file system, and a limit on the size of files."""
from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from timm_collab.train.__main__ import main

ROOT = Path(__file__).parents[2]
RECIPE = [
    '--model.name=collab_test_resnet', '--model.heads=2', '--data.path=builtin:digits', '--data.img_size=16',
    '--data.in_chans=1', '--data.max_train_samples=128', '--augment.no_aug=true', '--optim.lr=0.02', '--epochs=3',
    '--batch_size=32', '--checkpoint.keep_last=1', '--checkpoint.keep_best=0', '--cpu_threads=1',
]


def train(output: Path, **kwargs) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, 'PYTHONPATH': str(ROOT), 'OMP_NUM_THREADS': '1', 'HF_HUB_OFFLINE': '1'}
    return subprocess.run(
        [sys.executable, '-m', 'timm_collab.train', *RECIPE, f'--output={output}'], env=environment,
        capture_output=True, text=True, **kwargs)


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp('whole') / 'run'
    assert main([*RECIPE, f'--output={folder}']) == 0
    return folder


def assert_same_weights(one: Path, other: Path) -> None:
    expected, found = load_file(one / 'tree.safetensors'), load_file(other / 'tree.safetensors')
    assert all(torch.equal(tensor, found[name]) for name, tensor in expected.items())


def test_a_file_system_without_room_for_a_second_checkpoint(whole, tmp_path):
    mount = tmp_path / 'small'
    mount.mkdir()
    [checkpoint] = (whole / 'checkpoints').iterdir()
    size = sum(path.stat().st_size for path in checkpoint.iterdir())
    asked = subprocess.run(
        ['mount', '-t', 'tmpfs', '-o', f'size={int(1.5 * size)}', 'tmpfs', str(mount)], capture_output=True)
    if asked.returncode:
        pytest.skip('mounting a file system takes more rights than this user has')
    try:
        done = train(mount / 'run')
        assert done.returncode == 2
        [error] = [line for line in done.stderr.splitlines() if line.startswith('error: ')]
        assert "checkpoint '" in error and "update-000000008' can't be written (" in error
        assert "the last one, 'update-000000004', is intact: free disk space, then run the same command" in error
        assert [path.name for path in (mount / 'run' / 'checkpoints').iterdir()] == ['update-000000004']
        subprocess.run(['mount', '-o', 'remount,size=100m', str(mount)], check=True)
        done = train(mount / 'run')
        assert done.returncode == 0, done.stderr
        assert 'resuming after 4 updates' in done.stdout
        shutil.copytree(mount / 'run', tmp_path / 'run')
    finally:
        subprocess.run(['umount', str(mount)], check=True)
    assert_same_weights(whole, tmp_path / 'run')


def test_a_limit_on_the_size_of_files(whole, tmp_path):
    output = tmp_path / 'run'
    done = train(output, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, 2**20)))
    assert done.returncode == 2
    [error] = [line for line in done.stderr.splitlines() if line.startswith('error: ')]
    assert "update-000000004' can't be written (" in error and 'there is no earlier one: free disk space' in error
    assert list((output / 'checkpoints').iterdir()) == []
    assert [json.loads(line)['epoch'] for line in (output / 'metrics.jsonl').read_text().splitlines()] == [0]
    assert main([*RECIPE, f'--output={output}']) == 0
    assert_same_weights(whole, output)
