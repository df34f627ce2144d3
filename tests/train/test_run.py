"""Whole runs: what they leave behind, what another process makes of it, and what is refused before they start."""
from __future__ import annotations

import csv
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import yaml
from safetensors.torch import load_file, save_file

from timm_collab import load_run
from timm_collab.train import TrainError
from timm_collab.train.__main__ import main
from timm_collab.train.data.training_data import TrainingData
from timm_collab.train.record.plots import can_plot
from timm_collab.train.record.provenance import commit
from timm_collab.train.run import train

ROOT = Path(__file__).parents[2]
PLAIN_TIMM = """
import sys, timm, torch
from safetensors.torch import load_file, save_file
model = timm.create_model(f'local-dir:{sys.argv[1]}/pruned', pretrained=True).eval()
with torch.inference_mode():
    save_file({'logits': model(load_file(sys.argv[2])['images'])}, sys.argv[3])
assert 'timm_collab' not in sys.modules
print(type(model).__module__, model.pretrained_cfg['input_size'])
"""


def python(*argv: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, 'PYTHONPATH': str(ROOT), 'OMP_NUM_THREADS': '1'}
    return subprocess.run([sys.executable, *argv], cwd=cwd, env=environment, capture_output=True, text=True)


@pytest.fixture(scope='module')
def quickstart(tmp_path_factory):
    """One epoch of the quickstart, by its command line."""
    folder = tmp_path_factory.mktemp('quickstart')
    done = python(
        '-m', 'timm_collab.train', '--config', 'quickstart', '--epochs=1', '--data.max_train_samples=256',
        '--output', 'out', cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder / 'out', done


def test_quickstart_prints_three_errors_and_the_line_to_paste(quickstart):
    folder, done = quickstart
    lines = done.stdout.strip().splitlines()
    summary = json.loads((folder / 'summary.json').read_text())
    assert lines[-1] == summary['load']
    assert lines[-1] == "import timm; model = timm.create_model('local-dir:out/pruned', pretrained=True)"
    assert lines[-3] == (
        f'test error: single network, cross-entropy {summary["plain"]["error_kept"]:.1f} %'
        f'    single network {summary["single"]["error_kept"]:.1f} %'
        f'    4-head tree {summary["error_kept"]:.1f} %'
        f' (kept head {summary["kept_head"]} of 0-3, consensus {summary["error_consensus"]:.1f} %)'
    )
    assert sum(line.strip().startswith('1/1 ') for line in lines) == 3


def test_quickstart_leaves_a_complete_run_folder(quickstart):
    folder, _ = quickstart
    for run, heads in ((folder, 4), (folder / 'single', 1), (folder / 'plain', 1)):
        names = {
            'config.yaml', 'train_labels.csv', 'metrics.jsonl', 'checkpoints', 'tree.safetensors', 'pruned',
            'summary.json',
        }
        names |= {'single', 'plain', '.lock', *(['plots'] if can_plot() else [])} if heads == 4 else set()
        assert {path.name for path in run.iterdir()} == names
        assert {path.name for path in (run / 'pruned').iterdir()} == {'config.json', 'model.safetensors'}
        config = yaml.safe_load((run / 'config.yaml').read_text())
        assert config['epochs'] == 1 and config['data']['max_train_samples'] == 256
        [row] = map(json.loads, (run / 'metrics.jsonl').read_text().splitlines())
        assert len(row['val']['top1_heads']) == len(row['train_hard_heads']) == heads
        assert 'test' not in row
        summary = json.loads((run / 'summary.json').read_text())
        assert summary['peak_memory_mb'] > 100 and summary['hardware'] and summary['commit'] == commit()
        summary = json.loads((run / 'summary.json').read_text())
        assert summary['num_heads'] == heads == len(summary['error_heads'])
        assert summary['error_kept'] == pytest.approx(100 - summary['test']['top1_kept'])
        assert summary['noise']['realised_rate'] == round(0.4 * 256) / 256
        with open(run / 'train_labels.csv', newline='') as file:
            labels = [tuple(map(int, line.values())) for line in csv.DictReader(file)]
        assert len(labels) == 256 == len({row for row, _, _ in labels})
        counts = np.zeros((10, 10), dtype=int)
        for _, clean, noisy in labels:
            counts[clean, noisy] += 1
        assert summary['noise']['confusion'] == counts.tolist()
        assert counts.sum() - counts.trace() == round(0.4 * 256)
        assert (summary['data']['train'], summary['test']['count']) == (256, 500)
    tree, single = (json.loads((run / 'summary.json').read_text()) for run in (folder, folder / 'single'))
    assert tree['single'] == single
    assert tree['parameters']['kept'] == single['parameters']['kept'] == single['parameters']['trained']
    assert tree['parameters']['trained'] > tree['parameters']['kept']


def test_plain_timm_in_another_process_gives_the_same_logits(quickstart, tmp_path):
    folder, _ = quickstart
    images = torch.rand(5, *json.loads((folder / 'pruned' / 'config.json').read_text())['pretrained_cfg']['input_size'])
    save_file({'images': images}, tmp_path / 'images.safetensors')
    (tmp_path / 'load.py').write_text(PLAIN_TIMM)
    done = python('load.py', str(folder), 'images.safetensors', 'logits.safetensors', cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith('timm.models.')

    # The same weights in the network that timm builds for the architecture, without any config of ours.
    config = yaml.safe_load((folder / 'config.yaml').read_text())
    plain = timm.create_model(
        config['model']['name'].removeprefix('collab_'), num_classes=10, in_chans=config['data']['in_chans'],
        **config['model']['kwargs'])
    plain.load_state_dict(load_file(folder / 'pruned' / 'model.safetensors'))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.inference_mode():
        expected = plain.eval()(images)
    torch.set_num_threads(threads)
    assert torch.equal(load_file(tmp_path / 'logits.safetensors')['logits'], expected)


def test_compared_single_network_is_the_one_trained_alone(recipe, tmp_path):
    both = train(recipe('--compare_single=true', '--noise.rate=0.4'))
    alone = train(recipe(
        '--model.heads=1', '--compare_single=true', '--noise.rate=0.4', f'--output={tmp_path / "alone"}'))
    assert alone.single is None and both.single is not None
    assert both.single.test == alone.test
    weights = [load_file(tmp_path / run / 'pruned' / 'model.safetensors') for run in ('run/single', 'alone')]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_images_in_folders_with_augmentation_and_without_test_split(recipe, image_folder, tmp_path):
    folder = image_folder()
    summary = train(recipe(
        f'--data.path={folder}', '--data.in_chans=3', '--augment.no_aug=false', '--augment.crop=pad',
        '--batch_size=8', '--data.workers=1', '--data.max_train_samples=null', '--sched.name=multistep',
        '--sched.decay_milestones=[1]'))
    assert summary.test is None and summary.data.val == 2
    assert summary.scores.kept == pytest.approx(100 - summary.val['top1_kept'])
    config = json.loads((tmp_path / 'run' / 'pruned' / 'config.json').read_text())
    assert config['label_names'] == ['cat', 'dog'] and config['num_classes'] == 2


@pytest.mark.parametrize(('argv', 'message'), [
    (['--model.name=collab_restnet18'], "timm has no architecture 'restnet18'; did you mean 'resnet18'"),
    (['--model.heads=null', '--model.tree=layr2:2'], "'layr2' is no module of this network. Did you mean 'layer2'?"),
    (['--model.heads=null', '--model.tree=fc:2'], "no parameter between 'fc' and the end"),
    (['--model.kwargs={widht: 3}'], "model 'collab_test_resnet' can't be made: .*widht"),
    (['--model.num_classes=5'], r"label [5-9] in row \d+ of split 'train' is outside \[0, 5\)"),
    (['--data.path=./nowhere'], "'./nowhere' does not exist"),
    (['--data.image_column=img'], 'the data has image, label'),
    (['--batch_size=2000'], 'larger than the training data, 128 images'),
    (['--optim.name=sdg'], "timm has no optimizer 'sdg'; did you mean 'sgd'"),
    (['--optim.name=fusedsgd'], "optimizer 'fusedsgd' can't be made: .*APEX"),
    (['--optim.kwargs={dampenin: 0.1}'], "optimizer 'sgd' can't be made: .*dampenin"),
    (['--optim.kwargs={betas: [0.9, 0.95]}'], r"optim\.kwargs: 'sgd' has no betas: leave it out"),
    (['--optim.name=lookahead_lion', '--optim.kwargs={eps: 1e-6}'], "'lookahead_lion' has no eps: leave it out"),
    (['--optim.name=adahessian'], "'adahessian' needs second derivatives, which this trainer doesn't compute"),
    (['--optim.kwargs={foreach: true, fused: true}'], "optimizer 'sgd' can't be made"),
    (['--optim.name=adam', '--optim.kwargs={betas: [0.9]}'], "optimizer 'adam' can't be made"),
    (['--model.kwargs={layers: [1]}'], "model 'collab_test_resnet' can't be made"),
    (['--model.checkpoint_path=none.pth'], "model.checkpoint_path 'none.pth' is no file"),
    (['--output='], 'output is empty: name a folder'),
    ([f'--output={"a" * 300}'], "can't be created: File name too long"),
    (['--optim.lrr=1'], "did you mean 'optim.lr'"),
    (['--model.name=collab_test_convnext', '--data.img_size=8'], r"can't take images of \(1, 8, 8\)"),
])
def test_user_errors_are_one_line_and_leave_nothing(recipe, tmp_path, capsys, monkeypatch, argv, message):
    monkeypatch.chdir(tmp_path)
    options = {option.split('=')[0]: option for option in [
        '--model.name=collab_test_resnet', '--data.path=builtin:digits', '--data.img_size=16', '--data.in_chans=1',
        '--data.max_train_samples=128', '--augment.no_aug=true', '--batch_size=32', '--output=run', *argv,
    ]}
    assert main(list(options.values())) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert lines[-1].startswith('error: ')
    assert re.search(message, lines[-1]), lines[-1]
    assert not (tmp_path / 'run').exists()


def test_broken_image_in_a_worker_is_one_line(recipe, image_folder, tmp_path, capsys):
    folder = image_folder(train=20, test=2)
    (folder / 'train' / 'dog' / '5.png').write_bytes(b'no image at all')
    status = main([
        '--model.name=collab_test_resnet', '--model.heads=2', f'--data.path={folder}', '--data.img_size=16',
        '--data.cache_mb=0', '--data.workers=1', '--batch_size=8', '--epochs=1', f'--output={tmp_path / "run"}'])
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert status == 2
    assert re.match(r"error: the image '.*dog/5.png' in row \d+ of split 'train' can't be decoded", error)


def test_broken_images_can_be_left_out_and_are_counted(recipe, image_folder, tmp_path, capsys):
    folder = image_folder(train=20, val=3)
    for name in ('train/dog/5.png', 'train/cat/0.png', 'val/cat/2.png'):
        (folder / name).write_bytes(b'no image at all')
    argv = [f'--data.path={folder}', '--data.in_chans=3', '--noise.rate=0.1', '--data.max_train_samples=null',
            '--batch_size=38', '--augment.no_aug=false', '--data.on_bad_image=skip']
    summary = train(recipe(*argv))
    assert (summary.data.train, summary.data.val) == (38, 5)
    assert (summary.data.skipped, summary.data.replaced) == (3, 0)
    assert summary.data.splits == {
        'train': {'name': 'train', 'images': 38, 'per_class': {'cat': 19, 'dog': 19}},
        'val': {'name': 'validation', 'images': 5, 'per_class': {'cat': 2, 'dog': 3}},
    }
    assert summary.data.classes == ['cat', 'dog'] and summary.data.left_out == {"can't be decoded": 3}
    assert "left out: 3 (can't be decoded)" in capsys.readouterr().out
    assert len((tmp_path / 'run' / 'train_labels.csv').read_text().splitlines()) == 1 + 38
    with pytest.raises(TrainError, match='batch_size 39 is larger than the training data, 38 images'):
        train(recipe(*argv, '--batch_size=39', f'--output={tmp_path / "other"}'))
    summary = train(recipe(*argv, '--data.cache_mb=0', '--data.workers=1', f'--output={tmp_path / "other"}'))
    assert (summary.data.skipped, summary.data.replaced) == (0, 3)


def test_repeated_augmentation_trains(recipe):
    summary = train(recipe('--augment.no_aug=false', '--augment.crop=pad', '--augment.repeats=3'))
    assert summary.data.train == 128


def test_second_run_into_one_folder_is_refused(recipe, tmp_path, capsys):
    (tmp_path / 'run').mkdir()
    (tmp_path / 'run' / 'config.yaml').write_text('seed: 1\n')
    assert main(['--config=quickstart', f'--output={tmp_path / "run"}']) == 2
    assert 'holds a run of another recipe; it was -> you asked: seed 1 -> 0; ' in capsys.readouterr().err
    assert (tmp_path / 'run' / 'config.yaml').read_text() == 'seed: 1\n'


def test_launch_that_fell_apart_is_refused(recipe, monkeypatch, capsys, tmp_path):
    monkeypatch.setenv('WORLD_SIZE', '2')
    assert main(['--config=quickstart', f'--output={tmp_path / "run"}']) == 2
    assert 'error: 2 processes were launched but this one trains in a group of 1' in capsys.readouterr().err


def test_a_run_from_a_checkpoint_of_ones_own(recipe, tmp_path, monkeypatch):
    """It starts there, and what it saves doesn't need the file."""
    plain = timm.create_model('test_resnet', num_classes=10, in_chans=1)
    monkeypatch.setenv('HOME', str(tmp_path))
    torch.save(plain.state_dict(), tmp_path / 'plain.pth')
    train(recipe(
        '--model.checkpoint_path=~/plain.pth', '--optim.lr=1e-12', '--model.kwargs={no_jit: true}'))
    (tmp_path / 'plain.pth').unlink()
    folder = tmp_path / 'run'
    pruned = timm.create_model(f'local-dir:{folder / "pruned"}', pretrained=True)
    torch.testing.assert_close(pruned.conv1[0].weight, plain.conv1[0].weight)
    assert load_run(folder).load_tree().num_heads == 2


@pytest.mark.parametrize(('keys', 'message'), [
    (['--batch_size=1'], r"batch_size 1 gives the batch normalisation of 'collab_test_resnet' single images, from which"
                         ' it learns nothing: write --batch_size 2 or more'),
    (['--batch_size=4', '--grad_accum_steps=4'],
     r'batch_size 4, computed in 4 parts, gives .*: write --batch_size 8 or more'),
])
def test_batches_of_one_and_batch_norm_are_refused_before_training(recipe, monkeypatch, keys, message):
    monkeypatch.setattr(TrainingData, 'load', lambda *_: pytest.fail('images were decoded'))
    with pytest.raises(TrainError, match=message):
        train(recipe(*keys))


def test_batches_of_one_train_without_batch_norm(recipe):
    summary = train(recipe(
        '--batch_size=1', '--model.name=collab_test_vit', '--model.kwargs={img_size: 32}', '--data.img_size=32',
        '--data.max_train_samples=20'))
    assert summary.epochs == 1
