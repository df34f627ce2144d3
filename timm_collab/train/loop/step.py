"""One update after the other: the model, what moves its weights, and their running average.

Whatever is random in an update is drawn from a seed that depends on the recipe's seed, the epoch, the update and the
process, and on nothing that came before.

Shapes: H heads, B batch, C classes.
"""
from __future__ import annotations

import copy
import warnings
from contextlib import nullcontext
from typing import Any

import torch
import torch.nn as nn
from accelerate import Accelerator
from accelerate.utils import gather
from timm.layers import convert_sync_batchnorm
from timm.utils import ModelEmaV3, dispatch_clip_grad
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer
from torch.utils._pytree import tree_map

from ...objective.task import CollaborativeTask
from ..build import build_criterion, build_mixup, build_optimizer, build_scheduler
from ..config import TrainConfig
from ..data.keyed import keyed_randomness, seed_generators
from ..distributed.sharding import explain, optimizer_shared_out, shard_copy, shared_out, whole
from ..metrics.metric import metric_for
from .distillation import DistillationTask
from .freezing import FrozenTrunk
from .fusing import fuse
from .schedule import schedule_objective
from .teacher import Teacher


class Updater:
    """A model that learns from one batch after the other.

    Args:
        config: The recipe.
        model: `CollabModel`.
        updates_per_epoch: Batches of an epoch.
        accelerator: Where and how to run.
        teacher: Who teaches the model besides, if anyone.
    """

    def __init__(
            self,
            config: TrainConfig,
            model: nn.Module,
            updates_per_epoch: int,
            accelerator: Accelerator,
            teacher: Teacher | None = None,
    ) -> None:
        self.config = config
        self.model = model
        self.updates_per_epoch = updates_per_epoch
        self.accelerator = accelerator
        self.memory_format = torch.channels_last if config.channels_last else torch.contiguous_format
        if config.sync_bn and accelerator.num_processes > 1:
            convert_sync_batchnorm(model)
        if not accelerator.is_fsdp2:  # which takes contiguous weights only; images alone choose the kernels as well
            model.to(memory_format=self.memory_format)
        if config.grad_checkpointing:
            model.set_grad_checkpointing(trunk=config.grad_checkpointing is True)  # type: ignore[operator]
        self.ema = None
        if config.ema.decay is not None:  # copied before Accelerate puts anything around the model
            # Sharded weights beside whole buffers can't be averaged all at once.
            self.ema = ModelEmaV3(
                model, decay=config.ema.decay, use_warmup=config.ema.warmup, foreach=not accelerator.is_fsdp2)
            if not accelerator.is_fsdp2:  # which moves a shard of it
                self.ema.to(accelerator.device)
        criterion = build_criterion(
            config.objective,
            model.num_heads,  # type: ignore[arg-type]
            model.num_classes,  # type: ignore[arg-type]
            config.augment.mixes,
        )
        optimizer = build_optimizer(model, config.optim, criterion)
        self.scheduler = build_scheduler(optimizer, config.sched, config.epochs, updates_per_epoch)
        if accelerator.ddp_handler is not None:
            # Buffers that change in training are statistics of batch normalisation; others are equal everywhere.
            accelerator.ddp_handler.broadcast_buffers = any(isinstance(each, _BatchNorm) for each in model.modules())
        self._unsharded = copy.deepcopy(model) if accelerator.is_fsdp2 else None
        wrapped, self.optimizer = self._prepared(optimizer)
        if not accelerator.is_fsdp2:
            fuse(optimizer, config, accelerator)
        if teacher is None:
            self.task = CollaborativeTask(wrapped, criterion, device=accelerator.device, verbose=False)
        else:
            teacher.network.to(memory_format=self.memory_format)
            self.task = DistillationTask(
                wrapped, criterion, teacher, config.teacher, accelerator.autocast, accelerator.device)
        if config.compile:
            self.task.compile(config.compile_backend, config.compile_mode)
        self.frozen_trunk = FrozenTrunk(model, config.optim.freeze_trunk_epochs, accelerator.num_processes > 1)
        self.metric = metric_for(config.data.multi_label)
        # Several labels are mixed by the images' shares, see `_mixed`: timm's own way isn't in every timm supported.
        batch = config.batch_size // accelerator.num_processes
        mixed = batch if config.data.multi_label else model.num_classes
        self.mixup = build_mixup(config.augment, config.objective.smoothing, mixed)  # type: ignore[arg-type]

    @property
    def lr(self) -> float:
        """Learning rate of the next update, of the first group of weights."""
        return float(self.optimizer.param_groups[0]['lr'])

    def begin_epoch(self, epoch: int) -> None:
        """Get ready for an epoch, from its beginning or its middle."""
        self.task.train()
        self.frozen_trunk.apply(epoch)

    def update(self, images: Tensor, given: Tensor, clean: Tensor, epoch: int, step: int) -> Tensor:
        """Make one step of the optimizer.

        Args:
            images: This process's part of the batch, [B, in_chans, height, width].
            given: Labels to learn: class indices [B], or zeros and ones [B, C].
            clean: What they were before noise, to measure by.
            epoch: The epoch, from 0.
            step: Updates made before in this epoch.

        Returns:
            A row [3 + 2 H], see `LossMeter.add`.
        """
        images, target = self._mixed(images, given, epoch, step)
        seed_generators(
            self.accelerator.device, self.config.seed, 'update', epoch, step, self.accelerator.process_index)
        before = epoch * self.updates_per_epoch + step
        schedule_objective(self.task.criterion, self.config.objective, before / self.updates_per_epoch)
        steps = self.config.grad_accum_steps
        images = images.contiguous(memory_format=self.memory_format)
        rows = []
        batch = images, target, given, clean
        parts = [batch] if steps == 1 else zip(*(each.chunk(steps) for each in batch), strict=True)
        for part, (images_part, target_part, given_part, clean_part) in enumerate(parts):
            last = part == steps - 1
            with nullcontext() if last else self.accelerator.no_sync(self.task.trainable_module):
                result = self.task(images_part, target_part)
                self.accelerator.backward(result['loss'] if steps == 1 else result['loss'] / steps)
            score = self.metric.in_training(result['logits'], given_part)
            by_clean = score if clean is given else self.metric.in_training(result['logits'], clean_part)
            numbers = torch.stack([result['loss'].detach().float(), score, by_clean])
            rows.append(torch.cat([numbers, result['hard'].float(), result['soft'].float()]))
        self.frozen_trunk.drop_gradients()
        for parameter in self.task.criterion.parameters():  # no part of the model, whose gradients DDP averages
            parameter.grad = self.accelerator.reduce(parameter.grad, reduction='mean')
        if self.config.optim.clip_grad is not None:
            self.accelerator.unscale_gradients(self.optimizer)
            dispatch_clip_grad(
                self.task.get_clip_parameters(exclude_head=self.config.optim.clip_mode == 'agc'),
                self.config.optim.clip_grad,
                self.config.optim.clip_mode,
            )
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.ema is not None:
            self.ema.update(self.model, step=before + 1)
        if self.scheduler is not None:
            self.scheduler.step_update(before + 1)
        return rows[0] if steps == 1 else torch.stack(rows).mean(dim=0)

    def state_dict(self, apart: bool) -> dict[str, Any]:
        """Everything that the next update depends on; every process has to ask for it.

        Of weights that are sharded the main process alone has them, whole.

        Args:
            apart: Whether each process has statistics of normalisation layers of its own just now; weights and buffers
                are the main process's, and those statistics come besides, in `process_buffers`.
        """
        scaler, keep = self.accelerator.scaler, self.accelerator.is_main_process
        return whole({
            'model': self.model.state_dict(),
            'ema': None if self.ema is None else self.ema.module.state_dict(),
            'process_buffers': [self._gathered_buffers(each) if apart else {} for each in self._models()],
            'optimizer': self.optimizer.optimizer.state_dict(),
            'scaler': None if scaler is None else scaler.state_dict(),
            'criterion': self.task.criterion.state_dict(),
        }, keep)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where another updater of the same recipe was."""
        saved = [state['model'], state['ema']]
        for model, tensors, buffers in zip(self._models(), saved, state['process_buffers'], strict=False):
            model.load_state_dict(shared_out(tensors, model))
            rank = self.accelerator.process_index
            own = {name: gathered[rank % len(gathered)] for name, gathered in buffers.items()}
            model.load_state_dict(own, strict=False)
        optimizer = self.optimizer.optimizer
        _restore(optimizer, optimizer_shared_out(state['optimizer'], optimizer))
        if self.accelerator.scaler is not None and state['scaler'] is not None:
            self.accelerator.scaler.load_state_dict(state['scaler'])
        self.task.criterion.load_state_dict(state['criterion'])

    def release(self) -> nn.Module:
        """The model on the CPU, free of what Accelerate put around it, with the running average of its weights if any.

        It is the model that was given, or a copy where that one is sharded.

        Nothing can be updated afterwards.
        """
        if self._unsharded is not None:
            model = self._unsharded
            model.load_state_dict(whole(self._models()[-1].state_dict()))
        else:
            model = self.accelerator.unwrap_model(
                self.task.trainable_module, keep_fp32_wrapper=False, keep_torch_compile=False)
            if self.ema is not None:
                model.load_state_dict(self.ema.module.state_dict())
        self.accelerator.free_memory()
        return model.cpu().to(memory_format=torch.contiguous_format)

    def _prepared(self, optimizer: Optimizer) -> tuple[nn.Module, Any]:
        """The model and its optimizer as Accelerate puts them to work; the running average is sharded as the model is.

        Raises:
            TrainError: The model can't be sharded.
        """
        with warnings.catch_warnings():
            # Its successor isn't in every torch that is supported.
            warnings.filterwarnings('ignore', '`?broadcast_buffers', FutureWarning)
            try:
                if self.accelerator.is_fsdp2 and self.ema is not None:
                    shard_copy(self.ema.module, self.accelerator)
                prepared: tuple[nn.Module, Any] = self.accelerator.prepare(self.model, optimizer)
            except (NotImplementedError, ValueError) as error:
                if not self.accelerator.is_fsdp2:
                    raise
                raise explain(error) from error
        return prepared

    def _mixed(self, images: Tensor, labels: Tensor, epoch: int, step: int) -> tuple[Tensor, Tensor]:
        """The batch with its images mixed, where the recipe says so; targets are then probabilities [B, C]."""
        if self.mixup is None:
            return images, labels
        off = self.config.augment.mixup_off_epoch
        self.mixup.mixup_enabled = not off or epoch < off
        with keyed_randomness(self.config.seed, epoch, 'mixup', step, self.accelerator.process_index):
            if labels.ndim == 1:
                return self.mixup(images, labels)
            # With each image as a class of its own, the targets are its share in each mixture.
            images, shares_BB = self.mixup(images, torch.arange(len(images), device=images.device))
            return images, shares_BB @ labels

    def _models(self) -> list[nn.Module]:
        return [self.model] + ([] if self.ema is None else [self.ema.module])

    def _gathered_buffers(self, model: nn.Module) -> dict[str, Tensor]:
        """Every process's buffers [processes, ...], by name."""
        saved = model.state_dict().keys()
        return gather({
            name: buffer.unsqueeze(0) for name, buffer in model.named_buffers()
            if name in saved and buffer.is_floating_point()
        })


def _restore(optimizer: Optimizer, state: dict[str, Any]) -> None:
    """Load an optimizer's state as it was: PyTorch's own way casts it to the dtype of the weights.

    How its kernels are run is the optimizer's own business, whatever those of the saved one were.
    """
    kernels: list[dict[str, Any]] = [
        {name: group[name] for name in ('foreach', 'fused') if name in group} for group in optimizer.param_groups]
    optimizer.load_state_dict(state)
    for group, own in zip(optimizer.param_groups, kernels, strict=True):
        group.update(own)
    loaded = optimizer.state_dict()['state']
    for index, values in state['state'].items():
        for name, value in values.items():
            loaded[index][name] = tree_map(
                lambda saved, cast: saved.to(cast.device) if isinstance(saved, Tensor) else saved,
                value, loaded[index][name])
