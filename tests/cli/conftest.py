"""Fixtures: a finished run for the commands, trained once."""
from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import datasets
import pytest
from accelerate.state import AcceleratorState

from timm_collab import cli
from timm_collab.train.__main__ import main

RECIPE = [
    '--model.name=collab_test_vit', '--model.heads=2', '--model.kwargs.img_size=32', '--data.path=builtin:digits',
    '--data.in_chans=1', '--data.img_size=32', '--data.max_train_samples=256', '--batch_size=64', '--optim.name=adamw',
    '--optim.lr=3e-3', '--cpu_threads=1',
]


@pytest.fixture(autouse=True)
def _private_cache(tmp_path_factory, monkeypatch):
    """Cache of `datasets` outside the home folder."""
    monkeypatch.setattr(datasets.config, 'HF_DATASETS_CACHE', tmp_path_factory.getbasetemp() / 'datasets-cache')


@pytest.fixture(scope='session')
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two epochs on the shipped digits."""
    folder = tmp_path_factory.mktemp('finished')
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, 'HF_DATASETS_CACHE', folder / 'cache')
        assert main([*RECIPE, '--epochs=2', '--noise.rate=0.2', f'--output={folder / "run"}']) == 0
    AcceleratorState._reset_state(reset_partial_state=True)
    return folder / 'run'


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run a command in this process; returns its exit status, standard output and standard error."""
    def call(*argv: object) -> tuple[int, str, str]:
        status = cli.main([str(word) for word in argv])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return call
