from __future__ import annotations

import dataclasses
import json

import pytest

from tests.runs import summary_values
from timm_collab.study import read_rows, rows_of
from timm_collab.study.compare import by_seed, relative
from timm_collab.study.report import RUNS_CSV
from timm_collab.study.rows import write_rows
from timm_collab.study.runner import run_folder
from timm_collab.train import TrainError

from . import toys

SCORES = {'top1_heads': [66.0, 66.1, 66.5, 66.2], 'top1_consensus': 68.0, 'top1_kept': 66.5, 'count': 500}
OLD = summary_values(
    tree='layer2:2,layer3:2', num_heads=4, kept_head=2, error_kept=33.5, error_consensus=32.0,
    error_heads=[34.0, 33.9, 33.5, 33.8], test=SCORES, val={'top1_kept': 66.28},
    best_epoch={'epoch': 21, 'val': {'top1_kept': 66.88}}, parameters={'trained': 1220000, 'kept': 373658},
    data={'path': 'builtin:digits', 'num_classes': 10, 'label_names': None,
          'preprocessing': {'input_size': [1, 16, 16]}, 'train': 10000, 'val': 130,
          'val_origin': 'somewhere', 'test': 500},
    epochs=24, train_seconds=130.54816809699696,
)
"""As the first release that had studies wrote it: without format, hardware, commit, peak memory and teacher."""


def test_rows_come_back_from_the_file_as_they_were(study, tmp_path):
    rows = toys.rows()
    rows[1] = dataclasses.replace(rows[1], error=100 / 3, commit=None, multiply_adds=None, peak_memory_mb=0.1 + 0.2)
    write_rows(rows, tmp_path / RUNS_CSV)
    read = read_rows(study, tmp_path / RUNS_CSV)
    order = [(cell.setting, cell.method, cell.seed) for cell in study.cells]
    assert read == sorted(rows, key=lambda row: order.index((row.setting, row.method, row.seed)))
    assert not list(tmp_path.glob('.*'))


def test_a_summary_of_an_older_version_makes_a_row(study, tmp_path):
    [cell] = [cell for cell in study.cells if (cell.setting, cell.method, cell.seed) == ('40 %', 'tree', 1)]
    folder = run_folder(tmp_path, cell)
    folder.mkdir(parents=True)
    (folder / 'summary.json').write_text(json.dumps(OLD))
    [row] = rows_of(study, tmp_path)
    assert (row.setting, row.method, row.seed, row.error, row.kept_head) == ('40 %', 'tree', 1, 33.5, 2)
    assert (row.error_last, row.error_oracle, row.kept_epoch) == (33.5, None, 24)
    assert (row.commit, row.peak_memory_mb, row.teacher_seconds, row.device) == (None, None, None, 'cpu')
    assert row.recipe == 'recipes/40/tree/seed-1.yaml' and row.versions == 'timm 1.0.31, torch 2.15.0'
    # Of the recipe: the quickstart's tree, forward and backward.
    assert row.multiply_adds > 0 and row.multiply_adds % 3 == 0


def test_ratios_are_taken_seed_by_seed(study):
    rows = [toys.row('clean', 'single', 0, 5, train_seconds=1.0), toys.row('clean', 'single', 1, 5, train_seconds=10.0),
            toys.row('clean', 'tree', 0, 5, train_seconds=2.0), toys.row('clean', 'tree', 1, 5, train_seconds=40.0),
            toys.row('clean', 'tree', 2, 5, train_seconds=999.0)]
    assert relative(study, rows, 'clean', 'tree', 'train_seconds') == pytest.approx(3.0)
    assert relative(study, rows, '40 %', 'tree', 'train_seconds') is None
    assert by_seed(rows, 'clean', 'tree', 'peak_memory_mb') == {}


def test_a_teachers_training_is_a_cost():
    row = toys.row('clean', 'tree', 0, 5, teacher_multiply_adds=5_000_000, teacher_seconds=12.0)
    assert row.cost_multiply_adds == 600 * 1000 * 10 + 5_000_000 and row.cost_seconds == 42.0


@pytest.mark.parametrize(('old', 'new', 'message'), [
    ('clean,tree,0', 'clean,tree,x', r"runs.csv', line 4: seed must be int, got 'x'"),
    ('clean,tree,0', 'clean,tree,9', "method 'tree', setting 'clean', seed 9 is no run of the study"),
    ('clean,tree,0', 'clean,bush,0', "method 'bush', setting 'clean', seed 0 is no run"),
    ('clean,tree,0', 'clean,single,0', "setting 'clean', seed 0 appears twice"),
    ('train_seconds', 'seconds', 'line 2: no value for train_seconds'),
])
def test_invalid_csv_file_is_rejected(study, tmp_path, old, new, message):
    path = tmp_path / RUNS_CSV
    rows = sorted(toys.rows(), key=lambda row: (row.seed, row.setting != '40 %', row.method))
    write_rows([rows[0], rows[2], rows[3]], path)
    text = path.read_text()
    assert text.count(old) == 1
    path.write_text(text.replace(old, new))
    with pytest.raises(TrainError, match=message):
        read_rows(study, path)


def test_missing_and_empty_files_are_rejected(study, tmp_path):
    path = tmp_path / RUNS_CSV
    with pytest.raises(TrainError, match=r'no runs .*runs\.csv'):
        read_rows(study, path)
    write_rows([], path)
    with pytest.raises(TrainError, match='has no runs'):
        read_rows(study, path)
