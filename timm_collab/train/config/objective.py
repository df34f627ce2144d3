"""What heads learn from the labels and from each other."""
from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from ..errors import require
from .key import key


@dataclass(frozen=True, kw_only=True)
class ObjectiveConfig:
    """The collaborative objective (`timm_collab.CollaborativeLoss`)."""

    beta: float = key(0.5, 'weight of the labels; 1 - beta is that of the consensus of the other heads')
    temperature: float = key(2.0, 'temperature of the consensus term')
    scale_by_t2: bool = key(True, 'multiply the consensus term by the square of the temperature')
    smoothing: float = key(0.0, 'label smoothing of the hard term')
    kind: Literal['collaborative', 'mutual'] = key(
        'collaborative', 'what a head learns from the others: their consensus, or (mutual, as in Deep Mutual Learning)'
                         ' each of their predictions')
    ramp_up_epochs: float = key(0.0, 'epochs in which the weight of the other heads rises from 0 to 1 - beta')
    ramp_up: Literal['linear', 'cosine', 'gaussian'] = key(
        'gaussian', 'how it rises: linear, cosine, or (gaussian) as exp(-5 (1 - t)^2)')
    temperature_from: float | None = key(
        None, 'temperature that the first temperature_epochs start at; temperature throughout when left out')
    temperature_epochs: float = key(0.0, 'epochs in which the temperature goes from temperature_from to temperature')
    temperature_ramp: Literal['linear', 'cosine', 'gaussian'] = key('cosine', 'how it goes there, as ramp_up')

    def __post_init__(self) -> None:
        require(0.0 <= self.beta <= 1.0, f'objective.beta must lie in [0, 1], got {self.beta}')
        require(math.isfinite(self.temperature) and self.temperature > 0,
                f'objective.temperature must be positive, got {self.temperature}')
        require(math.isfinite(self.ramp_up_epochs) and self.ramp_up_epochs >= 0,
                f'objective.ramp_up_epochs must be 0 or more, got {self.ramp_up_epochs}')
        require(self.temperature_from is None or (math.isfinite(self.temperature_from) and self.temperature_from > 0),
                f'objective.temperature_from must be positive, got {self.temperature_from}')
        require(math.isfinite(self.temperature_epochs) and self.temperature_epochs >= 0,
                f'objective.temperature_epochs must be 0 or more, got {self.temperature_epochs}')
        require((self.temperature_from is None) == (self.temperature_epochs == 0),
                'a temperature that changes needs both objective.temperature_from and objective.temperature_epochs')
        require(0.0 <= self.smoothing < 1.0, f'objective.smoothing must lie in [0, 1), got {self.smoothing}')
