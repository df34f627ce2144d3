"""What a run came to, as plain data."""
from __future__ import annotations

from typing import Any

from ..config import TrainConfig
from ..data.noise import confusion
from ..data.training_data import TrainingData
from ..metrics.metric import Scores, metric_for
from .provenance import versions
from .report import network_name

CONFUSION_CLASSES = 100  # beyond, the counts fill the summary; train_labels.csv has them all


def run_summary(
        config: TrainConfig,
        model: Any,
        data: TrainingData,
        rows: list[dict[str, Any]],
        test: Scores | None,
        teacher: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """What `summary.json` holds, besides where and how long the run ran.

    Args:
        config: The recipe.
        model: The trained tree.
        data: The data.
        rows: A row for each epoch.
        test: Scores on the test split, if there is one.
        teacher: What is recorded of the teacher, if there was one.
    """
    splits = data.splits
    metric = metric_for(config.data.multi_label)
    best = max(rows, key=lambda row: metric.kept(row['val']))  # of equals the first
    kept_head = model.kept_head
    val_row = rows[-1]['val']
    measured = val_row if test is None else test.row(kept_head)
    return {
        'network': network_name(config.model),
        'model': config.model.name,
        'tree': str(model.tree),
        'num_heads': model.num_heads,
        'kept_head': kept_head,
        'kept_head_rule': metric.rule,
        'error_on': splits.val_origin if test is None else f"split '{splits.test.name}'",  # type: ignore[union-attr]
        **metric.finals(measured),
        'test': None if test is None else measured,
        'val': val_row,
        'best_epoch': {'epoch': best['epoch'], 'val': best['val']},
        'parameters': {
            'trained': sum(parameter.numel() for parameter in model.parameters()),
            'kept': sum(parameter.numel() for parameter in model.prune().parameters()),
        },
        'data': {
            'path': config.data.path,
            'num_classes': splits.num_classes,
            'label_names': splits.label_names,
            'preprocessing': {
                name: list(value) if isinstance(value, tuple) else value
                for name, value in data.preprocessing.data_config.items()
            },
            'train': len(splits.train),
            'val': len(splits.val),
            'val_origin': splits.val_origin,
            'test': None if splits.test is None else len(splits.test),
            'skipped': splits.num_skipped,
            'replaced': sum(each.num_replaced for each in (data.train, data.val, data.test) if each),
        },
        'noise': {
            'kind': config.noise.kind,
            'rate': config.noise.rate,
            'column': config.noise.column,
            'realised_rate': splits.noise_rate,
            'confusion': confusion(*splits.labels, splits.num_classes).tolist()
            if splits.labels and splits.num_classes <= CONFUSION_CLASSES and not config.data.multi_label else None,
        },
        'teacher': teacher,
        'seed': config.seed,
        'epochs': config.epochs,
        'versions': versions(),
    }
