"""A trained network to learn from."""
from __future__ import annotations

import math
from dataclasses import dataclass

from ..errors import require
from .key import key


@dataclass(frozen=True, kw_only=True)
class TeacherConfig:
    """Classic distillation, by timm's `LogitDistillationTask`: a network alone learns from a frozen one as well."""

    path: str | None = key(None, 'folder of a finished run, whose kept head is the teacher')
    name: str | None = key(None, 'in place of path, a network with pretrained weights: a timm name, hf-hub:user/name or'
                                 ' local-dir:folder')
    checkpoint: str | None = key(None, 'file with the weights of name, in place of its pretrained ones')
    temperature: float = key(4.0, "temperature of teacher and network, as timm's --kd-temperature")
    distill_loss_weight: float | None = key(
        None, "weight of the teacher, as timm's: 1 when left out, but 1 - task_loss_weight where that is given")
    task_loss_weight: float | None = key(None, "weight of the labels, as timm's: 1 when left out")

    def __post_init__(self) -> None:
        require(self.path is None or self.name is None,
                f"teacher.path '{self.path}' and teacher.name '{self.name}' are two teachers: leave one out")
        require(self.checkpoint is None or self.name is not None,
                f"teacher.checkpoint '{self.checkpoint}' needs teacher.name, the architecture of its weights")
        require(math.isfinite(self.temperature) and self.temperature > 0,
                f'teacher.temperature must be positive, got {self.temperature}')
        for name in ('distill_loss_weight', 'task_loss_weight'):
            weight = getattr(self, name)
            require(weight is None or (math.isfinite(weight) and weight >= 0),
                    f'teacher.{name} must be 0 or more, got {weight}')
        require(self.distill_loss_weight is not None or self.task_loss_weight is None or self.task_loss_weight <= 1,
                f'teacher.task_loss_weight {self.task_loss_weight} leaves 1 - {self.task_loss_weight} to the teacher:'
                ' make it 1 or less, or write teacher.distill_loss_weight too')

    @property
    def given(self) -> bool:
        """Whether there is a teacher."""
        return self.path is not None or self.name is not None
