from __future__ import annotations

import os
import re
import signal
import threading
import time

import pytest

from tests.fork_server import CPU, Process
from timm_collab.train.distributed import signals as stopping
from timm_collab.train.distributed.signals import StoppedError, StopRequest


@pytest.mark.parametrize(('number', 'status'), [(signal.SIGTERM, 75), (signal.SIGUSR1, 75), (signal.SIGINT, 130)])
def test_a_signal_is_noted_and_the_handlers_come_back(number, status):
    before = signal.getsignal(number)
    with StopRequest() as stop:
        assert not stop.requested
        os.kill(os.getpid(), number)
        assert stop.requested and stop.signal_number == number
    assert signal.getsignal(number) is before
    error = StoppedError(stop.signal_number)
    assert error.exit_status == status and signal.Signals(number).name in str(error)


def test_a_second_ctrl_c_does_not_wait_but_one_that_comes_twice_is_one(monkeypatch):
    with StopRequest() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.signal_number == signal.SIGINT
        monkeypatch.setattr(stopping, 'SAME_PRESS', 0.0)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_a_process_that_learnt_of_it_from_another_ends_in_the_same_way():
    assert StoppedError(None).exit_status == 75 and 'by another process' in str(StoppedError(None))


def test_outside_the_main_thread_it_changes_nothing():
    def work():
        with StopRequest() as stop:
            requested.append(stop.requested)

    requested: list[bool] = []
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert requested == [False]


def test_workers_leave_a_signal_to_the_process_that_trains(tmp_path, image_folder):
    """Schedulers signal all processes of a job. A worker of PyTorch's that dies of it would take the others along."""
    program = [
        '-m', 'timm_collab.train', '--model.name=collab_test_resnet', '--model.heads=2',
        f'--data.path={image_folder(train=64, test=4)}', '--data.img_size=32', '--data.pipeline=image',
        '--data.workers=2', '--epochs=500', '--batch_size=16', '--cpu_threads=1', '--output=run',
    ]
    environment = {**os.environ, **CPU, 'HF_DATASETS_CACHE': str(tmp_path / 'cache')}
    run = Process(program, tmp_path, environment, tmp_path / 'out', tmp_path / 'err', new_session=True)
    while not re.search(r'^ *\d+/500 ', run.output(), re.MULTILINE):
        assert run.poll() is None, run.errors()[-3000:]
        time.sleep(0.02)
    os.killpg(run.pid, signal.SIGTERM)
    assert run.wait(120) == 75, run.errors()[-3000:]
    assert 'stopped and saved after' in run.output()
    assert not [path for path in (tmp_path / 'run' / 'checkpoints').iterdir() if path.name.startswith('.')]
