"""Running means of an epoch's losses and scores, the check that the loss is finite, and the time without a batch.

Shapes: H heads.
"""
from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from torch import Tensor

from ..errors import TrainError

T = TypeVar('T')


class ExplodedLossError(TrainError):
    """The loss became NaN, infinite or far too large.

    Args:
        message: What happened and what to do.
        epoch: In which epoch, from 0.
        step: At which update of it, from 0.
    """

    def __init__(self, message: str, epoch: int, step: int) -> None:
        super().__init__(message)
        self.epoch = epoch
        self.step = step


class LossMeter:
    """Means of an epoch's losses over updates and processes; rows stay on the device between two checks.

    Args:
        accelerator: The processes.
        epoch: The epoch, for messages.
        limit: Largest loss that is accepted.
    """

    def __init__(self, accelerator: Accelerator, epoch: int, limit: float = math.inf) -> None:
        self.accelerator = accelerator
        self.epoch = epoch
        self.limit = limit
        self.unchecked: list[Tensor] = []
        self.checked = 0
        self.sums: list[float] = []

    def add(self, row: Tensor) -> None:
        """Add the row of an update.

        Args:
            row: [3 + 2 H]: loss, score in percent by the given labels and by the labels before noise (means over the
                heads), hard term of each head, soft term of each head.
        """
        self.unchecked.append(row)

    def check(self, flag: bool = False) -> bool:
        """Average the rows since the last check over all processes, and check their losses; synchronises.

        Args:
            flag: A flag that may differ between processes.

        Returns:
            Whether the flag is set on any process.

        Raises:
            ExplodedLossError: On every process, if a loss isn't finite or exceeds the limit.
        """
        if not self.unchecked:
            return flag
        flags = torch.zeros_like(self.unchecked[0])
        flags[0] = float(flag)
        rows = self.accelerator.reduce(torch.stack([*self.unchecked, flags]), reduction='mean').cpu().double().tolist()
        for row in rows[:-1]:
            if not (math.isfinite(row[0]) and row[0] <= self.limit):
                what = f'is {row[0]:.4g}'
                if math.isfinite(row[0]):
                    what += f', over max_loss {self.limit:g},'
                raise ExplodedLossError(
                    f'the loss {what} at epoch {self.epoch}, step {self.checked} (both from 0): lower optim.lr,'
                    ' lengthen sched.warmup_epochs or, with fp16, use bf16', self.epoch, self.checked)
            # Summed update by update, so that the result doesn't depend on when it was checked.
            self.sums = [a + b for a, b in zip(self.sums or [0.0] * len(row), row, strict=True)]
            self.checked += 1
        self.unchecked.clear()
        return rows[-1][0] > 0

    @property
    def loss(self) -> float:
        """Mean loss of the checked updates."""
        return self.sums[0] / self.checked if self.checked else math.nan

    @property
    def score(self) -> dict[str, float]:
        """Mean score in percent, by the labels trained on and by the labels before noise."""
        given, clean = (total / self.checked if self.checked else math.nan for total in (self.sums or [0.0] * 3)[1:3])
        return {'given': given, 'clean': clean}

    def terms(self) -> tuple[list[float], list[float]]:
        """Mean hard and soft terms of each head."""
        means = [total / self.checked for total in self.sums[3:]]
        heads = len(means) // 2
        return means[:heads], means[heads:]

    def state_dict(self) -> dict[str, Any]:
        """The state that `load_state_dict` takes; call it right after a check."""
        return {'checked': self.checked, 'sums': self.sums}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a saved state."""
        self.checked, self.sums = state['checked'], state['sums']


class LoaderClock:
    """The time that the device waits for the next batch.

    A process runs ahead of its GPU and may wait for a batch while the GPU still computes. So there the time is taken
    between events on the GPU, from the end of its work to the arrival of the batch, which needs no synchronisation.

    Args:
        device: The device.
        seconds: Time so far.
    """

    def __init__(self, device: torch.device, seconds: float = 0.0) -> None:
        self.device = device
        self.seconds = seconds
        self._waits: list[tuple[Any, Any]] = []

    def timed(self, loader: Iterable[T]) -> Iterator[T]:
        """The batches of a loader, with the time measured before each of them and at the end."""
        batches = iter(loader)
        end: Any = object()
        while True:
            started = self._now()
            batch = next(batches, end)
            self._waits.append((started, self._now()))
            if batch is end:
                return
            yield batch

    def collect(self) -> float:
        """Add up the time so far, in seconds; a GPU has to finish its work first."""
        for started, ended in self._waits:
            if isinstance(started, float):
                self.seconds += ended - started
            else:
                ended.synchronize()
                self.seconds += started.elapsed_time(ended) / 1000
        self._waits.clear()
        return self.seconds

    def _now(self) -> Any:
        if self.device.type != 'cuda':
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event
