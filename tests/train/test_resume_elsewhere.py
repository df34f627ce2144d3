"""What a resume finds changed: the data, its versions, its evaluation."""
from __future__ import annotations

import re
import shutil

import pytest

from tests.train.killed import KEYS, KilledError
from timm_collab.train import TrainError
from timm_collab.train.run import ModelRun, train


def test_a_stream_whose_files_changed_is_not_gone_on_with(recipe, tmp_path, kill_at, digit_shards):
    shutil.copytree(digit_shards, tmp_path / 'data')
    argv = [
        *KEYS, f'--data.path={tmp_path / "data"}', '--data.streaming=true', '--data.max_train_samples=null',
        '--data.num_train_samples=96', '--checkpoint.every_updates=1',
    ]
    kill_at(2)
    with pytest.raises(KilledError):
        train(recipe(*argv))
    shutil.copy(digit_shards / 'test.parquet', tmp_path / 'data' / 'train-00003-of-00004.parquet')
    kill_at(1000)
    with pytest.raises(TrainError, match=r'the training data of .* has changed since'):
        train(recipe(*argv))


def test_changed_data_is_refused(recipe, image_folder, kill_at):
    folder = image_folder(train=20, test=2)
    argv = [
        f'--data.path={folder}', '--data.in_chans=3', '--batch_size=8', '--data.max_train_samples=null', '--epochs=3',
    ]
    kill_at(6)
    with pytest.raises(KilledError):
        train(recipe(*argv))
    kill_at(1000)
    (folder / 'train' / 'cat' / '0.png').rename(folder / 'train' / 'dog' / '100.png')
    with pytest.raises(TrainError, match=r"the training data of '.*run' has changed since: labels or"):
        train(recipe(*argv))


def test_other_versions_are_told(recipe, tmp_path, kill_at, monkeypatch, capsys):
    kill_at(6)
    with pytest.raises(KilledError):
        train(recipe(*KEYS))
    kill_at(1000)
    monkeypatch.setattr('timm_collab.train.run.versions', lambda: {'torch': '9.9'})
    train(recipe(*KEYS))
    assert "to {'torch': '9.9'}: the run resumes, but its results will not be bit-identical" in capsys.readouterr().err


@pytest.mark.parametrize(('is_recorded', 'before'), [
    (True, r"\{'input_size': \(1, 16, 16\), .*\}"), (False, "the architecture's crop")])
def test_an_evaluation_of_another_version_is_told(
        recipe, tmp_path, kill_at, monkeypatch, capsys, is_recorded, before):
    """Older versions cropped in evaluation where training sees whole images; at first they did not record it."""
    save = ModelRun._save

    def save_without(self, *args):
        self.origin.pop('evaluation', None)
        save(self, *args)

    kill_at(6)
    with monkeypatch.context() as patch:
        patch.setattr('timm_collab.train.data.augment.preprocess.shows_whole_images', lambda *_: False)
        if not is_recorded:
            patch.setattr(ModelRun, '_save', save_without)
        with pytest.raises(KilledError):
            train(recipe(*KEYS))
    kill_at(1000)
    train(recipe(*KEYS))
    [told] = [line for line in capsys.readouterr().err.splitlines() if 'evaluation changed' in line]
    assert re.search(f"warning: evaluation changed from {before} to .*'crop_mode': 'squash'}}: the run resumes", told)
