"""Schedules of the objective's weight and temperature; their values depend on the epoch alone."""
from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from types import MappingProxyType

from ...objective.image_targets import SelfEnsembleLabelCorrection
from ...objective.loss import CollaborativeLoss
from ...objective.robust import SmallLossSelection
from ..config import ObjectiveConfig

SHAPES: MappingProxyType[str, Callable[[float], float]] = MappingProxyType({
    'linear': lambda t: t,
    'cosine': lambda t: (1 - math.cos(math.pi * t)) / 2,
    # Laine & Aila 2017, https://arxiv.org/abs/1610.02242: consistency training and online distillation use it. It
    # starts at exp(-5), 0.7 %, and not at 0.
    'gaussian': lambda t: math.exp(-5 * (1 - t) ** 2),
})
"""Fraction of the change that is complete at a fraction t in [0, 1] of the time, by name of the shape."""


@dataclass(frozen=True)
class Schedule:
    """A value that changes from `start` to `end` and then stays there.

    Args:
        start: First value.
        end: Last value.
        epochs: Duration of the change; 0 for a value that is always `end`.
        shape: Shape of the change, a key of `SHAPES`.
    """

    start: float
    end: float
    epochs: float
    shape: str

    def at(self, epochs: float) -> float:
        """The value after a number of epochs, which may be a fraction."""
        if epochs >= self.epochs:
            return self.end
        return self.start + SHAPES[self.shape](epochs / self.epochs) * (self.end - self.start)


def beta_schedule(config: ObjectiveConfig) -> Schedule:
    """Schedule of the labels' weight: the weight of the consensus, 1 - beta, rises from 0 to its full value."""
    return Schedule(1.0, config.beta, config.ramp_up_epochs, config.ramp_up)


def temperature_schedule(config: ObjectiveConfig) -> Schedule:
    """Schedule of the temperature of the consensus."""
    if config.temperature_from is None:
        return Schedule(config.temperature, config.temperature, 0.0, 'linear')
    return Schedule(config.temperature_from, config.temperature, config.temperature_epochs, config.temperature_ramp)


def schedule_objective(criterion: CollaborativeLoss, config: ObjectiveConfig, epochs: float) -> None:
    """Set what changes of the objective to its value after a number of epochs, which may be a fraction."""
    criterion.beta = beta_schedule(config).at(epochs)
    criterion.temperature = temperature_schedule(config).at(epochs)
    hard = criterion.criterion
    if isinstance(hard, SelfEnsembleLabelCorrection):
        hard.correcting = epochs >= config.selc_epoch
    elif isinstance(hard, SmallLossSelection):
        hard.keep = Schedule(1.0, 1.0 - hard.noise_rate, config.noise_rate_epochs, 'linear').at(epochs)
