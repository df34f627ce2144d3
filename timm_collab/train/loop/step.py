"""The training step, and everything that it changes: weights, optimizer, schedule, running average of the weights.

Whatever is random in a step is drawn from a seed of its own, made of the recipe's seed, the epoch, the step and the
process. Nothing depends on what was drawn before.

Shapes: H heads, B batch, C classes.
"""
from __future__ import annotations

import copy
import warnings
from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import gather
from timm.layers import convert_sync_batchnorm
from timm.utils import dispatch_clip_grad
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer

from ...model import CollabModel
from ...objective.image_targets import ImageTargets
from ...objective.loss import CollaborativeLoss
from ...objective.task import CollaborativeTask
from ..build import build_criterion, build_mixup
from ..config import TrainConfig
from ..data.random_streams import Purpose, keyed_randomness, seed_generators
from ..distributed.sharding import (
    gather_state,
    shard_model,
    shard_model_state,
    shard_optimizer_state,
    sharding_error,
)
from ..metrics.metric import metric_for
from .distillation import DistillationTask
from .objective_schedule import schedule_objective
from .optim import FrozenTrunk, build_ema, build_optimizer, build_scheduler, fuse, restore_optimizer
from .prediction_changes import PredictionChanges
from .teacher import Teacher


class TrainState:
    """A model in training, from its first step to its last.

    Args:
        config: The recipe.
        model: The head tree, not wrapped.
        updates_per_epoch: Number of batches per epoch.
        accelerator: Where and how to run.
        teacher: Teacher to distill from, if any.
        class_weights: Weight of each class in the loss against the labels, [C].
        labels: Labels of the training images [N], for objectives that remember each image or balance the classes.

    Attributes:
        model: The head tree, as given.
        ema: Running average of its weights, if the recipe asks for one.
        changes: Number of predictions that change from epoch to epoch, if the recipe asks for it.
        task: Model and objective as a timm training task; its model is wrapped by Accelerate.
        optimizer: The optimizer, wrapped by Accelerate.
    """

    def __init__(
            self,
            config: TrainConfig,
            model: CollabModel,
            updates_per_epoch: int,
            accelerator: Accelerator,
            teacher: Teacher | None = None,
            class_weights: Tensor | None = None,
            labels: Tensor | None = None,
    ) -> None:
        self.config = config
        self.model = model
        self.updates_per_epoch = updates_per_epoch
        self.accelerator = accelerator
        self.memory_format = torch.channels_last if config.channels_last else torch.contiguous_format
        self.metric = metric_for(config.data.multi_label)
        self.mixup = build_mixup(config, model.num_classes, accelerator.num_processes)
        self.frozen_trunk = FrozenTrunk(model, config.optim.freeze_trunk_epochs, accelerator.num_processes > 1)
        self.changes = None
        if config.stop.on == 'predictions' and labels is not None:
            self.changes = PredictionChanges(len(labels), config.stop.smoothing_epochs, accelerator)

        self._configure_model()
        self.ema = build_ema(model, config.ema, updates_per_epoch, accelerator)
        criterion = build_criterion(
            config.objective, model.num_heads, model.num_classes, config.augment.mixes, class_weights, labels,
            config.data.sampling == 'balanced')
        optimizer = build_optimizer(model, config.optim, criterion)
        self.scheduler = build_scheduler(optimizer, config.sched, config.epochs, updates_per_epoch)
        self._unsharded = copy.deepcopy(model) if accelerator.is_fsdp2 else None
        wrapped, self.optimizer = self._wrap(optimizer)
        self.task = self._make_task(wrapped, criterion, teacher)

    def _configure_model(self) -> None:
        """Apply what the recipe says of the network itself, before it is copied and wrapped."""
        config, model, accelerator = self.config, self.model, self.accelerator
        if config.sync_bn and accelerator.num_processes > 1:
            convert_sync_batchnorm(model)
        if not accelerator.is_fsdp2:  # which shards contiguous weights only; the images' format chooses the kernels too
            model.to(memory_format=self.memory_format)
        if config.grad_checkpointing:
            model.set_grad_checkpointing(trunk=config.grad_checkpointing is True)

    def _wrap(self, optimizer: Optimizer) -> tuple[nn.Module, Any]:
        """Have Accelerate wrap model and optimizer; the running average is sharded as the model is.

        Raises:
            TrainError: The model can't be sharded.
        """
        accelerator = self.accelerator
        if accelerator.ddp_handler is not None:
            # Buffers that change in training are statistics of batch norms; others are equal in all processes.
            has_batch_norm = any(isinstance(module, _BatchNorm) for module in self.model.modules())
            accelerator.ddp_handler.broadcast_buffers = has_batch_norm
        with warnings.catch_warnings():
            # Its successor isn't in every torch that is supported.
            warnings.filterwarnings('ignore', '`?broadcast_buffers', FutureWarning)
            try:
                if accelerator.is_fsdp2 and self.ema is not None:
                    shard_model(self.ema.module, accelerator)
                wrapped: tuple[nn.Module, Any] = accelerator.prepare(self.model, optimizer)
            except (NotImplementedError, ValueError) as error:
                if not accelerator.is_fsdp2:
                    raise
                raise sharding_error(error) from error
        if not accelerator.is_fsdp2:
            fuse(optimizer, self.config, accelerator)
        return wrapped

    def _make_task(
            self, wrapped: nn.Module, criterion: CollaborativeLoss, teacher: Teacher | None) -> CollaborativeTask:
        """Join the wrapped model with its objective, and compile both where the recipe says so."""
        config, accelerator = self.config, self.accelerator
        if teacher is None:
            task = CollaborativeTask(wrapped, criterion, device=accelerator.device, verbose=False)
        else:
            teacher.network.to(memory_format=self.memory_format)
            task = DistillationTask(
                wrapped, criterion, teacher, config.teacher, accelerator.autocast, accelerator.device)
        if config.compile:
            task.compile(config.compile_backend, config.compile_mode)
        return task

    @property
    def lr(self) -> float:
        """Learning rate of the next update, of the first parameter group."""
        return float(self.optimizer.param_groups[0]['lr'])

    @property
    def eval_model(self) -> CollabModel:
        """The model that is validated, tested and kept: the running average of the weights, if there is one."""
        return self.model if self.ema is None else self.ema.module

    def begin_epoch(self, epoch: int) -> None:
        """Prepare for an epoch, or for the rest of one."""
        self.task.train()
        self.frozen_trunk.begin_epoch(epoch)

    def train_step(
            self,
            images: Tensor,
            given: Tensor,
            clean: Tensor,
            epoch: int,
            step: int,
            index: Tensor | None = None,
    ) -> Tensor:
        """Make one step of the optimizer.

        Args:
            images: This process's part of the batch, [B, in_chans, height, width].
            given: Labels to learn: class indices [B], or zeros and ones or probabilities [B, C].
            clean: Labels before noise was added, to measure by.
            epoch: The epoch, from 0.
            step: Number of steps made before in this epoch.
            index: Index of each image in the training data [B], where `needs_index`.

        Returns:
            A row [3 + 2 H], see `LossMeter.add`.
        """
        config, accelerator, parts = self.config, self.accelerator, self.config.grad_accum_steps
        updates = epoch * self.updates_per_epoch + step
        if self.mixup is not None and self.needs_index:
            self._remember(index, self._predict_unmixed(images))
        images, target, share = self._mix(images, given, epoch, step)
        if config.data.soft_labels:  # without noise; measured by the most probable class
            given = clean = given.argmax(dim=1)
        images = images.contiguous(memory_format=self.memory_format)
        seed_generators(accelerator.device, config.seed, Purpose.UPDATE, epoch, step, accelerator.process_index)
        schedule_objective(self.task.criterion, config.objective, updates / self.updates_per_epoch)

        rows = []
        for part in range(parts):
            images_part, target_part, given_part, clean_part = (
                each.chunk(parts)[part] if parts > 1 else each for each in (images, target, given, clean))
            # Processes average their gradients in the last backward pass only.
            with nullcontext() if part == parts - 1 else accelerator.no_sync(self.task.trainable_module):
                share_part = None if share is None else share.chunk(parts)[part]  # in images of the whole batch
                index_part = index if index is None or share is not None else index.chunk(parts)[part]
                result = self.task(images_part, target_part, index_part, share_part)
                accelerator.backward(result['loss'] / parts if parts > 1 else result['loss'])
            if share is None:
                self._remember(index_part)
                if self.changes is not None and index_part is not None:
                    self.changes.store(index_part, result['logits'])
            rows.append(self._measure(result, given_part, given_part if clean is given else clean_part))

        self._finish_gradients()
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.ema is not None:
            self.ema.update(self.model, step=updates + 1)
        if self.scheduler is not None:
            self.scheduler.step_update(updates + 1)
        return torch.stack(rows).mean(dim=0) if parts > 1 else rows[0]

    @property
    def needs_index(self) -> bool:
        """Whether the objective needs to know which images a batch has."""
        return isinstance(self.task.criterion.criterion, ImageTargets) or self.changes is not None

    def _remember(self, index_B: Tensor | None, logits_HBC: Tensor | None = None) -> None:
        """Store the targets of the images that this and all other processes have computed, or have these logits of."""
        targets = self.task.criterion.criterion
        if index_B is not None and isinstance(targets, ImageTargets) and targets.is_updating:
            updated_HBC = targets.latest if logits_HBC is None else targets.updated(logits_HBC, index_B)
            assert updated_HBC is not None
            if self.accelerator.num_processes > 1:
                index_B = gather(index_B)
                updated_HBC = gather(updated_HBC.transpose(0, 1).contiguous()).transpose(0, 1)
            targets.store(index_B, updated_HBC)

    @torch.no_grad()
    def _predict_unmixed(self, images: Tensor) -> Tensor:
        """Logits [H, B, C] of the running average of the weights, by which ELR+ makes its targets of mixed batches."""
        assert self.ema is not None
        with self.accelerator.autocast():
            logits_HBC: Tensor = self.ema.module.forward_heads(images.contiguous(memory_format=self.memory_format))
        return logits_HBC

    def _mix(self, images: Tensor, labels: Tensor, epoch: int, step: int) -> tuple[Tensor, Tensor, Tensor | None]:
        """Mix the images where the recipe says so; targets are then probabilities [B, C].

        Returns:
            Images, targets, and where the objective remembers each image the share of each in each mixture [B, B].
        """
        if self.mixup is None:
            return images, labels, None
        off = self.config.augment.mixup_off_epoch
        self.mixup.mixup_enabled = not off or epoch < off
        with keyed_randomness(self.config.seed, epoch, Purpose.MIXUP, step, self.accelerator.process_index):
            if labels.ndim == 1 and not self.needs_index:
                return *self.mixup(images, labels), None
            # With each image as a class of its own, the targets are its share in each mixture.
            if self.config.data.soft_labels:  # timm's mixup smooths class indices only
                smoothing = self.config.objective.smoothing
                labels = (1 - smoothing) * labels + smoothing / labels.shape[1]
            if labels.ndim == 1:
                labels = F.one_hot(labels, self.model.num_classes).float()
            images, share_BB = self.mixup(images, torch.arange(len(images), device=images.device))
            return images, share_BB @ labels, share_BB if self.needs_index else None

    def _measure(self, result: dict[str, Tensor], given: Tensor, clean: Tensor) -> Tensor:
        """The row of one forward pass: loss, score by both kinds of labels, terms of each head."""
        score = self.metric.in_training(result['logits'], given)
        clean_score = score if clean is given else self.metric.in_training(result['logits'], clean)
        numbers = torch.stack([result['loss'].detach().float(), score, clean_score])
        return torch.cat([numbers, result['hard'].float(), result['soft'].float()])

    def _finish_gradients(self) -> None:
        """Drop, average and clip gradients, so that the optimizer may step."""
        config = self.config.optim
        self.frozen_trunk.drop_gradients()
        for parameter in self.task.criterion.parameters():  # not in the model, whose gradients DDP averages
            parameter.grad = self.accelerator.reduce(parameter.grad, reduction='mean')
        if config.clip_grad is not None:
            self.accelerator.unscale_gradients(self.optimizer)
            parameters = self.task.get_clip_parameters(exclude_head=config.clip_mode == 'agc')
            dispatch_clip_grad(parameters, config.clip_grad, config.clip_mode)

    def state_dict(self, buffers_differ: bool) -> dict[str, Any]:
        """Everything that the next step depends on; every process has to call it.

        Sharded weights are gathered on the main process alone.

        Args:
            buffers_differ: Whether processes have different statistics of normalisation layers at the moment. Then the
                buffers of all processes are saved as well, in `process_buffers`.
        """
        scaler, is_main = self.accelerator.scaler, self.accelerator.is_main_process
        return gather_state({
            'model': self.model.state_dict(),
            'ema': None if self.ema is None else self.ema.module.state_dict(),
            'process_buffers': [self._gather_buffers(each) if buffers_differ else {} for each in self._models()],
            'optimizer': self.optimizer.optimizer.state_dict(),
            'scaler': None if scaler is None else scaler.state_dict(),
            'criterion': self.task.criterion.state_dict(),
            'changes': None if self.changes is None else self.changes.state_dict(),
        }, is_main)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from the state of another run of the same recipe."""
        saved = [state['model'], state['ema']]
        for model, tensors, buffers in zip(self._models(), saved, state['process_buffers'], strict=False):
            model.load_state_dict(shard_model_state(tensors, model))
            rank = self.accelerator.process_index
            own = {name: gathered[rank % len(gathered)] for name, gathered in buffers.items()}
            model.load_state_dict(own, strict=False)
        optimizer = self.optimizer.optimizer
        restore_optimizer(optimizer, shard_optimizer_state(state['optimizer'], optimizer))
        if self.accelerator.scaler is not None and state['scaler'] is not None:
            self.accelerator.scaler.load_state_dict(state['scaler'])
        self.task.criterion.load_state_dict(state['criterion'])
        if self.changes is not None:
            self.changes.load_state_dict(state['changes'])

    def release(self) -> CollabModel:
        """Return the model on the CPU, unwrapped, with the running average of its weights if there is one.

        It is the model that was given, or a copy where that one is sharded. No step can be made afterwards.
        """
        model: CollabModel
        if self._unsharded is not None:
            model = self._unsharded
            model.load_state_dict(gather_state(self._models()[-1].state_dict()))
        else:
            model = self.accelerator.unwrap_model(
                self.task.trainable_module, keep_fp32_wrapper=False, keep_torch_compile=False)
            if self.ema is not None:
                model.load_state_dict(self.ema.module.state_dict())
        self.accelerator.free_memory()
        return model.cpu().to(memory_format=torch.contiguous_format)

    def _models(self) -> list[CollabModel]:
        return [self.model] if self.ema is None else [self.model, self.ema.module]

    def _gather_buffers(self, model: nn.Module) -> dict[str, Tensor]:
        """The floating-point buffers of every process by name, each [processes, ...]."""
        saved = model.state_dict().keys()
        return gather({
            name: buffer.unsqueeze(0) for name, buffer in model.named_buffers()
            if name in saved and buffer.is_floating_point()
        })
