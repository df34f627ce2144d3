"""The server: its state, its accounts and its thread."""
from __future__ import annotations

import threading
from dataclasses import dataclass
from http.server import ThreadingHTTPServer
from pathlib import Path
from types import TracebackType

from .faults import Fault, Faults
from .repos import LfsStore, Repo

MAX_REQUESTS = 5000  # stops a client in an endless loop


@dataclass(frozen=True)
class User:
    """User and role of an access token.

    Args:
        name: Namespace of the user.
        role: `write` or `read`.
    """

    name: str
    role: str = 'write'


@dataclass(frozen=True)
class Request:
    """An answered request; status 0 if the connection was closed without an answer."""

    kind: str
    method: str
    path: str
    status: int


class HubServer:
    """A Hub on a free port of the loopback interface.

    Args:
        folder: Folder for repositories and large files.

    Attributes:
        tokens: Users by access token.
        repos: Repositories by name.
        moved: New names of renamed repositories.
        requests: All requests so far.
        max_lfs_size: Size limit of files, in bytes.
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
        """URL of the store of large files: another host without the Hub's headers, as in production."""
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
        """Inject a fault into the next requests of a kind from `handler.ROUTES`."""
        self.faults.add(kind, fault)

    def create(self, name: str, private: bool = True) -> Repo:
        """Create a repository."""
        with self.lock:
            self.repos[name] = Repo(self.folder / f'{name.replace("/", "--")}.git', private)
            return self.repos[name]

    def kinds(self, status: int | None = None) -> list[str]:
        """Kinds of the requests so far, in order; with a status, only of those."""
        return [request.kind for request in self.requests if status is None or request.status == status]

    def content(self, name: str, revision: str = 'main') -> dict[str, bytes]:
        """Content of every file of a repository, large ones from the store."""
        repo = self.repos[name]
        return {
            path: repo.read(file.blob) if file.sha256 is None else self.lfs.get(file.sha256)
            for path, file in repo.files(revision).items()
        }
