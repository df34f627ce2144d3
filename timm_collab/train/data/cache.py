"""Decoded images on disk, for the next run: written at once or not at all, checked whenever they are read.

Nothing depends on it. A folder that can't be written to, a full disk or a damaged file costs a warning and the time to
decode again.
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

from ..paths import atomic

_DIGEST = 'blake2b'


def cache_folder(asked: str | None) -> Path | None:
    """Where decoded images are kept.

    Args:
        asked: The recipe's `data.cache_dir`: a folder, '' for none, None for one in the cache of `datasets`, which the
            variables `HF_DATASETS_CACHE`, `HF_HOME` and `XDG_CACHE_HOME` move.
    """
    if asked is None:
        return Path(datasets.config.HF_DATASETS_CACHE) / 'timm_collab'
    return Path(asked).expanduser() if asked else None


def cached(folder: Path, key: str, build: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    """Read tensors, or build and write them; of several processes that ask at once, one builds and the others wait.

    Args:
        folder: Where to keep them.
        key: What they are, as a file name.
        build: Called if there are none.

    Returns:
        The tensors; as they were written they are mapped into memory, which processes on a machine share.
    """
    path = folder / f'{key}.safetensors'
    lock = FileLock(f'{path}.lock')
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except (OSError, NotImplementedError) as error:
        _warn(f"decoded images can't be kept in {folder} ({error}): write --data.cache_dir with another folder, or ''")
        return build()
    try:
        found = _read(path)
        if found is not None:
            return found
        built = build()
        try:
            _write(path, built)
        except (OSError, SafetensorError) as error:
            _warn(f"decoded images can't be kept in {folder} ({error})")
            return built
        return _read(path) or built
    finally:
        lock.release()


def _read(path: Path) -> dict[str, Tensor] | None:
    if not path.exists():
        return None
    try:
        with safe_open(path, framework='pt') as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, it is no mapping
            digest = (file.metadata() or {}).get(_DIGEST)
    except (OSError, SafetensorError) as error:
        _warn(f'{path} is damaged ({error}): the images are decoded again')
        return None
    if digest != _digest(tensors):
        _warn(f'{path} is damaged (its checksum differs): the images are decoded again')
        return None
    return tensors


def _write(path: Path, tensors: dict[str, Tensor]) -> None:
    with atomic(path) as partial:
        save_file(tensors, partial, metadata={_DIGEST: _digest(tensors)})


def _digest(tensors: dict[str, Tensor]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for name in sorted(tensors):
        digest.update(f'{name} {tensors[name].dtype} {tuple(tensors[name].shape)}'.encode())
        digest.update(tensors[name].numpy().data)
    return digest.hexdigest()


def _warn(message: str) -> None:
    warnings.warn(message, stacklevel=3)
