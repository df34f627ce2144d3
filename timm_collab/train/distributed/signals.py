"""A run that is told to stop: by a scheduler that wants its machine back, or by Ctrl-C.

The first signal asks the trainer to save and leave after the update at hand; a second Ctrl-C doesn't wait.
"""
from __future__ import annotations

import signal
import threading
import time
from types import FrameType, TracebackType
from typing import Any

EX_TEMPFAIL = 75  # sysexits.h: try again later
SAME_PRESS = 1.0
"""Seconds in which a second SIGINT is the same Ctrl-C: terminals send it to every process, launchers pass it on."""
_SIGNALS = tuple(getattr(signal, name) for name in ('SIGTERM', 'SIGINT', 'SIGUSR1') if hasattr(signal, name))


def leave_signals_to_parent(worker: int = 0) -> None:
    """Have a process that reads data go on when a signal goes to all processes: the one that trains still saves.

    To be called in that process, as the `worker_init_fn` of a `DataLoader`; it ends when its parent does.
    """
    for each in _SIGNALS:
        signal.signal(each, signal.SIG_IGN)


class StoppedError(Exception):
    """The run stopped after saving; the same command goes on.

    Args:
        signal_number: The signal that asked for it, None on a process that learnt of it from another.
    """

    def __init__(self, signal_number: int | None) -> None:
        name = 'by another process' if signal_number is None else f'by {signal.Signals(signal_number).name}'
        super().__init__(f'stopped {name}')
        self.signal_number = signal_number

    @property
    def exit_status(self) -> int:
        """130 for Ctrl-C, as everywhere; 75, 'try again', for all else."""
        return 130 if self.signal_number == signal.SIGINT else EX_TEMPFAIL


class StopRequest:
    """While open, SIGTERM, SIGUSR1 (SLURM's `--signal`) and Ctrl-C set `requested` instead of ending the process.

    Outside the main thread, where Python allows no handlers, it stays unset.
    """

    def __init__(self) -> None:
        self.signal_number: int | None = None
        self._noted = 0.0
        self._previous: dict[int, Any] = {}

    @property
    def requested(self) -> bool:
        """Whether this process was told to stop."""
        return self.signal_number is not None

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            self._previous = {each: signal.signal(each, self._note) for each in _SIGNALS}
        return self

    def __exit__(
            self,
            kind: type[BaseException] | None,
            error: BaseException | None,
            traceback: TracebackType | None,
    ) -> None:
        for each, handler in self._previous.items():
            signal.signal(each, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if not self.requested:
            self.signal_number, self._noted = number, now
        elif number == signal.SIGINT and now - self._noted >= SAME_PRESS:
            raise KeyboardInterrupt
