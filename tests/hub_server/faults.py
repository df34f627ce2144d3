"""Faults to inject into the next requests of one kind."""
from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass
class Fault:
    """A fault, or several combined.

    Args:
        status: Answer with this status instead of handling the request.
        headers: Headers of that answer.
        drop: Close the connection instead of handling the request.
        lose: Handle the request, then close the connection without an answer.
        cut: Close the connection in the middle of the body of the answer.
        corrupt: Change a byte of the answer's body, or of the stored upload.
        delay: Seconds to wait first.
        times: Number of requests that it affects.
    """

    status: int | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    drop: bool = False
    lose: bool = False
    cut: bool = False
    corrupt: bool = False
    delay: float = 0.0
    times: int = 1


class Faults:
    """Pending faults by kind of request."""

    def __init__(self) -> None:
        self._waiting: dict[str, list[Fault]] = defaultdict(list)
        self._lock = threading.Lock()

    def add(self, kind: str, fault: Fault) -> None:
        self._waiting[kind].append(fault)

    def take(self, kind: str) -> Fault:
        """Fault for the current request; one without effect if none is pending."""
        with self._lock:
            waiting = self._waiting[kind]
            if not waiting:
                return Fault()
            waiting[0].times -= 1
            return waiting.pop(0) if waiting[0].times <= 0 else waiting[0]

    def clear(self) -> None:
        self._waiting.clear()


def corrupted(content: bytes) -> bytes:
    """Content with its last byte changed: the same size, another checksum."""
    return content[:-1] + bytes([content[-1] ^ 0xFF]) if content else content
