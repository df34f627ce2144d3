"""Start Python processes in milliseconds: forks of one process that has already loaded what they import.

Loading PyTorch, timm and this package takes about five seconds of a core. A test that needs two ranks, or the same
command three times, pays for that once per test session. A fork runs what `python -m module ...`, `python -c code ...`
or `python file ...` would, as `__main__`, with an environment, a working directory and output files of its own, and
ends as an interpreter ends.

Variables that a library reads when it is imported are those of the server: forks are offline and see no GPU. What
depends on others, and what must be proven for the command that a user types, starts a real process. So does everything
on systems other than Linux, whose libraries may not be forked.
"""
from __future__ import annotations

import atexit
import functools
import gc
import importlib
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import time
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
LOADED = (
    'accelerate.commands.launch', 'datasets', 'tests.train.sharded', 'tests.train.toys', 'timm_collab.train.run',
    'torch._dynamo', 'torch.distributed.fsdp', 'torch.distributed.tensor',
)
FIXED = {'CUDA_VISIBLE_DEVICES': '', 'HF_HUB_OFFLINE': '1', 'OMP_NUM_THREADS': '1', 'PYTHONPATH': str(ROOT)}
CPU = {**FIXED, 'ACCELERATE_USE_CPU': 'true'}
POLL_SECONDS = 0.02
GRACE_SECONDS = 60


class Process:
    """A forked process, with the part of `subprocess.Popen` that tests use; output goes to files.

    Args:
        argv: Arguments of the interpreter: `-m module ...`, `-c code ...` or a file and its arguments.
        cwd: Working directory.
        env: All of its environment.
        stdout: File for the standard output.
        stderr: File for the standard error, default that of `stdout`.
        new_session: Whether it leads a session and a process group of its own.
    """

    def __init__(
            self,
            argv: Sequence[str],
            cwd: Path,
            env: Mapping[str, str],
            stdout: Path,
            stderr: Path | None = None,
            new_session: bool = False,
    ) -> None:
        self.stdout, self.stderr = stdout, stderr or stdout
        for path in (self.stdout, self.stderr):
            path.write_bytes(b'')
        self.returncode: int | None = None
        self._started: subprocess.Popen[bytes] | None = None
        if sys.platform == 'linux':
            self.pid: int = _ask({
                'argv': list(argv), 'cwd': str(cwd), 'env': dict(env), 'stdout': str(self.stdout),
                'stderr': str(self.stderr), 'new_session': new_session,
            })
            return
        with self.stdout.open('ab') as out, self.stderr.open('ab') as err:
            self._started = subprocess.Popen(
                [sys.executable, *argv], cwd=cwd, env=dict(env), stdin=subprocess.DEVNULL, stdout=out, stderr=err,
                start_new_session=new_session)
        self.pid = self._started.pid

    def poll(self) -> int | None:
        """The exit status, None while the process runs; of one that a signal killed the negated number."""
        if self.returncode is None:
            self.returncode = self._started.poll() if self._started else _ask({'poll': self.pid})
        return self.returncode

    def wait(self, timeout: float = 240) -> int:
        """Wait for the end; returns the exit status."""
        deadline = time.monotonic() + timeout
        while self.poll() is None:
            if time.monotonic() > deadline:
                self.kill()
                raise TimeoutError(f'after {timeout:.0f} s it still ran:\n{self.errors()[-3000:]}')
            time.sleep(POLL_SECONDS)
        assert self.returncode is not None
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def output(self) -> str:
        """What it has printed so far."""
        return self.stdout.read_text(errors='replace')

    def errors(self) -> str:
        """What it has written to the standard error so far."""
        return self.stderr.read_text(errors='replace')


class Launch:
    """The ranks of one launch, started as a launcher starts them, on CPUs.

    Args:
        argv: Arguments of the interpreter, the same for each rank.
        cwd: Working directory; the ranks' output is kept in its folder `ranks`.
        num_processes: Number of ranks.
        env: Variables beside those of this process and of the launch.
    """

    def __init__(
            self, argv: Sequence[str], cwd: Path, num_processes: int = 1, env: Mapping[str, str] | None = None,
    ) -> None:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(('ACCELERATE_', 'FSDP_'))}
        variables = {**inherited, **CPU, 'HF_DATASETS_CACHE': str(cwd / 'cache'), **(env or {})}
        with socket.socket() as free:
            free.bind(('127.0.0.1', 0))
            port = free.getsockname()[1]
        folder = cwd / 'ranks'
        folder.mkdir(exist_ok=True)
        number = len(list(folder.iterdir()))
        self.ranks = []
        for rank in range(num_processes):
            if num_processes > 1 or 'ACCELERATE_USE_FSDP' in variables:
                variables |= {
                    'RANK': str(rank), 'LOCAL_RANK': str(rank), 'WORLD_SIZE': str(num_processes),
                    'LOCAL_WORLD_SIZE': str(num_processes), 'MASTER_ADDR': '127.0.0.1', 'MASTER_PORT': str(port),
                }
            output = folder / f'{number:03d}-{rank}'
            self.ranks.append(
                Process(argv, cwd, variables, output.with_suffix('.out'), output.with_suffix('.err')))

    def wait(self, timeout: float = 240) -> list[int]:
        """Wait for all ranks; returns their exit statuses. Once one has failed, the others have seconds to end."""
        deadline = time.monotonic() + timeout
        while any(rank.poll() is None for rank in self.ranks):
            if any(rank.returncode for rank in self.ranks):
                deadline = min(deadline, time.monotonic() + GRACE_SECONDS)
            if time.monotonic() > deadline:
                self.kill()
            time.sleep(POLL_SECONDS)
        return [rank.wait() for rank in self.ranks]

    def kill(self) -> None:
        """Kill what still runs, as a launcher does when a rank has died."""
        for rank in self.ranks:
            rank.kill()
        for rank in self.ranks:
            rank.wait()

    def finish(self) -> str:
        """Wait for all ranks to end well; returns what the first printed."""
        statuses = self.wait()
        assert not any(statuses), (statuses, self.errors()[-6000:])
        return self.ranks[0].output()

    def fail(self) -> str:
        """Wait for all ranks to fail; returns what they wrote to the standard error."""
        statuses = self.wait()
        assert all(statuses), (statuses, self.errors()[-6000:])
        return self.errors()

    def errors(self) -> str:
        """What all ranks have written to the standard error so far."""
        return ''.join(rank.errors() for rank in self.ranks)


@functools.cache
def _server() -> subprocess.Popen[str]:
    server = subprocess.Popen(
        [sys.executable, '-m', 'tests.fork_server'], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env={**os.environ, **FIXED}, cwd=ROOT, start_new_session=True)  # Ctrl-C is for pytest
    atexit.register(server.communicate)  # it ends when nobody can ask any more
    return server


def _ask(request: dict[str, Any]) -> Any:
    server = _server()
    assert server.stdin is not None and server.stdout is not None
    server.stdin.write(json.dumps(request) + '\n')
    server.stdin.flush()
    return json.loads(server.stdout.readline())


def _serve() -> dict[str, Any] | None:
    """Fork for each request on the standard input; returns the request in a fork, None at the end of all requests."""
    for line in iter(sys.stdin.readline, ''):
        request = json.loads(line)
        if 'poll' in request:
            pid, status = os.waitpid(request['poll'], os.WNOHANG)
            answer = os.waitstatus_to_exitcode(status) if pid else None
        else:
            answer = os.fork()
            if not answer:
                return request
        sys.stdout.write(json.dumps(answer) + '\n')
        sys.stdout.flush()
    return None


def _become(request: dict[str, Any]) -> None:
    """Do what an interpreter does that is started with the arguments of a request."""
    if request['new_session']:
        os.setsid()
    for number, name in ((0, os.devnull), (1, request['stdout']), (2, request['stderr'])):
        file = os.open(name, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(file, number)
        os.close(file)
    os.chdir(request['cwd'])
    os.environ.clear()
    os.environ.update(request['env'])
    if cache := os.environ.get('HF_DATASETS_CACHE'):
        sys.modules['datasets'].config.HF_DATASETS_CACHE = Path(cache)  # type: ignore[attr-defined]
    gc.enable()
    first, *rest = request['argv']
    if first in ('-m', '-c'):
        target, *rest = rest
        sys.path.insert(0, request['cwd'])
    else:
        target = first
        sys.path.insert(0, str(Path(target).resolve().parent))
    sys.argv = ['-c' if first == '-c' else target, *rest]
    if first == '-m':
        for name in (target, f'{target}.__main__'):
            sys.modules.pop(name, None)  # `runpy` warns of what is loaded
        runpy.run_module(target, run_name='__main__', alter_sys=True)
    elif first == '-c':
        sys.modules['__main__'] = types.ModuleType('__main__')
        exec(compile(target, '<string>', 'exec'), vars(sys.modules['__main__']))
    else:
        runpy.run_path(target, run_name='__main__')


if __name__ == '__main__':
    for module in LOADED:
        importlib.import_module(module)
    gc.disable()
    gc.collect()
    gc.freeze()  # pages that no collection touches stay shared
    asked = _serve()
    if asked is not None:
        _become(asked)
