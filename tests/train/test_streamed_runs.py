"""What is known of a run whose training images were streamed: its summary, its scores, the batch it broke at."""
from __future__ import annotations

import json

import datasets
import pytest

from timm_collab import load_run
from timm_collab.train import TrainError
from timm_collab.train.record import report
from timm_collab.train.run import train
from timm_collab.train.validate import validate


@pytest.fixture
def streamed(recipe, digit_shards):
    def make(*argv: str):
        return recipe(
            f'--data.path={digit_shards}', '--data.streaming=true', '--data.max_train_samples=null',
            '--data.num_train_samples=128', '--data.shuffle_buffer=64', '--plots=false', *argv)

    return make


def test_the_scale_of_class_weights_is_said(streamed, capsys):
    note = 'data.class_weights are scaled to a mean of 1 over the classes, '
    train(streamed('--epochs=1', '--data.class_weights={"3": 2}'))
    assert capsys.readouterr().out.count(note) == 1


def test_against_a_slow_stream_more_workers_are_named(streamed, capsys, monkeypatch):
    monkeypatch.setattr(report, 'WAITED', -1.0)
    train(streamed('--epochs=1'))
    assert ' % of the epoch: raise data.workers\n' in capsys.readouterr().out


def test_summary_and_validation(streamed, tmp_path, capsys):
    summary = train(streamed('--epochs=2'))
    data = summary.data
    assert (data.train, data.val, data.test, data.num_classes) == (128, 40, 40, 10)
    assert data.val_origin == "split 'validation'"
    assert data.replaced == data.skipped == 0
    assert summary.noise.confusion is None
    assert summary.noise.realised_rate == 0
    assert '128 images to train on, 40 to choose the head by' in capsys.readouterr().out
    assert not (tmp_path / 'run' / 'train_labels.csv').exists()
    run = load_run(tmp_path / 'run')
    for split, count in (('test', 40), ('val', 40), ('validation', 40), ('train', 128)):
        result = validate(run, split, device='cpu')
        assert result['count'] == count
        if split == 'test':
            assert 100 - result['pruned']['top1'] == pytest.approx(summary.scores.kept)
        if split in ('val', 'validation'):
            assert result['pruned']['top1'] == pytest.approx(summary.val['top1_kept'])


def test_the_batch_that_broke_it_is_known_by_its_places(streamed, tmp_path):
    with pytest.raises(TrainError, match=r"The batch: places 32, 33, .* of split 'train'"):
        train(streamed('--optim.lr=1e30', '--optim.name=sgd'))
    batch = json.loads((tmp_path / 'run' / 'exploded_batch.json').read_text())
    assert batch['places'] == list(range(32, 64))


def test_numbers_of_classes_that_the_files_do_not_name(streamed, tmp_path):
    folder = tmp_path / 'unnamed'
    folder.mkdir()
    rows = datasets.Dataset.from_parquet(str(streamed().data.path) + '/test.parquet', cache_dir=str(tmp_path / 'c'))
    rows = rows.cast_column('label', datasets.Value('int64'))
    for name in ('train', 'validation'):
        rows.to_parquet(str(folder / f'{name}.parquet'))
    argv = [f'--data.path={folder}', '--data.num_train_samples=32']
    with pytest.raises(TrainError, match=r"split 'train' doesn't give the number of classes.* --model\.num_classes"):
        train(streamed(*argv))
    assert train(streamed(*argv, '--model.num_classes=10')).data.num_classes == 10


@pytest.mark.parametrize('argv', [['--noise.rate=0.2'], ['--noise.kind=column', '--noise.column=other']])
def test_noise_needs_labels_that_are_known(streamed, argv):
    with pytest.raises(TrainError, match=r'data\.streaming: noise needs all labels in advance'):
        streamed(*argv)
