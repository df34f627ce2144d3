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
    full_labels: bool = key(False, 'divide the loss by beta: the labels keep the weight 1 that they have without heads,'
                                   ' and the consensus has (1 - beta) / beta')
    hard: Literal['ce', 'bce'] = key(
        'ce', 'loss against the labels: cross-entropy, or (bce) binary cross-entropy of each class, with a consensus on'
              ' each class as well')
    smoothing: float = key(0.0, 'label smoothing of the hard term')
    bce_target_threshold: float | None = key(
        None, 'for hard: bce, make targets above this 1 and others 0, e.g. 0.2 after mixup')
    bce_sum: bool = key(False, 'for hard: bce, sum over the classes and not average')
    kind: Literal['collaborative', 'mutual', 'gated'] = key(
        'collaborative', 'what a head learns from the others: their consensus, each of their predictions (mutual, Deep'
                         ' Mutual Learning), or an ensemble of all weighted by a gate (gated, On-the-Fly Native'
                         ' Ensemble)')
    ramp_up_epochs: float = key(0.0, 'epochs in which the weight of the other heads rises from 0 to 1 - beta')
    ramp_up: Literal['linear', 'cosine', 'gaussian'] = key(
        'gaussian', 'how it rises: linear, cosine, or (gaussian) as exp(-5 (1 - t)^2)')
    temperature_from: float | None = key(
        None, 'temperature that the first temperature_epochs start at; temperature throughout when left out')
    temperature_epochs: float = key(0.0, 'epochs in which the temperature goes from temperature_from to temperature')
    temperature_ramp: Literal['linear', 'cosine', 'gaussian'] = key('cosine', 'how it goes there, as ramp_up')

    def __post_init__(self) -> None:
        require(0.0 <= self.beta <= 1.0, f'objective.beta must lie in [0, 1], got {self.beta}')
        require(self.beta > 0 or not self.full_labels, 'objective.full_labels divides by objective.beta, which is 0')
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
        require(self.hard == 'ce' or self.kind == 'collaborative',
                f'objective.kind {self.kind} compares distributions over classes: it needs objective.hard ce')
        require(self.hard == 'bce' or (self.bce_target_threshold is None and not self.bce_sum),
                'objective.bce_target_threshold and objective.bce_sum need objective.hard bce')
        require(self.bce_target_threshold is None or 0.0 <= self.bce_target_threshold < 1.0,
                f'objective.bce_target_threshold must lie in [0, 1), got {self.bce_target_threshold}')
        require(0.0 <= self.smoothing < 1.0, f'objective.smoothing must lie in [0, 1), got {self.smoothing}')
