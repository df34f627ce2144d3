"""How weights move: optimizer, schedule, running average."""
from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

from ..errors import TrainError, require
from .key import key


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """timm's `create_optimizer_v2`."""

    name: str = key('sgd', "timm's name of the optimizer (sgd is with Nesterov momentum, momentum without)")
    lr: float = key(0.1, 'learning rate')
    momentum: float = key(0.9, 'momentum, of optimizers that have one')
    weight_decay: float = key(1e-4, 'weight decay, not applied to biases and normalisation layers')
    layer_decay: float | None = key(None, 'factor by which each layer learns slower than the one above it')
    freeze_trunk_epochs: int = key(
        0, 'epochs in which only the branches learn: the layers that all heads share keep their weights and the'
           ' statistics of their batch norms')
    clip_grad: float | None = key(None, 'limit of the gradient, of the kind clip_mode names')
    clip_mode: Literal['norm', 'value', 'agc'] = key(
        'norm', 'what clip_grad limits: the norm of all gradients, each value, or (agc, heads left out) the norm of'
                " each unit's gradient relative to its weights'")
    kwargs: dict[str, Any] = key(
        dict, "further arguments of timm's optimizer, e.g. {betas: [0.9, 0.95]}; on a CPU PyTorch's own optimizers are"
              ' fused unless it says {fused: false}')

    @property
    def base_name(self) -> str:
        """timm's name of the optimizer, without the `lookahead_` that may stand before any."""
        return self.name.lower().removeprefix('lookahead_')

    def __post_init__(self) -> None:
        require(math.isfinite(self.lr) and self.lr > 0, f'optim.lr must be positive, got {self.lr}')
        require(0.0 <= self.momentum < 1.0, f'optim.momentum must lie in [0, 1), got {self.momentum}')
        require(self.weight_decay >= 0, f'optim.weight_decay must be 0 or more, got {self.weight_decay}')
        require(self.layer_decay is None or 0.0 < self.layer_decay <= 1.0,
                f'optim.layer_decay must lie in (0, 1], got {self.layer_decay}')
        require(self.freeze_trunk_epochs >= 0,
                f'optim.freeze_trunk_epochs must be 0 or more, got {self.freeze_trunk_epochs}')
        require(self.clip_grad is None or (math.isfinite(self.clip_grad) and self.clip_grad > 0),
                f'optim.clip_grad must be positive, got {self.clip_grad}')
        own = {field.name for field in dataclasses.fields(self)}
        for name in sorted(own & self.kwargs.keys()):
            raise TrainError(f"optim.kwargs can't hold '{name}': write optim.{name}")


@dataclass(frozen=True, kw_only=True)
class SchedConfig:
    """timm's `create_scheduler_v2`, stepped after every update."""

    name: Literal['cosine', 'multistep', 'step', 'poly', 'tanh', 'none'] = key('cosine', 'learning-rate schedule')
    warmup_epochs: int = key(0, 'epochs of linear warm-up')
    warmup_lr: float = key(1e-5, 'learning rate at the start of the warm-up')
    min_lr: float = key(0.0, 'learning rate that cosine, poly and tanh end at')
    decay_epochs: float = key(30, 'epochs between drops of step')
    decay_milestones: list[int] = key(lambda: [150, 225], 'epochs of the drops of multistep')
    decay_rate: float = key(0.1, 'factor of each drop of step and multistep; the power of poly, e.g. 1')

    def __post_init__(self) -> None:
        require(self.warmup_epochs >= 0, f'sched.warmup_epochs must be 0 or more, got {self.warmup_epochs}')
        require(self.min_lr >= 0, f'sched.min_lr must be 0 or more, got {self.min_lr}')
        require(self.warmup_lr >= 0, f'sched.warmup_lr must be 0 or more, got {self.warmup_lr}')
        require(self.decay_epochs > 0, f'sched.decay_epochs must be positive, got {self.decay_epochs}')
        require(self.decay_rate > 0, f'sched.decay_rate must be positive, got {self.decay_rate}')
        require(all(0 < a < b for a, b in pairwise([*self.decay_milestones, math.inf])),
                f'sched.decay_milestones must be positive and ascend, got {self.decay_milestones}')
        require(self.name != 'none' or not self.warmup_epochs,
                'sched.warmup_epochs needs a schedule: with sched.name none the learning rate stays what it is')


@dataclass(frozen=True, kw_only=True)
class EmaConfig:
    """A running average of the weights of the whole tree, by timm's `ModelEmaV3`."""

    decay: float | None = key(
        None, 'keep the running average of the weights with this decay per update, e.g. 0.9998; none when left out')
    warmup: bool = key(False, 'raise the decay from 0 during the first updates')

    def __post_init__(self) -> None:
        require(self.decay is None or 0.0 <= self.decay < 1.0, f'ema.decay must lie in [0, 1), got {self.decay}')
        require(self.decay is not None or not self.warmup, 'ema.warmup needs ema.decay')
