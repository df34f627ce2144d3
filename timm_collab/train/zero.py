"""Optimizer state and gradients shared out over the processes, by ZeRO 1 and 2 of DeepSpeed as Accelerate launches it.

Steps are those of DDP: weights stay in float32, and a step is made of the mean of all gradients of an update. What is
saved is whole, see `ZeroOptimizer`.
"""
from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import (
    DistributedType,
    DynamoBackend,
    compare_versions,
    convert_outputs_to_fp32,
    is_deepspeed_available,
    is_transformers_available,
)
from torch import Tensor, nn
from torch.optim import Optimizer

from .config import TrainConfig
from .errors import require
from .zero_optimizer import ZeroOptimizer

OPTIMIZERS = frozenset({
    'adabelief', 'adadelta', 'adam', 'adamax', 'adamc', 'adamw', 'adan', 'adanw', 'adopt', 'adoptw', 'lion', 'madgrad',
    'madgradw', 'momentum', 'nadam', 'nadamw', 'nesterov', 'radabelief', 'radam', 'radamw', 'rmsprop', 'rmsproptf',
    'sgd', 'sgdc',
})
"""Optimizers of timm that move each weight by its own gradients alone, whatever tensor it is part of."""

SETTINGS = frozenset({
    'bf16', 'fp16', 'gradient_accumulation_steps', 'gradient_clipping', 'steps_per_print', 'train_batch_size',
    'train_micro_batch_size_per_gpu', 'zero_allow_untested_optimizer', 'zero_optimization',
    'zero_optimization.allgather_bucket_size', 'zero_optimization.contiguous_gradients',
    'zero_optimization.offload_optimizer', 'zero_optimization.offload_param', 'zero_optimization.reduce_bucket_size',
    'zero_optimization.reduce_scatter', 'zero_optimization.round_robin_gradients', 'zero_optimization.stage',
    'zero_optimization.stage3_gather_16bit_weights_on_model_save',
})
"""Settings of DeepSpeed that steps don't depend on, or whose values are looked at one by one."""

DEEPSPEED = '0.19.0'
"""The oldest that was compared; 0.18.0 forgets gradients of an update that is computed in parts, without a word."""


def zero_asked() -> bool:
    """Whether this process was launched with DeepSpeed.

    Raises:
        TrainError: It was, and DeepSpeed isn't there.
    """
    asked = os.environ.get('ACCELERATE_USE_DEEPSPEED', 'false').lower() == 'true'
    if asked:
        check_installed()
    return asked


def check_installed() -> None:
    """Make sure that the package is there.

    Raises:
        TrainError: It isn't, or is too old.
    """
    for name, is_there in (('DeepSpeed', is_deepspeed_available), ('transformers', is_transformers_available)):
        require(is_there(), f'{name} is not installed, and Accelerate needs it for DeepSpeed: pip install'
                            ' "timm-collab[deepspeed]", or launch with accelerate/fsdp2')
    require(compare_versions('deepspeed', '>=', DEEPSPEED),
            f'DeepSpeed {DEEPSPEED} or later is proven: update it, or launch with accelerate/fsdp2')


class ZeroAccelerator(Accelerator):
    """Accelerate with DeepSpeed, taking steps as it does without.

    DeepSpeed would keep weights in half precision; here they stay in float32, and autocast alone decides what is
    computed in which precision. Nor does a backward pass step: an update may be computed in several.

    Args:
        mixed_precision: As of `Accelerator`.
        kwargs: More of its arguments.
    """

    def __init__(self, mixed_precision: str | None = None, **kwargs: Any) -> None:
        super().__init__(mixed_precision='no', **kwargs)
        self.precision = (mixed_precision or os.environ.get('ACCELERATE_MIXED_PRECISION') or 'no').lower()
        self._last = True

    @contextmanager
    def autocast(self, autocast_handler: Any = None) -> Iterator[None]:
        """Compute in bfloat16 what may be."""
        with torch.autocast(self.device.type, torch.bfloat16) if self.precision == 'bf16' else nullcontext():
            yield

    @contextmanager
    def no_sync(self, model: nn.Module) -> Iterator[None]:
        """Around all parts of an update but the last."""
        self._last = False
        try:
            yield
        finally:
            self._last = True

    def backward(self, loss: Tensor, **kwargs: Any) -> None:
        """Compute gradients, to be shared out after the last part; `ZeroOptimizer.step` uses them."""
        engine = self.deepspeed_engine_wrapped.engine
        engine.set_gradient_accumulation_boundary(self._last)
        engine.backward(loss, scale_wrt_gas=False, **kwargs)


def check_zero(accelerator: Accelerator, config: TrainConfig) -> None:
    """Refuse what isn't proven to be exact with DeepSpeed, and DeepSpeed that was asked for but isn't there.

    Raises:
        TrainError: One of those.
    """
    if not isinstance(accelerator, ZeroAccelerator):
        return
    require(accelerator.distributed_type == DistributedType.DEEPSPEED,
            'DeepSpeed was asked for, but these processes would train without it: it needs GPUs')
    settings = accelerator.deepspeed_plugin.deepspeed_config
    zero = settings['zero_optimization']
    stage, optim = zero.get('stage'), config.optim
    unknown = sorted({*settings, *(f'zero_optimization.{name}' for name in zero)} - SETTINGS)
    clipping = [None, 'auto', optim.clip_grad or 0.0]
    for is_on, what, instead in (
        (stage not in (1, 2), f'ZeRO stage {stage}',
         'write zero_stage 1 or 2, or to share out weights as well launch with accelerate/fsdp2'),
        (any((zero.get(f'offload_{each}') or {}).get('device', 'none') != 'none' for each in ('optimizer', 'param')),
         'offloading to the CPU or to disk', 'leave it out'),
        (accelerator.precision not in ('no', 'bf16'), f'mixed_precision {accelerator.precision}', 'write bf16'),
        (any(settings.get(name, {}).get('enabled') for name in ('bf16', 'fp16')), "DeepSpeed's own half precision",
         'leave it out and write mixed_precision bf16 in the recipe'),
        (settings.get('gradient_accumulation_steps') not in (None, 'auto', 1), 'its gradient_accumulation_steps',
         'leave it out and write grad_accum_steps in the recipe'),
        (settings.get('gradient_clipping') not in clipping, 'its gradient_clipping',
         'leave it out and write optim.clip_grad in the recipe'),
        (bool(unknown), f'its setting {", ".join(unknown)}', 'leave it out'),
        (accelerator.state.dynamo_plugin.backend != DynamoBackend.NO, 'dynamo_backend', "write dynamo_backend: 'no'"),
        (accelerator.parallelism_config, 'a parallelism_config', 'leave it out'),
        (config.compile, 'compile', 'leave it out'),
        (config.sync_bn, 'sync_bn', 'leave it out, or launch with accelerate/ddp'),
        (config.objective.kind == 'gated', 'objective.kind gated', 'its gate is no part of the model: launch with'
                                                                   ' accelerate/ddp'),
        (optim.freeze_trunk_epochs, 'optim.freeze_trunk_epochs', 'weights of the trunk and others are moved together:'
                                                                 ' launch with accelerate/ddp'),
        (optim.clip_grad is not None and optim.clip_mode != 'norm', f'optim.clip_mode {optim.clip_mode}',
         'clip by norm, or launch with accelerate/ddp'),
        (optim.name.lower() not in OPTIMIZERS, f'optim.name {optim.name}',
         f'write one of {", ".join(sorted(OPTIMIZERS))}, or launch with accelerate/ddp'),
    ):
        require(not is_on, f'{what} is not proven with DeepSpeed: {instead}')


def prepare_zero(
        accelerator: Accelerator,
        model: nn.Module,
        optimizer: Optimizer,
        config: TrainConfig,
) -> tuple[nn.Module, ZeroOptimizer]:
    """The model inside DeepSpeed's engine, and what moves its weights.

    Raises:
        TrainError: DeepSpeed would not keep them as `ZeroOptimizer` finds them.
    """
    parameters = [list(group['params']) for group in optimizer.param_groups]
    require(all(parameters), 'DeepSpeed drops groups without weights, and this optimizer has one: write'
                             ' optim.weight_decay 0, or launch with accelerate/ddp')
    settings = accelerator.deepspeed_plugin.deepspeed_config
    settings['train_batch_size'] = config.batch_size
    settings['train_micro_batch_size_per_gpu'] = config.batch_size // accelerator.num_processes
    settings['gradient_clipping'] = config.optim.clip_grad or 0.0
    if settings['zero_optimization'].get('reduce_bucket_size') in (None, 'auto'):
        # Every backward pass has a buffer of so many numbers; DeepSpeed would take 2 GB for the smallest network.
        size = sum(parameter.numel() for parameter in model.parameters())
        settings['zero_optimization']['reduce_bucket_size'] = min(size, 500_000_000)
    if accelerator.precision == 'bf16':
        # Inside, as Accelerate does without DeepSpeed: the engine switches off autocast that is around itself.
        model.forward = convert_outputs_to_fp32(accelerator.autocast()(model.forward))
    from deepspeed.utils import logger
    logger.setLevel(logging.ERROR)  # what it is about to do doesn't belong among the epochs
    engine, _ = accelerator.prepare(model, optimizer)
    return engine, ZeroOptimizer(engine, parameters)
