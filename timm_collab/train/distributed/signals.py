"""Stopping on a signal: from a scheduler that wants its machine back, or Ctrl-C.

The first signal asks the trainer to save and exit after the current step; a second Ctrl-C doesn't wait.
"""
from __future__ import annotations

import signal
import threading
import time
from types import FrameType
from typing import Any

EX_TEMPFAIL = 75  # sysexits.h: try again later
SAME_PRESS = 1.0
"""Seconds in which a second SIGINT belongs to the same Ctrl-C: terminals and launchers send it to all processes."""
_SIGNALS = tuple(getattr(signal, name) for name in ('SIGTERM', 'SIGINT', 'SIGUSR1') if hasattr(signal, name))


def ignore_stop_signals(worker: int = 0) -> None:
    """Make a loader's worker ignore the signals, so that the trainer can still save when all processes get them.

    Call it in that process, as the `worker_init_fn` of a `DataLoader`. The worker ends when its parent does.
    """
    for each in _SIGNALS:
        signal.signal(each, signal.SIG_IGN)


class StoppedError(Exception):
    """The run stopped after it was saved; the same command resumes it.

    Args:
        signal_number: The signal, None on a process that another one informed.
    """

    def __init__(self, signal_number: int | None) -> None:
        name = 'by another process' if signal_number is None else f'by {signal.Signals(signal_number).name}'
        super().__init__(f'stopped {name}')
        self.signal_number = signal_number

    @property
    def exit_status(self) -> int:
        """130 for Ctrl-C, as is usual; 75, "try again", for other signals."""
        return 130 if self.signal_number == signal.SIGINT else EX_TEMPFAIL


class StopRequest:
    """Context in which SIGTERM, SIGUSR1 (SLURM's `--signal`) and Ctrl-C set `requested` and don't end the process.

    Outside the main thread, where Python allows no signal handlers, it stays unset.
    """

    def __init__(self) -> None:
        self.signal_number: int | None = None
        self._received_at = 0.0
        self._previous: dict[int, Any] = {}

    @property
    def requested(self) -> bool:
        """Whether this process received a signal."""
        return self.signal_number is not None

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            self._previous = {each: signal.signal(each, self._handle) for each in _SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for each, handler in self._previous.items():
            signal.signal(each, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if not self.requested:
            self.signal_number, self._received_at = number, now
        elif number == signal.SIGINT and now - self._received_at >= SAME_PRESS:
            raise KeyboardInterrupt
