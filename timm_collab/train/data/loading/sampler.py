"""The order of the training images: each once per epoch, or each class equally often.

Array names end in their shape: N examples or places of an epoch, C classes.
"""
from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from torch.utils.data import Sampler

from ..random_streams import Ints, Key, Purpose, generator


class EpochSampler(Sampler[Key]):
    """All indices in an order drawn for each epoch, as keys with the epoch.

    The epoch is part of the key, so that it reaches workers that live for many epochs.

    Args:
        length: Number of examples.
        seed: Seed of the run.
        repeats: Repeats of each index in a row, numbered in the key. The length of an epoch stays the same, so it has
            correspondingly fewer indices, as with timm's `RepeatAugSampler`.
        class_N: Class of each example, to draw every class equally often instead of every index once. An index that
            comes several times is numbered in the key as if it were repeated.

    Attributes:
        epoch: Epoch of the next pass.
        skip: Number of examples to skip at the start of the next pass, to resume in the middle of an epoch.
    """

    def __init__(self, length: int, seed: int, repeats: int = 1, class_N: Ints | None = None) -> None:
        self.length = length
        self.seed = seed
        self.repeats = repeats
        self.balanced = None if class_N is None else BalancedOrder(class_N, seed)
        self.epoch = 0
        self.skip = 0

    def __len__(self) -> int:
        return self.length

    def indices(self) -> list[int]:
        """Indices of the epoch in order."""
        return self._places()[0].tolist()

    def __iter__(self) -> Iterator[Key]:
        index_N, number_N = self._places()
        places = zip(index_N[self.skip:].tolist(), number_N[self.skip:].tolist(), strict=True)
        if self.repeats == 1 and self.balanced is None:
            return ((self.epoch, index) for index, _ in places)
        return ((self.epoch, index, number) for index, number in places)

    def _places(self) -> tuple[Ints, Ints]:
        """Index of each place of the epoch, and a number that tells the places of one index apart."""
        place_N, repeat_N = np.divmod(np.arange(self.length), self.repeats)
        if self.balanced is None:
            order_N = generator(Purpose.ORDER, self.seed, self.epoch).permutation(self.length)
            return order_N[place_N], repeat_N
        index_N, before_N = self.balanced.places(self.epoch, -(-self.length // self.repeats))
        return index_N[place_N], before_N[place_N] * self.repeats + repeat_N


class BalancedOrder:
    """An order of the examples of each epoch in which every class comes equally often.

    The places of all epochs are one sequence, which the classes take in turn. A class fills its places with all its
    examples, in an order drawn once, over and over. So in any number of epochs two classes, and two examples of one
    class, differ by at most one place. The places of an epoch are then shuffled.

    Args:
        class_N: Class of each example. Classes without examples have no places.
        seed: Seed of the run.
    """

    def __init__(self, class_N: Ints, seed: int) -> None:
        shuffled_N = generator(Purpose.BALANCED, seed).permutation(len(class_N))
        self.by_class_N = shuffled_N[np.argsort(class_N[shuffled_N], kind='stable')]
        _, self.first_C, self.size_C = np.unique(class_N[self.by_class_N], return_index=True, return_counts=True)
        self.seed = seed

    def places(self, epoch: int, count: int) -> tuple[Ints, Ints]:
        """The examples of an epoch, in order.

        Args:
            epoch: The epoch, from 0.
            count: Number of places of an epoch.

        Returns:
            Index of each example [count], and how often it had come before in the run, which tells the places of one
            example apart.
        """
        place_N = epoch * count + generator(Purpose.ORDER, self.seed, epoch).permutation(count)
        turn_N, class_N = np.divmod(place_N, len(self.size_C))
        before_N, member_N = np.divmod(turn_N, self.size_C[class_N])
        return self.by_class_N[self.first_C[class_N] + member_N], before_N
