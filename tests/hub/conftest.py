"""Fixtures: a Hub on the loopback interface for the real client, and finished runs without training."""
from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest

from tests.hub_server import HubServer, User
from tests.runs import finished_run
from timm_collab import load_run
from timm_collab.hub import ExportOptions, push
from timm_collab.hub.export import write_folder

ROOT = Path(__file__).parents[2]
TOKEN = 'hf_' + 'SecretSecretSecret' * 2
MakeRun = Callable[..., Path]


@contextmanager
def running_hub(folder: Path) -> Iterator[HubServer]:
    """A Hub with the logged-in user `ann`, used by the client here and in subprocesses."""
    with HubServer(folder / 'hub') as server, pytest.MonkeyPatch.context() as patch:
        server.tokens[TOKEN] = User('ann')
        for name, value in client_environment(server, folder / 'hf-home').items():
            patch.setenv(name, value)
        patch.setenv('HF_TOKEN', TOKEN)
        # Values that the client read from the environment at import, in older releases in several modules.
        known = {
            'ENDPOINT': server.url,
            'HUGGINGFACE_CO_URL_TEMPLATE': server.url + '/{repo_id}/resolve/{revision}/{filename}',
            'HF_HUB_CACHE': str(folder / 'hf-home' / 'hub'),
            'HF_TOKEN_PATH': str(folder / 'hf-home' / 'token'),
            'HF_HUB_DISABLE_XET': True,
            'HF_HUB_OFFLINE': False,
        }
        for name, module in list(sys.modules.items()):
            if name.startswith('huggingface_hub.'):
                for key in known.keys() & vars(module).keys():
                    patch.setattr(module, key, known[key])
        patch.setattr(push, 'WAIT', 0.01)
        yield server
        close = getattr(huggingface_hub, 'close_session', None)  # its connections are to the closed server
        if close is not None:
            close()


@pytest.fixture
def hub(tmp_path) -> Iterator[HubServer]:
    with running_hub(tmp_path) as server:
        yield server


def client_environment(server: HubServer, home: Path) -> dict[str, str]:
    return {'HF_ENDPOINT': server.url, 'HF_HOME': str(home), 'HF_HUB_DISABLE_XET': '1', 'HF_HUB_OFFLINE': '0',
            'HF_HUB_DISABLE_TELEMETRY': '1', 'HF_HUB_DISABLE_IMPLICIT_TOKEN': '0'}


def python(code: str, *argv: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run code in another process, which can import the package."""
    return subprocess.run(
        [sys.executable, '-c', code, *argv],
        cwd=cwd,
        env={**os.environ, 'PYTHONPATH': str(ROOT), 'OMP_NUM_THREADS': '1', **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.fixture(scope='session')
def usual_run(tmp_path_factory) -> Path:
    return finished_run(tmp_path_factory.mktemp('usual') / 'run')


@pytest.fixture(scope='session')
def usual_export(usual_run) -> Path:
    folder = usual_run.with_name('exported')
    write_folder(load_run(usual_run), folder, ExportOptions(license='cc-by-4.0'))
    return folder


@pytest.fixture
def make_run(tmp_path, usual_run) -> MakeRun:
    """Create a finished run."""

    def make(name: str = 'run', **kwargs: Any) -> Path:
        return finished_run(tmp_path / name, **kwargs) if kwargs else shutil.copytree(usual_run, tmp_path / name)

    return make


@pytest.fixture
def exported(tmp_path, usual_export) -> Path:
    """An exported folder, without the verification in another process."""
    return shutil.copytree(usual_export, tmp_path / 'exported')
