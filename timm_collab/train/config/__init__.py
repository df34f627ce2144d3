"""The recipe: typed, documented, and refusing nonsense before anything is loaded.

Each group of keys is a frozen dataclass. A field's `help` is its only documentation: `--help` prints it. Values that
can be judged without loading a model or data are judged in `__post_init__`; the rest where they are first used.
"""
from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Literal

from ..errors import require
from .data import AugmentConfig, DataConfig, NoiseConfig
from .key import key
from .model import COLLAB_PREFIX, ModelConfig
from .objective import ObjectiveConfig
from .optim import EmaConfig, OptimConfig, SchedConfig

__all__ = [
    'COLLAB_PREFIX',
    'AugmentConfig',
    'DataConfig',
    'EmaConfig',
    'ModelConfig',
    'NoiseConfig',
    'ObjectiveConfig',
    'OptimConfig',
    'SchedConfig',
    'TrainConfig',
]


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """A whole recipe."""

    output: str | None = key(None, 'run folder; a fresh one under runs/ when left out')
    seed: int = key(0, 'seed of the weights, the order, the augmentation, the hold-out and the noise')
    epochs: int = key(100, 'passes over the training data')
    batch_size: int = key(128, 'images per update, over all processes together')
    compare_single: bool = key(False, 'train the network without a tree as well, under the same recipe, into single/'
                                       ' (with one head that is the run itself)')
    grad_accum_steps: int = key(1, 'compute each batch in so many parts, one after the other, to need less memory')
    grad_checkpointing: bool = key(False, 'keep few activations and compute the others again, to need less memory')
    channels_last: bool = key(False, 'channels-last memory layout, faster for convolutions on many devices')
    mixed_precision: Literal['no', 'fp16', 'bf16'] | None = key(
        None, 'mixed precision; what accelerate was launched with when left out')
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
    noise: NoiseConfig = field(default_factory=NoiseConfig)

    def __post_init__(self) -> None:
        require(self.model.name is not None, 'model.name is missing: start from a recipe, --config quickstart, or name'
                                             ' an architecture, e.g. --model.name collab_resnet18')
        require(self.data.path is not None, 'data.path is missing: write e.g. --data.path ./my-images, --data.path'
                                            ' uoft-cs/cifar10 or --data.path builtin:digits')
        require(0 <= self.seed < 2**32, f'seed must lie in [0, 2**32), got {self.seed}')
        require(len(set(self.track)) == len(self.track), f'track names a tracker twice: {self.track}')
        require(bool(self.project.strip()), 'project must not be empty')
        require(self.epochs >= 1, f'epochs must be at least 1, got {self.epochs}')
        require(self.batch_size >= 1, f'batch_size must be at least 1, got {self.batch_size}')
        require(self.grad_accum_steps >= 1, f'grad_accum_steps must be at least 1, got {self.grad_accum_steps}')
        require(self.batch_size % self.grad_accum_steps == 0,
                f'batch_size {self.batch_size} is computed in grad_accum_steps={self.grad_accum_steps} equal parts:'
                ' make it a multiple')
        require(self.cpu_threads is None or self.cpu_threads >= 1,
                f'cpu_threads must be at least 1, got {self.cpu_threads}')
        require(self.sched.warmup_epochs < self.epochs or self.sched.name == 'none',
                f'sched.warmup_epochs ({self.sched.warmup_epochs}) must be fewer than epochs ({self.epochs})')

    def to_dict(self) -> dict[str, Any]:
        """All keys as plain data, nested by group; `output` left out, for a recipe belongs to no one folder."""
        keys = dataclasses.asdict(self)
        del keys['output']
        return keys
