"""The loop: one model through its epochs, on Accelerate.

Shapes: H heads, B batch.
"""
from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn as nn
from accelerate import Accelerator
from timm.utils import ModelEmaV3, dispatch_clip_grad, distribute_bn
from torch import Tensor
from torch.utils.data import DataLoader

from .build import beta_at, build_mixup, build_optimizer, build_scheduler, build_task
from .config import TrainConfig
from .data.images import EpochSampler, keyed_randomness
from .errors import TrainError
from .evaluate import Scores, evaluate
from .progress import Progress

CHECK_EVERY = 20
"""Updates between two looks at the loss: each look waits for the device, and shows in the progress bar."""


class NonFiniteLossError(TrainError):
    """The loss became NaN or infinite."""


@dataclass(frozen=True)
class Loaders:
    """Loaders of one run; `sampler` is that of `train`."""

    train: DataLoader
    sampler: EpochSampler
    val: DataLoader
    test: DataLoader | None


@dataclass(frozen=True)
class EpochStats:
    """What an epoch of training leaves to log; losses are means over its updates and over all processes."""

    loss: float
    hard_H: list[float]
    soft_H: list[float]
    lr: float
    images_per_second: float


class Trainer:
    """Train one model.

    Args:
        config: The recipe.
        model: `CollabModel`.
        loaders: Data, not prepared yet.
        accelerator: Where and how to run.
        on_epoch: Called on every process with the row of each epoch, for logs and the screen.
    """

    def __init__(
            self,
            config: TrainConfig,
            model: nn.Module,
            loaders: Loaders,
            accelerator: Accelerator,
            on_epoch: Callable[[dict[str, Any]], None],
    ) -> None:
        self.config = config
        self.accelerator = accelerator
        self.on_epoch = on_epoch
        self.sampler = loaders.sampler
        self.model = model
        self.memory_format = torch.channels_last if config.channels_last else torch.contiguous_format
        model.to(memory_format=self.memory_format)
        if config.grad_checkpointing:
            model.set_grad_checkpointing()  # type: ignore[operator]
        self.ema = None
        if config.ema.decay is not None:  # copied before Accelerate puts anything around the model
            self.ema = ModelEmaV3(model, decay=config.ema.decay, use_warmup=config.ema.warmup)
            self.ema.to(accelerator.device)
        optimizer = build_optimizer(model, config.optim)
        self.updates_per_epoch = len(loaders.train)
        self.scheduler = build_scheduler(optimizer, config.sched, config.epochs, self.updates_per_epoch)
        wrapped, self.optimizer, self.train_loader, self.val_loader = accelerator.prepare(
            model, optimizer, loaders.train, loaders.val)
        self.test_loader = None if loaders.test is None else accelerator.prepare(loaders.test)
        self.task = build_task(wrapped, config.objective, accelerator.device, config.augment.mixes)
        self.mixup = build_mixup(config.augment, config.objective.smoothing, model.num_classes)  # type: ignore[arg-type]
        self.num_updates = 0

    def fit(self) -> dict[str, Any]:
        """Train for all epochs; afterwards the model keeps the best head of the last epoch's validation.

        With a running average of the weights, it is that which is validated, and the model ends with it.

        Returns:
            The rows of the last epoch and of the epoch with the best kept head.

        Raises:
            NonFiniteLossError: The loss became NaN or infinite.
        """
        best: dict[str, Any] | None = None
        row: dict[str, Any] = {}
        for epoch in range(self.config.epochs):
            stats = self._train_epoch(epoch)
            online = self.score(self.val_loader)
            scores = online if self.ema is None else self.score(self.val_loader, self.ema.module)
            self.model.kept_head = scores.best_head  # type: ignore[assignment]
            row = {
                'epoch': epoch,
                'lr': stats.lr,
                'beta': self.task.criterion.beta,
                'train_loss': stats.loss,
                'train_hard_heads': stats.hard_H,
                'train_soft_heads': stats.soft_H,
                'images_per_second': stats.images_per_second,
                'kept_head': scores.best_head,
                'val': scores.row(scores.best_head),
            }
            if self.ema is not None:
                row['val_without_ema'] = online.row(online.best_head)
            if best is None or row['val']['top1_kept'] > best['val']['top1_kept']:
                best = row
            self.on_epoch(row)
        if self.ema is not None:
            self.model.load_state_dict(self.ema.module.state_dict())
        return {'last': row, 'best': best}

    def score(self, loader: DataLoader, model: nn.Module | None = None) -> Scores:
        """Evaluate the model, or another, on a prepared loader, BatchNorm statistics averaged over processes first."""
        model = self.model if model is None else model
        if self.accelerator.num_processes > 1:
            distribute_bn(model, self.accelerator.num_processes, reduce=True)
        return evaluate(model, loader, self.accelerator)

    def release(self) -> nn.Module:
        """The trained model on the CPU, free of what Accelerate put around it."""
        model = self.accelerator.unwrap_model(self.task.trainable_module, keep_fp32_wrapper=False)
        self.accelerator.free_memory()
        return model.cpu().to(memory_format=torch.contiguous_format)

    def _train_epoch(self, epoch: int) -> EpochStats:
        self.sampler.epoch = epoch
        self.task.train()
        lr = self.optimizer.param_groups[0]['lr']
        meter = _LossMeter(self.accelerator, epoch)
        bar = Progress(
            self.updates_per_epoch * self.config.batch_size,
            epoch,
            self.config.epochs,
            self.accelerator.device,
            self.accelerator.is_main_process,
        )
        start = time.perf_counter()
        with bar:
            for step, (images, target_B) in enumerate(self.train_loader):
                meter.add(self._update(*self._mixed(images, target_B, epoch, step)))
                loss_now = meter.check() if (step + 1) % CHECK_EVERY == 0 else None
                bar.update(self.config.batch_size, loss_now)
            loss = meter.check()
        seconds = time.perf_counter() - start
        hard_H, soft_H = meter.terms()
        return EpochStats(loss, hard_H, soft_H, lr, self.updates_per_epoch * self.config.batch_size / seconds)

    def _mixed(self, images: Tensor, target_B: Tensor, epoch: int, step: int) -> tuple[Tensor, Tensor]:
        """The batch with its images mixed, where the recipe says so; targets are then probabilities [B, C]."""
        if self.mixup is None:
            return images, target_B
        off = self.config.augment.mixup_off_epoch
        self.mixup.mixup_enabled = not off or epoch < off
        with keyed_randomness(self.config.seed, epoch, 'mixup', step, self.accelerator.process_index):
            return self.mixup(images, target_B)

    def _update(self, images: Tensor, target: Tensor) -> Tensor:
        """One step of the optimizer; returns loss, hard and soft terms in a row [1 + 2 H], means over the parts."""
        self.task.criterion.beta = beta_at(self.config.objective, self.num_updates / self.updates_per_epoch)
        steps = self.config.grad_accum_steps
        images = images.contiguous(memory_format=self.memory_format)
        rows = []
        for part, (images_part, target_part) in enumerate(zip(images.chunk(steps), target.chunk(steps), strict=True)):
            last = part == steps - 1
            with nullcontext() if last else self.accelerator.no_sync(self.task.trainable_module):
                result = self.task(images_part, target_part)
                self.accelerator.backward(result['loss'] / steps)
            rows.append(torch.cat([result['loss'].detach().reshape(1), result['hard'], result['soft']]).float())
        if self.config.optim.clip_grad is not None:
            self.accelerator.unscale_gradients(self.optimizer)
            dispatch_clip_grad(
                self.task.get_clip_parameters(exclude_head=self.config.optim.clip_mode == 'agc'),
                self.config.optim.clip_grad,
                self.config.optim.clip_mode,
            )
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.num_updates += 1
        if self.ema is not None:
            self.ema.update(self.model, step=self.num_updates)
        if self.scheduler is not None:
            self.scheduler.step_update(self.num_updates)
        return torch.stack(rows).mean(dim=0)


class _LossMeter:
    """Means of an epoch's losses over updates and processes, kept on the device between checks."""

    def __init__(self, accelerator: Accelerator, epoch: int) -> None:
        self.accelerator = accelerator
        self.epoch = epoch
        self.unchecked: list[Tensor] = []
        self.checked = 0
        self.sums = torch.zeros((), dtype=torch.float64)

    def add(self, row: Tensor) -> None:
        """Take in an update: its loss, and the hard and soft term of each head, [1 + 2 H]."""
        self.unchecked.append(row)

    def check(self) -> float:
        """Mean loss of the epoch so far; all processes stop together when one of them met a loss that isn't finite."""
        if self.unchecked:
            rows = self.accelerator.reduce(torch.stack(self.unchecked), reduction='mean').cpu().double()
            for step, loss in enumerate(rows[:, 0].tolist(), start=self.checked):
                if not math.isfinite(loss):
                    raise NonFiniteLossError(
                        f'the loss is {loss} at epoch {self.epoch}, step {step} (both from 0): lower optim.lr, lengthen'
                        ' sched.warmup_epochs or, with fp16, use bf16')
            self.sums = self.sums + rows.sum(dim=0)
            self.checked += len(rows)
            self.unchecked.clear()
        return self.sums[0].item() / self.checked

    def terms(self) -> tuple[list[float], list[float]]:
        """Mean hard and soft terms of each head."""
        hard_H, soft_H = (self.sums[1:] / self.checked).chunk(2)
        return hard_H.tolist(), soft_H.tolist()
