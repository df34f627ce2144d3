from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from timm_collab.train.errors import TrainError
from timm_collab.train.run_folder import RunFolder, check_folder, choose_folder


def test_default_folder_is_fresh(recipe, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert choose_folder(recipe()) == tmp_path / 'run'
    config = recipe('--output=null')
    folders = []
    for _ in range(3):
        folders.append(choose_folder(config))
        folders[-1].mkdir(parents=True)
    assert len(set(folders)) == 3
    assert all(folder.parent == Path('runs') and 'collab_test_resnet' in folder.name for folder in folders)


def test_folder_holds_config_metrics_and_summary(recipe, tmp_path):
    config = recipe('--seed=5')
    run = RunFolder(tmp_path / 'a' / 'b', config)
    run.log({'epoch': 0})
    run.log({'epoch': 1})
    run.write_summary(run.path, {'error_kept': 1.5})
    run.write_summary(run.path, {'error_kept': 2.5})
    assert yaml.safe_load((run.path / 'config.yaml').read_text()) == config.to_dict()
    rows = [json.loads(line) for line in (run.path / 'metrics.jsonl').read_text().splitlines()]
    assert rows == [{'epoch': 0}, {'epoch': 1}]
    assert json.loads((run.path / 'summary.json').read_text()) == {'error_kept': 2.5}
    assert sorted(path.name for path in run.path.iterdir()) == ['config.yaml', 'metrics.jsonl', 'summary.json']


@pytest.mark.parametrize('name', [
    'config.yaml', 'metrics.jsonl', 'summary.json', 'train_labels.csv', 'pruned', 'single',
])
def test_a_run_is_never_overwritten(recipe, tmp_path, name):
    (tmp_path / 'run').mkdir()
    (tmp_path / 'run' / 'notes.txt').touch()
    check_folder(tmp_path / 'run')
    (tmp_path / 'run' / name).touch()
    with pytest.raises(TrainError, match=f'already holds a run .{name}.: choose another folder'):
        check_folder(tmp_path / 'run')


def test_of_two_runs_in_one_folder_the_second_is_refused(recipe, tmp_path):
    RunFolder(tmp_path / 'run', recipe())
    with pytest.raises(TrainError, match='already holds a run'):
        RunFolder(tmp_path / 'run', recipe())


def test_unwritable_output(recipe, tmp_path, monkeypatch):
    (tmp_path / 'file').touch()
    with pytest.raises(TrainError, match=r"can't be created: .*file' is a file"):
        check_folder(tmp_path / 'file' / 'run')
    with pytest.raises(TrainError, match="can't be written"):
        RunFolder(tmp_path / 'file' / 'run', recipe())
    monkeypatch.setattr('os.access', lambda *_: False)
    with pytest.raises(TrainError, match='no permission to write'):
        check_folder(tmp_path / 'run')
    assert not (tmp_path / 'run').exists()
