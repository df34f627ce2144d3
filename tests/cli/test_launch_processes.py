"""Processes of a launch train together and pass on exit statuses and signals."""
from __future__ import annotations

import json
import signal
import subprocess
import time

import pytest

from .conftest import RECIPE, start

pytestmark = pytest.mark.multiprocess


def finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    output, errors = process.communicate(timeout=120)
    return process.returncode, output, errors


def test_two_ranks_train_together(tmp_path):
    status, output, errors = finish(start(
        'train', '--num-processes=2', *RECIPE, '--epochs=1', '--output=run', cwd=tmp_path))
    assert status == 0, errors
    assert json.loads((tmp_path / 'run' / 'summary.json').read_text())['num_processes'] == 2
    assert output.count('test error:') == 1


def test_errors_of_ranks_are_reported_without_a_traceback(tmp_path):
    status, _, errors = finish(start(
        'train', '--num-processes=2', *RECIPE, '--data.path=nowhere', '--output=run', cwd=tmp_path))
    assert status == 2 and "error: data.path 'nowhere' does not exist" in errors
    assert 'Traceback' not in errors
    assert not (tmp_path / 'run').exists()


@pytest.mark.parametrize(('number', 'expected'), [
    pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow), (signal.SIGTERM, 75)])
def test_ranks_save_after_a_signal(tmp_path, number, expected):
    process = start('train', '--num-processes=2', *RECIPE, '--epochs=500', '--output=run', cwd=tmp_path)
    deadline = time.monotonic() + 100
    while not (tmp_path / 'run' / 'metrics.jsonl').exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.1)
    process.send_signal(number)
    status, output, errors = finish(process)
    assert status == expected, errors
    assert output.count('stopped and saved after') == 1 and 'Traceback' not in errors
    assert list((tmp_path / 'run' / 'checkpoints').iterdir())
