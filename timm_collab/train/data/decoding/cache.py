"""Decoded images on disk for later runs: written atomically, verified when read.

No run depends on it. If the folder isn't writable, the disk is full or a file is damaged, the images are decoded again
after a warning.
"""
from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable
from pathlib import Path

import datasets
from filelock import FileLock
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ...paths import atomic

_DIGEST = 'blake2b'


def cache_folder(asked: str | None) -> Path | None:
    """Folder for decoded images, None for no cache.

    Args:
        asked: The recipe's `data.cache_dir`: a folder, '' for no cache, or None for a folder in the cache of
            `datasets`. The variables `HF_DATASETS_CACHE`, `HF_HOME` and `XDG_CACHE_HOME` set the latter.
    """
    if asked is None:
        return Path(datasets.config.HF_DATASETS_CACHE) / 'timm_collab'
    return Path(asked).expanduser() if asked else None


def cached(folder: Path, key: str, build: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    """Read tensors, or build and write them. Of several concurrent processes one builds and the others wait.

    Args:
        folder: Folder of the cache.
        key: File name that identifies the tensors.
        build: Called if they aren't cached.

    Returns:
        The tensors, mapped from the file into memory that processes on a machine share.
    """
    path = folder / f'{key}.safetensors'
    lock = FileLock(f'{path}.lock')
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except (OSError, NotImplementedError) as error:
        _warn(f"decoded images can't be cached in {folder} ({error}): write --data.cache_dir with another folder or ''")
        return build()
    try:
        found = _read(path)
        if found is not None:
            return found
        built = build()
        try:
            _write(path, built)
        except (OSError, SafetensorError) as error:
            _warn(f"decoded images can't be cached in {folder} ({error})")
            return built
        return _read(path) or built
    finally:
        lock.release()


def _read(path: Path) -> dict[str, Tensor] | None:
    if not path.exists():
        return None
    try:
        with safe_open(path, framework='pt') as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, not a mapping
            digest = (file.metadata() or {}).get(_DIGEST)
    except (OSError, SafetensorError) as error:
        _warn(f'{path} is damaged ({error}): decoding the images again')
        return None
    if digest != _digest(tensors):
        _warn(f'{path} is damaged (its checksum differs): decoding the images again')
        return None
    return tensors


def _write(path: Path, tensors: dict[str, Tensor]) -> None:
    with atomic(path, sync=False) as partial:  # its checksum is verified when it is read
        save_file(tensors, partial, metadata={_DIGEST: _digest(tensors)})


def _digest(tensors: dict[str, Tensor]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for name in sorted(tensors):
        digest.update(f'{name} {tensors[name].dtype} {tuple(tensors[name].shape)}'.encode())
        digest.update(tensors[name].numpy().data)
    return digest.hexdigest()


def _warn(message: str) -> None:
    warnings.warn(message, stacklevel=3)
