"""Everything that comes before training: processes, data and models, checked as far as they can be."""
from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import datasets
import torch
import torch.nn as nn
from accelerate import Accelerator
from accelerate.utils import DataLoaderConfiguration, set_seed
from torch.utils.data import Dataset

from .build import build_model, build_optimizer, check_compile, check_input
from .config import TrainConfig
from .data.images import make_dataset
from .data.preprocess import Preprocessing, make_preprocessing
from .data.sources import load_source
from .data.splits import Splits, make_splits
from .errors import TrainError, require


@dataclass(frozen=True)
class Prepared:
    """The data of a run, ready to be loaded batch by batch."""

    splits: Splits
    preprocessing: Preprocessing
    train: Dataset
    val: Dataset
    test: Dataset | None


def make_accelerator(config: TrainConfig) -> Accelerator:
    """Accelerate as launched.

    Raises:
        TrainError: It can't do what is asked for, or a launch of several processes fell apart into single ones.
    """
    if config.cpu_threads is not None:
        torch.set_num_threads(config.cpu_threads)
    try:
        accelerator = Accelerator(
            mixed_precision=config.mixed_precision,
            # One batch of the recipe is one update, however many processes share it.
            dataloader_config=DataLoaderConfiguration(split_batches=True),
        )
    except ValueError as error:
        raise TrainError(f'mixed_precision {config.mixed_precision}: {error}') from error
    launched = int(os.environ.get('WORLD_SIZE', 1))
    require(launched == accelerator.num_processes,
            f'{launched} processes were launched but this one trains in a group of {accelerator.num_processes}:'
            ' on CPUs set ACCELERATE_USE_CPU=true and launch with --multi_gpu')
    parts = f' times grad_accum_steps, {config.grad_accum_steps}' * (config.grad_accum_steps > 1)
    require(config.batch_size % (launched * config.grad_accum_steps) == 0,
            f'batch_size {config.batch_size} is shared by all processes and must be a multiple of their number,'
            f' {launched}{parts}')
    require(not config.augment.mixes or config.batch_size // launched % 2 == 0,
            f'mixup and cutmix mix the images of a batch in pairs: make batch_size, {config.batch_size}, an even number'
            + f' for each of the {launched} processes' * (launched > 1))
    return accelerator


def prepare(configs: Sequence[TrainConfig], accelerator: Accelerator) -> tuple[Prepared, list[nn.Module]]:
    """Load the data, and build a model for each of several recipes.

    Args:
        configs: Recipes that have everything in common but the model.
        accelerator: Where they will run.

    Returns:
        The data and the models, on the CPU. Each model is drawn from the seed, as it would be in a run of its own.

    Raises:
        TrainError: Anything that would keep one of them from being trained.
    """
    config = configs[0]
    check_compile(config)
    progress = accelerator.is_main_process and sys.stderr.isatty()
    if not progress:
        datasets.disable_progress_bars()
    with accelerator.main_process_first():
        source = load_source(config.data, config.noise.column)
    splits = make_splits(source, config)

    models = []
    for each in configs:
        set_seed(each.seed)
        models.append(build_model(each.model, each.data, splits.num_classes))
        build_optimizer(models[-1], each.optim)
    preprocessing = make_preprocessing(models[0], config.data, config.augment)
    for each, model in zip(configs, models, strict=True):
        check_input(model, preprocessing.data_config['input_size'], each.model.name)

    dataset = partial(
        make_dataset,
        preprocessing=preprocessing,
        seed=config.seed,
        cache_mb=config.data.cache_mb,
        progress=progress,
    )
    prepared = Prepared(
        splits=splits,
        preprocessing=preprocessing,
        train=dataset(splits.train, is_training=True),
        val=dataset(splits.val, is_training=False),
        test=None if splits.test is None else dataset(splits.test, is_training=False),
    )
    return prepared, models
