"""A read-only Hub with one data set for `datasets`, which records requests and serves ranges of files."""
from __future__ import annotations

import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

COMMIT = 'c' * 40


class DataSetServer:
    """Serves the files of a folder as a data set inside a `with` block.

    Args:
        folder: Folder with the files.
        name: Name of the data set.

    Attributes:
        requests: Method and path of every request so far.
        broken: Files that are answered with 503.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self.folder = folder
        self.name = name
        self.requests: list[tuple[str, str]] = []
        self.broken: set[str] = set()
        handler = type('Handler', (_Handler,), {'owner': self})
        self._server = ThreadingHTTPServer(('127.0.0.1', 0), handler)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    @property
    def endpoint(self) -> str:
        """Value for HF_ENDPOINT."""
        return f'http://127.0.0.1:{self._server.server_address[1]}'

    def fetched(self) -> set[str]:
        """Files that were fetched, fully or in part."""
        return {Path(path).name for method, path in self.requests if method == 'GET' and '/resolve/' in path}

    def __enter__(self) -> DataSetServer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    owner: DataSetServer
    protocol_version = 'HTTP/1.1'

    def log_message(self, *_: Any) -> None:
        """Log nothing."""

    def answer(self) -> None:
        """Answer any request."""
        self.rfile.read(int(self.headers.get('Content-Length') or 0))
        owner, path = self.owner, unquote(urlsplit(self.path).path)
        owner.requests.append((self.command, path))
        name = re.escape(owner.name)
        if re.fullmatch(rf'/api/datasets/{name}(/revision/.+)?', path):
            files = [{'rfilename': each} for each in self.files()]
            self.send_json({'id': owner.name, 'sha': COMMIT, 'private': False, 'gated': False, 'siblings': files})
        elif found := re.fullmatch(rf'/api/datasets/{name}/tree/[^/]+/?(.*)', path):
            self.send_json(self.tree(found[1], 'recursive=true' in urlsplit(self.path).query))
        elif found := re.fullmatch(rf'/datasets/{name}/resolve/[^/]+/(.+)', path):
            self.send_file(found[1])
        else:
            self.send_json({'error': 'Repository not found'}, 404, {'X-Error-Code': 'RepoNotFound'})

    do_GET = do_HEAD = do_POST = answer

    def files(self) -> list[str]:
        """Names of all files."""
        folder = self.owner.folder
        return sorted(str(path.relative_to(folder)) for path in folder.rglob('*') if path.is_file())

    def tree(self, under: str, recursive: bool) -> list[dict[str, Any]]:
        """Entries of the files and folders in a folder, or also of those below it."""
        files = [Path(each) for each in self.files() if Path(under) in Path(each).parents]
        folders = {parent for file in files for parent in file.parents if Path(under) in parent.parents}
        entries = [self.entry(str(file)) for file in files if recursive or file.parent == Path(under)]
        return entries + [{'type': 'directory', 'path': str(folder), 'size': 0, 'oid': '0' * 40}
                          for folder in sorted(folders) if recursive or folder.parent == Path(under)]

    def entry(self, name: str) -> dict[str, Any]:
        """Entry of a file in a listing."""
        data = (self.owner.folder / name).read_bytes()
        return {'type': 'file', 'path': name, 'size': len(data), 'oid': hashlib.sha1(data).hexdigest()}

    def send_file(self, name: str) -> None:
        """Send a file, or the requested range of it."""
        if name not in self.files():
            return self.send_json({'error': 'Entry not found'}, 404, {'X-Error-Code': 'EntryNotFound'})
        if name in self.owner.broken:
            return self.send_json({'error': 'Service unavailable'}, 503)
        data = (self.owner.folder / name).read_bytes()
        headers = {'ETag': f'"{hashlib.sha1(data).hexdigest()}"', 'X-Repo-Commit': COMMIT, 'Accept-Ranges': 'bytes'}
        status = 200
        if asked := re.fullmatch(r'bytes=(\d+)-(\d*)', self.headers.get('Range') or ''):
            first, last = int(asked[1]), min(int(asked[2] or len(data)), len(data) - 1)
            headers['Content-Range'] = f'bytes {first}-{last}/{len(data)}'
            data, status = data[first:last + 1], 206
        return self.send(data, status, headers)

    def send_json(self, value: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        """Send a JSON answer."""
        self.send(json.dumps(value).encode(), status, {'Content-Type': 'application/json', **(headers or {})})

    def send(self, data: bytes, status: int, headers: dict[str, str]) -> None:
        """Send an answer."""
        self.send_response(status)
        for name, value in {**headers, 'Content-Length': str(len(data))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != 'HEAD':
            self.wfile.write(data)
