"""What can go wrong between a client and the Hub, to be injected into the next requests of one kind."""
from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass
class Fault:
    """A fault of one kind, or of several at once.

    Args:
        status: Answer with this status, and do nothing that was asked for.
        headers: Headers of that answer.
        drop: Close the connection instead of answering: nothing was done.
        lose: Do what was asked for, then close the connection instead of answering.
        cut: Close the connection in the middle of the body of the answer.
        corrupt: Change a byte: of the answer's body, or of what an upload stores.
        delay: Seconds to wait first.
        times: How many requests it hits.
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
    """Faults waiting for their requests, by kind of request."""

    def __init__(self) -> None:
        self._waiting: dict[str, list[Fault]] = defaultdict(list)
        self._lock = threading.Lock()

    def add(self, kind: str, fault: Fault) -> None:
        self._waiting[kind].append(fault)

    def take(self, kind: str) -> Fault:
        """The fault that hits a request now; one without effect when none waits for it."""
        with self._lock:
            waiting = self._waiting[kind]
            if not waiting:
                return Fault()
            waiting[0].times -= 1
            return waiting.pop(0) if waiting[0].times <= 0 else waiting[0]

    def clear(self) -> None:
        self._waiting.clear()


def corrupted(content: bytes) -> bytes:
    """The content with its last byte changed: the size is right, the checksum is not."""
    return content[:-1] + bytes([content[-1] ^ 0xFF]) if content else content
