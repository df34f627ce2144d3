"""Runs that are in runs.csv only: a study resumes without their folders, for example on another machine."""
from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from timm_collab.cli import main
from timm_collab.study import read_rows, recorded_rows, run_study
from timm_collab.study.status import State, study_status
from timm_collab.train import TrainError

from . import toys

TAUGHT = {'needs': 'tree', 'keys': {'model.heads': 1, 'teacher.path': '{tree}'}}


def names(started: Path) -> list[str]:
    return ['/'.join(Path(line).parts[-2:]) for line in started.read_text().splitlines()]


def test_study_resumes_from_runs_csv_only(tmp_path, trainer):
    started, folder = trainer(), tmp_path / 'study'
    command = ['study', str(tmp_path / 'toy.yaml'), '--output', str(folder), '--set', 'data.path=here']
    toys.study_in(tmp_path, settings=None, seeds=[0])
    assert main(command) == 0
    before = (folder / 'runs.csv').read_text()
    for name in ('runs', 'recipes', 'logs'):
        shutil.rmtree(folder / name)
    study = toys.study_in(tmp_path, settings=None, seeds=[0, 1])
    command[-1] = 'data.path=elsewhere'
    status = {cell.name: each for cell, each in study_status(study, folder).items()}
    assert [each.state is State.FINISHED for each in status.values()] == [name.endswith('seed-0') for name in status]
    assert status['tree/seed-0'].error == read_rows(study, folder / 'runs.csv')[1].error
    assert main(command) == 0
    assert names(started) == ['single/seed-0', 'tree/seed-0', 'single/seed-1', 'tree/seed-1']
    after = read_rows(study, folder / 'runs.csv')
    assert [(row.method, row.seed) for row in after] == [('single', 0), ('tree', 0), ('single', 1), ('tree', 1)]
    assert (folder / 'runs.csv').read_text().startswith(before)
    assert main([*command, '--report']) == 0 and read_rows(study, folder / 'runs.csv') == after


def test_recorded_run_that_another_needs_is_repeated(tmp_path, trainer):
    started, folder = trainer(), tmp_path / 'study'
    methods = {'tree': {}, 'taught': TAUGHT}
    study = toys.study_in(tmp_path, methods=methods, baseline='tree', settings=None, seeds=[0, 1])
    recorded = [cell for cell in study.cells if cell.method == 'tree' or cell.seed == 1]
    assert run_study(study, folder, recorded=recorded) == []
    assert names(started) == ['tree/seed-0', 'taught/seed-0']


def test_recorded_run_of_another_recipe_is_rejected(tmp_path, trainer):
    trainer()
    folder = tmp_path / 'study'
    study = toys.study_in(tmp_path, settings=None, seeds=[0])
    assert main(['study', str(tmp_path / 'toy.yaml'), '--output', str(folder)]) == 0
    assert recorded_rows(study, folder) == {}  # their runs are there
    shutil.rmtree(folder / 'runs')
    assert len(recorded_rows(study, folder)) == 2
    other = toys.study_in(tmp_path, settings=None, seeds=[0], keys={'epochs': 7})
    with pytest.raises(TrainError, match=r"has a run 'single/seed-0' of another recipe: remove its row"):
        recorded_rows(other, folder)
