"""The recipe: typed, documented, and refusing nonsense before anything is loaded.

In: YAML files and command lines. Out: a `TrainConfig`, or one error that says what to write instead. Nothing is loaded
or built here: neither data nor models.

Each group of keys is a frozen dataclass. A field's `help` is its only documentation: `--help` prints it. Values that
can be judged without loading a model or data are judged in `__post_init__`; the rest where they are first used.
"""
from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Literal

from ..errors import require
from .checkpoint import CheckpointConfig
from .data import AugmentConfig, DataConfig, NoiseConfig
from .key import key
from .model import ModelConfig
from .objective import ObjectiveConfig
from .optim import EmaConfig, OptimConfig, SchedConfig
from .teacher import TeacherConfig

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
    'TeacherConfig',
    'TrainConfig',
]


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """A whole recipe."""

    output: str | None = key(None, 'run folder; a fresh one under runs/ when left out')
    resume: bool = key(True, 'go on with an unfinished run of the same recipe that output holds; false: refuse to touch'
                             ' it')
    seed: int = key(0, 'seed of the weights, the order, the augmentation, the hold-out and the noise')
    epochs: int = key(100, 'passes over the training data')
    batch_size: int = key(128, 'images per update, over all processes together')
    compare_single: bool = key(False, 'train the network without a tree as well, under the same recipe, into single/'
                                       ' (with one head that is the run itself)')
    grad_accum_steps: int = key(1, 'compute each batch in so many parts, one after the other, to need less memory')
    grad_checkpointing: bool | Literal['branches'] = key(
        False, 'compute activations again in the backward pass, to need less memory: all (true), or (branches) those'
               ' after the first split, one branch at a time, for about the memory of the single network')
    compile: bool = key(False, 'compile model and objective for training with torch.compile; evaluation stays as it is')
    compile_backend: str = key('inductor', 'backend of torch.compile')
    compile_mode: Literal['default', 'reduce-overhead', 'max-autotune', 'max-autotune-no-cudagraphs'] = key(
        'default', "mode of torch.compile's inductor backend")
    channels_last: bool = key(False, 'channels-last memory layout, faster for convolutions on many devices')
    mixed_precision: Literal['no', 'fp16', 'bf16'] | None = key(
        None, 'mixed precision; what accelerate was launched with when left out')
    sync_bn: bool = key(False, 'batch normalisation over the batch of all processes (GPUs)')
    deterministic: bool = key(False, 'use no algorithm whose result varies from run to run, where that costs time; on a'
                                     ' GPU an exact resume needs it')
    max_loss: float = key(1e4, 'stop when the loss exceeds this, or is no number')
    track: list[Literal['tensorboard', 'wandb', 'trackio']] = key(
        list, "log every epoch to these trackers as well, e.g. [tensorboard]; the extra 'tracking' has them")
    project: str = key('timm-collab', 'project that trackers put the run in')
    plots: bool = key(True, 'draw the run when it ends, into plots/, if matplotlib is there')
    cpu_threads: int | None = key(None, "threads that PyTorch computes with on the CPU; PyTorch's choice when left out")
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    sched: SchedConfig = field(default_factory=SchedConfig)
    ema: EmaConfig = field(default_factory=EmaConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    noise: NoiseConfig = field(default_factory=NoiseConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)

    def __post_init__(self) -> None:
        require(self.model.name is not None, 'model.name is missing: start from a recipe, --config quickstart, or name'
                                             ' an architecture, e.g. --model.name collab_resnet18')
        require(self.data.path is not None, 'data.path is missing: write e.g. --data.path ./my-images, --data.path'
                                            ' uoft-cs/cifar10 or --data.path builtin:digits')
        require(self.output is None or bool(self.output.strip()), 'output is empty: name a folder, or leave it out')
        require(0 <= self.seed < 2**32, f'seed must lie in [0, 2**32), got {self.seed}')
        require(len(set(self.track)) == len(self.track), f'track names a tracker twice: {self.track}')
        require(bool(self.project.strip()), 'project must not be empty')
        require(self.epochs >= 1, f'epochs must be at least 1, got {self.epochs}')
        require(self.batch_size >= 1, f'batch_size must be at least 1, got {self.batch_size}')
        require(self.grad_accum_steps >= 1, f'grad_accum_steps must be at least 1, got {self.grad_accum_steps}')
        require(self.batch_size % self.grad_accum_steps == 0,
                f'batch_size {self.batch_size} is computed in grad_accum_steps={self.grad_accum_steps} equal parts:'
                ' make it a multiple')
        require(self.max_loss > 0, f'max_loss must be positive, got {self.max_loss}')
        require(self.cpu_threads is None or self.cpu_threads >= 1,
                f'cpu_threads must be at least 1, got {self.cpu_threads}')
        require(self.compile or (self.compile_backend, self.compile_mode) == ('inductor', 'default'),
                'compile_backend and compile_mode need compile: write --compile true')
        require(self.compile_backend == 'inductor' or self.compile_mode == 'default',
                f"compile_mode is for the backend inductor, got compile_backend '{self.compile_backend}'")
        require(not self.optim.freeze_trunk_epochs or (self.model.num_heads > 1 and not self.compare_single),
                'optim.freeze_trunk_epochs freezes the layers that all heads share: one head alone'
                + ', as compare_single trains it,' * self.compare_single + ' has none')
        require(not self.teacher.given or self.model.num_heads == 1,
                f'a teacher teaches a network alone, got {self.model.num_heads} heads: write model.heads 1, or leave'
                ' teacher.path and teacher.name out')
        require(not self.teacher.given or self.objective.hard == 'ce',
                f'a teacher is compared as a distribution over classes: it needs objective.hard ce, got'
                f' {self.objective.hard}')
        if self.data.multi_label:
            self._check_multi_label()
        require(not self.data.streaming or (self.noise.rate == 0 and self.noise.kind not in ('matrix', 'column')),
                'data.streaming: noise is drawn for labels that are known beforehand: leave out noise; to learn from'
                ' another column of labels name it as data.label_column')
        require(self.sched.warmup_epochs < self.epochs or self.sched.name == 'none',
                f'sched.warmup_epochs ({self.sched.warmup_epochs}) must be fewer than epochs ({self.epochs})')

    def _check_multi_label(self) -> None:
        require(self.objective.hard == 'bce', 'data.multi_label: cross-entropy takes one class of an image, write'
                                              ' --objective.hard bce')
        require(self.objective.smoothing == 0, 'data.multi_label: objective.smoothing spreads the one class of an image'
                                               f' over the others, leave it out, got {self.objective.smoothing}')
        require(self.noise.kind in ('none', 'column') or (self.noise.rate == 0 and self.noise.matrix is None),
                f'data.multi_label: noise.kind {self.noise.kind} replaces the one class of an image by another: leave'
                ' out noise, or write --noise.kind column and name a column with other labels')

    def to_dict(self) -> dict[str, Any]:
        """All keys as plain data, nested by group, but those of the folder: a recipe belongs to no one folder."""
        keys = dataclasses.asdict(self)
        del keys['output'], keys['resume']
        return keys

    @classmethod
    def groups(cls) -> set[str]:
        """Names of the groups of keys."""
        return {name for name, default in cls._made().items() if dataclasses.is_dataclass(default)}

    @classmethod
    def defaults(cls) -> dict[str, Any]:
        """The default of every key, nested as `to_dict` is."""
        groups, made = cls.groups(), cls._made()
        return {name: dataclasses.asdict(value) if name in groups else value for name, value in made.items()}

    @classmethod
    def _made(cls) -> dict[str, Any]:
        fields = dataclasses.fields(cls)
        return {each.name: each.default_factory() if callable(each.default_factory) else each.default
                for each in fields}
