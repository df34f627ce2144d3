"""Summarize a run that has trained."""
from __future__ import annotations

from typing import Any

import torch

from ..config import TrainConfig
from ..data.counts import all_left_out, class_names, count_splits
from ..data.labels.noise import confusion, realised_rate
from ..data.training_data import TrainingData
from ..metrics.by_class import MATRIX_CLASSES
from ..metrics.metric import Metric, best_head, metric_for
from .progress import peak_memory
from .provenance import hardware, versions
from .report import network_name
from .summary import RunSummary
from .summary_parts import (
    BestEpoch,
    DataSummary,
    HeadScores,
    NoiseSummary,
    ParameterCounts,
    TeacherSummary,
    TestedEpochs,
)


def summarize(
        config: TrainConfig,
        model: Any,
        data: TrainingData,
        rows: list[dict[str, Any]],
        tested: TestedEpochs,
        *,
        teacher: TeacherSummary | None,
        num_processes: int,
        device: torch.device,
        commit: str | None,
        train_seconds: float,
) -> RunSummary:
    """Summarize a run that has trained; all but `load` and `single` is filled in.

    Args:
        config: The recipe.
        model: The trained tree.
        data: The data.
        rows: A row of `metrics.jsonl` for each epoch.
        tested: The epochs that it has the scores of.
        teacher: The teacher, if there was one.
        num_processes: Number of processes.
        device: Where they computed.
        commit: Commit of the code that ran.
        train_seconds: Time of the training.
    """
    splits, same = data.splits, data.duplicates
    metric = metric_for(config.data.multi_label)
    kept = tested.kept
    measured = kept.val if kept.test is None else kept.test
    counts = None
    if splits.labels and splits.num_classes <= MATRIX_CLASSES and not config.data.multi_label:
        # train_labels.csv has those of more classes
        counts = confusion(*splits.labels, splits.num_classes).tolist()
    return RunSummary(
        network=network_name(config.model),
        model=str(config.model.name),
        tree=str(model.tree),
        num_heads=model.num_heads,
        kept_head=kept.kept_head,
        kept_head_rule=metric.rule(tested.compared),
        error_on=splits.val_origin if splits.test is None or kept.test is None else f"split '{splits.test.name}'",
        scores=HeadScores(
            kept=metric.in_final(metric.kept(measured)),
            consensus=metric.in_final(metric.consensus(measured)),
            heads=[metric.in_final(score) for score in metric.heads(measured)],
        ),
        test=None if kept.test is None else {**kept.test, **tested.test_details},
        val={**kept.val, **tested.val_details},
        best_epoch=_best_epoch(rows, metric),
        kept=kept,
        last=tested.last,
        oracle=tested.oracle,
        parameters=ParameterCounts(
            trained=sum(parameter.numel() for parameter in model.parameters()),
            kept=sum(parameter.numel() for parameter in model.prune().parameters()),
        ),
        data=DataSummary(
            path=str(config.data.path),
            num_classes=splits.num_classes,
            label_names=splits.label_names,
            preprocessing={
                name: list(value) if isinstance(value, tuple) else value
                for name, value in data.preprocessing.data_config.items()
            },
            train=len(splits.train),
            val=len(splits.val),
            val_origin=splits.val_origin,
            test=None if splits.test is None else len(splits.test),
            skipped=splits.num_skipped,
            replaced=sum(each.num_replaced for each in (data.train, data.val, data.test) if each),
            turned=sum(each.num_turned for each in data.samples),
            sixteen_bit=sum(each.num_sixteen_bit for each in data.samples),
            classes=class_names(splits.label_names, splits.num_classes),
            splits={role: counts.to_dict() for role, counts in count_splits(splits).items()},
            left_out=all_left_out(splits.left_out, splits.num_skipped),
            duplicates=None if same is None else {'within': same.within, 'across': same.across},
        ),
        noise=NoiseSummary(
            kind=config.noise.kind,
            rate=config.noise.rate,
            column=config.noise.column,
            realised_rate=splits.noise_rate,
            confusion=counts,
            val_rate=None if splits.val_clean is None else realised_rate(splits.val_clean, splits.val.labels),
        ),
        teacher=teacher,
        seed=config.seed,
        epochs=len(rows),
        versions=versions(),
        num_processes=num_processes,
        device=str(device),
        hardware=hardware(device),
        commit=commit,
        peak_memory_mb=round(peak_memory(device) / 2**20, 1) or None,
        train_seconds=train_seconds,
    )


def _best_epoch(rows: list[dict[str, Any]], metric: Metric) -> BestEpoch:
    """The best epoch, of the weights or their moving average, ranked as `KeptEpochs` does; of equals the first."""
    epochs, ranks = [], []
    for row in rows:
        for name in ('val_without_ema', 'val'):
            if name in row:
                val, averaged = row[name], name == 'val' and 'val_without_ema' in row
                head = best_head(metric.heads(val), val['loss_heads'])
                epochs.append(BestEpoch(row['epoch'], val, averaged, head))
                ranks.append((metric.heads(val)[head], -val['loss_heads'][head]))
    return epochs[ranks.index(max(ranks))]
