"""Progress of the cells of a study, read from their folders during or after the runs."""
from __future__ import annotations

import json
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from ..train.metrics.metric import shortfall
from ..train.paths import CONFIG, METRICS
from ..train.record.run_folder import is_in_use, read_summary
from .grid import Cell, Study
from .rows import recorded_rows
from .runner import last_line, run_folder


class State(Enum):
    """State of a cell."""

    WAITING = 'waiting'
    RUNNING = 'running'
    STOPPED = 'stopped'
    FAILED = 'failed'
    FINISHED = 'finished'


@dataclass(frozen=True)
class Status:
    """Progress of a cell.

    Args:
        state: Its state.
        epoch: Number of trained epochs.
        epochs: Epochs of its recipe.
        error: Error of the kept head in percent, if finished.
        reason: Last line of the log, if failed.
    """

    state: State
    epoch: int
    epochs: int
    error: float | None = None
    reason: str | None = None

    def __str__(self) -> str:
        """Text for a cell of a table."""
        if self.state is State.FINISHED:
            return f'{self.error:.2f} %'
        if self.state in (State.RUNNING, State.STOPPED):
            return f'{self.state.value} {self.epoch}/{self.epochs}'
        return self.state.value


def study_status(study: Study, folder: Path) -> dict[Cell, Status]:
    """Progress of each cell; cells in `runs.csv` without a run folder are finished.

    Raises:
        TrainError: See `recorded_rows`.
    """
    recorded = recorded_rows(study, folder)
    return {
        cell: Status(State.FINISHED, cell.config.epochs, cell.config.epochs, error=recorded[cell].error)
        if cell in recorded else _status(folder, cell)
        for cell in study.cells
    }


def _status(folder: Path, cell: Cell) -> Status:
    run = run_folder(folder, cell)
    summary = read_summary(run)
    epoch, epochs = _epochs_trained(run / METRICS), cell.config.epochs
    if summary is not None:
        return Status(State.FINISHED, epochs, epochs, error=shortfall(summary.measured))
    if is_in_use(run):
        return Status(State.RUNNING, epoch, epochs)
    line = last_line(folder, cell)
    if line.startswith('error:'):
        return Status(State.FAILED, epoch, epochs, reason=line)
    return Status(State.STOPPED if (run / CONFIG).exists() else State.WAITING, epoch, epochs)


def _epochs_trained(metrics: Path) -> int:
    """Number of epochs in the last complete line; the last one may be partially written."""
    try:
        lines = metrics.read_text(encoding='utf-8').splitlines()
    except OSError:
        return 0
    for line in reversed(lines):
        try:
            return int(json.loads(line)['epoch']) + 1
        except (ValueError, KeyError, TypeError):
            continue
    return 0
