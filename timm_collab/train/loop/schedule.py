"""Numbers of the objective that change while a run goes on: where they stand depends on the epoch alone."""
from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from types import MappingProxyType

from ...objective.loss import CollaborativeLoss
from ..config import ObjectiveConfig

SHAPES: MappingProxyType[str, Callable[[float], float]] = MappingProxyType({
    'linear': lambda t: t,
    'cosine': lambda t: (1 - math.cos(math.pi * t)) / 2,
    # Laine & Aila 2017, https://arxiv.org/abs/1610.02242: consistency training and online distillation use it. It jumps
    # from 0 to exp(-5), 0.7 %, at the very start.
    'gaussian': lambda t: math.exp(-5 * (1 - t) ** 2),
})
"""How much of the way is done at a share t in [0, 1] of the time."""


@dataclass(frozen=True)
class Schedule:
    """A number that moves from one value to another and stays there.

    Args:
        start: Where it starts.
        end: Where it arrives.
        epochs: How long it moves; 0 for a number that stays at `end`.
        shape: How it moves, of `SHAPES`.
    """

    start: float
    end: float
    epochs: float
    shape: str

    def at(self, epochs: float) -> float:
        """The number after so many epochs, a fraction of one included."""
        if epochs >= self.epochs:
            return self.end
        return self.start + SHAPES[self.shape](epochs / self.epochs) * (self.end - self.start)


def beta_schedule(config: ObjectiveConfig) -> Schedule:
    """Weight of the labels: that of the other heads, 1 - beta, rises from nothing to its full value."""
    return Schedule(1.0, config.beta, config.ramp_up_epochs, config.ramp_up)


def temperature_schedule(config: ObjectiveConfig) -> Schedule:
    """Temperature of what heads learn from each other."""
    if config.temperature_from is None:
        return Schedule(config.temperature, config.temperature, 0.0, 'linear')
    return Schedule(config.temperature_from, config.temperature, config.temperature_epochs, config.temperature_ramp)


def schedule_objective(criterion: CollaborativeLoss, config: ObjectiveConfig, epochs: float) -> None:
    """Set the objective's weight and temperature to what they are after so many epochs, a fraction of one included."""
    criterion.beta = beta_schedule(config).at(epochs)
    criterion.temperature = temperature_schedule(config).at(epochs)
