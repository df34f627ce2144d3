"""What is kept of a run while it trains."""
from __future__ import annotations

from dataclasses import dataclass

from ..errors import require
from .key import key


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """What is saved while a run trains, so that the same command goes on after an interruption."""

    every_epochs: int = key(1, 'epochs between two checkpoints')
    every_updates: int | None = key(None, 'updates between two checkpoints inside an epoch; none when left out')
    keep_last: int = key(2, 'newest checkpoints to keep; one is there should another be damaged')
    keep_best: int = key(1, 'checkpoints with the best kept head to keep besides')

    def __post_init__(self) -> None:
        for name, least in (('every_epochs', 1), ('every_updates', 1), ('keep_last', 1), ('keep_best', 0)):
            value = getattr(self, name)
            require(value is None or value >= least, f'checkpoint.{name} must be at least {least}, got {value}')
