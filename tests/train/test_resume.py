"""A run that is stopped anywhere ends, by the same command, with the weights of one that wasn't, bit for bit."""
from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal

import pytest
import yaml

from tests.train.killed import KEYS, KilledError, assert_same_run, kill_before
from timm_collab.train import TrainError
from timm_collab.train.__main__ import main
from timm_collab.train.distributed.signals import StoppedError
from timm_collab.train.loop.step import TrainState
from timm_collab.train.record.summary import RunSummary
from timm_collab.train.run import train

SETTINGS = {
    'plain': ['--augment.no_aug=false', '--augment.crop=pad', '--noise.rate=0.4'],
    'workers': ['--augment.no_aug=false', '--augment.crop=pad', '--data.workers=2'],
    'everything': [
        '--model.kwargs={drop_rate: 0.2, drop_path_rate: 0.2}', '--ema.decay=0.9', '--ema.warmup=true',
        '--grad_accum_steps=2', '--augment.mixup=0.8', '--augment.cutmix=1', '--noise.rate=0.2',
        '--objective.ramp_up_epochs=2', '--optim.name=adamw', '--optim.lr=1e-3', '--optim.clip_grad=1',
        '--sched.warmup_epochs=1', '--checkpoint.every_updates=3',
    ],
    'balance': ['--data.sampling=balanced', '--data.class_weights={"3": 2}', '--augment.no_aug=false',
                '--augment.crop=pad', '--augment.repeats=2', '--noise.rate=0.4', '--checkpoint.every_updates=3'],
    'image targets': ['--objective.hard=elr', '--objective.targets=others', '--noise.rate=0.4', '--grad_accum_steps=2',
                      '--checkpoint.every_updates=3'],
    'targets of mixed images': [
        '--objective.hard=elr', '--objective.balance=1', '--objective.targets_device=cpu', '--augment.mixup=0.8',
        '--augment.cutmix=1', '--ema.decay=0.9', '--grad_accum_steps=2', '--checkpoint.every_updates=3'],
    'best epoch': ['--noise.rate=0.4', '--noise.val=true', '--ema.epochs=1', '--checkpoint.every_updates=3',
                   '--optim.lr=0.1'],
    'changed predictions': ['--noise.rate=0.4', '--stop.on=predictions', '--stop.patience=1', '--optim.lr=0.1',
                            '--stop.smoothing_epochs=1', '--checkpoint.every_updates=1'],
    'lookahead': ['--optim.name=lookahead_rmsproptf', '--optim.lr=1e-3', '--checkpoint.every_updates=1'],
    'low precision': ['--mixed_precision=bf16', '--channels_last=true', '--data.img_size=32'],
}


@pytest.mark.parametrize('setting', SETTINGS)
def test_killed_again_and_again_it_ends_the_same(recipe, tmp_path, kill_at, setting):
    argv = [*KEYS, *SETTINGS[setting]]
    kill_at(1000)
    train(recipe(*argv, f'--output={tmp_path / "whole"}'))
    config = recipe(*argv)
    for count in (2, 6, 3):
        kill_at(count)
        with pytest.raises(KilledError):
            train(config)
        assert not (tmp_path / 'run' / 'summary.json').exists()
    kill_at(1000)
    train(config)
    assert_same_run(tmp_path / 'whole', tmp_path / 'run')


@pytest.mark.parametrize('workers', [0, 2])
def test_streamed_data_go_on_in_the_middle_of_their_stream(recipe, tmp_path, kill_at, digit_shards, workers):
    argv = [
        *KEYS, '--augment.no_aug=false', '--checkpoint.every_updates=1', f'--data.path={digit_shards}',
        '--data.streaming=true', '--data.max_train_samples=null', '--data.num_train_samples=128',
        '--data.shuffle_buffer=64', '--plots=false',
    ]
    train(recipe(*argv, f'--output={tmp_path / "whole"}'))
    for count in (2, 4, 3):
        kill_at(count)
        with pytest.raises(KilledError):
            train(recipe(*argv, f'--data.workers={workers}'))
    kill_at(1000)
    train(recipe(*argv, f'--data.workers={workers}'))
    assert_same_run(tmp_path / 'whole', tmp_path / 'run')
    with pytest.raises(TrainError, match=r'data\.shuffle_buffer 64 -> 32'):
        train(recipe(*argv, '--data.shuffle_buffer=32'))


def test_with_a_teacher_it_ends_the_same(recipe, tmp_path, kill_at):
    teacher = tmp_path / 'teacher'
    train(recipe('--augment.no_aug=true', '--plots=false', f'--output={teacher}'))
    argv = [*KEYS, '--model.heads=1', '--checkpoint.every_updates=3', f'--teacher.path={teacher}']
    train(recipe(*argv, f'--output={tmp_path / "whole"}'))
    for count in (5, 4):
        kill_at(count)
        with pytest.raises(KilledError):
            train(recipe(*argv))
    (tmp_path / 'set aside').mkdir()
    for name in ('tree.safetensors', 'summary.json'):
        (teacher / name).rename(tmp_path / 'set aside' / name)
    with pytest.raises(TrainError, match=r'teacher\.path: .* is not finished'):
        train(recipe(*argv))
    shutil.rmtree(teacher)
    kill_at(1000)
    train(recipe('--augment.no_aug=true', '--plots=false', '--seed=1', f'--output={teacher}'))
    with pytest.raises(TrainError, match=r'the teacher of .* has changed since'):
        train(recipe(*argv))
    for name in ('tree.safetensors', 'summary.json'):
        (tmp_path / 'set aside' / name).rename(teacher / name)
    train(recipe(*argv))
    assert_same_run(tmp_path / 'whole', tmp_path / 'run')


@pytest.mark.parametrize('stage', [
    'timm_collab.train.run.save_tree', 'timm_collab.train.record.run_folder.RunFolder.write_summary',
])
def test_killed_after_the_last_update(recipe, tmp_path, monkeypatch, stage):
    train(recipe(*KEYS, f'--output={tmp_path / "whole"}'))

    def die(*_):
        raise KilledError

    with monkeypatch.context() as patch:
        patch.setattr(stage, die)
        with pytest.raises(KilledError):
            train(recipe(*KEYS))
    train(recipe(*KEYS))
    assert_same_run(tmp_path / 'whole', tmp_path / 'run')


def test_the_compared_single_network_is_resumed_as_well(recipe, tmp_path, kill_at):
    argv = ['--compare_single=true', *KEYS]
    kill_at(1000)
    train(recipe(*argv, f'--output={tmp_path / "whole"}'))
    for count in (5, 12 - 4 + 6):  # within the tree's run, then within the single network's
        kill_at(count)
        with pytest.raises(KilledError):
            train(recipe(*argv))
    assert (tmp_path / 'run' / 'summary.json').exists()  # the tree is trained
    assert not (tmp_path / 'run' / 'single' / 'summary.json').exists()
    tree = (tmp_path / 'run' / 'tree.safetensors').stat().st_mtime_ns
    kill_at(1000)
    summary = train(recipe(*argv))
    assert (tmp_path / 'run' / 'tree.safetensors').stat().st_mtime_ns == tree
    assert_same_run(tmp_path / 'whole' / 'single', tmp_path / 'run' / 'single')
    assert summary.single is not None and summary.single.epochs == 3
    assert json.loads((tmp_path / 'run' / 'summary.json').read_text()) == summary.to_dict()


@pytest.mark.parametrize(('number', 'status'), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_told_to_stop_it_saves_in_the_middle_of_an_epoch(recipe, tmp_path, monkeypatch, capsys, number, status):
    config = recipe(*KEYS)
    argv = [f'--config={tmp_path / "recipe.yaml"}', f'--output={tmp_path / "run"}']
    (tmp_path / 'recipe.yaml').write_text(yaml.safe_dump(config.to_dict()))
    update, made = TrainState.train_step, []

    def interrupted(self, *args):
        row = update(self, *args)
        made.append(1)
        if len(made) == 6:
            os.kill(os.getpid(), number)
        return row

    with monkeypatch.context() as patch:
        patch.setattr(TrainState, 'train_step', interrupted)
        assert main(argv) == status
    assert len(made) == 6
    assert 'stopped and saved after 6 updates; the same command resumes it' in capsys.readouterr().out
    assert main(argv) == 0
    assert 'resuming after 6 updates, in epoch 2/3' in capsys.readouterr().out
    assert main(argv) == 0
    assert f"the run in '{tmp_path / 'run'}' is finished" in capsys.readouterr().out
    train(recipe(*KEYS, f'--output={tmp_path / "whole"}'))
    assert_same_run(tmp_path / 'whole', tmp_path / 'run')


def test_without_an_output_the_message_says_where_the_run_is(recipe, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    update = TrainState.train_step
    monkeypatch.setattr(TrainState, 'train_step', lambda self, *args: (os.kill(os.getpid(), signal.SIGTERM),
                                                                update(self, *args))[1])
    with pytest.raises(StoppedError, match='stopped by SIGTERM'):
        train(recipe('--output=null'))
    [folder] = (tmp_path / 'runs').iterdir()
    assert f'the same command with --output runs/{folder.name} resumes it' in capsys.readouterr().out


def test_stopped_in_the_network_alone_the_message_names_the_folder_of_the_run(recipe, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    train_step = TrainState.train_step

    def interrupted(self, *args):
        if self.model.num_heads == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return train_step(self, *args)

    monkeypatch.setattr(TrainState, 'train_step', interrupted)
    config = recipe('--output=null', '--compare_single=true', '--plots=false')
    with pytest.raises(StoppedError, match='stopped by SIGTERM'):
        train(config)
    [folder] = (tmp_path / 'runs').iterdir()
    assert f'the same command with --output runs/{folder.name} resumes it' in capsys.readouterr().out
    monkeypatch.setattr(TrainState, 'train_step', train_step)
    summary = train(dataclasses.replace(config, output=str(folder)))
    assert summary.single is not None and summary.single.num_heads == 1


def test_killed_before_the_comparison_was_written_it_is_written_later(recipe, tmp_path):
    config = recipe('--compare_single=true', '--plots=false')
    expected, file = train(config), tmp_path / 'run' / 'summary.json'
    dataclasses.replace(expected, single=None).write(file)
    assert train(config) == expected == RunSummary.read(file)


FILES = [
    'metrics.jsonl', 'train_labels.csv', 'checkpoints', 'checkpoints/update-000000008/tensors.safetensors',
    'checkpoints/update-000000008/state.json', 'checkpoints/update-000000008/manifest.json',
    'checkpoints/update-000000008', '.lock',
]


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    """An uninterrupted run with noise."""
    folder = tmp_path_factory.mktemp('whole') / 'run'
    assert main([*RECIPE, f'--output={folder}']) == 0
    return folder


@pytest.fixture(scope='module')
def killed(tmp_path_factory):
    """The same run, killed before its eleventh update."""
    folder = tmp_path_factory.mktemp('killed') / 'run'
    with pytest.MonkeyPatch.context() as patch:
        kill_before(patch, 10)
        with pytest.raises(KilledError):
            main([*RECIPE, f'--output={folder}'])
    return folder


RECIPE = [
    '--model.name=collab_test_resnet', '--model.heads=2', '--data.path=builtin:digits', '--data.img_size=16',
    '--data.in_chans=1', '--data.max_train_samples=128', '--augment.no_aug=true', '--optim.lr=0.02',
    '--batch_size=32', '--noise.rate=0.4', '--plots=false', *KEYS,
]


@pytest.mark.parametrize('how', ['missing', 'damaged'])
@pytest.mark.parametrize('name', FILES)
def test_whatever_file_is_lost_the_run_ends_the_same(whole, killed, tmp_path, capsys, name, how):
    shutil.copytree(killed, tmp_path / 'run')
    path = tmp_path / 'run' / name
    if path.is_dir():
        path.rename(tmp_path / 'lost')
        if how == 'damaged':
            path.mkdir()
    elif how == 'missing':
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-3] + b'\x00')
    assert main([*RECIPE, f'--output={tmp_path / "run"}']) == 0
    out, err = capsys.readouterr()
    assert_same_run(whole, tmp_path / 'run')
    assert (whole / 'train_labels.csv').read_text() == (tmp_path / 'run' / 'train_labels.csv').read_text()
    if name.startswith('checkpoints/') and not (how == 'missing' and name.endswith('08')):
        assert "update-000000008 is missing; it was renamed to 'update-000000008.damaged'" in err or 'bytes' in err \
            or 'manifest.json' in err
    if name == 'checkpoints':
        assert 'holds no checkpoint yet: starting from the beginning' in out


def test_an_exploded_loss_names_the_batch_and_keeps_the_last_checkpoint(recipe, tmp_path):
    config = recipe('--epochs=3', '--optim.lr=0.02', '--max_loss=0.001')
    with pytest.raises(TrainError, match=r"over max_loss 0.001, at epoch 0, step 0 .*The batch: rows \d+, .*, \.\.\. of"
                                         r" split 'train', all in '.*exploded_batch.json'. There is no checkpoint yet"):
        train(config)
    batch = json.loads((tmp_path / 'run' / 'exploded_batch.json').read_text())
    assert (batch['epoch'], batch['step'], batch['split']) == (0, 0, 'train')
    assert len(set(batch['rows'])) == 32 == len(batch['rows'])
