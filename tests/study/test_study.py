"""A small study with real runs: repeated, stopped, with a failing cell."""
from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import IO

import pytest
import yaml

from tests.fork_server import Process
from timm_collab.cli import main
from timm_collab.study import read_study, run_study, runner, write_report
from timm_collab.study.runner import run_folder
from timm_collab.train import TrainError
from timm_collab.train.record.plots import can_plot
from timm_collab.train.record.run_folder import RunLock, read_summary

ROOT = Path(__file__).parents[2]
GRID = {
    'about': 'Heads of a toy',
    'keys': {
        'model.name': 'collab_test_resnet', 'data.path': 'builtin:digits', 'data.img_size': 16, 'data.in_chans': 1,
        'data.max_train_samples': 128, 'augment.no_aug': True, 'optim.lr': 0.02, 'epochs': 1, 'batch_size': 32,
    },
    'methods': {
        'single': {'keys': {'model.heads': 1}},
        'two': {'keys': {'model.heads': 2}},
    },
    'baseline': 'single',
    'seeds': [0, 1],
}


@pytest.fixture(autouse=True)
def _from_this_checkout(monkeypatch):
    monkeypatch.setenv('PYTHONPATH', str(ROOT))
    monkeypatch.setenv('HF_HUB_OFFLINE', '1')


@pytest.fixture
def forked_runs(monkeypatch):
    """Have the study fork its runs from the fork server."""

    def start(command: list[str], stdout: IO[bytes], env: dict[str, str], **_: object) -> Process:
        return Process(command[1:], Path.cwd(), env, Path(stdout.name), new_session=True)

    monkeypatch.setattr(runner, 'subprocess', SimpleNamespace(
        Popen=start, STDOUT=subprocess.STDOUT, DEVNULL=subprocess.DEVNULL))


def grid(folder: Path, **changes) -> Path:
    path = folder / 'grid.yaml'
    path.write_text(yaml.safe_dump({**GRID, **changes}, sort_keys=False))
    return path


def study(path: Path, *argv: str) -> int:
    return main(['study', str(path), '--output', str(path.parent / 'study'), *argv])


@pytest.mark.usefixtures('forked_runs')
def test_study_runs_reports_and_skips_finished_runs(tmp_path, capsys):
    path, folder = grid(tmp_path), tmp_path / 'study'
    assert study(path, '--jobs', '2', '--threads', '1') == 0
    output = capsys.readouterr().out
    assert output.startswith('4 runs: 2 methods, 1 settings, 2 seeds') and '4/4  ' in output
    with open(folder / 'runs.csv', newline='') as file:
        rows = list(csv.DictReader(file))
    read = read_study(path)
    assert [(row['method'], int(row['seed'])) for row in rows] == [('single', 0), ('two', 0), ('single', 1), ('two', 1)]
    errors = {}
    for row, cell in zip(rows, read.cells, strict=True):
        summary = read_summary(run_folder(folder, cell))
        assert float(row['error']) == summary.scores.kept and summary.seed == cell.seed
        errors[cell.method, cell.seed] = summary.scores.kept
    report = (folder / 'report.md').read_text()
    difference = sum(errors['two', seed] - errors['single', seed] for seed in (0, 1)) / 2
    [line] = [line for line in report.splitlines() if line.startswith('| two |')]
    assert f'{difference:+.2f} ± ' in line and '| 2 |' in line
    assert (folder / 'errors.png').exists() == can_plot() == ('![' in report)
    assert 'have not finished' not in report

    stamps = {cell.name: (run_folder(folder, cell) / 'summary.json').stat().st_mtime_ns for cell in read.cells}
    assert study(path) == 0
    assert stamps == {
        cell.name: (run_folder(folder, cell) / 'summary.json').stat().st_mtime_ns for cell in read.cells}
    # Another recipe is rejected before anything runs.
    with pytest.raises(TrainError, match=r"cell 'single/seed-0': .* run of another recipe; .* epochs 1 -> 2"):
        run_study(read_study(grid(tmp_path, keys={**GRID['keys'], 'epochs': 2})), folder)


@pytest.mark.usefixtures('forked_runs')
def test_failed_cell_is_reported_and_others_continue(tmp_path, capsys):
    path = grid(tmp_path, seeds=[0], methods={
        'single': {'keys': {'model.heads': 1}}, 'lost': {'keys': {'model.heads': 2, 'max_loss': 1e-3}}})
    assert study(path, '--threads', '1') == 1
    err = capsys.readouterr().err
    assert 'error: lost/seed-0: failed with status 2: error: the loss is ' in err and 'logs/lost/seed-0.txt' in err
    assert '**1 of 2 runs have not finished.**' in (tmp_path / 'study' / 'report.md').read_text()


@pytest.mark.usefixtures('forked_runs')
def test_signal_stops_all_runs_with_a_checkpoint(tmp_path, capsys):
    path = grid(tmp_path, seeds=[0], keys={**GRID['keys'], 'epochs': 200})
    cells = read_study(path).cells

    def stop() -> None:
        deadline = time.monotonic() + 120
        while not all((run_folder(tmp_path / 'study', cell) / 'metrics.jsonl').exists() for cell in cells):
            if time.monotonic() > deadline:
                break
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=stop)
    thread.start()
    assert study(path, '--jobs', '2', '--threads', '1') == 75
    thread.join()
    assert 'stopped, every run saved; the same command resumes the study' in capsys.readouterr().out
    for cell in cells:
        assert list((run_folder(tmp_path / 'study', cell) / 'checkpoints').iterdir())
        assert 'stopped and saved after' in (tmp_path / 'study' / 'logs' / f'{cell.name}.txt').read_text()


def test_without_a_finished_run_there_is_no_report(tmp_path):
    with pytest.raises(TrainError, match='has no finished run yet'):
        write_report(read_study(grid(tmp_path)), tmp_path / 'study')


def test_one_process_runs_a_study_at_a_time(tmp_path, monkeypatch, capsys):
    path = grid(tmp_path)
    monkeypatch.setattr('timm_collab.train.record.run_folder.LOCK_SECONDS', 0)
    with RunLock(tmp_path / 'study'):
        assert study(path) == 2
    assert "study' is in use by another process" in capsys.readouterr().err
    assert not (tmp_path / 'study' / 'runs').exists()


def test_study_waits_for_a_run_of_a_killed_study(tmp_path, capsys):
    path = grid(tmp_path, seeds=[0], methods={'single': GRID['methods']['single']})
    cell = read_study(path).cells[0]
    program = ('import sys, time; from pathlib import Path; from timm_collab.train.record.run_folder import RunLock\n'
               'with RunLock(Path(sys.argv[1])): print(flush=True); time.sleep(2)')
    left = subprocess.Popen(
        [sys.executable, '-c', program, str(run_folder(tmp_path / 'study', cell))], stdout=subprocess.PIPE)
    left.stdout.readline()
    assert study(path, '--threads', '1') == 0
    assert left.wait(60) == 0 and 'in use' not in capsys.readouterr().err


def test_crashed_cell_has_status_failed(tmp_path, monkeypatch, capsys):
    path = grid(tmp_path, seeds=[0], methods={'single': GRID['methods']['single']})
    monkeypatch.setenv('PYTHONPATH', str(tmp_path))
    (tmp_path / 'sitecustomize.py').write_text('raise SystemExit(3)')
    assert study(path) == 1
    capsys.readouterr()
    monkeypatch.undo()
    assert study(path, '--status') == 0
    assert 'error: failed with status 1: SystemExit: 3' in capsys.readouterr().out


@pytest.mark.parametrize(('argv', 'message'), [
    (['--set', 'a=[1'], "--set 'a=[1': its value is no YAML"),
    (['--set', 'seed=7'], "the seeds are the study's"),
    (['--threads', '0'], '--threads must be at least 1, got 0'),
])
def test_invalid_options(tmp_path, capsys, argv, message):
    assert study(grid(tmp_path), *argv) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / 'study').exists()


def test_methods_named_by_numbers(tmp_path, capsys):
    assert study(grid(tmp_path, methods={1: {'keys': {'model.heads': 1}}}, baseline=1)) == 2
    assert 'the name of method 1 must be text' in capsys.readouterr().err
