"""Distillation from a teacher into one head, by timm's own task; a baseline.

Shapes: H heads (one), B batch, C classes.
"""
from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from timm.task import DistillationTeacher, LogitDistillationTask
from torch import Tensor, nn

from ...objective.loss import CollaborativeLoss
from ...objective.task import CollaborativeTask
from ..config import TeacherConfig
from .teacher import Teacher


class DistillationTask(CollaborativeTask):
    """timm's `LogitDistillationTask` on the one head of a model.

        L = w_task * criterion(z, y) + w_distill * T^2 * KL(softmax(z_teacher / T) || softmax(z / T))

    The teacher gets the images that the head gets, normalised as in its own training. It stays in eval mode, gets no
    gradient, and is not in checkpoints.

    Args:
        model: A `CollabModel` with one head, prepared by Accelerate.
        criterion: The objective; its `criterion` is the loss against the labels.
        teacher: The teacher.
        config: Weights of the two losses, and the temperature.
        autocast: Context manager for the precision of the teacher, that of the model.
        device: Device of the teacher.
    """

    def __init__(
            self,
            model: nn.Module,
            criterion: CollaborativeLoss,
            teacher: Teacher,
            config: TeacherConfig,
            autocast: Callable[[], AbstractContextManager[Any]],
            device: torch.device,
    ) -> None:
        super().__init__(model, criterion, device=device, verbose=False)
        self.distillation = LogitDistillationTask(
            _Student(self, teacher.given_mean, teacher.given_std),
            _Frozen(teacher, autocast, device),
            criterion=criterion.criterion,
            distill_loss_weight=config.distill_loss_weight,
            task_loss_weight=config.task_loss_weight,
            temperature=config.temperature,
            device=device,
            verbose=False,
        )

    def train(self, mode: bool = True) -> DistillationTask:
        """Set the mode of the model; the teacher stays in eval mode."""
        super().train(mode)
        self.distillation.teacher.eval()  # not every supported timm does this
        return self

    def compile(self, backend: str = 'inductor', mode: str | None = None, **compile_kwargs: Any) -> nn.Module:
        """Compile the model and the teacher, see `CollaborativeTask.compile`."""
        self.distillation.teacher.compile(backend, mode, **compile_kwargs)
        return super().compile(backend, mode, **compile_kwargs)

    def forward(
            self,
            input: Tensor,
            target: Tensor,
            index: Tensor | None = None,
            share: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """See `CollaborativeTask.forward`; 'soft' is the unweighted loss against the teacher, with the factor T^2."""
        result = self.distillation(input, target)
        return {
            'loss': result['loss'],
            'output': result['output'],
            'logits': result['output'].unsqueeze(0),
            'hard': result['task_loss'].detach().unsqueeze(0),
            'soft': result['kd_loss'].detach().unsqueeze(0),
        }


class _Student:
    """The student as timm's task expects it: gives logits [B, C] and says how its images are normalised."""

    def __init__(self, task: CollaborativeTask, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        self.task = task  # whose model may be compiled later
        self.pretrained_cfg = {'mean': mean, 'std': std}

    def __call__(self, images: Tensor) -> Tensor:
        [logits_BC] = self.task._forward_heads(images)
        return logits_BC


class _Frozen(DistillationTeacher):
    """timm's teacher in the precision of the model, always without gradients."""

    def __init__(
            self,
            teacher: Teacher,
            autocast: Callable[[], AbstractContextManager[Any]],
            device: torch.device,
    ) -> None:
        super().__init__(teacher.network.to(device))
        for name, values in (('mean_kd', teacher.mean), ('std_kd', teacher.std)):
            self.register_buffer(name, torch.tensor(values, device=device).view(1, -1, 1, 1), persistent=False)
        self.autocast = autocast

    @torch.no_grad()
    def forward(self, input: Tensor, return_features: bool = False) -> Tensor:
        with self.autocast():
            return super().forward(input, return_features).float()
