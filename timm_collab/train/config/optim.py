"""How weights are updated: optimizer, learning-rate schedule, moving average."""
from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

from ..errors import TrainError, require
from .key import KeyGroup, key


@dataclass(frozen=True, kw_only=True)
class OptimConfig(KeyGroup):
    """timm's `create_optimizer_v2`."""

    _prefix = 'optim.'

    name: str = key('sgd', "timm's name of the optimizer (sgd: with Nesterov momentum; momentum: without)")
    lr: float = key(0.1, 'learning rate', gt=0)
    momentum: float = key(0.9, 'momentum, for optimizers that have one', ge=0, lt=1)
    weight_decay: float = key(1e-4, 'weight decay, not applied to biases and normalisation layers', ge=0)
    layer_decay: float | None = key(
        None, "layer-wise decay: a layer's learning rate is that of the layer above it times this factor. timm counts"
              ' most blocks as a layer, so a deep network needs a factor near 1, such as 0.9', gt=0, le=1)
    layer_decay_min_scale: float = key(
        0.0, "lower limit of a layer's factor by layer_decay, such as 0.1; without it the lowest layers of a deep"
             ' network hardly learn: 0.75 over 20 layers is 0.003', ge=0, le=1)
    freeze_trunk_epochs: int = key(
        0, 'first epochs, in which only the branches are trained: the layers that all heads share keep their weights'
           ' and batch-norm statistics', ge=0)
    clip_grad: float | None = key(None, 'limit for gradient clipping, see clip_mode; no clipping by default', gt=0)
    clip_mode: Literal['norm', 'value', 'agc'] = key(
        'norm', 'what clip_grad limits: the norm of all gradients (norm), each value (value), or the norm of the'
                " gradient per unit relative to its weights' norm, except in heads (agc)")
    kwargs: dict[str, Any] = key(
        dict, "further arguments of timm's optimizer, such as {betas: [0.9, 0.95]}; on a CPU, PyTorch's own optimizers"
              ' are fused unless it contains {fused: false}')

    @property
    def base_name(self) -> str:
        """timm's name of the optimizer, without a `lookahead_` prefix."""
        return self.name.lower().removeprefix('lookahead_')

    def __post_init__(self) -> None:
        super().__post_init__()
        own = {field.name for field in dataclasses.fields(self)}
        for name in sorted(own & self.kwargs.keys()):
            raise TrainError(f"optim.kwargs can't contain '{name}': write optim.{name}")


@dataclass(frozen=True, kw_only=True)
class SchedConfig(KeyGroup):
    """timm's `create_scheduler_v2`, stepped after every update."""

    _prefix = 'sched.'

    name: Literal['cosine', 'multistep', 'step', 'poly', 'tanh', 'none'] = key('cosine', 'learning-rate schedule')
    warmup_epochs: int = key(0, 'epochs of linear warm-up', ge=0)
    warmup_lr: float = key(1e-5, 'learning rate at the start of the warm-up', ge=0)
    min_lr: float = key(0.0, 'final learning rate of cosine, poly and tanh', ge=0)
    decay_epochs: float = key(30, 'for step: epochs between drops', gt=0)
    decay_milestones: list[int] = key(lambda: [150, 225], 'for multistep: epochs of the drops')
    decay_rate: float = key(0.1, 'for step and multistep: factor of each drop; for poly: the power, such as 1', gt=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        require(all(0 < a < b for a, b in pairwise([*self.decay_milestones, math.inf])),
                f'sched.decay_milestones must be positive and ascending, got {self.decay_milestones}')
        require(self.name != 'none' or not self.warmup_epochs,
                'sched.warmup_epochs needs a schedule: with sched.name none the learning rate is constant')


@dataclass(frozen=True, kw_only=True)
class EmaConfig(KeyGroup):
    """Exponential moving average of the weights of the whole tree, by timm's `ModelEmaV3`."""

    _prefix = 'ema.'

    decay: float | None = key(
        None, 'keep a moving average of the weights with this decay per update, such as 0.9998; none by default',
        ge=0, lt=1)
    epochs: float | None = key(
        None, 'instead of decay, number of epochs whose weights the average is of, such as 3: the decay per update is'
              ' exp(-1 / updates in these epochs), whatever batch size and number of images', gt=0)
    warmup: bool = key(False, 'raise the decay from 0 during the first updates')

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.decay is None or self.epochs is None,
                'ema.decay and ema.epochs are two lengths of the average: set one of them to null')
        require(self.is_on or not self.warmup, 'ema.warmup needs ema.decay or ema.epochs')

    @property
    def is_on(self) -> bool:
        """Whether there is a moving average."""
        return self.decay is not None or self.epochs is not None

    def decay_per_update(self, updates_per_epoch: int) -> float:
        """The decay, of an average that is on."""
        if self.epochs is None:
            return self.decay or 0.0
        return math.exp(-1 / (self.epochs * updates_per_epoch))
