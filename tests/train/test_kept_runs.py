"""What a run leaves of the epoch that it keeps."""
from __future__ import annotations

import json
import math
from importlib.resources import files

import datasets
import numpy as np
import pytest
import timm
import torch
import yaml
from safetensors.torch import load_file

from tests.train import toys
from tests.train.killed import KilledError
from timm_collab.cli import main as command
from timm_collab.train import TrainError
from timm_collab.train.checkpoint import Checkpoints, unpack
from timm_collab.train.config.parse import parse_config
from timm_collab.train.data.sources import load_source
from timm_collab.train.data.splits import make_splits
from timm_collab.train.loop.trainer import Trainer
from timm_collab.train.record.finished_run import load_run
from timm_collab.train.run import train

NOISY = ['--epochs=6', '--noise.rate=0.4', '--noise.val=true', '--optim.lr=0.1', '--checkpoint.keep_last=9']


@pytest.fixture
def folder(recipe, tmp_path):
    train(recipe(*NOISY, '--ema.epochs=1', '--ema.warmup=true'))
    return tmp_path / 'run'


def test_summary_log_and_files_say_the_same(folder):
    run = load_run(folder)
    summary = run.summary
    rows = [json.loads(line) for line in (folder / 'metrics.jsonl').read_text().splitlines()]
    candidates = [
        (row[name]['top1_kept'], -min(row[name]['loss_heads']), -row['epoch'], name)
        for row in rows for name in ('val_without_ema', 'val')
    ]
    score, _, epoch, name = max(candidates, key=lambda each: each[:3])
    kept = summary.kept
    assert (kept.epoch, kept.averaged, kept.val) == (-epoch, name == 'val', rows[-epoch][name])
    best = summary.best_epoch
    assert (best.epoch, best.averaged, best.kept_head) == (kept.epoch, kept.averaged, kept.kept_head)
    assert best.val == kept.val
    assert summary.kept_epoch == kept.epoch + 1 and summary.val['top1_kept'] == score == kept.val['top1_kept']
    assert (summary.last.epoch, summary.last.averaged, summary.last.val) == (5, True, rows[-1]['val'])
    best = max(max(row['val_clean']['top1_kept'] for row in rows), summary.oracle.val_clean['top1_kept'])
    assert summary.oracle.val_clean['top1_kept'] == best
    assert summary.scores.kept == pytest.approx(100 - summary.kept.test['top1_kept'])
    assert 'confusion_kept' in summary.test and 'confusion_kept' not in summary.kept.test
    assert summary.kept_head_rule.startswith('highest validation accuracy after any epoch')
    # The files have the weights of the checkpoint of that epoch.
    checkpoints = Checkpoints(folder / 'checkpoints')
    state = unpack(*checkpoints.load(checkpoints.after_epochs()[summary.kept_epoch]))
    expected = state['ema' if kept.averaged else 'model']
    tree = load_file(folder / 'tree.safetensors')
    assert all(torch.equal(tensor, expected[name]) for name, tensor in tree.items())


def test_the_last_epoch_is_kept_beside_an_oracle(recipe, tmp_path):
    summary = train(recipe(*NOISY, '--keep=last', '--seed=3'))
    assert summary.oracle is not None and summary.oracle.epoch != summary.last.epoch == 5
    assert summary.kept == summary.last
    checkpoints = Checkpoints(tmp_path / 'run' / 'checkpoints')
    expected = unpack(*checkpoints.load(checkpoints.after_epochs()[6]))['model']
    tree = load_file(tmp_path / 'run' / 'tree.safetensors')
    assert all(torch.equal(tensor, expected[name]) for name, tensor in tree.items())


def test_a_damaged_checkpoint_is_named(folder, capsys):
    [path] = [path for epoch, path in Checkpoints(folder / 'checkpoints').after_epochs().items() if epoch == 2]
    file = path / 'tensors.safetensors'
    file.write_bytes(file.read_bytes()[:-1])
    assert command(['prune', str(folder), '--epoch', '2']) == 2
    error = capsys.readouterr().err
    assert f"checkpoint '{path}' is damaged" in error and 'take another epoch' in error


def test_weights_that_are_several_epochs_are_tested_once(recipe, monkeypatch):
    tests = []
    real = Trainer.score
    monkeypatch.setattr(Trainer, 'score', lambda self, loader, model=None: (
        tests.append(1) if loader is self.test_loader else None, real(self, loader, model))[1])
    summary = train(recipe('--epochs=1', '--noise.rate=0.4', '--noise.val=true'))
    assert summary.kept == summary.last == summary.oracle and len(tests) == 1


def test_any_epoch_is_pruned_whose_checkpoint_is_there(folder, capsys):
    run = load_run(folder)
    rows = [json.loads(line) for line in (folder / 'metrics.jsonl').read_text().splitlines()]
    images = torch.randn(4, *run.data_config['input_size'])
    for epoch in ('best', 'last', '2'):
        assert command(['prune', str(folder), '--epoch', epoch]) == 0
        assert f'of epoch {epoch} is saved' in capsys.readouterr().out
        number = {'best': run.summary.kept_epoch, 'last': 6, '2': 2}[epoch]
        tree = run.load_epoch(epoch)
        if epoch == 'best':
            assert all(torch.equal(a, b) for a, b in zip(tree.parameters(), run.load_tree().parameters(), strict=True))
        if number != run.summary.kept_epoch:
            assert tree.kept_head == rows[number - 1]['kept_head']
        [saved] = folder.glob(f'epoch-{epoch}-head-{tree.kept_head}')
        model = timm.create_model(f'local-dir:{saved}', pretrained=True).eval()
        with torch.inference_mode():
            assert torch.equal(model(images), tree.forward_heads(images)[tree.kept_head])
    (folder / 'checkpoints').rename(folder / 'elsewhere')
    for epoch, message in (('3', 'has no checkpoint of epoch 3, but none'), ('7', 'a number from 1 to 6'),
                           ('first', 'write best, last, or a number')):
        assert command(['prune', str(folder), '--epoch', epoch]) == 2
        assert message in capsys.readouterr().err


def test_a_stopped_run_says_how_many_epochs_it_has(recipe, tmp_path, capsys):
    argv = ['--epochs=40', '--stop.patience=1', '--optim.lr=0.1', '--noise.rate=0.8', '--noise.val=true']
    summary = train(recipe(*argv))
    rows = (tmp_path / 'run' / 'metrics.jsonl').read_text().splitlines()
    assert summary.epochs == len(rows) < 40
    assert summary.kept_epoch == summary.epochs - 1
    assert f'single network: epoch {summary.kept_epoch} of' not in (out := capsys.readouterr().out)
    assert f'stopped after epoch {summary.epochs} of 40, none better for stop.patience 1' in out
    assert f'2-head tree: epoch {summary.kept_epoch} of {summary.epochs} was kept; error after the last epoch: ' in out
    assert train(recipe(*argv)) == summary  # it is finished


def test_a_checkpoint_that_knows_no_best_epoch_is_resumed(recipe, tmp_path, kill_at, monkeypatch):
    whole = Trainer.state_dict
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, 'state_dict', lambda self: {
            name: value for name, value in whole(self).items() if name != 'epochs'})
        kill_at(9)  # in the third epoch of four updates
        with pytest.raises(KilledError):
            train(recipe('--epochs=4'))
    kill_at(1000)
    summary = train(recipe('--epochs=4'))
    assert summary.kept == summary.last and summary.last.epoch == 3
    assert 'after the last epoch' in summary.kept_head_rule


def splits_of(*argv: str):
    config = parse_config(['--model.name=collab_test_resnet', '--data.path=builtin:digits', *argv])
    return make_splits(load_source(config.data, config.noise.column), config), config


def test_validation_labels_have_noise_of_their_own():
    plain, _ = splits_of('--noise.rate=0.4')
    noisy, _ = splits_of('--noise.rate=0.4', '--noise.val=true')
    assert plain.val_clean is None and (plain.val.labels == noisy.val_clean).all()
    assert (plain.train.labels == noisy.train.labels).all() and (plain.test.labels == noisy.test.labels).all()
    wrong_N = noisy.val.labels != noisy.val_clean
    assert wrong_N.sum() == round(0.4 * len(noisy.val))
    assert plain.fingerprint != noisy.fingerprint
    # Other draws than those of the first training labels.
    first_N = (noisy.train.labels != noisy.clean)[:len(wrong_N)]
    assert (first_N != wrong_N).any()
    again, _ = splits_of('--noise.rate=0.2', '--noise.val=true')
    assert set(np.flatnonzero(again.val.labels != again.val_clean)) < set(np.flatnonzero(wrong_N))


def test_a_column_of_noise_is_that_of_the_held_out_rows(tmp_path):
    digits = files('timm_collab') / 'data' / 'digits' / 'train.parquet'
    rows = datasets.Dataset.from_parquet(str(digits), cache_dir=str(tmp_path / 'cache')).select(range(200))
    (tmp_path / 'data').mkdir()
    given = [(label + (index % 3 == 0)) % 10 for index, label in enumerate(rows['label'])]
    given[7] = None
    rows.add_column('given', given).to_parquet(str(tmp_path / 'data' / 'train.parquet'))
    argv = [f'--data.path={tmp_path / "data"}', '--noise.kind=column', '--noise.column=given', '--noise.val=true',
            '--data.val_fraction=0.3', '--data.on_missing_label=skip', '--data.test_split=null']
    splits, _ = splits_of(*argv)
    for split in (splits.train, splits.val):
        assert split.labels.tolist() == [given[row] for row in split.row_N] and 7 not in split.row_N
    assert splits.val_clean.tolist() == [rows['label'][row] for row in splits.val.row_N]
    rows.add_column('given', given).to_parquet(str(tmp_path / 'data' / 'val.parquet'))
    with pytest.raises(TrainError, match=r"noise\.val: column 'given' was read for split 'train' alone"):
        splits_of(*argv)


def test_an_average_over_epochs_has_that_decay(recipe):
    trainer = toys.make_trainer(recipe('--batch_size=16', '--ema.epochs=2'), toys.make_model(1))
    assert trainer.updates_per_epoch == 3
    assert trainer.state.ema.decay == pytest.approx(math.exp(-1 / 6))


def test_a_recipe_from_before_these_keys_is_taken_up(recipe, tmp_path):
    train(recipe('--epochs=2'))
    file = tmp_path / 'run' / 'config.yaml'
    saved = yaml.safe_load(file.read_text())
    del saved['keep'], saved['stop'], saved['noise']['val'], saved['ema']['epochs']
    file.write_text(yaml.safe_dump(saved))
    assert load_run(tmp_path / 'run').config.keep == 'best'
    train(recipe('--epochs=2'))


def test_a_run_compares_with_the_network_alone_by_its_loss_and_by_cross_entropy(recipe, tmp_path, capsys):
    argv = ['--compare_single=true', '--compare_plain=true', '--objective.hard=elr', '--objective.balance=1']
    summary = train(recipe(*argv))
    assert [each.num_heads for each in (summary.single, summary.plain)] == [1, 1]
    for name, hard, balance in (('single', 'elr', 1.0), ('plain', 'ce', 0.0)):
        saved = yaml.safe_load((tmp_path / 'run' / name / 'config.yaml').read_text())
        objective = saved['objective']
        assert (objective['hard'], objective['balance'], saved['model']['heads']) == (hard, balance, 1)
    assert 'single network, cross-entropy' in capsys.readouterr().out
    plain = recipe('--compare_single=true', '--compare_plain=true')
    assert list(plain.compared()) == ['single']  # which is that network
    assert list(recipe(*argv, '--model.heads=1').compared()) == ['plain']


def test_a_run_says_how_wrong_its_validation_labels_are(recipe, capsys):
    train(recipe('--noise.rate=0.4', '--noise.val=true', '--data.max_val_samples=50'))
    assert 'held out class by class, 40.0 % of their labels wrong as well)' in capsys.readouterr().out
