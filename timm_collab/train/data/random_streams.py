"""Random draws that depend on seed, epoch and index alone.

What is drawn for an image is a function of its key. So a run sees the same images for any batch size, any number of
workers or processes and on any device, and can resume in the middle of an epoch.

Array names end in their shape: B examples, K parts of a key, D draws.
"""
from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator, Sequence
from enum import Enum, unique

import numpy as np
import numpy.typing as npt
import torch

Key = tuple[int, ...]
"""Epoch and index of an example, and the number of its repeat if it has several."""

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

_GAMMA = np.uint64(0x9E3779B97F4A7C15)  # 2**64 divided by the golden ratio, the step of SplitMix64


@unique
class Purpose(Enum):
    """What is drawn at random. Each purpose has its own stream, so changing one leaves the others as they were.

    Values are the generator that draws, and the number or name of the stream. They must not change, or results change.
    """

    # `generator`: drawn once per run or per epoch
    HOLD_OUT = 'generator', 1
    SUBSET = 'generator', 2
    ORDER = 'generator', 3
    STREAMED_ORDER = 'generator', 4
    BALANCED = 'generator', 7
    SUBSET_HELD_OUT = 'generator', 11
    NOISE = 'generator', 0x6C61626C
    NOISE_HELD_OUT = 'generator', 12

    # `Draws`: drawn per example
    CROP = 'draws', 1
    HFLIP = 'draws', 2
    VFLIP = 'draws', 3
    COLOR = 'draws', 4
    ERASE = 'draws', 5
    REPLACE = 'draws', 6

    # `seed_generators` and `keyed_randomness`: drawn by timm and PyTorch per update; transforms are keyed by their
    # example alone
    UPDATE = 'global', 'update'
    MIXUP = 'global', 'mixup'

    def __str__(self) -> str:
        return str(self.value[1])


def generator(purpose: Purpose, seed: int, *key: int) -> np.random.Generator:
    """NumPy generator for what is drawn once per run, or once per key.

    Args:
        purpose: What is drawn.
        seed: Seed of the run.
        key: What else the draws depend on, such as the epoch.
    """
    return np.random.default_rng((seed, int(purpose.value[1]), *key))


class Draws:
    """Uniform draws for a batch, one row per key.

    A counter-based generator: the parts of a key are hashed to 64 bits, from which SplitMix64 (Steele et al., 2014,
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
        """Uniform numbers in [0, 1) of shape [B, count]. The same call gives the same numbers."""
        counter_D = (np.uint64(int(purpose.value[1])) << np.uint64(32)) + np.arange(1, count + 1, dtype=np.uint64)
        bits_BD = _mixed(self._state_B[:, None] + counter_D * _GAMMA)
        return (bits_BD >> np.uint64(11)) * 2.0**-53


def between(uniform: Floats, low: int | Ints, high: int | Ints) -> Ints:
    """Integers in [low, high], both ends included, from uniform numbers in [0, 1)."""
    return low + np.floor(uniform * (high - low + 1)).astype(np.int64)


def _mixed(x: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """The finaliser of SplitMix64. It relies on unsigned arrays wrapping around."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def seed_generators(device: torch.device, seed: int, *key: int | str | Purpose) -> None:
    """Seed the global generators of Python, NumPy and PyTorch, including that of the device.

    Args:
        device: Device that draws.
        seed: Seed of the run.
        key: What the draws depend on besides the seed.
    """
    random.seed('/'.join(map(str, (seed, *key))))
    number = random.getrandbits(32)
    random.seed(number)
    np.random.seed(number)
    if device.type == 'cpu':  # `torch.manual_seed` would queue a call with its stack trace for a GPU that isn't used
        torch.default_generator.manual_seed(number)
    else:
        torch.manual_seed(number)


@contextlib.contextmanager
def keyed_randomness(seed: int, *key: int | str | Purpose) -> Iterator[None]:
    """Seed the global generators, which timm's and torchvision's transforms draw from, and restore them afterwards.

    Args:
        seed: Seed of the run.
        key: What the draws depend on besides the seed, such as epoch and index of an example.
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
