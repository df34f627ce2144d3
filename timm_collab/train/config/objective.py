"""What the network learns from: the labels, the other heads, a teacher."""
from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ..errors import require
from .key import KeyGroup, key

PER_IMAGE = ('elr', 'selc')
"""Values of `objective.hard` that remember each training image."""

_OF_HARD = {
    'gce_q': ('gce',),
    'alpha': ('sce', 'nce_rce'),
    'reverse': ('sce', 'nce_rce'),
    'elr_weight': ('elr',),
    'targets': PER_IMAGE,
    'targets_device': PER_IMAGE,
    'targets_momentum': PER_IMAGE,
    'selc_epoch': ('selc',),
    'noise_rate': ('small_loss',),
    'noise_rate_epochs': ('small_loss',),
    'select': ('small_loss',),
}


@dataclass(frozen=True, kw_only=True)
class ObjectiveConfig(KeyGroup):
    """The collaborative objective (`timm_collab.CollaborativeLoss`)."""

    _prefix = 'objective.'

    beta: float = key(1 / 3, 'weight of the labels; the consensus of the other heads has weight 1 - beta', ge=0, le=1)
    temperature: float = key(2.0, 'temperature of the consensus term', gt=0)
    scale_by_t2: bool = key(True, 'multiply the consensus term by the squared temperature')
    full_labels: bool = key(True, 'divide the loss by beta: the labels have weight 1, as without heads, the consensus'
                                  ' has weight (1 - beta) / beta; false for the weights of the paper, with beta 0.5')
    hard: Literal['ce', 'bce', 'gce', 'sce', 'nce_rce', 'elr', 'selc', 'small_loss'] = key(
        'ce', 'loss for the labels: cross-entropy (ce), or binary cross-entropy per class (bce), with a consensus per'
              ' class as well; for wrong labels generalised (gce), symmetric (sce) or normalised and reverse'
              ' cross-entropy (nce_rce), early-learning regularisation (elr), self-ensemble label correction (selc), or'
              ' the cross-entropy of the images that the other heads find easy (small_loss)')
    gce_q: float = key(0.7, 'for hard: gce, the exponent q', gt=0, le=1)
    alpha: float | None = key(
        None, 'for hard: sce or nce_rce, weight of the (normalised) cross-entropy; 0.1 for sce and 1 for nce_rce by'
              ' default', ge=0)
    reverse: float = key(1.0, 'for hard: sce or nce_rce, weight of the reverse cross-entropy', ge=0)
    elr_weight: float = key(3.0, 'for hard: elr, weight of the regularisation; much of it may give up a class that is'
                                 ' easily confused, see objective.balance', ge=0)
    targets: Literal['own', 'mean', 'others'] = key(
        'own', "for hard: elr or selc, whose predictions are averaged into a head's targets: its own, the mean of all"
               ' heads, or the mean of the others; the network alone has its own')
    targets_device: Literal['train', 'cpu'] = key(
        'train', 'for hard: elr or selc, where the targets are kept: where the network is trained (train), or in host'
                 ' memory (cpu), from which those of each batch are copied')
    targets_momentum: float | None = key(
        None, 'for hard: elr or selc, weight of the old target when a prediction is averaged in; 0.7 for elr and 0.9'
              ' for selc by default', ge=0, lt=1)
    selc_epoch: int = key(0, 'for hard: selc, epoch, counted from 0, from which targets take the place of labels: the'
                             ' epoch in which the network begins to memorise', ge=0)
    noise_rate: float | None = key(
        None, 'for hard: small_loss, share of the images that is left out: the share of wrong labels', gt=0, lt=1)
    noise_rate_epochs: float = key(
        10.0, 'for hard: small_loss, epochs in which the share that is left out rises from 0', ge=0)
    select: Literal['others', 'joint'] = key(
        'others', 'for hard: small_loss, by what a head selects images: the loss of the other heads (others,'
                  ' co-teaching), or what all heads lose and disagree on together (joint, JoCoR)')
    agreement: float = key(
        0.9, 'for select: joint, weight of the agreement with the other heads on the selected images; the labels have'
             ' weight 1 - agreement', ge=0, le=1)
    balance: float = key(
        0.0, "weight of a term that keeps each class's mean prediction near its share of the training labels, so that"
             ' no class is given up; 1 is usual, not for hard: bce', ge=0)
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
        require(self.hard != 'bce' or self.kind == 'collaborative',
                f'objective.kind {self.kind} compares distributions over classes: objective.hard bce has none')
        self._check_robust()
        require(self.hard == 'bce' or (self.bce_target_threshold is None and not self.bce_sum),
                'objective.bce_target_threshold and objective.bce_sum need objective.hard bce')

    @property
    def is_plain(self) -> bool:
        """Whether labels are learned by cross-entropy, binary or not, and nothing else."""
        return self.hard in ('ce', 'bce') and self.balance == 0 and self.smoothing == 0

    def _check_robust(self) -> None:
        """Check the keys of the losses for wrong labels."""
        for name, hards in _OF_HARD.items():
            default = type(self).__dataclass_fields__[name].default
            require(self.hard in hards or getattr(self, name) == default,
                    f'objective.{name} is for objective.hard {" or ".join(hards)}, got {self.hard}')
        require(self.hard != 'small_loss' or self.noise_rate is not None,
                'objective.hard small_loss leaves out the share of wrong labels: write --objective.noise_rate')
        require(self.select == 'joint' or self.agreement == type(self).agreement,
                f'objective.agreement is for objective.select joint, got {self.select}')
        require(self.hard in ('ce', 'bce') or self.smoothing == 0,
                f'objective.smoothing is for objective.hard ce or bce, got {self.hard}')
        require(self.hard not in (*PER_IMAGE, 'small_loss') or self.kind != 'gated',
                f'objective.hard {self.hard} is for heads alone, and objective.kind gated trains an ensemble as well:'
                ' choose another kind')
        require(self.hard != 'bce' or self.balance == 0,
                'objective.balance compares a distribution over classes: objective.hard bce has none, write'
                ' --objective.balance 0')
        require(self.hard not in ('sce', 'nce_rce') or self.reverse > 0 or self.alpha != 0,
                'objective.alpha and objective.reverse are both 0: the labels would have no weight')


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
