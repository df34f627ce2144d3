"""The folder of a run's checkpoints: each is written beside its place, moved there at once, and verified when read.

`checkpoints/update-000000782/` holds `tensors.safetensors` (every tensor of the state), `state.json` (everything else,
and which tensor belongs where) and `manifest.json` (size and SHA-256 of both, and of its own contents). One that isn't
what its manifest says is set aside as `update-000000782.damaged/`.
"""
from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..errors import TrainError
from .packing import pack

FORMAT = 1
TENSORS, STATE, MANIFEST = 'tensors.safetensors', 'state.json', 'manifest.json'
_NAME = re.compile(r'update-(\d{9,})')
_DAMAGED = '.damaged'


class CheckpointError(TrainError):
    """A checkpoint can't be written, or none of those there are can be read."""


class _DamagedError(Exception):
    """A checkpoint isn't what its manifest says."""


@dataclass(frozen=True)
class Found:
    """A verified checkpoint.

    Args:
        path: Its folder.
        plain: The state without its tensors, for `unpack`.
        tensors: The tensors.
        set_aside: Newer ones that were damaged, under their new names, with what was wrong.
    """

    path: Path
    plain: Any
    tensors: dict[str, Tensor]
    set_aside: list[tuple[Path, str]]


class Checkpoints:
    """The checkpoints of one run, used by one process at a time.

    Args:
        path: Their folder; created with the first of them.
        keep_last: How many of the newest to keep.
        keep_best: How many of those with the highest score to keep besides.
    """

    def __init__(self, path: Path, keep_last: int = 2, keep_best: int = 1) -> None:
        self.path = path
        self.keep_last = keep_last
        self.keep_best = keep_best

    def save(self, state: Any, update: int, score: float | None = None) -> Path:
        """Write a checkpoint, whole or not at all, then delete those that need no longer be kept.

        Args:
            state: See `pack`.
            update: Updates of the optimizer so far; orders checkpoints and names them.
            score: How good the model is, where that is known; higher is better.

        Raises:
            CheckpointError: It can't be written, for want of space, say. Earlier ones are as they were.
        """
        target = self.path / f'update-{update:09d}'
        if target.exists():  # reached again after a resume, by the same way: it is the same
            return target
        partial = self.path / f'.{target.name}.partial'
        packed = pack(state)  # first: what has no place in a checkpoint leaves nothing behind
        try:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
            _write(partial, *packed, update, score)
            os.replace(partial, target)
            _sync(self.path)
        except (OSError, SafetensorError) as error:
            shutil.rmtree(partial, ignore_errors=True)
            kept = [path.name for _, path in self._entries()]
            left = f"the last one, '{kept[-1]}', is intact" if kept else 'there is no earlier one'
            raise CheckpointError(f"the checkpoint '{target}' can't be written ({error}); {left}: make room, then run"
                                  ' the same command to go on') from error
        self._prune()
        return target

    def newest(self) -> Found | None:
        """Read the newest checkpoint that is what its manifest says; damaged ones are renamed, not deleted.

        Returns:
            The checkpoint; None if there never was one.

        Raises:
            CheckpointError: There are some, all damaged.
        """
        set_aside = []
        for _, path in reversed(self._entries()):
            try:
                plain, tensors = _read(path)
            except _DamagedError as error:
                aside = path.with_name(path.name + _DAMAGED)
                if aside.exists():
                    shutil.rmtree(aside)
                os.replace(path, aside)
                set_aside.append((aside, str(error)))
            else:
                return Found(path, plain, tensors, set_aside)
        damaged = sorted(self.path.glob(f'*{_DAMAGED}'))
        if damaged:
            reasons = '; '.join(reason for _, reason in set_aside) or 'found so before'
            raise CheckpointError(f"every checkpoint in '{self.path}' is damaged ({reasons}): bring one back from a"
                                  ' copy, or choose another output to start again')
        return None

    def last_name(self) -> str | None:
        """Name of the newest checkpoint, not verified; None where there is none."""
        entries = self._entries()
        return entries[-1][1].name if entries else None

    def clear_partial(self) -> None:
        """Delete what a killed process left unfinished; call it only while no other process can be writing."""
        for leftover in self.path.glob('.update-*'):
            shutil.rmtree(leftover, ignore_errors=True)

    def _entries(self) -> list[tuple[int, Path]]:
        """Checkpoints by their number of updates, oldest first."""
        paths = self.path.iterdir() if self.path.is_dir() else ()
        return sorted((int(match.group(1)), path) for path in paths if (match := _NAME.fullmatch(path.name)))

    def _prune(self) -> None:
        entries = self._entries()
        scored = []
        for update, path in entries:
            with suppress(_DamagedError):
                score = _manifest(path)['score']
                if score is not None:
                    scored.append((score, -update, path))  # of equals the earlier
        best = {path for _, _, path in sorted(scored, reverse=True)[:self.keep_best]}
        for _, path in entries[:-self.keep_last]:
            if path not in best:
                # Renamed first: a process killed while it deletes leaves no checkpoint with half its files.
                trash = path.with_name(f'.{path.name}.trash')
                os.replace(path, trash)
                shutil.rmtree(trash, ignore_errors=True)


def _write(folder: Path, plain: Any, tensors: dict[str, Tensor], update: int, score: float | None) -> None:
    save_file(tensors, folder / TENSORS)
    (folder / STATE).write_text(json.dumps(plain), encoding='utf-8')
    files = {}
    for name in (TENSORS, STATE):
        _sync(folder / name)
        files[name] = {'bytes': (folder / name).stat().st_size, 'sha256': _sha256(folder / name)}
    manifest: dict[str, Any] = {'format': FORMAT, 'update': update, 'score': score, 'files': files}
    manifest['sha256'] = _own_sha256(manifest)
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=2), encoding='utf-8')
    _sync(folder / MANIFEST)
    _sync(folder)


def _read(folder: Path) -> tuple[Any, dict[str, Tensor]]:
    for name, expected in _manifest(folder)['files'].items():
        path = folder / name
        if not path.is_file():
            raise _DamagedError(f'{name} of {folder.name} is missing')
        if path.stat().st_size != expected['bytes']:
            raise _DamagedError(f"{name} of {folder.name} has {path.stat().st_size} bytes of {expected['bytes']}")
        if _sha256(path) != expected['sha256']:
            raise _DamagedError(f'{name} of {folder.name} does not have the checksum of its manifest')
    return json.loads((folder / STATE).read_text(encoding='utf-8')), load_file(folder / TENSORS)


def _manifest(folder: Path) -> dict[str, Any]:
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding='utf-8'))
        own = manifest.pop('sha256')
    except FileNotFoundError:
        raise _DamagedError(f'{MANIFEST} of {folder.name} is missing') from None
    except (ValueError, KeyError, AttributeError, TypeError, OSError):
        raise _DamagedError(f'{MANIFEST} of {folder.name} is unreadable') from None
    if own != _own_sha256(manifest):
        raise _DamagedError(f'{MANIFEST} of {folder.name} does not have its own checksum')
    if manifest['format'] != FORMAT:
        raise CheckpointError(f"checkpoint '{folder}' has format {manifest['format']}, this version reads {FORMAT}:"
                              ' resume it with the version that wrote it')
    return manifest


def _own_sha256(manifest: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, 'rb') as file:
        for block in _blocks(file):
            digest.update(block)
    return digest.hexdigest()


def _blocks(file: Any) -> Iterator[bytes]:
    while block := file.read(1 << 20):
        yield block


def _sync(path: Path) -> None:
    """Have the disk hold what was written to a file or folder before anything that comes later."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
