from __future__ import annotations

import json

import pytest
import yaml

from tests.runs import summary_values
from timm_collab.cli import main
from timm_collab.study.runner import run_folder
from timm_collab.study.status import State, study_status
from timm_collab.train.record.run_folder import RunLock

from . import toys


@pytest.fixture
def folder(study, tmp_path):
    """A study's folder with a run in each state; all other runs are waiting."""
    finished, running, stopped, failed, begun = (run_folder(tmp_path, cell) for cell in study.cells[:5])
    for run in (finished, running, stopped, failed, begun):
        run.mkdir(parents=True)
        (run / 'config.yaml').write_text('epochs: 10\n')
    (finished / 'summary.json').write_text(json.dumps(summary_values(test={'top1_kept': 87.655})))
    (running / 'metrics.jsonl').write_text('{"epoch": 0}\n{"epoch": 1}\n{"epo')
    (stopped / 'metrics.jsonl').write_text('{"epoch": 6}\n')
    (stopped / '.lock').touch()
    log = tmp_path / 'logs' / f'{study.cells[3].name}.txt'
    log.parent.mkdir(parents=True)
    log.write_text('some\n\nerror: the loss is nan\n\n')
    with RunLock(running):
        yield tmp_path


def test_progress_is_read_from_the_folders(study, folder):
    status = list(study_status(study, folder).values())
    assert [each.state for each in status[:5]] == [
        State.FINISHED, State.RUNNING, State.STOPPED, State.FAILED, State.STOPPED]
    assert {each.state for each in status[5:]} == {State.WAITING}
    assert [str(each) for each in status[:6]] == [
        '12.35 %', 'running 2/10', 'stopped 7/10', 'failed', 'stopped 0/10', 'waiting']
    assert status[3].reason == 'error: the loss is nan'
    assert len(status) == len(study.cells)


def test_status_command_prints_progress_and_runs_nothing(folder, tmp_path, capsys):
    grid = tmp_path / 'toy.yaml'
    grid.write_text(yaml.safe_dump(toys.GRID, sort_keys=False))
    before = sorted(folder.rglob('*'))
    assert main(['study', str(grid), '--output', str(folder), '--status']) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ['setting', 'method', 'seed', '0', 'seed', '1', 'seed', '2']
    assert [line.split()[0] for line in lines[1:5]] == ['clean', 'clean', '40', '40']
    assert lines[1].split()[1:] == ['single', '12.35', '%', 'waiting', 'waiting']
    assert lines[-2:] == ['18 runs: 13 waiting, 1 running, 2 stopped, 1 failed, 1 finished',
                          '40/tree/seed-0: error: the loss is nan']
    assert sorted(folder.rglob('*')) == before
