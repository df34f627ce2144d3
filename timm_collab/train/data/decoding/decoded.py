"""Decode a split once, in parallel: to one tensor if its images have one size, else to a list.

Shapes: N examples, C channels, H and W height and width, M examples of a chunk.
"""
from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import torch
from PIL import Image
from torch import Tensor

from ...errors import require
from .cache import cached
from .contents import Contents, Digests, digest, examine
from .image_split import BadImage, BadImageError, ImageSplit, Rows, read_encoded

CACHED_BYTES = 2**22
"""Smaller splits are decoded faster than they are looked up in the cache."""

_HASHED = 256
_PROBE = 32
_VERSION = 3
ToImage = Callable[[Image.Image], Image.Image]


@dataclass(frozen=True)
class Probe:
    """What a few evenly spaced images reveal about a split.

    Args:
        num_bytes: Estimated size of all decoded images.
        shape: Height, width and channels of an image; None if images differ.
        contents: What these images hold.
    """

    num_bytes: int
    shape: tuple[int, ...] | None
    contents: Contents


@dataclass(frozen=True)
class Decoded:
    """The images of a split.

    Args:
        images: uint8 [N, C, H, W], or a list of N images.
        split: The examples that could be decoded.
        kept_N: Indices of these examples in the original split.
        contents: What their files hold.
        bad: The other images of the original split.
    """

    images: Tensor | list[Image.Image]
    split: ImageSplit
    kept_N: Rows
    contents: Contents
    bad: list[BadImage]


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
    shapes, found, digests = [], [], []
    for index in np.unique(np.linspace(0, len(split) - 1, _PROBE).astype(int)).tolist():
        try:
            image = split.decoded(index)
        except BadImageError:
            if not skip:
                raise
            continue
        shapes.append(_array(once(image.image)).shape)
        found.append(image.found)
        digests.append(digest(image.content))
    require(len(shapes) > 0, f"none of {_PROBE} images of split '{split.name}' can be decoded")
    return Probe(int(np.mean([np.prod(shape) for shape in shapes]) * len(split)),
                 shapes[0] if len(set(shapes)) == 1 else None,
                 Contents.of(found, b''.join(digests)))


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
    digest_N = None
    if folder is not None and len(split) * int(np.prod(shape)) >= CACHED_BYTES:
        digest_N = _digests(split)

    def build() -> dict[str, Tensor]:
        images_NHWC = np.empty((len(split), *shape), dtype=np.uint8)

        def keep(index: int, image: Image.Image) -> None:
            array = _array(once(image))
            if array.shape != shape:
                raise SizesDifferError
            images_NHWC[index] = array

        examined = examine(split, skip, progress, keep, digest_N)
        kept_N, facts = examined.kept_N, json.dumps(examined.contents.facts()).encode()
        images_NHWC = images_NHWC if len(kept_N) == len(split) else images_NHWC[kept_N]
        return {
            'images': torch.from_numpy(images_NHWC).permute(0, 3, 1, 2).contiguous(),
            'kept': torch.from_numpy(kept_N),
            'facts': torch.frombuffer(bytearray(facts), dtype=torch.uint8),
            'digests': torch.from_numpy(examined.contents.digest_N.copy()),
        }

    found = build() if digest_N is None or folder is None else cached(folder, _key(split, once, digest_N), build)
    kept_N = found['kept'].numpy()
    bad = []
    for index in np.setdiff1d(np.arange(len(split)), kept_N).tolist():
        try:
            split.image(index)
        except BadImageError as error:
            if not skip:  # cached by a run that left it out
                raise
            bad.append(split.bad(index, error))
    contents = Contents.from_facts(found['digests'].numpy(), json.loads(found['facts'].numpy().tobytes()))
    return _decoded(found['images'], split, kept_N, contents, bad)


def decode_list(split: ImageSplit, once: ToImage, skip: bool = False, progress: bool = False) -> Decoded:
    """Decode images of any size; arguments and errors are those of `decode_tensor`."""
    images: list[Any] = [None] * len(split)

    def keep(index: int, image: Image.Image) -> None:
        images[index] = once(image)

    examined = examine(split, skip, progress, keep)
    kept = [images[index] for index in examined.kept_N.tolist()]
    return _decoded(kept, split, examined.kept_N, examined.contents, examined.bad)


def _decoded(
        images: Tensor | list[Image.Image],
        split: ImageSplit,
        kept_N: Rows,
        contents: Contents,
        bad: list[BadImage],
) -> Decoded:
    kept = split if len(kept_N) == len(split) else split.take(kept_N)
    return Decoded(images, kept, kept_N, contents, bad)


def _array(image: Image.Image) -> np.ndarray:
    array = np.asarray(image)
    return array if array.ndim == 3 else array[:, :, None]


def _digests(split: ImageSplit) -> Digests | None:
    """Digests of the encoded images; None if one can't be read, which is reported when it is decoded."""
    digests = []
    try:
        for start in range(0, len(split), _HASHED):
            chunk_M = np.arange(start, min(start + _HASHED, len(split)))
            digests += [digest(cell['bytes'] or read_encoded(cell)) for cell in split.encoded(chunk_M)]
    except Exception:  # of any type
        return None
    return np.frombuffer(b''.join(digests), dtype=np.uint8).reshape(len(split), -1)


def _key(split: ImageSplit, once: ToImage, digest_N: Digests) -> str:
    """Digest of the encoded images and of all that their decoding depends on."""
    # The repr of a step isn't complete: it lacks, for example, timm's fill value for borders.
    settings = [sorted(vars(step).items()) for step in getattr(once, 'transforms', [once])]
    transform = ' '.join(f'{once!r} {settings!r}'.split())
    words = _VERSION, PIL.__version__, split.mode, split.bit_depth, transform
    key = hashlib.blake2b('\n'.join(map(str, words)).encode(), digest_size=16)
    key.update(digest_N.tobytes())
    return key.hexdigest()
