"""Images with several labels, from the recipe to the model card."""
from __future__ import annotations

import csv
import json
from pathlib import Path

import datasets
import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from huggingface_hub import ModelCard

from tests.train.toys import make_data, make_model, make_trainer
from timm_collab import load_run
from timm_collab.cli import main
from timm_collab.hub import ExportOptions
from timm_collab.hub.export import write_folder
from timm_collab.train.config.parse import parse_config
from timm_collab.train.data.loading.images import evaluation_loader
from timm_collab.train.errors import TrainError
from timm_collab.train.loop.step import TrainState
from timm_collab.train.metrics.metric import average_precision
from timm_collab.train.prepare import prepare
from timm_collab.train.record.plots import can_plot
from timm_collab.train.run import train

KEYS = ('--data.multi_label=true', '--objective.hard=bce')


@pytest.fixture
def several(recipe, several_labels):
    """A recipe of seconds on digits with several labels."""
    def make(*argv: str):
        return recipe(f'--data.path={several_labels}', *KEYS, '--data.cache_dir=', *argv)

    return make


@pytest.fixture(scope='module')
def run(tmp_path_factory, several_labels) -> Path:
    """A finished run with a running average, beside it the network alone."""
    folder = tmp_path_factory.mktemp('run') / 'run'
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, 'HF_DATASETS_CACHE', folder.with_name('cache'))
        train(parse_config([
            '--model.name=collab_test_resnet', '--model.heads=2', f'--data.path={several_labels}', '--data.img_size=16',
            '--data.in_chans=1', '--data.cache_dir=', '--augment.no_aug=true', '--optim.lr=0.02', '--epochs=2',
            '--batch_size=32', '--ema.decay=0.5', '--compare_single=true', f'--output={folder}', *KEYS,
        ]))
    AcceleratorState._reset_state(reset_partial_state=True)
    return folder


def test_a_run_is_measured_by_mean_average_precision(run, capsys):
    rows = [json.loads(line) for line in (run / 'metrics.jsonl').read_text().splitlines()]
    summary = json.loads((run / 'summary.json').read_text())
    for row in rows:
        for scores in (row['val'], row['val_without_ema']):
            assert len(scores['map_heads']) == 2 and 0 < scores['map_consensus'] <= 100
        best = max(range(2), key=lambda head: row['val']['map_heads'][head])
        assert row['kept_head'] == best and row['val']['map_kept'] == row['val']['map_heads'][best]
        assert row['train_f1'].keys() == {'given'} and 'train_top1' not in row
    assert summary['map_kept'] == round(summary['test']['map_kept'], 6) == summary['map_heads'][summary['kept_head']]
    assert summary['kept_head_rule'].startswith('highest validation mean average precision after any epoch')
    validated = [row[name] for row in rows for name in ('val', 'val_without_ema')]
    assert summary['best_epoch']['val'] == max(validated, key=lambda val: val['map_kept'])
    assert summary['data']['num_classes'] == 12 and summary['data']['label_names'][10:] == ['even', 'large']
    assert 0 < summary['single']['map_kept'] <= 100
    assert not any('error' in key or 'top1' in key for key in summary if key != 'error_on')
    if can_plot():
        pictures = {file.name for file in (run / 'plots').iterdir()}
        assert pictures == {'loss.png', 'mean-average-precision.png', 'disagreement.png', 'lr.png'}


def test_the_kept_head_is_plain_timm_and_has_the_score_that_was_measured(run, several, monkeypatch):
    summary = json.loads((run / 'summary.json').read_text())
    data = prepare([several()], Accelerator(cpu=True)).data
    plain = timm.create_model(f'local-dir:{run / "pruned"}', pretrained=True).eval()
    batches = list(evaluation_loader(data.test, 32, 0))
    with torch.inference_mode():
        logits_NC = torch.cat([plain(images) for images, _ in batches])
    target_NC = torch.cat([target for _, target in batches])
    assert target_NC.shape == (60, 12) and target_NC.dtype == torch.float32
    assert 100 * average_precision(logits_NC, target_NC).nanmean() == pytest.approx(summary['map_kept'], abs=1e-4)
    config = json.loads((run / 'pruned' / 'config.json').read_text())
    assert config['problem_type'] == 'multi_label_classification' and len(config['label_names']) == 12


def test_validate_measures_what_training_measured(run, capsys):
    assert main(['validate', str(run), '--device=cpu']) == 0
    said = capsys.readouterr().out
    result = json.loads((run / 'validation.json').read_text())
    summary = json.loads((run / 'summary.json').read_text())
    assert [head['map'] for head in result['heads']] == pytest.approx(summary['test']['map_heads'], abs=1e-4)
    assert [head['bce'] for head in result['heads']] == pytest.approx(summary['test']['loss_heads'], rel=1e-5)
    assert result['pruned'] == result['heads'][summary['kept_head']] and 'ece_bins' not in result
    seen = [row['ap_kept'] for row in result['per_class'] if row['count']]
    assert sum(seen) / len(seen) == pytest.approx(summary['test']['map_kept'], abs=1e-4)
    assert 'mAP' in said and 'micro F1' in said and 'top-1' not in said and f'{result["consensus"]["map"]:.2f}' in said
    assert main(['validate', str(run), '--data.multi_label=false']) == 2
    assert 'data.multi_label must be what the run was trained with, True' in capsys.readouterr().err


def test_another_head_is_pruned_with_its_kind_of_labels(run, tmp_path, capsys):
    other = 1 - load_run(run).summary.kept_head
    assert main(['prune', str(run), '--head', str(other), '--output', str(tmp_path / 'other')]) == 0
    assert json.loads((tmp_path / 'other' / 'config.json').read_text())['problem_type'] == 'multi_label_classification'


def test_the_card_calls_it_by_its_name(run, tmp_path):
    write_folder(load_run(run), tmp_path / 'out', ExportOptions(license='mit', tree=True))
    card = ModelCard.load(tmp_path / 'out' / 'README.md')
    summary = json.loads((run / 'summary.json').read_text())
    [result] = card.data.eval_results
    assert (result.metric_type, result.metric_name) == ('mean_average_precision', 'mAP (%)')
    assert result.metric_value == summary['map_kept'] and card.data.metrics == ['mean_average_precision']
    assert 'multi-label' in card.data.tags
    assert '| | mAP, % |' in card.text and '.sigmoid()' in card.text and 'of 2: on the validation data' in card.text
    assert '12 labels, any number of which grey images of 16x16 pixels may have' in card.text
    assert f'| the network trained alone, same recipe | {summary["single"]["map_kept"]:.2f} |' in card.text
    for absent in ('accuracy', 'top-1', 'rror', 'softmax', 'one of its classes', 'None', '{{'):
        assert absent not in card.text, absent


@pytest.mark.parametrize('column', ['names', 'vector'])
def test_labels_written_otherwise_are_the_same(several, column):
    configs = [several(f'--data.label_column={name}') for name in ('label', column)]
    listed, other = (prepare([config], Accelerator(cpu=True)).data.splits for config in configs)
    assert listed.fingerprint == other.fingerprint and np.array_equal(listed.test.labels, other.test.labels)
    assert listed.train.labels.shape == (128, 12) and listed.train.labels.dtype == np.uint8
    assert other.label_names == (None if column == 'vector' else listed.label_names)


def test_other_labels_are_trained_on_and_recorded(several, tmp_path):
    summary = train(several('--noise.kind=column', '--noise.column=other', '--plots=false'))
    [row] = map(json.loads, (tmp_path / 'run' / 'metrics.jsonl').read_text().splitlines())
    assert row['train_f1'].keys() == {'given', 'clean'} and summary.noise.confusion is None
    with open(tmp_path / 'run' / 'train_labels.csv', newline='') as file:
        lines = list(csv.DictReader(file))
    shifted = [sorted((int(each) + 1) % 12 for each in line['clean'].split()) for line in lines]
    assert [list(map(int, line['noisy'].split())) for line in lines] == shifted and len(lines) == 128


@pytest.mark.parametrize('kind', ['mixup', 'cutmix'])
@pytest.mark.parametrize('mode', ['batch', 'elem'])
def test_targets_are_mixed_as_the_images_are(several, kind, mode):
    config = several('--batch_size=16', f'--augment.{kind}=1', f'--augment.mixup_mode={mode}')
    state = TrainState(config, make_model(heads=2), 3, Accelerator(cpu=True))
    images = torch.arange(16.0)[:, None, None, None].expand(16, 1, 8, 8).clone()
    labels_BC = F.one_hot(torch.arange(16), 20).float() + F.one_hot(torch.arange(16) + 4, 20)
    mixed, target_BC, _ = state._mix(images.clone(), labels_BC, 0, 0)
    # Each image is its own number throughout, so the mixture's mean tells the share of each of the two.
    own_B = torch.arange(16.0)
    share_B = (mixed.mean(dim=(1, 2, 3)) - own_B.flip(0)) / (own_B - own_B.flip(0))
    expected_BC = share_B[:, None] * labels_BC + (1 - share_B[:, None]) * labels_BC.flip(0)
    assert target_BC == pytest.approx(expected_BC, abs=1e-5) and 0 < share_B.min() < 1


def test_a_mixed_batch_is_learnt(several):
    images, labels_N = make_data()
    data = (images, F.one_hot(labels_N, 10).float())
    trainer = make_trainer(several('--batch_size=16', '--augment.mixup=0.8'), make_model(heads=2), data=data)
    row = trainer.fit()[-1]
    assert np.isfinite(row['train_loss']) and 'train_f1' not in row


@pytest.mark.parametrize(('argv', 'message'), [
    (['--objective.hard=ce'], 'data.multi_label: cross-entropy takes one class per image, write --objective.hard bce'),
    (['--objective.smoothing=0.1'], r'objective.smoothing spreads the one class of an image over the others, .* 0.1'),
    (['--noise.rate=0.4'], 'data.multi_label: noise.kind symmetric-exclude replaces the one class of an image'),
    (['--noise.kind=pair', '--noise.rate=0.1'], 'noise.kind pair replaces the one class'),
    (['--noise.kind=matrix', '--noise.matrix=[[1,0],[0,1]]'], 'noise.kind matrix replaces the one class'),
    (['--objective.kind=mutual'], 'objective.kind mutual compares distributions over classes'),
    (['--objective.kind=gated'], 'objective.kind gated compares distributions over classes'),
    (['--data.path=timm:folder'], "data.multi_label: timm's readers give one label per image, got data.path 'timm"),
])
def test_what_needs_one_class_is_refused_with_the_recipe(several, argv, message):
    with pytest.raises(TrainError, match=message):
        several(*argv)
