from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.runs import summary_values
from timm_collab.train.errors import TrainError
from timm_collab.train.record import run_folder
from timm_collab.train.record.run_folder import (
    RunFolder,
    RunLock,
    RunState,
    choose_folder,
    inspect_folder,
    read_summary,
)
from timm_collab.train.record.summary import RunSummary


def summary(**changes) -> RunSummary:
    return RunSummary.from_dict(summary_values(**changes), 'a test')


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
    assert inspect_folder(tmp_path / 'a' / 'b', config) is RunState.NEW
    run = RunFolder(tmp_path / 'a' / 'b', config)
    assert run.state is RunState.NEW
    run.log({'epoch': 0})
    run.log({'epoch': 1})
    assert inspect_folder(run.path, config) is RunState.UNFINISHED
    run.write_summary(summary(seed=1))
    run.write_summary(summary(seed=2))
    assert inspect_folder(run.path, config) is RunState.FINISHED
    assert yaml.safe_load((run.path / 'config.yaml').read_text()) == config.to_dict()
    rows = [json.loads(line) for line in (run.path / 'metrics.jsonl').read_text().splitlines()]
    assert rows == [{'epoch': 0}, {'epoch': 1}]
    assert read_summary(run.path) == summary(seed=2)
    assert sorted(path.name for path in run.path.iterdir()) == ['config.yaml', 'metrics.jsonl', 'summary.json']
    run.write_log([{'epoch': 7}])
    assert (run.path / 'metrics.jsonl').read_text() == '{"epoch": 7}\n'


@pytest.mark.parametrize('name', [
    'metrics.jsonl', 'summary.json', 'train_labels.csv', 'pruned', 'single', 'checkpoints', 'tree.safetensors',
])
def test_a_part_of_a_run_without_its_recipe_is_left_alone(recipe, tmp_path, name):
    (tmp_path / 'run').mkdir()
    (tmp_path / 'run' / 'notes.txt').touch()
    assert inspect_folder(tmp_path / 'run', recipe()) is RunState.NEW
    (tmp_path / 'run' / name).touch()
    with pytest.raises(TrainError, match=rf'holds a part of a run .{name}. without its recipe .config.yaml.: put that'):
        RunFolder(tmp_path / 'run', recipe())
    assert sorted(path.name for path in (tmp_path / 'run').iterdir()) == sorted([name, 'notes.txt'])


def test_a_run_of_another_recipe_is_refused_with_the_differences(recipe, tmp_path):
    RunFolder(tmp_path / 'run', recipe())
    with pytest.raises(TrainError, match=r'was -> you asked: seed 0 -> 1; optim.lr 0.02 -> 0.5. Ask for what it was'):
        inspect_folder(tmp_path / 'run', recipe('--optim.lr=0.5', '--seed=1'))
    with pytest.raises(TrainError, match=r'already holds a run .config.yaml. and resume is false: choose another'):
        inspect_folder(tmp_path / 'run', recipe('--resume=false'))


@pytest.mark.parametrize('text', ['', 'seed: [1', '- 1', '\x00\x01'])
def test_a_damaged_recipe_is_an_error_and_a_damaged_summary_an_unfinished_run(recipe, tmp_path, text):
    run = RunFolder(tmp_path / 'run', recipe())
    (run.path / 'summary.json').write_text(text)
    assert inspect_folder(run.path, recipe()) is RunState.UNFINISHED
    (run.path / 'config.yaml').write_text(text)
    with pytest.raises(TrainError, match=r"config.yaml' can't be read .*: bring it back from a copy, or choose"):
        inspect_folder(run.path, recipe())


def test_the_second_process_in_a_folder_is_refused(tmp_path, monkeypatch):
    hold = (
        'import sys; from pathlib import Path; from timm_collab.train.record.run_folder import RunLock\n'
        'with RunLock(Path(sys.argv[1])): print("locked", flush=True); sys.stdin.read()'
    )
    other = subprocess.Popen(
        [sys.executable, '-c', hold, str(tmp_path / 'run')], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert other.stdout.readline() == 'locked\n'
    monkeypatch.setattr(run_folder, 'LOCK_SECONDS', 0)
    with pytest.raises(TrainError, match=r"run' is in use by another process: wait until it ends, or choose another"), \
            RunLock(tmp_path / 'run'):
        pass
    other.kill()
    other.wait()
    with RunLock(tmp_path / 'run'):  # the system has freed it
        pass


def test_unwritable_output(recipe, tmp_path, monkeypatch):
    (tmp_path / 'file').touch()
    with pytest.raises(TrainError, match=r"can't be created: .*file' is a file"):
        inspect_folder(tmp_path / 'file' / 'run', recipe())
    with pytest.raises(TrainError, match="can't be written"), RunLock(tmp_path / 'file' / 'run'):
        pass
    monkeypatch.setattr('os.access', lambda *_: False)
    with pytest.raises(TrainError, match='no permission to write'):
        inspect_folder(tmp_path / 'run', recipe())
    assert not (tmp_path / 'run').exists()


def test_a_full_disk_is_one_error_and_keeps_the_old_summary(recipe, tmp_path, monkeypatch):
    run = RunFolder(tmp_path / 'run', recipe())
    run.write_summary(summary(seed=1))

    def full(*_, **__):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(Path, 'write_text', full)
    with pytest.raises(TrainError, match=r"summary.json' can't be written: .*No space left on device"):
        run.write_summary(summary(seed=2))
    monkeypatch.undo()
    assert read_summary(run.path) == summary(seed=1)
    monkeypatch.setattr('builtins.open', full)
    with pytest.raises(TrainError, match=r"metrics.jsonl' can't be written .*: free disk space, then run the same"):
        run.log({'epoch': 0})
