"""A disk that fills up while a run trains: a small file system, and a limit on the size of files."""
from __future__ import annotations

import errno
import json
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.fork_server import Launch
from timm_collab.train.__main__ import main
from timm_collab.train.record import save

RECIPE = [
    '--model.name=collab_test_resnet', '--model.heads=2', '--data.path=builtin:digits', '--data.img_size=16',
    '--data.in_chans=1', '--data.max_train_samples=128', '--augment.no_aug=true', '--optim.lr=0.02', '--epochs=3',
    '--batch_size=32', '--checkpoint.keep_last=1', '--checkpoint.keep_best=0', '--cpu_threads=1', '--plots=false',
]


LIMITED = """
import resource, sys
from tests.fork_server import Launch
from timm_collab.train.__main__ import main
resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, 2**20))
sys.exit(main(sys.argv[1:]))
"""


def train(program: list[str], output: Path) -> Launch:
    return Launch([*program, *RECIPE, f'--output={output}'], output.parents[1])


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
        program = ['-m', 'timm_collab.train']
        errors = train(program, mount / 'run').fail()
        [error] = [line for line in errors.splitlines() if line.startswith('error: ')]
        assert "checkpoint '" in error and "update-000000008' can't be written (" in error
        assert "the last one, 'update-000000004', is intact: free disk space, then run the same command" in error
        assert [path.name for path in (mount / 'run' / 'checkpoints').iterdir()] == ['update-000000004']
        subprocess.run(['mount', '-o', 'remount,size=100m', str(mount)], check=True)
        assert 'resuming after 4 updates' in train(program, mount / 'run').finish()
        shutil.copytree(mount / 'run', tmp_path / 'run')
    finally:
        subprocess.run(['umount', str(mount)], check=True)
    assert_same_weights(whole, tmp_path / 'run')


def test_a_limit_on_the_size_of_files(whole, tmp_path):
    output = tmp_path / 'limited' / 'run'
    launch = train(['-c', LIMITED], output)
    errors = launch.fail()
    assert launch.ranks[0].returncode == 2
    [error] = [line for line in errors.splitlines() if line.startswith('error: ')]
    assert "update-000000004' can't be written (" in error and 'there is no earlier one: free disk space' in error
    assert list((output / 'checkpoints').iterdir()) == []
    assert [json.loads(line)['epoch'] for line in (output / 'metrics.jsonl').read_text().splitlines()] == [0]
    assert main([*RECIPE, f'--output={output}']) == 0
    assert_same_weights(whole, output)


@pytest.mark.parametrize('name', ['save_model', 'save_for_hf'])
def test_full_when_the_model_is_saved(whole, tmp_path, monkeypatch, capsys, name):
    def fail(*args, **kwargs):
        raise OSError(errno.ENOSPC, 'No space left on device')

    output = tmp_path / 'run'
    with monkeypatch.context() as patch:
        patch.setattr(save, name, fail)
        assert main([*RECIPE, f'--output={output}']) == 2
    error = capsys.readouterr().err
    assert 'No space left on device): free disk space, then run the same command to resume' in error
    assert not (output / 'summary.json').exists()
    assert main([*RECIPE, f'--output={output}']) == 0
    assert 'resuming after 12 updates' in capsys.readouterr().out
    assert_same_weights(whole, output)
