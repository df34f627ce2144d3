"""Repositories as on the Hub: bare git repositories, with large files as LFS pointers to a store by SHA-256."""
from __future__ import annotations

import hashlib
import os
import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

MAIN = 'refs/heads/main'
ATTRIBUTES = b'*.safetensors filter=lfs diff=lfs merge=lfs -text\n*.png filter=lfs diff=lfs merge=lfs -text\n'
IDENTITY = {
    f'GIT_{role}_{field}': value
    for role in ('AUTHOR', 'COMMITTER') for field, value in (('NAME', 'hub'), ('EMAIL', 'hub@localhost'))
} | {'GIT_CONFIG_GLOBAL': os.devnull, 'GIT_CONFIG_NOSYSTEM': '1'}
POINTER = re.compile(rb'version https://git-lfs\.github\.com/spec/v1\noid sha256:([0-9a-f]{64})\nsize (\d+)\n')


def pointer(sha256: str, size: int) -> bytes:
    """LFS pointer file for a content of the store."""
    return f'version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n'.encode()


@dataclass(frozen=True)
class File:
    """A file at a commit. An LFS file has `sha256` and the size of its content."""

    blob: str
    size: int
    sha256: str | None = None


class LfsStore:
    """Content by its SHA-256."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True)

    def put(self, sha256: str, content: bytes) -> None:
        (self.folder / sha256).write_bytes(content)

    def get(self, sha256: str) -> bytes:
        return (self.folder / sha256).read_bytes()

    def has(self, sha256: str, size: int) -> bool:
        path = self.folder / sha256
        return path.is_file() and path.stat().st_size == size

    def intact(self, sha256: str) -> bool:
        return hashlib.sha256(self.get(sha256)).hexdigest() == sha256


class Repo:
    """A model repository.

    Args:
        folder: Folder to create.
        private: Whether only its owner can see it.
    """

    def __init__(self, folder: Path, private: bool) -> None:
        self.folder = folder
        self.private = private
        self.gated = False
        self.pull_requests = 0
        self._blobs: dict[str, bytes] = {}
        folder.mkdir()
        self.git('init', '--quiet', '--bare', '-b', 'main', '.')
        self.commit({'.gitattributes': ATTRIBUTES}, 'initial commit', parent=None)

    def git(self, *arguments: str, stdin: bytes = b'', **environment: str) -> bytes:
        done = subprocess.run(
            ['git', *arguments],
            cwd=self.folder,
            input=stdin,
            env=os.environ | IDENTITY | environment,
            capture_output=True,
            check=True,
            timeout=30,
        )
        return done.stdout

    def resolve(self, revision: str) -> str | None:
        """The commit of a branch, tag, pull request or SHA."""
        try:
            return self.git('rev-parse', '--verify', '--quiet', f'{revision}^{{commit}}').decode().strip()
        except subprocess.CalledProcessError:
            return None

    def files(self, revision: str = 'main') -> dict[str, File]:
        found = {}
        for line in self.git('ls-tree', '-r', '-l', '-z', revision).decode().rstrip('\0').split('\0'):
            entry, path = line.split('\t')
            _, _, blob, size = entry.split()
            match = POINTER.fullmatch(self.read(blob)) if int(size) < 200 else None
            found[path] = File(blob, int(match[2]), match[1].decode()) if match else File(blob, int(size))
        return found

    def read(self, blob: str) -> bytes:
        if blob not in self._blobs:
            self._blobs[blob] = self.git('cat-file', 'blob', blob)
        return self._blobs[blob]

    def commit(
            self,
            changes: Mapping[str, bytes | None],
            message: str,
            parent: str | None,
            ref: str = MAIN,
    ) -> str:
        """Commit new contents (None deletes a file) on a parent. The ref moves last, so a commit is atomic."""
        text = message.encode()
        stream = [b'commit %b\ncommitter hub <hub@localhost> now\ndata %d\n%b\n' % (ref.encode(), len(text), text)]
        stream += [f'from {parent}\n'.encode()] if parent else []
        for path, content in changes.items():
            if content is None:
                stream.append(f'D {path}\n'.encode())
            else:
                stream.append(f'M 100644 inline {path}\ndata {len(content)}\n'.encode() + content + b'\n')
        self.git('fast-import', '--quiet', '--date-format=now', stdin=b''.join(stream))
        commit = self.resolve(ref)
        assert commit is not None
        return commit

    def history(self) -> list[str]:
        """Commits of the main branch, latest first."""
        return self.git('rev-list', 'main').decode().split()

    def refs(self, kind: str) -> dict[str, str]:
        """Names and commits of the `heads` or `tags`."""
        lines = self.git('for-each-ref', '--format=%(refname:lstrip=2) %(objectname)', f'refs/{kind}').decode()
        return dict(line.split(' ') for line in lines.splitlines())
