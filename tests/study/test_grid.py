from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest
import yaml

from timm_collab.study import read_study
from timm_collab.study.grid import filled
from timm_collab.train import TrainError

ROOT = Path(__file__).parents[2]

GRID = {
    'about': 'A toy',
    'recipes': ['quickstart', 'methods/clean'],
    'keys': {'epochs': 3, 'optim.lr': 0.2},
    'settings': {
        'noise': {'clean': {'noise.rate': 0}, '40 %': {'noise': {'rate': 0.4}}},
        'size': {'small': {'data.max_train_samples': 200}, 'large': {'data.max_train_samples': 400}},
    },
    'methods': {
        'single': {'recipes': ['methods/single']},
        'tree': {'recipes': ['methods/heads4'], 'keys': {'optim.lr': 0.3, 'model.heads': 3}},
    },
    'baseline': 'single',
    'seeds': [3, 5],
}


TAUGHT = {'model.heads': 1}


def write(folder: Path, **changes) -> Path:
    values = {name: value for name, value in {**GRID, **changes}.items() if value is not None}
    path = folder / 'toy.yaml'
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    return path


def test_every_method_in_every_setting_with_every_seed(tmp_path):
    study = read_study(write(tmp_path))
    assert study.settings == ('clean, small', 'clean, large', '40 %, small', '40 %, large')
    assert study.methods == ('single', 'tree') and study.baseline == 'single' and study.about == 'A toy'
    assert len(study.cells) == 4 * 2 * 2 == len({cell.name for cell in study.cells})
    assert [cell.seed for cell in study.cells] == [3] * 8 + [5] * 8
    for cell in study.cells:
        config = cell.config
        assert config.seed == cell.seed and config.epochs == 3
        assert config.noise.rate == (0.4 if '40' in cell.setting else 0)
        assert config.data.max_train_samples == (200 if 'small' in cell.setting else 400)
        assert (config.model.num_heads, config.optim.lr) == ((1, 0.2) if cell.method == 'single' else (3, 0.3))
    assert study.cells[-1].name == '40-large/tree/seed-5'


def test_without_settings_there_is_one(tmp_path):
    study = read_study(write(tmp_path, settings=None, about=None))
    assert study.settings == ('',) and [cell.name for cell in study.cells[:2]] == ['single/seed-3', 'tree/seed-3']


def test_a_method_may_run_with_some_seeds_and_settings_only(tmp_path):
    tree = {'recipes': ['methods/heads4'], 'seeds': [5], 'settings': {'noise': ['40 %']}}
    study = read_study(write(tmp_path, methods={**GRID['methods'], 'tree': tree}))
    assert len([cell for cell in study.cells if cell.method == 'single']) == 4 * 2
    assert [cell.name for cell in study.cells if cell.method == 'tree'] == [
        '40-small/tree/seed-5', '40-large/tree/seed-5']


def test_a_method_may_need_the_run_of_another(tmp_path):
    taught = {'needs': 'tree', 'keys': {**TAUGHT, 'teacher.path': '{tree}'}}
    study = read_study(write(tmp_path, methods={'taught': taught, **GRID['methods']}))
    for cell in study.cells:
        if cell.method != 'taught':
            assert cell.needs is None and cell.config.teacher.path is None
            continue
        assert (cell.needs.method, cell.needs.setting, cell.needs.seed) == ('tree', cell.setting, cell.seed)
        assert cell.needs in study.cells
        config = filled(cell, Path('/runs/of tree'))
        assert config.teacher.path == '/runs/of tree'
        assert dataclasses.replace(config, teacher=cell.config.teacher) == cell.config


def test_recipes_are_found_beside_the_study(tmp_path):
    (tmp_path / 'mine.yaml').write_text('base: quickstart\nbatch_size: 16\n')
    assert read_study(write(tmp_path, recipes=['mine'])).cells[0].config.batch_size == 16


@pytest.mark.parametrize(('changes', 'message'), [
    ({'seed': [1]}, "unknown key 'seed', it takes about, recipes, .*; did you mean 'seeds'"),
    ({'seeds': [1, 1]}, r'seeds must be a list of different integers, got \[1, 1\]'),
    ({'seeds': None}, 'seeds must be a list of different integers, got None'),
    ({'methods': None}, 'methods must map names to what they change'),
    ({'methods': {'a': {'recipe': 'x'}}}, "method 'a': unknown key 'recipe', .*did you mean 'recipes'"),
    ({'baseline': 'singel'}, "baseline 'singel' is none of the methods, single, tree; did you mean 'single'"),
    ({'methods': {'a': {'seeds': [3, 4]}}, 'baseline': 'a'}, r"'a': seeds \[3, 4\] aren't all among .* \[3, 5\]"),
    ({'methods': {'a': {'settings': {'noise': 'clean'}}}, 'baseline': 'a'}, "'a': settings must map axes to lists"),
    ({'methods': {'a': {'settings': {'nose': ['clean']}}}, 'baseline': 'a'}, "unknown key 'nose', .*'noise'"),
    ({'methods': {'a': {'settings': {'noise': ['50 %']}}}, 'baseline': 'a'}, "unknown key '50 %', it takes clean"),
    ({'methods': {'a': {}, 'b': {'needs': 'c'}}, 'baseline': 'a'}, "method 'b': needs 'c', which is no other method"),
    ({'methods': {'a': {'needs': 'a'}}, 'baseline': 'a'}, "method 'a': needs 'a', which is no other method"),
    ({'methods': {'a': {}, 'b': {'needs': 'a'}}, 'baseline': 'a'}, "'b': it needs 'a', but no key names '{a}'"),
    ({'methods': {'a': {}, 'b': {'keys': {**TAUGHT, 'teacher.path': '{a}'}}}, 'baseline': 'a'},
     "method 'b': write needs: a, as its keys name '{a}'"),
    ({'methods': {'a': {}, 'b': {'needs': 'a', 'keys': {**TAUGHT, 'teacher.path': '{a}'}},
                  'c': {'needs': 'b', 'keys': {**TAUGHT, 'teacher.path': '{b}'}}}, 'baseline': 'a'},
     "method 'c': needs 'b', which needs another method itself"),
    ({'methods': {'a': {'seeds': [3]}, 'b': {'needs': 'a', 'keys': {**TAUGHT, 'teacher.path': '{a}'}}},
      'baseline': 'a'}, "method 'b', setting 'clean, small', seed 5: it needs method 'a', which doesn't run there"),
    ({'settings': {'noise': 0.4}}, 'settings must map axes to values'),
    ({'settings': {'lr': {'high': {'optim.lrr': 1}}}}, "'single', setting 'high', seed 3: unknown key 'optim.lrr'"),
    ({'methods': {'a b': {}, 'a-b': {}}, 'baseline': 'a b'}, 'differ in punctuation only'),
])
def test_invalid_studies(tmp_path, changes, message):
    with pytest.raises(TrainError, match=message):
        read_study(write(tmp_path, **changes))


@pytest.mark.parametrize('path', sorted((ROOT / 'benchmarks' / 'studies').glob('*.yaml')), ids=lambda path: path.stem)
def test_studies_of_this_repository_are_valid(path):
    study = read_study(path, {'data.path': 'somewhere'})
    assert all(cell.config.data.path == 'somewhere' for cell in study.cells)
    assert {cell.config.model.num_heads for cell in study.cells if cell.method == study.baseline} == {1}
    assert {(cell.setting, cell.seed) for cell in study.cells if cell.method == study.baseline} == {
        (setting, seed) for setting in study.settings for seed in study.seeds}


def test_study_in_the_documentation_is_valid(tmp_path):
    text = (ROOT / 'docs' / 'studies.md').read_text()
    [example] = re.findall(r'```yaml\n(.*?)```', text, re.DOTALL)
    (tmp_path / 'study.yaml').write_text(example)
    study = read_study(tmp_path / 'study.yaml')
    assert len(study.cells) == 2 * 4 * 5
    assert {cell.config.objective.beta for cell in study.cells if 'no consensus' in cell.method} == {1.0}
