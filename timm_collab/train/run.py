"""A run from recipe to summary: prepare, train, keep the best head, save it, compare."""
from __future__ import annotations

import dataclasses
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
import torch.nn as nn
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, set_seed

from ..noise import confusion
from .build import model_args
from .config import TrainConfig
from .data.images import evaluation_loader, training_loader
from .evaluate import Scores
from .export import export_head
from .plots import HOW_TO_GET, PLOTS, can_plot, plot_run
from .prepare import Prepared, make_accelerator, prepare
from .report import EpochTable, data_line, final_lines, model_lines, network_name
from .run_folder import SINGLE, RunFolder, check_folder, choose_folder
from .saved_run import save_tree
from .tracking import Tracking, check_trackers
from .trainer import Loaders, Trainer

RULE = 'highest validation accuracy after the last epoch; of equals the lowest cross-entropy, then the first head'
PACKAGES = ('torch', 'timm', 'accelerate', 'datasets', 'numpy')
COMPARED_IMAGES = 32
CONFUSION_CLASSES = 100  # beyond, the counts fill the summary; train_labels.csv has them all


def train(config: TrainConfig) -> dict[str, Any]:
    """Run a recipe, on every process of the launch.

    Returns:
        The summary that `summary.json` holds.

    Raises:
        TrainError: The recipe or its data can't be trained. Nothing has been trained or written by then, except where
            it is a `NonFiniteLossError`, or an image outside the cache that can't be decoded.
        ExportError: The saved model doesn't give the logits of the head that it was saved from.
    """
    check_trackers(config.track)
    accelerator = make_accelerator(config)
    folder = Path(broadcast_object_list([str(choose_folder(config))])[0])
    check_folder(folder)
    runs = [(config, folder)]
    if config.compare_single and config.model.num_heads > 1:
        single = dataclasses.replace(config, model=config.model.single(), compare_single=False)
        runs.append((single, folder / SINGLE))
    prepared, models = prepare([each for each, _ in runs], accelerator)
    _say(accelerator, data_line(config, prepared.splits))

    summaries = [
        _train_one(each, model, prepared, path, accelerator)
        for (each, path), model in zip(runs, models, strict=True)
    ]
    summary = summaries[0]
    if len(summaries) > 1:
        summary['single'] = summaries[1]
        if accelerator.is_main_process:
            RunFolder.write_summary(folder, summary)
    _say(accelerator, *_plots(config, folder, accelerator), *final_lines(summary))
    return summary


def _plots(config: TrainConfig, folder: Path, accelerator: Accelerator) -> list[str]:
    """Draw the run on the main process; a line that says how, where matplotlib is missing."""
    if not config.plots or not accelerator.is_main_process:
        return []
    if not can_plot():
        return ['', HOW_TO_GET]
    plot_run(folder)
    return ['', f'plots: {folder / PLOTS}']


def _train_one(
        config: TrainConfig,
        model: nn.Module,
        prepared: Prepared,
        path: Path,
        accelerator: Accelerator,
) -> dict[str, Any]:
    run = RunFolder(path, config) if accelerator.is_main_process else None
    if run is not None:
        run.write_labels(prepared.splits)
    _say(accelerator, *model_lines(config, model))

    tracking, table = Tracking(accelerator, config, path), EpochTable(config.epochs)

    def on_epoch(row: dict[str, Any]) -> None:
        if run is not None:
            run.log(row)
        tracking.log(row)
        _say(accelerator, *table.lines(row))

    set_seed(config.seed, device_specific=True)
    trainer = Trainer(config, model, _loaders(config, prepared), accelerator, on_epoch)
    start = time.perf_counter()
    rows = trainer.fit()
    seconds = time.perf_counter() - start
    test = None if trainer.test_loader is None else trainer.score(trainer.test_loader)
    trainer.release()

    summary = _summary(config, model, prepared, rows, test)
    summary['num_processes'] = accelerator.num_processes
    summary['device'] = str(accelerator.device)
    summary['train_seconds'] = seconds
    if run is not None:
        fixed = prepared.val if prepared.test is None else prepared.test
        images = torch.stack([fixed[index][0] for index in range(min(COMPARED_IMAGES, len(fixed)))])  # type: ignore
        summary['load'] = export_head(
            model,
            run.pruned,
            images,
            prepared.preprocessing.data_config,
            model_args(config.model, config.data),
            prepared.splits.label_names,
            from_scratch=not config.model.pretrained,
        )
        save_tree(model, run.path)
        run.write_summary(run.path, summary)
    tracking.finish(summary)
    accelerator.wait_for_everyone()
    return summary


def _loaders(config: TrainConfig, prepared: Prepared) -> Loaders:
    train_loader, sampler = training_loader(prepared.train, config.batch_size, config.data.workers, config.seed)
    return Loaders(
        train=train_loader,
        sampler=sampler,
        val=evaluation_loader(prepared.val, config.batch_size, config.data.workers),
        test=None if prepared.test is None
        else evaluation_loader(prepared.test, config.batch_size, config.data.workers),
    )


def _summary(
        config: TrainConfig,
        model: Any,
        prepared: Prepared,
        rows: dict[str, Any],
        test: Scores | None,
) -> dict[str, Any]:
    splits = prepared.splits
    kept_head = model.kept_head
    val_row = rows['last']['val']
    measured = val_row if test is None else test.row(kept_head)
    return {
        'network': network_name(config.model),
        'model': config.model.name,
        'tree': str(model.tree),
        'num_heads': model.num_heads,
        'kept_head': kept_head,
        'kept_head_rule': RULE,
        'error_on': splits.val_origin if test is None else f"split '{splits.test.name}'",  # type: ignore[union-attr]
        'error_kept': _error(measured['top1_kept']),
        'error_consensus': _error(measured['top1_consensus']),
        'error_heads': [_error(top1) for top1 in measured['top1_heads']],
        'test': None if test is None else measured,
        'val': val_row,
        'best_epoch': {'epoch': rows['best']['epoch'], 'val': rows['best']['val']},
        'parameters': {
            'trained': sum(parameter.numel() for parameter in model.parameters()),
            'kept': sum(parameter.numel() for parameter in model.prune().parameters()),
        },
        'data': {
            'path': config.data.path,
            'num_classes': splits.num_classes,
            'label_names': splits.label_names,
            'preprocessing': prepared.preprocessing.data_config,
            'train': len(splits.train),
            'val': len(splits.val),
            'val_origin': splits.val_origin,
            'test': None if splits.test is None else len(splits.test),
        },
        'noise': {
            'kind': config.noise.kind,
            'rate': config.noise.rate,
            'column': config.noise.column,
            'realised_rate': splits.noise_rate,
            'confusion': confusion(splits.clean_N, splits.train.labels_N, splits.num_classes).tolist()
            if splits.num_classes <= CONFUSION_CLASSES else None,
        },
        'seed': config.seed,
        'epochs': config.epochs,
        'versions': {name: metadata.version(name) for name in PACKAGES},
    }


def _error(top1: float) -> float:
    """Percent wrong from percent right, without the dust of the subtraction."""
    return round(100.0 - top1, 6)


def _say(accelerator: Accelerator, *lines: str) -> None:
    if accelerator.is_main_process:
        for line in lines:
            print(line, flush=True)
