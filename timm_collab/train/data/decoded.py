"""Decode a split once, in parallel: to one tensor if its images have one size, else to a list.

Shapes: N examples, C channels, H and W height and width, M examples of a chunk.
"""
from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from ..errors import TrainError, require
from .cache import cached
from .image_split import Encoded, ImageSplit, Rows

CACHED_BYTES = 2**22
"""Smaller splits are decoded faster than they are looked up in the cache."""

_CHUNK = 64
_PROBE = 32
_VERSION = 2
ToImage = Callable[[Image.Image], Image.Image]


@dataclass(frozen=True)
class Probe:
    """What a few evenly spaced images reveal about a split.

    Args:
        num_bytes: Estimated size of all decoded images.
        shape: Height, width and channels of an image; None if images differ.
    """

    num_bytes: int
    shape: tuple[int, ...] | None


@dataclass(frozen=True)
class Decoded:
    """The images of a split.

    Args:
        images: uint8 [N, C, H, W], or a list of N images.
        split: The examples that could be decoded.
        kept_N: Indices of these examples in the original split.
    """

    images: Tensor | list[Image.Image]
    split: ImageSplit
    kept_N: Rows


class SizesDifferError(Exception):
    """The images differ in size and don't fit into one tensor."""


def probe(split: ImageSplit, once: ToImage, skip: bool = False) -> Probe:
    """Decode a few images.

    Args:
        split: The examples.
        once: Transform of an image before it is stored.
        skip: Skip images that can't be decoded.

    Raises:
        TrainError: An image can't be decoded, and `skip` isn't set; or none can be.
    """
    shapes = []
    for index in np.unique(np.linspace(0, len(split) - 1, _PROBE).astype(int)).tolist():
        try:
            shapes.append(_array(once(split.image(index))).shape)
        except TrainError:
            if not skip:
                raise
    require(len(shapes) > 0, f"none of {_PROBE} images of split '{split.name}' can be decoded")
    return Probe(int(np.mean([np.prod(shape) for shape in shapes]) * len(split)),
                 shapes[0] if len(set(shapes)) == 1 else None)


def decode_tensor(
        split: ImageSplit,
        once: ToImage,
        shape: tuple[int, ...],
        skip: bool = False,
        folder: Path | None = None,
        progress: bool = False,
) -> Decoded:
    """Decode images of one size, or read them from the cache.

    Args:
        split: The examples.
        once: Transform of an image before it is stored; its `repr` and its attributes identify it.
        shape: Height, width and channels of every image.
        skip: Leave out images that can't be decoded.
        folder: Folder of the cache; None for no cache.
        progress: Show a progress bar if decoding takes longer than a second.

    Raises:
        TrainError: An image can't be decoded, and `skip` isn't set; or none can be.
        SizesDifferError: An image has another size.
    """
    def build() -> dict[str, Tensor]:
        images_NHWC = np.empty((len(split), *shape), dtype=np.uint8)

        def keep(index: int, image: Image.Image) -> None:
            array = _array(image)
            if array.shape != shape:
                raise SizesDifferError
            images_NHWC[index] = array

        kept_N = _decode(split, once, keep, skip, progress)
        images_NHWC = images_NHWC if len(kept_N) == len(split) else images_NHWC[kept_N]
        images_NCHW = torch.from_numpy(images_NHWC).permute(0, 3, 1, 2).contiguous()
        return {'images': images_NCHW, 'kept': torch.from_numpy(kept_N)}

    key = None
    if folder is not None and len(split) * int(np.prod(shape)) >= CACHED_BYTES:
        key = _key(split, once)
    found = build() if key is None or folder is None else cached(folder, key, build)
    kept_N = found['kept'].numpy()
    if not skip and len(kept_N) < len(split):  # cached by a run that left out images: raise its error
        split.image(int(np.setdiff1d(np.arange(len(split)), kept_N)[0]))
    return _decoded(found['images'], split, kept_N)


def decode_list(split: ImageSplit, once: ToImage, skip: bool = False, progress: bool = False) -> Decoded:
    """Decode images of any size; arguments and errors are those of `decode_tensor`."""
    images: list[Any] = [None] * len(split)
    kept_N = _decode(split, once, images.__setitem__, skip, progress)
    return _decoded([images[index] for index in kept_N.tolist()], split, kept_N)


def _decoded(images: Tensor | list[Image.Image], split: ImageSplit, kept_N: Rows) -> Decoded:
    return Decoded(images, split if len(kept_N) == len(split) else split.take(kept_N), kept_N)


def _decode(
        split: ImageSplit,
        once: ToImage,
        keep: Callable[[int, Image.Image], None],
        skip: bool,
        progress: bool,
) -> Rows:
    """Decode all images and return the indices of those that could be. Decoders release the GIL, so threads suffice."""
    def decode(chunk_M: Rows) -> list[int]:
        bad = []
        encoded: list[Encoded | None]
        try:
            encoded = [*split.encoded(chunk_M)]
        except Exception:  # one of them breaks the reader: read them one by one to find it
            encoded = [None] * len(chunk_M)
        for index, each in zip(chunk_M.tolist(), encoded, strict=True):
            try:
                image = split.image(index, each)
            except TrainError:
                if not skip:
                    raise
                bad.append(index)
            else:
                keep(index, once(image))
        return bad

    chunks = [np.arange(start, min(start + _CHUNK, len(split))) for start in range(0, len(split), _CHUNK)]
    bad: list[int] = []
    bar = tqdm(total=len(split), desc=f'decoding {split.name}', unit='img', delay=1, leave=False, disable=not progress)
    pool = ThreadPoolExecutor(_threads())
    try:
        with bar:
            for chunk_M, bad_here in zip(chunks, pool.map(decode, chunks), strict=True):
                bad += bad_here
                bar.update(len(chunk_M))
    finally:
        pool.shutdown(cancel_futures=True)
    require(len(bad) < len(split), f"none of the images of split '{split.name}' can be decoded")
    return np.setdiff1d(np.arange(len(split)), bad)


def _threads() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1


def _array(image: Image.Image) -> np.ndarray:
    array = np.asarray(image)
    return array if array.ndim == 3 else array[:, :, None]


def _key(split: ImageSplit, once: ToImage) -> str | None:
    """Digest of the encoded images and their transform; None if an image can't be read on this machine."""
    # The repr of a step isn't complete: it lacks, for example, timm's fill value for borders.
    settings = [sorted(vars(step).items()) for step in getattr(once, 'transforms', [once])]
    words = _VERSION, PIL.__version__, split.mode, ' '.join(f'{once!r} {settings!r}'.split())
    digest = hashlib.blake2b('\n'.join(map(str, words)).encode(), digest_size=16)
    try:
        for start in range(0, len(split), _CHUNK):
            for image in split.encoded(np.arange(start, min(start + _CHUNK, len(split)))):
                content = image['bytes'] if image['bytes'] is not None else Path(image['path']).read_bytes()
                digest.update(len(content).to_bytes(8, 'little'))
                digest.update(content)
    except Exception:  # reported when the image is decoded
        return None
    return digest.hexdigest()
