"""The recipe: typed, documented and validated before anything is loaded.

In: YAML files and command lines. Out: a `TrainConfig`, or one error that says what to write instead. Nothing is loaded
or built here: neither data nor models.

Each group of keys is a frozen dataclass. The `help` of a field is its only documentation: `--help` prints it. Values
that can be checked without a model or data are checked in `__post_init__`, all others where they are first used.
"""
from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Literal

from ..errors import require
from ..paths import PLAIN, SINGLE
from .data import AugmentConfig, DataConfig, NoiseConfig
from .key import KeyGroup, key
from .model import ModelConfig
from .objective import PER_IMAGE, ObjectiveConfig, TeacherConfig
from .optim import EmaConfig, OptimConfig, SchedConfig

__all__ = [
    'AugmentConfig',
    'CheckpointConfig',
    'DataConfig',
    'EmaConfig',
    'ModelConfig',
    'NoiseConfig',
    'ObjectiveConfig',
    'OptimConfig',
    'SchedConfig',
    'StopConfig',
    'TeacherConfig',
    'TrainConfig',
]


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig(KeyGroup):
    """Checkpoints during training, from which the same command resumes after an interruption."""

    _prefix = 'checkpoint.'

    every_epochs: int = key(1, 'epochs between checkpoints', ge=1)
    every_updates: int | None = key(
        None, 'updates between checkpoints, in addition to those of every_epochs; none by default', ge=1)
    keep_last: int = key(2, 'number of newest checkpoints to keep; with several, one may be damaged', ge=1)
    keep_best: int = key(1, 'number of checkpoints with the best kept head to keep in addition', ge=0)


@dataclass(frozen=True, kw_only=True)
class StopConfig(KeyGroup):
    """When training ends before its last epoch, and what tells which epoch was best."""

    _prefix = 'stop.'

    patience: int | None = key(
        None, 'stop after this many epochs without a better one; by default all epochs are trained', ge=1)
    on: Literal['validation', 'predictions'] = key(
        'validation', 'what tells how good an epoch is: the validation score (validation), or, without any labels, how'
                      ' few training images have another predicted class than in the epoch before (predictions; Label'
                      ' Wave, Yuan et al. 2025): the first minimum comes before wrong labels are memorized')
    smoothing_epochs: int = key(
        3, 'for on: predictions, number of epochs over which the changes are averaged', ge=1)


@dataclass(frozen=True, kw_only=True)
class TrainConfig(KeyGroup):
    """A complete recipe."""

    output: str | None = key(None, 'run folder; a new one under runs/ by default')
    resume: bool = key(True, 'resume an unfinished run of the same recipe in output; false: refuse such a folder')
    seed: int = key(
        0, 'seed of the weights, the order of images, the augmentation, the hold-out and the noise', ge=0, lt=2**32)
    epochs: int = key(100, 'passes over the training data', ge=1)
    keep: Literal['best', 'last'] = key(
        'best', 'which weights are kept: those after the best epoch, see stop.on, or after the last')
    batch_size: int = key(128, 'images per update, over all processes together', ge=1)
    compare_single: bool = key(False, 'also train the single network, without a tree, with the same recipe, into'
                                      ' single/ (with one head, the run itself is that)')
    compare_plain: bool = key(False, 'also train the single network by cross-entropy, into plain/, where the recipe has'
                                     ' a loss for wrong labels or smoothing')
    grad_accum_steps: int = key(1, 'compute each batch in this many parts in sequence, which needs less memory', ge=1)
    grad_checkpointing: bool | Literal['branches'] = key(
        False, 'recompute activations in the backward pass, which needs less memory: all of them (true), or those after'
               ' the first split, one branch at a time (branches), for about the memory of the single network')
    compile: bool = key(False, 'compile model and objective for training with torch.compile, but not for evaluation')
    compile_backend: str = key('inductor', 'backend of torch.compile')
    compile_mode: Literal['default', 'reduce-overhead', 'max-autotune', 'max-autotune-no-cudagraphs'] = key(
        'default', "mode of torch.compile's inductor backend")
    channels_last: bool = key(False, 'channels-last memory format, faster for convolutions on many devices')
    mixed_precision: Literal['no', 'fp16', 'bf16'] | None = key(
        None, 'mixed precision; by default what accelerate was launched with')
    sync_bn: bool = key(False, 'synchronize batch normalisation over all processes (GPUs)')
    deterministic: bool = key(False, 'use deterministic algorithms only, which may cost time; on a GPU, an exact resume'
                                     ' needs it')
    max_loss: float = key(1e4, 'stop when the loss exceeds this value or is not a number')
    track: list[Literal['tensorboard', 'wandb', 'trackio']] = key(
        list, "also log every epoch to these trackers, such as [tensorboard]; the extra 'tracking' installs them")
    project: str = key('timm-collab', 'project of the run in trackers')
    plots: bool = key(True, 'plot the run when it ends, into plots/, if matplotlib is installed')
    cpu_threads: int | None = key(None, "CPU threads for PyTorch; PyTorch's own choice by default", ge=1)
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    sched: SchedConfig = field(default_factory=SchedConfig)
    ema: EmaConfig = field(default_factory=EmaConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    stop: StopConfig = field(default_factory=StopConfig)
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    noise: NoiseConfig = field(default_factory=NoiseConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)

    def __post_init__(self) -> None:
        require(self.model.name is not None, 'model.name is missing: start from a recipe, --config quickstart, or name'
                                             ' an architecture, e.g. --model.name collab_resnet18')
        require(self.data.path is not None, 'data.path is missing: write e.g. --data.path ./my-images, --data.path'
                                            ' uoft-cs/cifar10 or --data.path builtin:digits')
        super().__post_init__()
        require(self.output is None or bool(self.output.strip()), 'output is empty: name a folder, or leave it out')
        require(len(set(self.track)) == len(self.track), f'track names a tracker twice: {self.track}')
        require(bool(self.project.strip()), 'project must not be empty')
        require(self.batch_size % self.grad_accum_steps == 0,
                f'batch_size {self.batch_size} is computed in grad_accum_steps={self.grad_accum_steps} equal parts:'
                ' make it a multiple')
        require(self.max_loss > 0, f'max_loss must be greater than 0, got {self.max_loss}')  # may be infinite
        self._check_compile()
        self._check_stop()
        self._check_single_head()
        if self.data.multi_label:
            self._check_multi_label()
        self._check_robust()
        self._check_balance()
        require(self.data.class_weights is None or self.objective.hard == 'ce',
                'data.class_weights weighs the cross-entropy: leave it out, or write --objective.hard ce')
        if self.data.soft_labels:
            self._check_soft_labels()
        require(not self.data.streaming or (self.noise.rate == 0 and self.noise.kind not in ('matrix', 'column')),
                'data.streaming: noise needs all labels in advance: leave out noise; to train on another column of'
                ' labels name it as data.label_column')
        require(self.sched.warmup_epochs < self.epochs or self.sched.name == 'none',
                f'sched.warmup_epochs ({self.sched.warmup_epochs}) must be fewer than epochs ({self.epochs})')

    def _check_compile(self) -> None:
        require(self.compile or (self.compile_backend, self.compile_mode) == ('inductor', 'default'),
                'compile_backend and compile_mode need compile: write --compile true')
        require(self.compile_backend == 'inductor' or self.compile_mode == 'default',
                f"compile_mode is for the backend inductor, got compile_backend '{self.compile_backend}'")

    def _check_stop(self) -> None:
        if self.stop.on == 'validation':
            require(self.stop.smoothing_epochs == 3, 'stop.smoothing_epochs is for stop.on predictions')
            return
        require(self.stop.patience is not None,
                'stop.on predictions looks for the first minimum, as predictions hardly change at the end of any'
                ' training: write --stop.patience with the epochs to wait for a lower one, such as 5')
        require(not self.data.streaming, 'stop.on predictions compares each image with the epoch before, and streamed'
                                         ' images have no number: leave out data.streaming')
        require(not self.augment.mixes, 'stop.on predictions counts the predicted classes of the training images, and'
                                        ' mixed images have two: leave out augment.mixup and augment.cutmix')
        require(not self.data.multi_label, 'stop.on predictions counts images by their one class: data.multi_label has'
                                           ' several, write --stop.on validation')

    def _check_single_head(self) -> None:
        if self.optim.freeze_trunk_epochs:
            freezes = 'optim.freeze_trunk_epochs freezes the layers that all heads share'
            require(self.model.num_heads > 1, f'{freezes}: a single network has none')
            require(not (self.compare_single or self.compare_plain),
                    f'{freezes}: the single network that compare_single and compare_plain train has none')
        if self.teacher.given:
            require(self.model.num_heads == 1,
                    f'a teacher teaches a single network, got {self.model.num_heads} heads: write model.heads 1, or'
                    ' leave out teacher.path and teacher.name')
            require(self.objective.hard == 'ce',
                    'a teacher is compared as a distribution over classes: it needs objective.hard ce, got'
                    f' {self.objective.hard}')

    def _check_multi_label(self) -> None:
        require(self.objective.hard == 'bce', 'data.multi_label: cross-entropy takes one class per image, write'
                                              ' --objective.hard bce')
        require(self.objective.smoothing == 0, 'data.multi_label: objective.smoothing spreads the one class of an image'
                                               f' over the others, leave it out, got {self.objective.smoothing}')
        require(not self.noise.val, 'data.multi_label: noise.val is for images with one class, leave it out')
        require(self.noise.kind in ('none', 'column') or (self.noise.rate == 0 and self.noise.matrix is None),
                f'data.multi_label: noise.kind {self.noise.kind} replaces the one class of an image: leave out noise,'
                ' or write --noise.kind column and name a column with other labels')

    def _check_robust(self) -> None:
        """Check what losses for wrong labels need of the rest."""
        hard = self.objective.hard
        if hard in ('ce', 'bce'):
            return
        require(not self.data.soft_labels, f'data.soft_labels: objective.hard {hard} is for class indices')
        require(not self.teacher.given, f'teacher: timm distils with the cross-entropy, got objective.hard {hard}')
        if hard in PER_IMAGE:
            require(not self.data.streaming,
                    f'objective.hard {hard} remembers each image by its number, which streamed images lack: leave out'
                    ' data.streaming')
        require(hard != 'selc' or not self.augment.mixes,
                'objective.hard selc corrects the label of each image, and mixed images have two: leave out'
                ' augment.mixup and augment.cutmix')
        require(hard != 'elr' or not self.augment.mixes or self.ema.is_on,
                'objective.hard elr remembers what unmixed images are: with augment.mixup or augment.cutmix their'
                ' predictions come from the moving average of the weights, write --ema.epochs 3, or leave them out')
        require(hard != 'small_loss' or not self.augment.mixes,
                'objective.hard small_loss selects images by their label, and mixed images have two: leave out'
                ' augment.mixup and augment.cutmix')

    def _check_balance(self) -> None:
        """Check what the share of each class among the labels needs."""
        if self.objective.balance == 0:
            return
        require(not self.data.streaming, 'objective.balance needs all labels in advance: leave out data.streaming, or'
                                         ' write --objective.balance 0')
        require(not self.data.soft_labels, 'objective.balance is for class indices: leave out data.soft_labels, or'
                                           ' write --objective.balance 0')
        require(not self.teacher.given, 'objective.balance: timm distils with the cross-entropy alone, leave out the'
                                        ' teacher, or write --objective.balance 0')

    def _check_soft_labels(self) -> None:
        require(self.noise.rate == 0 and self.noise.kind not in ('matrix', 'column'),
                f'data.soft_labels: noise.kind {self.noise.kind} replaces the one class of an image: leave out noise')
        require(self.objective.hard == 'ce' or self.objective.smoothing == 0,
                'data.soft_labels: objective.smoothing of hard bce is for class indices: leave it out, or write'
                ' --objective.hard ce')

    def compared(self) -> dict[str, TrainConfig]:
        """The recipes of networks alone to compare with, by their folders, `single` and `plain`."""
        changes: dict[str, dict[str, Any]] = {}
        if self.compare_single and self.model.num_heads > 1:
            changes[SINGLE] = {}
        if self.compare_plain and not self.objective.is_plain:
            changes[PLAIN] = {'objective': ObjectiveConfig(), 'teacher': TeacherConfig()}
        return {
            name: dataclasses.replace(
                self, model=self.model.single(), compare_single=False, compare_plain=False, **others)
            for name, others in changes.items()
        }

    def to_dict(self) -> dict[str, Any]:
        """All keys as plain data, nested by group, except those about the run folder."""
        keys = dataclasses.asdict(self)
        del keys['output'], keys['resume']
        return keys

    @classmethod
    def groups(cls) -> set[str]:
        """Names of the groups of keys."""
        return {name for name, default in cls._default_values().items() if dataclasses.is_dataclass(default)}

    @classmethod
    def defaults(cls) -> dict[str, Any]:
        """The default of every key, nested as in `to_dict`."""
        groups, defaults = cls.groups(), cls._default_values()
        return {name: dataclasses.asdict(value) if name in groups else value for name, value in defaults.items()}

    @classmethod
    def _default_values(cls) -> dict[str, Any]:
        fields = dataclasses.fields(cls)
        return {each.name: each.default_factory() if callable(each.default_factory) else each.default
                for each in fields}
