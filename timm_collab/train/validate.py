"""Evaluate a finished run: every head, the consensus and the pruned model, on any split.

Shapes: H heads, B batch, C classes.
"""
from __future__ import annotations

import dataclasses
import json
import sys
from typing import Any

import datasets
import timm.data
import torch

from .build import check_input
from .config import DataConfig, TrainConfig
from .config.parse import from_mapping
from .data.augment.preprocess import resolve
from .data.decoding.image_split import ImageSplit
from .data.labels.label_column import hard_labels, outside, padded
from .data.loading.images import TransformedImages, evaluation_loader
from .data.loading.streaming import StreamSplit
from .data.sources import load_source, load_split
from .data.splits import make_splits
from .errors import TrainError, require
from .metrics.scoring import BINS, MultiLabelScorer, Scorer
from .paths import VALIDATION, write_text
from .record.finished_run import Run


@torch.inference_mode()
def validate(
        run: Run,
        split: str = 'test',
        overrides: dict[str, Any] | None = None,
        batch_size: int | None = None,
        device: str | None = None,
) -> dict[str, Any]:
    """Evaluate a run and write `validation.json` into its folder, atomically.

    Args:
        run: The run.
        split: `test` or `val` for the run's own splits, or the name of a split of the data.
        overrides: Keys of `data` that replace the run's, e.g. `path` or `crop_pct`.
        batch_size: Images per batch, default the run's batch size.
        device: Where to compute, default a GPU if there is one.

    Returns:
        The content of `validation.json`. `confusion` counts the kept head's predictions by class (row) and predicted
        class (column); None of many classes, or of several labels per image.

    Raises:
        TrainError: The run is damaged, or the data doesn't fit it.
    """
    config = _with_data(run.config, overrides or {})
    try:
        where = torch.device(device or ('cuda' if torch.cuda.is_available() else 'cpu'))
        torch.zeros((), device=where)
    except (AssertionError, RuntimeError) as error:  # a build of torch without CUDA raises AssertionError
        raise TrainError(f"device '{device}': {str(error).splitlines()[0]}") from error
    tree = run.load_tree()
    pruned = run.load_pruned()
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    images, names = _find_split(config, split, run)
    data_config = resolve(_changed(config.data, run.config.data), run.data_config)
    check_input(tree, data_config['input_size'], run.config.model.name)
    transform = timm.data.create_transform(**data_config, is_training=False)
    dataset = TransformedImages(images, transform, config.seed)
    loader = evaluation_loader(dataset, batch_size or config.batch_size, config.data.workers)

    num_classes, num_heads = run.summary.data.num_classes, run.summary.num_heads
    labels = [*(f'head {head}' for head in range(num_heads)), 'consensus', 'pruned']
    multi_label = run.config.data.multi_label
    scorers: dict[str, Scorer | MultiLabelScorer] = {
        label: MultiLabelScorer() if multi_label else Scorer(num_classes) for label in labels}
    tree, pruned = tree.to(where), pruned.to(where)
    for images_B, target in loader:
        images_B = images_B.to(where)
        logits_HBC = tree.forward_heads(images_B).float()
        predictions = [*logits_HBC, logits_HBC.mean(dim=0), pruned(images_B)]
        for scorer, logits_BC in zip(scorers.values(), predictions, strict=True):
            scorer.add(logits_BC, target)

    kept = f'head {tree.kept_head}'
    by_class = 'ap' if multi_label else 'top1'
    result = {
        'split': images.name,
        'data': config.data.path,
        'count': scorers[kept].count,
        'kept_head': tree.kept_head,
        'heads': [scorers[label].result() for label in labels[:num_heads]],
        'consensus': scorers['consensus'].result(),
        'pruned': scorers['pruned'].result(),
        **({} if multi_label else {'ece_bins': BINS}),
        'per_class': [
            {
                'label': label,
                'name': None if names is None else names[label],
                'count': count,
                f'{by_class}_kept': of_kept,
                f'{by_class}_consensus': of_consensus,
            }
            for label, (count, of_kept, of_consensus) in enumerate(zip(
                scorers[kept].examples_C, scorers[kept].by_class_C, scorers['consensus'].by_class_C, strict=True))
        ],
        'confusion': scorers[kept].confusion,
    }
    write_text(run.path / VALIDATION, json.dumps(result, indent=2) + '\n')
    return result


def _with_data(config: TrainConfig, overrides: dict[str, Any]) -> TrainConfig:
    data = from_mapping(type(config.data), {**dataclasses.asdict(config.data), **overrides})
    require(data.multi_label == config.data.multi_label,
            f'data.multi_label must be what the run was trained with, {config.data.multi_label}')
    require(data.in_chans == config.data.in_chans,
            f'data.in_chans must be what the run was trained with, {config.data.in_chans}')
    # Test and validation labels have no noise; a column of noisy labels may be missing.
    return dataclasses.replace(config, data=data, noise=type(config.noise)())


def _changed(data: DataConfig, own: DataConfig) -> DataConfig:
    """The keys of the preprocessing that differ from the run's; the others, at None, are as the run resolved them."""
    keys = ('img_size', 'mean', 'std', 'interpolation', 'crop_pct')
    same: dict[str, Any] = {key: None for key in keys if getattr(data, key) == getattr(own, key)}
    return dataclasses.replace(data, **same)


def _find_split(config: TrainConfig, split: str, run: Run) -> tuple[ImageSplit, list[str] | None]:
    """The images of a split, and the names of the run's classes, which its labels are joined with."""
    data, known = config.data, run.class_names
    num_classes, is_own = run.summary.data.num_classes, data.path == run.config.data.path
    found: ImageSplit | StreamSplit | None
    if split == 'val':
        # Held out again as in training; the training split may be smaller than a batch here.
        splits = make_splits(load_source(data, None, num_classes, known), dataclasses.replace(config, batch_size=1))
        found, names = splits.val, splits.label_names
    elif is_own:
        source = load_source(data, None, num_classes, known)
        if split == 'test':
            require(source.test is not None, f"'{data.path}' has no test split, or the run uses none: write --split"
                                             ' val, or the name of another split')
            split = '' if source.test is None else source.test.name
        roles = source.train, source.val, source.test
        found = next((each for each in roles if each is not None and each.name == split), None)
        found = found or load_source(dataclasses.replace(data, test_split=split), None, num_classes, known).test
        names = source.label_names
    if not (is_own or split == 'val') or isinstance(found, StreamSplit):
        found, names = load_split(data, split, num_classes, known)  # other data may have this split alone
    assert isinstance(found, ImageSplit)
    require(known or is_own or data.classes or not names or names == list(map(str, range(len(names)))),
            f"data.path '{data.path}' names its classes, and the run numbers them from 0: write --data.classes with a"
            ' file of their names in that order')
    found = found.with_labels(hard_labels(found.labels))
    bad = outside(found.labels, num_classes)
    if bad is not None:
        raise TrainError(f"split '{found.name}' has label {bad[1]} in row {found.row_N[bad[0]]}, but the run has"
                         f' {num_classes} classes, numbered from 0')
    return found.with_labels(padded(found.labels, num_classes)), known or names
