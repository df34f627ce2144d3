"""The server: its state, its accounts, and the thread that answers."""
from __future__ import annotations

import threading
from dataclasses import dataclass
from http.server import ThreadingHTTPServer
from pathlib import Path
from types import TracebackType

from .faults import Fault, Faults
from .repos import LfsStore, Repo

MAX_REQUESTS = 5000  # a client that goes round in circles is stopped


@dataclass(frozen=True)
class User:
    """Whose token it is, and what it may do.

    Args:
        name: The namespace it writes to.
        role: `write` or `read`.
    """

    name: str
    role: str = 'write'


@dataclass(frozen=True)
class Request:
    """A request as it was answered; status 0 for one whose connection was closed instead."""

    kind: str
    method: str
    path: str
    status: int


class HubServer:
    """A Hub on a free port of the loopback.

    Args:
        folder: Where repositories and large files are kept.

    Attributes:
        tokens: The accounts.
        repos: The repositories, by name.
        moved: New names of renamed repositories.
        requests: What was asked so far.
        max_lfs_size: Larger files are refused.
    """

    def __init__(self, folder: Path) -> None:
        from .handler import Handler

        self.folder = folder
        self.lfs = LfsStore(folder / 'lfs')
        self.tokens: dict[str, User] = {}
        self.repos: dict[str, Repo] = {}
        self.moved: dict[str, str] = {}
        self.requests: list[Request] = []
        self.max_lfs_size = 1 << 30
        self.faults = Faults()
        self.lock = threading.RLock()
        self._http = ThreadingHTTPServer(('127.0.0.1', 0), type('BoundHandler', (Handler,), {'hub': self}))
        self._http.daemon_threads = True
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={'poll_interval': 0.02}, daemon=True)

    @property
    def url(self) -> str:
        return f'http://127.0.0.1:{self._http.server_address[1]}'

    @property
    def store_url(self) -> str:
        """Of the large files: another host, as on the Hub; what the Hub says of a file is not said there."""
        return f'http://localhost:{self._http.server_address[1]}'

    def __enter__(self) -> HubServer:
        self._thread.start()
        return self

    def __exit__(
            self,
            kind: type[BaseException] | None,
            error: BaseException | None,
            traceback: TracebackType | None,
    ) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._thread.join(timeout=10)

    def inject(self, kind: str, fault: Fault) -> None:
        """Let the next requests of a kind, see `handler.ROUTES`, run into a fault."""
        self.faults.add(kind, fault)

    def create(self, name: str, private: bool = True) -> Repo:
        """Make a repository."""
        with self.lock:
            self.repos[name] = Repo(self.folder / f'{name.replace("/", "--")}.git', private)
            return self.repos[name]

    def kinds(self, status: int | None = None) -> list[str]:
        """The kinds of the requests so far, or of those with a status, in their order."""
        return [request.kind for request in self.requests if status is None or request.status == status]

    def content(self, name: str, revision: str = 'main') -> dict[str, bytes]:
        """Every file of a repository, large ones from the store."""
        repo = self.repos[name]
        return {
            path: repo.read(file.blob) if file.sha256 is None else self.lfs.get(file.sha256)
            for path, file in repo.files(revision).items()
        }
