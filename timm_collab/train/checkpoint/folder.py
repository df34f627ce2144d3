"""The folder of a run's checkpoints: written atomically, verified when loaded.

`checkpoints/update-000000782/` holds `tensors.safetensors` (all tensors of the state), `state.json` (everything else,
with references to the tensors) and `manifest.json` (size and SHA-256 of both files, and of the manifest itself). A
checkpoint that doesn't match its manifest is renamed to `update-000000782.damaged/`.
"""
from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ...pretrained.download import sha256_of
from ..errors import TrainError
from ..paths import atomic
from .packing import pack

FORMAT = 1
TENSORS, STATE, MANIFEST = 'tensors.safetensors', 'state.json', 'manifest.json'
_NAME = re.compile(r'update-(\d{9,})')
_DAMAGED = '.damaged'


class CheckpointError(TrainError):
    """A checkpoint can't be written, or no checkpoint of the run can be loaded."""


class _DamagedError(Exception):
    """A checkpoint doesn't match its manifest."""


@dataclass(frozen=True)
class Found:
    """A verified checkpoint.

    Args:
        path: Its folder.
        plain: The state without its tensors, for `unpack`.
        tensors: The tensors.
        set_aside: Newer checkpoints that are damaged: their new path, and the reason.
    """

    path: Path
    plain: Any
    tensors: dict[str, Tensor]
    set_aside: list[tuple[Path, str]]


class Checkpoints:
    """The checkpoints of one run, for use by one process at a time.

    Args:
        path: Their folder, created with the first checkpoint.
        keep_last: Number of newest checkpoints to keep.
        keep_best: Number of checkpoints with the highest score to keep in addition.
    """

    def __init__(self, path: Path, keep_last: int = 2, keep_best: int = 1) -> None:
        self.path = path
        self.keep_last = keep_last
        self.keep_best = keep_best

    def save(self, state: Any, update: int, score: float | None = None) -> Path:
        """Write a checkpoint atomically, then delete old ones.

        Args:
            state: See `pack`.
            update: Number of optimizer updates so far. Checkpoints are named and ordered by it.
            score: Score of the model if it was evaluated; higher is better.

        Raises:
            CheckpointError: It can't be written, for example because the disk is full. Earlier ones are unchanged.
        """
        target = self.path / f'update-{update:09d}'
        if target.exists():  # reached again after a resume, with the same state
            return target
        packed = pack(state)  # before anything is written: it may refuse the state
        try:
            with atomic(target) as partial:
                partial.mkdir()
                _write(partial, *packed, update, score)
        except (OSError, SafetensorError) as error:
            kept = [path.name for _, path in self._entries()]
            left = f"the last one, '{kept[-1]}', is intact" if kept else 'there is no earlier one'
            raise CheckpointError(f"checkpoint '{target}' can't be written ({error}); {left}: free disk space, then run"
                                  ' the same command to resume') from error
        self._prune()
        return target

    def newest(self) -> Found | None:
        """Load the newest checkpoint that matches its manifest. Damaged ones are renamed, not deleted.

        Returns:
            The checkpoint; None if the run never wrote one.

        Raises:
            CheckpointError: All checkpoints are damaged.
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
            reasons = '; '.join(reason for _, reason in set_aside) or 'found earlier'
            raise CheckpointError(f"every checkpoint in '{self.path}' is damaged ({reasons}): restore one from a"
                                  ' backup, or choose another output to start again')
        return None

    def after_epochs(self) -> dict[int, Path]:
        """The checkpoints at the end of an epoch, by the number of epochs trained; their tensors are not read yet."""
        found = {}
        for _, path in self._entries():
            with suppress(_DamagedError, OSError, ValueError, KeyError):
                if _manifest(path)['score'] is not None:
                    found[_plain(path)['progress']['epoch']] = path
        return found

    def load(self, path: Path) -> tuple[Any, dict[str, Tensor]]:
        """The state without its tensors, for `unpack`, and the tensors, of a checkpoint that `after_epochs` found.

        Raises:
            CheckpointError: It doesn't match its manifest.
        """
        try:
            return _read(path)
        except _DamagedError as error:
            raise CheckpointError(f"checkpoint '{path}' is damaged ({error}): take another epoch") from error

    def last_name(self) -> str | None:
        """Name of the newest checkpoint, not verified; None if there is none."""
        entries = self._entries()
        return entries[-1][1].name if entries else None

    def clear_partial(self) -> None:
        """Delete partial checkpoints of killed processes. Call it only while no other process can be writing."""
        for leftover in self.path.glob('.update-*'):
            shutil.rmtree(leftover, ignore_errors=True)

    def _entries(self) -> list[tuple[int, Path]]:
        """Checkpoints with their number of updates, oldest first."""
        paths = self.path.iterdir() if self.path.is_dir() else ()
        return sorted((int(match.group(1)), path) for path in paths if (match := _NAME.fullmatch(path.name)))

    def _prune(self) -> None:
        entries = self._entries()
        scored = []
        for update, path in entries:
            with suppress(_DamagedError):
                score = _manifest(path)['score']
                if score is not None:
                    scored.append((score, -update, path))  # the earlier of equal ones
        best = {path for _, _, path in sorted(scored, reverse=True)[:self.keep_best]}
        for _, path in entries[:-self.keep_last]:
            if path not in best:
                # Renamed first: a process killed during the deletion leaves no checkpoint with half its files.
                trash = path.with_name(f'.{path.name}.trash')
                os.replace(path, trash)
                shutil.rmtree(trash, ignore_errors=True)


def _write(folder: Path, plain: Any, tensors: dict[str, Tensor], update: int, score: float | None) -> None:
    save_file(tensors, folder / TENSORS)
    (folder / STATE).write_text(json.dumps(plain), encoding='utf-8')
    files = {}
    for name in (TENSORS, STATE):
        files[name] = {'bytes': (folder / name).stat().st_size, 'sha256': sha256_of(folder / name)}
    manifest: dict[str, Any] = {'format': FORMAT, 'update': update, 'score': score, 'files': files}
    manifest['sha256'] = _own_sha256(manifest)
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=2), encoding='utf-8')


def _read(folder: Path) -> tuple[Any, dict[str, Tensor]]:
    for name, expected in _manifest(folder)['files'].items():
        path = folder / name
        if not path.is_file():
            raise _DamagedError(f'{name} of {folder.name} is missing')
        if path.stat().st_size != expected['bytes']:
            raise _DamagedError(f"{name} of {folder.name} has {path.stat().st_size} bytes of {expected['bytes']}")
        if sha256_of(path) != expected['sha256']:
            raise _DamagedError(f'{name} of {folder.name} has another checksum than its manifest says')
    return _plain(folder), load_file(folder / TENSORS)


def _plain(folder: Path) -> Any:
    return json.loads((folder / STATE).read_text(encoding='utf-8'))


def _manifest(folder: Path) -> dict[str, Any]:
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding='utf-8'))
        own = manifest.pop('sha256')
    except FileNotFoundError:
        raise _DamagedError(f'{MANIFEST} of {folder.name} is missing') from None
    except (ValueError, KeyError, AttributeError, TypeError, OSError):
        raise _DamagedError(f'{MANIFEST} of {folder.name} is unreadable') from None
    if own != _own_sha256(manifest):
        raise _DamagedError(f'{MANIFEST} of {folder.name} has another checksum than it says')
    if manifest['format'] != FORMAT:
        raise CheckpointError(f"checkpoint '{folder}' has format {manifest['format']}, this version reads {FORMAT}:"
                              ' resume with the version that wrote it')
    return manifest


def _own_sha256(manifest: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
