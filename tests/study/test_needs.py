"""Cells that need the run of another; the trainer is a shell script that records its arguments."""
from __future__ import annotations

import json
from pathlib import Path

import yaml

from timm_collab.cli import main
from timm_collab.study import read_study, rows_of, run_study
from timm_collab.study.runner import recipe_of, run_folder

from . import toys
from .test_rows import OLD

TAUGHT = {'needs': 'tree', 'keys': {'model.heads': 1, 'teacher.path': '{tree}'}}
METHODS = {'taught': TAUGHT, **toys.GRID['methods']}


def test_method_runs_after_the_needed_one_and_gets_its_folder(tmp_path, trainer):
    started = trainer()
    study, folder = toys.study_in(tmp_path, methods=METHODS, settings=None, seeds=[0, 1]), tmp_path / 'study'
    assert run_study(study, folder) == []
    order = [Path(line).relative_to(folder / 'runs').as_posix() for line in started.read_text().splitlines()]
    # In the order of the study, except that a cell waits for the one that it needs.
    assert order == ['single/seed-0', 'tree/seed-0', 'taught/seed-0', 'single/seed-1', 'tree/seed-1', 'taught/seed-1']
    for cell in study.cells:
        recipe = yaml.safe_load((folder / 'recipes' / f'{cell.name}.yaml').read_text())
        teacher = str(folder / 'runs' / 'tree' / f'seed-{cell.seed}') if cell.method == 'taught' else None
        assert recipe['teacher']['path'] == teacher == recipe_of(folder, cell).teacher.path
    assert run_study(study, folder) == [] and len(started.read_text().splitlines()) == 6


def test_needed_run_comes_first_with_parallel_jobs(tmp_path, trainer):
    started = trainer()
    methods = {'taught': TAUGHT, 'tree': METHODS['tree']}
    study = toys.study_in(tmp_path, methods=methods, baseline='tree', settings=None, seeds=[0])
    assert run_study(study, tmp_path / 'study', jobs=2) == []
    assert [Path(line).parent.name for line in started.read_text().splitlines()] == ['tree', 'taught']
    assert not (tmp_path / 'overlapped').exists()


def test_runs_that_need_a_failed_run_are_reported_and_not_started(tmp_path, trainer, capsys):
    started = trainer(fails='tree/seed-0')
    toys.study_in(tmp_path, methods=METHODS, settings=None, seeds=[0, 1])
    assert main(['study', str(tmp_path / 'toy.yaml'), '--output', str(tmp_path / 'study')]) == 1
    captured = capsys.readouterr()
    assert 'error: tree/seed-0: failed with status 2: error: out of luck' in captured.err
    assert 'error: taught/seed-0: not run, as it needs tree/seed-0' in captured.err and '6/6  ' in captured.out
    names = [Path(line).parent.name for line in started.read_text().splitlines()]
    assert names.count('taught') == 1 and names.count('single') == 2
    assert '**2 of 6 runs have not finished.**' in (tmp_path / 'study' / 'report.md').read_text()


def test_row_has_the_cost_of_the_teacher(tmp_path):
    study = toys.study_in(tmp_path, methods=METHODS, settings=None, seeds=[0])
    facts = {'multiply_adds': 1000, 'train_multiply_adds': 10**9, 'train_seconds': 60.0}
    for cell in study.cells:
        run_folder(tmp_path, cell).mkdir(parents=True)
        (run_folder(tmp_path, cell) / 'summary.json').write_text(json.dumps(
            {**OLD, 'teacher': facts if cell.method == 'taught' else None}))
    taught, single, _ = rows_of(read_study(tmp_path / 'toy.yaml'), tmp_path)
    assert taught.multiply_adds == single.multiply_adds + 1000
    assert taught.cost_multiply_adds == 24 * 10000 * taught.multiply_adds + 10**9
    assert taught.cost_seconds == single.cost_seconds + 60 == single.train_seconds + 60
    (run_folder(tmp_path, study.cells[0]) / 'summary.json').write_text(json.dumps(
        {**OLD, 'teacher': {**facts, 'train_multiply_adds': None, 'train_seconds': None}}))
    taught = rows_of(study, tmp_path)[0]
    assert (taught.teacher_seconds, taught.cost_seconds) == (None, taught.train_seconds)
