"""A run on imbalanced classes, from its recipe to what it leaves behind."""
from __future__ import annotations

import json

import datasets
import pytest

from timm_collab.objective.class_balance import WeightedCrossEntropy
from timm_collab.train.record.summary import RunSummary
from timm_collab.train.run import train


def test_an_imbalanced_run_weighs_its_classes_and_says_so(recipe, tmp_path, images, capsys):
    labels = [0] * 40 + [1] * 10
    features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=['dark', 'bright', 'none']))
    for split, part in (('train', labels), ('validation', [0] * 6 + [1] * 2), ('test', [0] * 3 + [1])):
        rows = datasets.Dataset.from_dict({'image': images(part), 'label': part}, features=features)
        rows.to_parquet(str(tmp_path / f'{split}.parquet'))
    seen = []
    forward = WeightedCrossEntropy.forward
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(WeightedCrossEntropy, 'forward',
                      lambda self, *args: (seen.append(self.weight.tolist()), forward(self, *args))[1])
        summary = train(recipe(
            f'--data.path={tmp_path}', '--data.max_train_samples=null', '--data.class_weights=balanced',
            '--batch_size=10'))
    assert seen and all(weights == pytest.approx([50 / (2 * 40), 50 / (2 * 10), 1.0]) for weights in seen)
    said = capsys.readouterr().out
    assert "1 of 3 classes have no training image, which data.class_weights can't make up for: none" in said
    assert ' balanced' in said
    for name, counts in (('val', [6, 2, 0]), ('test', [3, 1, 0])):
        scores = getattr(summary, name)
        assert [sum(row) for row in scores['confusion_kept']] == counts and scores['recall_kept'][2] is None
        assert scores['balanced_kept'] == pytest.approx(sum(scores['recall_kept'][:2]) / 2)
    [row] = [json.loads(line) for line in (tmp_path / 'run' / 'metrics.jsonl').read_text().splitlines()]
    assert row['wait_seconds'] >= 0 and 'confusion_kept' not in row['val']
    assert RunSummary.read(tmp_path / 'run' / 'summary.json') == summary
