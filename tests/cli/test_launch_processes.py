"""Processes of a launch train together and pass on exit statuses and signals."""
from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.fork_server import FIXED, Process

from .conftest import RECIPE

pytestmark = pytest.mark.multiprocess


def environment(folder: Path) -> dict[str, str]:
    variables = {**os.environ, **FIXED, 'HF_DATASETS_CACHE': str(folder / 'cache'), 'HF_HOME': str(folder / 'home')}
    return {name: value for name, value in variables.items() if name not in ('WORLD_SIZE', 'RANK', 'LOCAL_RANK')}


def start(folder: Path, *argv: str) -> Process:
    """Start the command, forked; the ranks that it launches are not."""
    return Process(['-m', 'timm_collab', 'train', '--num-processes=2', *RECIPE, '--output=run', *argv], folder,
                   environment(folder), folder / 'out', folder / 'err')


def test_two_ranks_train_together(tmp_path):
    done = subprocess.run(
        [sys.executable, '-m', 'timm_collab', 'train', '--num-processes=2', *RECIPE, '--epochs=1', '--output=run'],
        cwd=tmp_path, env=environment(tmp_path), capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / 'run' / 'summary.json').read_text())['num_processes'] == 2
    assert done.stdout.count('test error:') == 1


def test_errors_of_ranks_are_reported_without_a_traceback(tmp_path):
    process = start(tmp_path, '--data.path=nowhere')
    assert process.wait() == 2 and "error: data.path 'nowhere' does not exist" in process.errors()
    assert 'Traceback' not in process.errors()
    assert not (tmp_path / 'run').exists()


@pytest.mark.parametrize(('number', 'expected'), [
    pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow), (signal.SIGTERM, 75)])
def test_ranks_save_after_a_signal(tmp_path, number, expected):
    process = start(tmp_path, '--epochs=500')
    deadline = time.monotonic() + 100
    while not (tmp_path / 'run' / 'metrics.jsonl').exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.1)
    process.send_signal(number)
    assert process.wait() == expected, process.errors()
    assert process.output().count('stopped and saved after') == 1 and 'Traceback' not in process.errors()
    assert list((tmp_path / 'run' / 'checkpoints').iterdir())
