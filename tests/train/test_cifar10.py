from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import timm

from timm_collab.train.__main__ import main

DATA = os.environ.get('TIMM_COLLAB_DATA')


@pytest.mark.skipif(not DATA, reason='TIMM_COLLAB_DATA is unset: it names the folder that holds cifar10/')
def test_the_cifar10_recipe_trains_prunes_and_reloads(tmp_path: Path) -> None:
    run = tmp_path / 'run'
    status = main([
        '--config', 'cifar10/resnet20',
        '--data.path', str(Path(str(DATA)) / 'cifar10'),
        '--model.name', 'collab_cifar_resnet8',
        '--compare_single', 'false',
        '--epochs', '2',
        '--data.max_train_samples', '512',
        '--data.val_fraction', '0.01',
        '--data.test_split', 'null',
        '--data.workers', '0',
        '--output', str(run),
    ])
    assert status == 0
    rows = [json.loads(line) for line in (run / 'metrics.jsonl').read_text().splitlines()]
    assert [row['epoch'] for row in rows] == [0, 1]
    assert all(len(row['val']['top1_heads']) == 4 and row['val']['count'] == 10 for row in rows)
    summary = json.loads((run / 'summary.json').read_text())
    assert summary['tree'] == 'layer1:2,layer2:2' and summary['data']['train'] == 512
    model = timm.create_model(f'local-dir:{run / "pruned"}', pretrained=True)
    assert model.num_classes == 10
    assert sum(p.numel() for p in model.parameters()) == summary['parameters']['kept']


@pytest.mark.skipif(not DATA, reason='TIMM_COLLAB_DATA is unset: it names the folder that holds cifar10/')
def test_labels_of_human_annotators_are_a_column(tmp_path: Path) -> None:
    run = tmp_path / 'run'
    status = main([
        '--config', 'cifar10/resnet20', '--data.path', str(Path(str(DATA)) / 'cifar10'),
        '--model.name', 'collab_cifar_resnet8', '--compare_single', 'false', '--epochs', '1',
        '--data.max_train_samples', '256', '--data.val_fraction', '0.01', '--data.test_split', 'null',
        '--noise.kind', 'column', '--noise.column', 'label_worst', '--data.workers', '0', '--output', str(run),
    ])
    assert status == 0
    noise = json.loads((run / 'summary.json').read_text())['noise']
    # CIFAR-10N's worst labels are wrong for 40.21 % of the images (Wei et al. 2022); 256 drawn, deviation 3.1 %
    assert abs(noise['realised_rate'] - .4021) < 4 * .031
    assert noise['kind'] == 'column' and noise['column'] == 'label_worst'
    assert sum(map(sum, noise['confusion'])) == 256
