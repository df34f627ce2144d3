"""What a repository holds, and whether it is what a folder holds."""
from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..pretrained.download import sha256_of
from .folder import Upload

_OWN = '.gitattributes'


@dataclass(frozen=True)
class Remote:
    """A repository at the moment of looking.

    Args:
        commit: Its head.
        files: The checksum of each file, see `remote_files`.
        tags: The commit of each tag.
    """

    commit: str
    files: Mapping[str, str]
    tags: Mapping[str, str]


def remote_files(info: Any) -> dict[str, str]:
    """The checksum of each file that the Hub tells of: the SHA-256 of a large one, of others git's own."""
    return {file.rfilename: file.lfs.sha256 if file.lfs else file.blob_id for file in info.siblings}


def same(upload: Upload, files: Mapping[str, str]) -> bool:
    """Whether a repository holds a folder's files, and nothing else."""
    held = {name: checksum for name, checksum in files.items() if name != _OWN}
    return held.keys() == set(upload.files) and all(
        checksum == (sha256_of(upload.folder / name) if len(checksum) == 64 else _git_blob(upload.content(name)))
        for name, checksum in held.items()
    )


def _git_blob(content: Path | bytes) -> str:
    """The name that git gives a content."""
    content = content if isinstance(content, bytes) else content.read_bytes()
    return hashlib.sha1(b'blob %d\0%b' % (len(content), content)).hexdigest()
