"""Soft labels, such as the votes of annotators, from the column to the loss.

Array names end in their shape: N examples, B batch, H heads, C classes.
"""
from __future__ import annotations

import copy
import dataclasses
import json
from importlib.resources import files
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator

from tests.train.distributed.test_two_processes import start
from tests.train.killed import KilledError, assert_same_run, kill_before
from tests.train.toys import make_data, make_model
from timm_collab.cli import main
from timm_collab.train.build import build_criterion
from timm_collab.train.config import DataConfig, ModelConfig, ObjectiveConfig, TrainConfig
from timm_collab.train.data.labels.label_column import classes_in, hard_labels, outside, padded, strata
from timm_collab.train.data.sources import load_source
from timm_collab.train.data.splits import make_splits
from timm_collab.train.errors import TrainError
from timm_collab.train.loop.step import TrainState
from timm_collab.train.prepare import prepare
from timm_collab.train.run import train

VOTES = [[3, 1, 0], [0, 2, 2], [0, 0, 7], [1, 0, 0]]
CELL = {'bytes': b'not decoded here', 'path': None}


def table(labels, feature=None) -> datasets.Dataset:
    features = None if feature is None else datasets.Features(label=feature)
    rows = datasets.Dataset.from_dict({'label': labels}, features=features)
    return rows.add_column('image', [CELL] * len(rows), feature=datasets.Image())


def source(folder: Path, train, *, test=None, **keys):
    splits = {'train': train, **({} if test is None else {'test': test})}
    datasets.DatasetDict(splits).save_to_disk(str(folder))
    return load_source(DataConfig(path=str(folder), soft_labels=True, **keys))


@pytest.fixture(scope='module')
def voted_digits(tmp_path_factory) -> Path:
    """Digits with the votes of five annotators, of whom two see the next digit in every third image."""
    folder, cache = tmp_path_factory.mktemp('voted'), tmp_path_factory.mktemp('voted-cache')
    for split, count in (('train', 160), ('test', 60)):
        rows = datasets.Dataset.from_parquet(
            str(files('timm_collab') / 'data' / 'digits' / f'{split}.parquet'), cache_dir=str(cache))
        rows = rows.select(range(count))
        votes = np.zeros((count, 10), dtype=np.int64)
        for row, digit in enumerate(rows['label']):
            votes[row, digit] += 3
            votes[row, (digit + (row % 3 == 0)) % 10] += 2
        rows = rows.rename_column('label', 'digit').add_column('votes', votes.tolist())
        rows.to_parquet(str(folder / f'{split}.parquet'))
    return folder


@pytest.fixture
def voted(recipe, voted_digits):
    """A recipe of seconds on these digits."""
    def make(*argv: str):
        return recipe(f'--data.path={voted_digits}', '--data.label_column=votes', '--data.soft_labels=true',
                      '--data.cache_dir=', *argv)

    return make


@pytest.mark.parametrize('feature', [None, datasets.List(datasets.Value('float64')),
                                     datasets.List(datasets.Value('int32'), length=3)])
def test_votes_become_probabilities_and_evaluation_takes_the_class(tmp_path, feature):
    found = source(tmp_path / 'a', table(VOTES, feature), test=table(VOTES, feature))
    expected_NC = np.asarray(VOTES, dtype=np.float64)
    expected_NC /= expected_NC.sum(axis=1, keepdims=True)
    assert found.train.labels.dtype == np.float32 and np.array_equal(found.train.labels, expected_NC.astype(np.float32))
    assert found.test.labels.tolist() == [0, 1, 2, 0] and found.label_names is None
    assert found.notes == ("1 soft label of split 'test' has several largest values: evaluation takes the first class"
                           ' of these',)


def test_ties_in_held_out_data_are_counted(tmp_path):
    found = source(tmp_path / 'a', table([*([[1, 1, 0]] * 8), *([[0, 0, 1]] * 8)]))
    assert found.notes == ()  # training learns them as they are
    data = DataConfig(path=str(tmp_path / 'a'), soft_labels=True, val_fraction=0.25)
    splits = make_splits(found, TrainConfig(model=ModelConfig(name='collab_resnet18'), data=data, batch_size=2))
    assert splits.val.labels.tolist().count(0) == 2
    assert splits.notes == ('2 soft labels of the validation data have several largest values: evaluation takes the'
                            ' first class of these',)


def test_classes_are_named_by_a_file_and_other_splits_may_name_theirs(tmp_path):
    (tmp_path / 'names').write_text('cat\ndog\nowl\n')
    feature = datasets.ClassLabel(names=['owl', 'cat'])
    found = source(tmp_path / 'a', table(VOTES), test=table([1, 0], feature), classes=str(tmp_path / 'names'))
    assert found.label_names == ['cat', 'dog', 'owl'] and found.test.labels.tolist() == [0, 2]
    found = source(tmp_path / 'b', table(VOTES), test=table([2, 0]))
    assert found.test.labels.tolist() == [2, 0]


@pytest.mark.parametrize(('row', 'message'), [
    ([0, 0, 0], r"the soft label in row 4 of split 'train' is not a list of 3 non-negative numbers, .*: \[0.0, 0.0"),
    ([1, -1, 1], 'in row 4'),
    ([1, float('nan'), 1], 'in row 4'),
    ([1, float('inf'), 1], 'in row 4'),
    ([1, None, 1], 'in row 4'),
    ([1, 1], 'in row 4'),
    ([1, 1, 1, 1], 'in row 4'),
    ([], 'in row 4'),
    (None, r"1 of 5 rows of split 'train' have no label .* \(rows 4, counted from 0 within the split\)"),
])
def test_what_is_no_soft_label(tmp_path, row, message):
    with pytest.raises(TrainError, match=message):
        source(tmp_path / 'a', table([*VOTES, row], datasets.List(datasets.Value('float64'))))


def test_class_indices_are_no_soft_labels(tmp_path):
    with pytest.raises(TrainError, match=r'data.soft_labels needs a list of numbers per image, one per class'):
        source(tmp_path / 'a', table([0, 1]))


def test_missing_votes_may_be_skipped(tmp_path):
    found = source(tmp_path / 'a', table([*VOTES, None, VOTES[0]]), on_missing_label='skip')
    assert found.train.row_N.tolist() == [0, 1, 2, 3, 5] and found.left_out == {'no label': 1}


def test_rows_of_probabilities_are_not_taken_for_several_labels(voted):
    labels_NC = np.asarray(VOTES, dtype=np.float32) / np.float32(7)
    assert hard_labels(labels_NC).tolist() == strata(labels_NC).tolist() == [0, 1, 2, 0]
    assert hard_labels(labels_NC.astype(np.uint8)).ndim == 2
    assert classes_in(labels_NC[:2], 3).tolist() == [True, True, False]
    assert padded(labels_NC, 5).shape == (4, 5) and padded(labels_NC, 5).dtype == np.float32
    assert outside(labels_NC, 2) == (1, 2)
    config = voted('--data.max_train_samples=null')
    made = make_splits(load_source(config.data), config)
    assert made.val.labels.dtype == np.int64 and made.train.labels.dtype == np.float32
    assert np.bincount(made.val.labels).min() >= 1 and made.noise_rate == 0
    assert np.array_equal(made.clean, made.train.labels.argmax(axis=1))
    digits = load_source(dataclasses.replace(config.data, soft_labels=False, label_column='digit')).train.labels
    assert np.array_equal(digits[made.val.row_N], made.val.labels)
    assert np.array_equal(digits[made.train.row_N], made.clean)
    changed = dataclasses.replace(made, train=made.train.with_labels(np.sqrt(made.train.labels)))
    assert changed.fingerprint != made.fingerprint  # though the classes are the same


@pytest.mark.parametrize('kind', ['consensus', 'mutual', 'gated'])
@pytest.mark.parametrize('smoothing', [0.0, 0.1])
def test_the_hard_term_is_the_cross_entropy_with_the_probabilities(kind, smoothing):
    logits_HBC = torch.randn(3, 8, 5, generator=torch.Generator().manual_seed(0))
    target_BC = torch.rand(8, 5, generator=torch.Generator().manual_seed(1))
    target_BC /= target_BC.sum(dim=1, keepdim=True)
    criterion = build_criterion(ObjectiveConfig(kind=kind, smoothing=smoothing), 3, 5, mixes=False)
    hard_H, _ = criterion.terms(logits_HBC, target_BC)
    smoothed_BC = (1 - smoothing) * target_BC.double() + smoothing / 5
    expected_H = -(smoothed_BC * logits_HBC.double().log_softmax(dim=-1)).sum(dim=-1).mean(dim=-1)
    assert hard_H[:3].double() == pytest.approx(expected_H, rel=1e-6)


@pytest.mark.parametrize('parts', [1, 2])
def test_a_step_learns_probabilities_and_is_measured_by_classes(voted, parts):
    config = voted('--batch_size=16', f'--grad_accum_steps={parts}')
    model = make_model(heads=2)
    state = TrainState(config, model, 3, Accelerator(cpu=True))
    images, labels_B = (each[:16] for each in make_data())
    target_BC = 0.6 * F.one_hot(labels_B, 10).float() + 0.4 * F.one_hot((labels_B + 1) % 10, 10)
    logits_HBC = torch.cat([copy.deepcopy(model).train().forward_heads(each) for each in images.chunk(parts)], dim=1)
    row = state.train_step(images, target_BC, target_BC, 0, 0)
    expected_H = -(target_BC.double() * logits_HBC.double().log_softmax(dim=-1)).sum(dim=-1).mean(dim=-1)
    accuracy = 100 * (logits_HBC.argmax(dim=-1) == labels_B).double().mean()
    assert row[1].item() == row[2].item() == pytest.approx(accuracy.item(), abs=1e-4)
    assert row[3:5].double() == pytest.approx(expected_H.detach(), rel=1e-5)


@pytest.mark.parametrize('smoothing', [0.0, 0.1])
@pytest.mark.parametrize('mode', ['batch', 'elem'])
def test_targets_are_mixed_and_smoothed_as_the_images_are(voted, smoothing, mode):
    config = voted('--batch_size=16', '--augment.mixup=1', f'--augment.mixup_mode={mode}',
                   f'--objective.smoothing={smoothing}')
    state = TrainState(config, make_model(heads=2), 3, Accelerator(cpu=True))
    images = torch.arange(16.0)[:, None, None, None].expand(16, 1, 8, 8).clone()
    labels_BC = torch.rand(16, 10, generator=torch.Generator().manual_seed(1)).softmax(dim=1)
    mixed, target_BC, _ = state._mix(images.clone(), labels_BC, 0, 0)
    # Each image is its own number throughout, so the mixture's mean tells the share of each of the two.
    own_B = torch.arange(16.0)
    share_B = (mixed.mean(dim=(1, 2, 3)) - own_B.flip(0)) / (own_B - own_B.flip(0))
    mixed_BC = share_B[:, None] * labels_BC + (1 - share_B[:, None]) * labels_BC.flip(0)
    assert target_BC == pytest.approx((1 - smoothing) * mixed_BC + smoothing / 10, abs=1e-5)
    assert target_BC.sum(dim=1) == pytest.approx(torch.ones(16), abs=1e-5)


@pytest.mark.parametrize('pipeline', ['batch', 'image'])
def test_batches_hold_probabilities_for_training_and_classes_for_evaluation(voted, pipeline):
    data = prepare([voted('--augment.no_aug=false', '--augment.crop=pad', f'--data.pipeline={pipeline}')],
                   Accelerator(cpu=True)).data
    for index in (0, 5):
        target = torch.as_tensor(data.train[index][1])
        assert target.dtype == torch.float32 and torch.equal(target, torch.from_numpy(data.splits.train.labels[index]))
    assert isinstance(data.val[0][1], int) or torch.as_tensor(data.val[0][1]).dtype == torch.int64


def test_a_killed_run_ends_the_same_and_is_validated(voted, tmp_path, monkeypatch, capsys):
    argv = ['--epochs=2', '--checkpoint.every_updates=1', '--augment.mixup=0.2', '--objective.smoothing=0.1']
    with pytest.MonkeyPatch.context() as patch:
        kill_before(patch, 1000)
        summary = train(voted(*argv, f'--output={tmp_path / "whole"}'))
        for count in (3, 2):
            kill_before(patch, count)
            with pytest.raises(KilledError):
                train(voted(*argv))
        kill_before(patch, 1000)
        train(voted(*argv))
    assert_same_run(tmp_path / 'whole', tmp_path / 'run')
    assert not (tmp_path / 'run' / 'train_labels.csv').exists()  # which lists wrong labels
    assert main(['validate', str(tmp_path / 'run'), '--device=cpu']) == 0
    result = json.loads((tmp_path / 'run' / 'validation.json').read_text())
    assert result['heads'][summary.kept_head]['top1'] == pytest.approx(summary.test['top1_kept'], abs=1e-4)
    argv = ['--split=val', '--data.label_column=digit', '--data.soft_labels=false']
    assert main(['validate', str(tmp_path / 'run'), *argv, '--device=cpu']) == 0
    capsys.readouterr()


@pytest.mark.multiprocess
def test_two_processes_learn_what_one_does(voted_digits, tmp_path):
    argv = [f'--data.path={voted_digits}', '--data.label_column=votes', '--data.soft_labels=true', '--noise.rate=0',
            '--data.max_train_samples=null', '--data.val_fraction=0.2', '--epochs=1', '--data.cache_dir=']
    rows = []
    for processes in (1, 2):
        start(tmp_path, processes, *argv).finish()
        rows.append(json.loads((tmp_path / str(processes) / 'metrics.jsonl').read_text()))
    for name in ('train_loss', 'train_hard_heads'):
        assert rows[0][name] == pytest.approx(rows[1][name], rel=1e-4)
    assert rows[0]['train_top1'] == rows[1]['train_top1'] and rows[0]['val']['count'] == rows[1]['val']['count']


def test_a_teacher_and_votes_teach_one_head(voted, tmp_path):
    train(voted('--model.heads=1', f'--output={tmp_path / "teacher"}'))
    summary = train(voted('--model.heads=1', f'--teacher.path={tmp_path / "teacher"}'))
    [row] = map(json.loads, (tmp_path / 'run' / 'metrics.jsonl').read_text().splitlines())
    assert np.isfinite(row['train_loss']) and 0 <= row['train_top1']['given'] <= 100
    assert summary.noise.realised_rate == 0


@pytest.mark.parametrize(('argv', 'message'), [
    (['--data.multi_label=true', '--objective.hard=bce'], 'probabilities of one class per image: leave out data.multi'),
    (['--data.streaming=true', '--data.max_train_samples=null'], 'leave out data.streaming'),
    (['--data.path=timm:folder'], "write no path of timm's readers"),
    (['--noise.rate=0.4'], 'data.soft_labels: noise.kind symmetric-exclude replaces the one class'),
    (['--noise.kind=column', '--noise.column=other'], 'noise.kind column replaces the one class of an image'),
    (['--objective.hard=bce', '--objective.smoothing=0.1'], 'of hard bce is for class indices'),
])
def test_what_soft_labels_do_not_go_with(voted, argv, message):
    with pytest.raises(TrainError, match=message):
        voted(*argv)
