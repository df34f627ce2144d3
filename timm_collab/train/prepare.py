"""What comes before training: processes, data and models, checked as early as possible."""
from __future__ import annotations

import dataclasses
import importlib
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import datasets
import torch
from accelerate import Accelerator
from accelerate.utils import (
    DataLoaderConfiguration,
    DistributedDataParallelKwargs,
    DistributedType,
    parse_flag_from_env,
    set_seed,
)
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from ..model import CollabModel
from .build import build_model, check_compile, check_input, check_targets
from .config import TrainConfig
from .data.augment.preprocess import make_preprocessing
from .data.labels.class_balance import absent_classes, class_weights
from .data.loading.streaming import StreamSplit
from .data.sources import load_source
from .data.splits import Splits, make_splits
from .data.training_data import TrainingData
from .distributed.sharding import check_sharding, refuse_deepspeed
from .errors import TrainError, one_line, require
from .loop.allocator import keep_freed_memory
from .loop.optim import build_optimizer, check_fused
from .loop.teacher import Teacher, check_teacher, load_teacher

SUPPORTED = (DistributedType.NO, DistributedType.MULTI_GPU, DistributedType.MULTI_CPU, DistributedType.FSDP)


@dataclass(frozen=True)
class Prepared:
    """Everything that training starts from.

    Args:
        data: The data.
        models: A model for each recipe, on the CPU.
        teacher: The teacher, if the recipe names one.
        class_weights: Weight of each class in the loss against the labels [C], if the recipe names any.
    """

    data: TrainingData
    models: list[CollabModel]
    teacher: Teacher | None = None
    class_weights: Tensor | None = None


def make_accelerator(config: TrainConfig) -> Accelerator:
    """Make the accelerator of this launch.

    Raises:
        TrainError: It can't do what the recipe asks for, or a launch of several processes fell apart into single ones.
    """
    launched = int(os.environ.get('WORLD_SIZE', 1))
    _configure_torch(config, launched)
    refuse_deepspeed(parse_flag_from_env('ACCELERATE_USE_DEEPSPEED'))
    try:
        accelerator = Accelerator(
            mixed_precision=config.mixed_precision,
            kwargs_handlers=[DistributedDataParallelKwargs(
                gradient_as_bucket_view=True,
                # Every update runs the same graph, unless some of its passes leave out synchronisation.
                static_graph=config.grad_accum_steps == 1,
            )],
            # One batch of the recipe is one update, however many processes share it.
            dataloader_config=DataLoaderConfiguration(split_batches=True),
        )
    except ValueError as error:
        raise TrainError(f'mixed_precision {config.mixed_precision}: {one_line(error)}') from error
    check_sharding(accelerator, config)
    check_fused(config, accelerator)
    _check_launch(accelerator, launched)
    require(not config.sync_bn or launched == 1 or accelerator.device.type == 'cuda',
            'sync_bn needs GPUs: PyTorch does not support it on CPUs')
    _check_batch(config, launched)
    if accelerator.device.type == 'cpu':
        keep_freed_memory()
    return accelerator


def _configure_torch(config: TrainConfig, launched: int) -> None:
    if config.cpu_threads is not None:
        torch.set_num_threads(config.cpu_threads)
    if config.deterministic:
        os.environ.setdefault('CUBLAS_WORKSPACE_CONFIG', ':4096:8')  # required by cuBLAS, before its first use
    torch.use_deterministic_algorithms(config.deterministic)
    torch.backends.cudnn.benchmark = not config.deterministic
    if launched > 1:
        # DDP and Accelerate import it anyway. Imported after the process group was made, it keeps a reference to the
        # group, and gloo's threads outlive the interpreter, which now and then aborts a process that has finished.
        importlib.import_module('torch._dynamo')


def _check_launch(accelerator: Accelerator, launched: int) -> None:
    """Refuse launches that were not tried, and those that would not do what was meant.

    Raises:
        TrainError: This is one.
    """
    require(accelerator.distributed_type in SUPPORTED,
            f'training by {accelerator.distributed_type.value} is not supported, as checkpoints might be incomplete:'
            ' launch with --multi_gpu, or with accelerate/fsdp2 if the tree is too large for one GPU')
    require(accelerator.gradient_accumulation_steps == 1,
            f'Accelerate is set to divide gradients by {accelerator.gradient_accumulation_steps} steps of accumulation:'
            ' leave that out (ACCELERATE_GRADIENT_ACCUMULATION_STEPS) and write grad_accum_steps in the recipe')
    require(launched == accelerator.num_processes,
            f'{launched} processes were launched but this one trains in a group of {accelerator.num_processes}:'
            ' on CPUs set ACCELERATE_USE_CPU=true and launch with --multi_gpu')


def _check_batch(config: TrainConfig, launched: int) -> None:
    """Refuse batches that can't be divided among processes and passes.

    Raises:
        TrainError: The recipe has one.
    """
    divisor, factors = launched * config.grad_accum_steps, str(launched)
    if config.grad_accum_steps > 1:
        factors += f' times grad_accum_steps, {config.grad_accum_steps}'
    require(config.batch_size % divisor == 0,
            f'batch_size {config.batch_size} is shared by all processes and must be a multiple of their number,'
            f' {factors}')
    per_process = f' for each of the {launched} processes' if launched > 1 else ''
    require(not config.augment.mixes or config.batch_size // launched % 2 == 0,
            f'mixup and cutmix mix the images of a batch in pairs: make batch_size, {config.batch_size}, an even number'
            f'{per_process}')


def _check_batch_norm(model: CollabModel, config: TrainConfig, processes: int) -> None:
    """Refuse passes of a single image through batch normalisation, which has no statistics to normalise by.

    Raises:
        TrainError: The recipe leads to them.
    """
    parts = processes * config.grad_accum_steps
    synchronised = config.sync_bn and processes > 1
    single = config.batch_size == parts and not synchronised
    if single and any(isinstance(module, _BatchNorm) for module in model.modules()):
        divided = '' if parts == 1 else f', computed in {parts} parts by {processes} processes,'
        if processes == 1 and parts > 1:
            divided = f', computed in {parts} parts,'
        raise TrainError(f'batch_size {config.batch_size}{divided} gives the batch normalisation of'
                         f" '{config.model.name}' single images, from which it learns nothing: write --batch_size"
                         f' {2 * parts} or more')


def prepare(configs: Sequence[TrainConfig], accelerator: Accelerator) -> Prepared:
    """Load the data, and build a model for each of several recipes.

    Args:
        configs: Recipes that have everything in common but the model.
        accelerator: Where they will run.

    Returns:
        The data, a model for each recipe and the teacher. Each model is drawn from the seed, as it would be in a run of
        its own.

    Raises:
        TrainError: Anything that would keep one of them from being trained.
    """
    config = configs[0]
    check_compile(config)
    check_teacher(config.teacher)
    progress = accelerator.is_main_process and sys.stderr.isatty()
    if not progress:
        datasets.disable_progress_bars()
    with accelerator.main_process_first():
        source = load_source(config.data, config.noise.column, config.model.num_classes)
    splits = _with_notes(make_splits(source, config), config, accelerator.device)
    _class_weights(splits, config)  # for its errors, before anything is decoded

    models: list[CollabModel] = []
    for each in configs:
        set_seed(each.seed)
        models.append(build_model(each.model, each.data, splits.num_classes))
        build_optimizer(models[-1], each.optim)
        _check_batch_norm(models[-1], each, accelerator.num_processes)
    preprocessing = make_preprocessing(models[0], config.data, config.augment)
    splits = dataclasses.replace(splits, notes=(*splits.notes, *preprocessing.notes))
    for each, model in zip(configs, models, strict=True):
        check_input(model, preprocessing.data_config['input_size'], each.model.name)
    teacher = None
    if config.teacher.given:
        with accelerator.main_process_first():  # the others find what it downloads
            teacher = load_teacher(
                config.teacher, splits.num_classes, splits.label_names, preprocessing.data_config)

    data = TrainingData.load(splits, preprocessing, config, accelerator.device, progress)
    return Prepared(data, models, teacher, _class_weights(data.splits, config))


def _class_weights(splits: Splits, config: TrainConfig) -> Tensor | None:
    given = None if isinstance(splits.train, StreamSplit) else splits.train.labels
    return class_weights(config.data, given, splits.label_names, splits.num_classes)


def _with_notes(splits: Splits, config: TrainConfig, device: torch.device) -> Splits:
    """Add what is to be said about the number of training images, of each class and of all."""
    if not isinstance(splits.train, StreamSplit):
        note = absent_classes(config.data, splits.train.labels, splits.label_names, splits.num_classes)
    elif config.data.class_weights is None:
        note = None
    else:
        note = ('data.class_weights are scaled to a mean of 1 over the classes, as the number of images of each is'
                ' unknown in a stream; without data.streaming, over the training images')
    targets = check_targets(config.objective, len(splits.train), splits.num_classes, config.model.num_heads, device)
    return dataclasses.replace(splits, notes=(*splits.notes, *filter(None, (note, targets))))
