"""What the network learns from: the labels, the other heads, a teacher."""
from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ..errors import require
from .key import KeyGroup, key


@dataclass(frozen=True, kw_only=True)
class ObjectiveConfig(KeyGroup):
    """The collaborative objective (`timm_collab.CollaborativeLoss`)."""

    _prefix = 'objective.'

    beta: float = key(0.5, 'weight of the labels; the consensus of the other heads has weight 1 - beta', ge=0, le=1)
    temperature: float = key(2.0, 'temperature of the consensus term', gt=0)
    scale_by_t2: bool = key(True, 'multiply the consensus term by the squared temperature')
    full_labels: bool = key(False, 'divide the loss by beta: the labels have weight 1, as without heads, the consensus'
                                   ' has weight (1 - beta) / beta')
    hard: Literal['ce', 'bce'] = key(
        'ce', 'loss for the labels: cross-entropy (ce), or binary cross-entropy per class (bce), with a consensus per'
              ' class as well')
    smoothing: float = key(0.0, 'label smoothing', ge=0, lt=1)
    bce_target_threshold: float | None = key(
        None, 'for hard: bce, set targets above this value to 1 and others to 0, such as 0.2 with mixup', ge=0, lt=1)
    bce_sum: bool = key(False, 'for hard: bce, sum over the classes instead of averaging')
    kind: Literal['collaborative', 'mutual', 'gated'] = key(
        'collaborative', 'what a head learns from the others: their consensus (collaborative), the predictions of each'
                         ' of them (mutual, Deep Mutual Learning), or a gated ensemble of all heads (gated, On-the-Fly'
                         ' Native Ensemble)')
    ramp_up_epochs: float = key(0.0, 'epochs in which the weight of the other heads rises from 0 to 1 - beta', ge=0)
    ramp_up: Literal['linear', 'cosine', 'gaussian'] = key(
        'gaussian', 'shape of the ramp-up: linear, cosine, or gaussian, exp(-5 (1 - t)^2)')
    temperature_from: float | None = key(
        None, 'temperature at the start of the first temperature_epochs; constant temperature by default', gt=0)
    temperature_epochs: float = key(
        0.0, 'epochs in which the temperature changes from temperature_from to temperature', ge=0)
    temperature_ramp: Literal['linear', 'cosine', 'gaussian'] = key(
        'cosine', 'shape of the change of temperature, as for ramp_up')

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.beta > 0 or not self.full_labels, 'objective.full_labels divides by objective.beta, which is 0')
        require((self.temperature_from is None) == (self.temperature_epochs == 0),
                'a temperature schedule needs both objective.temperature_from and objective.temperature_epochs')
        require(self.hard == 'ce' or self.kind == 'collaborative',
                f'objective.kind {self.kind} compares distributions over classes: it needs objective.hard ce')
        require(self.hard == 'bce' or (self.bce_target_threshold is None and not self.bce_sum),
                'objective.bce_target_threshold and objective.bce_sum need objective.hard bce')


@dataclass(frozen=True, kw_only=True)
class TeacherConfig(KeyGroup):
    """Classic distillation with timm's `LogitDistillationTask`: a single network also learns from a frozen teacher."""

    _prefix = 'teacher.'

    path: str | None = key(None, 'folder of a finished run, whose kept head is the teacher')
    name: str | None = key(None, 'instead of path, a pretrained network as teacher: a timm name, hf-hub:user/name or'
                                 ' local-dir:folder')
    checkpoint: str | None = key(None, 'file with weights for name, instead of its pretrained weights')
    temperature: float = key(4.0, "distillation temperature, as timm's --kd-temperature", gt=0)
    distill_loss_weight: float | None = key(
        None, 'weight of the teacher, as in timm: 1 by default, or 1 - task_loss_weight if that is set', ge=0)
    task_loss_weight: float | None = key(None, 'weight of the labels, as in timm: 1 by default', ge=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.path is None or self.name is None,
                f"teacher.path '{self.path}' and teacher.name '{self.name}' are two teachers: leave one out")
        require(self.checkpoint is None or self.name is not None,
                f"teacher.checkpoint '{self.checkpoint}' needs teacher.name, the architecture of its weights")
        require(self.distill_loss_weight is not None or self.task_loss_weight is None or self.task_loss_weight <= 1,
                f'teacher.task_loss_weight {self.task_loss_weight} leaves the teacher a negative weight of'
                f' 1 - {self.task_loss_weight}: write 1 or less, or set teacher.distill_loss_weight too')

    @property
    def given(self) -> bool:
        """Whether there is a teacher."""
        return self.path is not None or self.name is not None
