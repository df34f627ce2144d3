"""Randomness that depends on (seed, epoch, index) and on nothing else.

Whatever is drawn for an image is a function of its key, so a run gives the same images for any batch size, number of
workers or processes and on any device, and can be taken up in the middle.

Array names end in their shape: B examples, K parts of a key, D draws.
"""
from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator, Sequence
from enum import IntEnum

import numpy as np
import numpy.typing as npt
import torch

Key = tuple[int, ...]
"""Epoch and index of an example, and which of its repeats if it has several: with the seed, all that is drawn from."""

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

_GAMMA = np.uint64(0x9E3779B97F4A7C15)  # 2**64 divided by the golden ratio, the step of SplitMix64


class Purpose(IntEnum):
    """What is drawn. Each has a stream of its own, so that changing one transform leaves the others as they were."""

    CROP = 1
    HFLIP = 2
    VFLIP = 3
    COLOR = 4
    ERASE = 5
    REPLACE = 6


class Draws:
    """Uniform draws for a batch, one row for each key.

    A counter-based generator: the parts of a key are hashed into 64 bits, from where SplitMix64 (Steele et al., 2014,
    "Fast splittable pseudorandom number generators") counts up.

    Args:
        seed: Seed of the run.
        keys: Keys of the examples, all of one length.
    """

    def __init__(self, seed: int, keys: Sequence[Key]) -> None:
        keys_BK = np.array(keys, dtype=np.int64).astype(np.uint64)
        state_B = np.full(len(keys), _mixed(np.array([seed], dtype=np.uint64))[0])
        for part_B in keys_BK.T:
            state_B = _mixed((state_B + _GAMMA) ^ _mixed(part_B + _GAMMA))
        self._state_B = state_B

    def __len__(self) -> int:
        return len(self._state_B)

    def uniform(self, purpose: Purpose, count: int) -> Floats:
        """Numbers of [0, 1), as many for each key: [B, count]. The same call gives the same numbers."""
        counter_D = (np.uint64(purpose) << np.uint64(32)) + np.arange(1, count + 1, dtype=np.uint64)
        bits_BD = _mixed(self._state_B[:, None] + counter_D * _GAMMA)
        return (bits_BD >> np.uint64(11)) * 2.0**-53


def between(uniform: Floats, low: int | Ints, high: int | Ints) -> Ints:
    """Integers of [low, high], both included, from numbers of [0, 1)."""
    return low + np.floor(uniform * (high - low + 1)).astype(np.int64)


def _mixed(x: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """The finaliser of SplitMix64; unsigned arrays wrap around, as it wants."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def seed_generators(device: torch.device, seed: int, *key: int | str) -> None:
    """Seed Python's, NumPy's and PyTorch's generators, that of the device included.

    Args:
        device: Where will be drawn.
        seed: Seed of the run.
        key: What the draws are for.
    """
    random.seed('/'.join(map(str, (seed, *key))))
    number = random.getrandbits(32)
    random.seed(number)
    np.random.seed(number)
    if device.type == 'cpu':  # `torch.manual_seed` would note for a GPU that isn't used where it was called from
        torch.default_generator.manual_seed(number)
    else:
        torch.manual_seed(number)


@contextlib.contextmanager
def keyed_randomness(seed: int, *key: int | str) -> Iterator[None]:
    """Seed the generators that timm's and torchvision's transforms draw from; put them back afterwards.

    Args:
        seed: Seed of the run.
        key: What the draws are for: epoch and index of an example, for one.
    """
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    random.seed('/'.join(map(str, (seed, *key))))
    np.random.seed(random.getrandbits(32))
    torch.default_generator.manual_seed(random.getrandbits(63))
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
