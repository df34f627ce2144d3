"""A training split that is read from front to back, for data too large to be fetched or copied first.

The files of a split are dealt out to lanes. Each lane reads its files in an order drawn for each pass, through a buffer
that examples leave in random order, and every batch takes the same share from every lane. What an epoch consists of
depends on the seed, the number of lanes and the size of a batch, not on how many processes or workers share the work:
a process reads the lanes that its part of a batch comes from, and workers are handed images to decode.

A lane that has reached its end starts over, so of files that differ in length an epoch takes some examples twice and
leaves out others.
"""
from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import datasets
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler, get_worker_info

from ..errors import TrainError, one_line, require
from .image_split import Encoded, decode
from .keyed import Draws, Key, Purpose, generator, keyed_randomness
from .preprocess import Transform

_MAX_LANES = 16
_BATCHES_AHEAD = 4
T = TypeVar('T')


class Streamed(NamedTuple):
    """An example on its way from the reader to where it is decoded."""

    key: Key
    encoded: Encoded
    label: int


@dataclass(frozen=True)
class StreamSplit:
    """A split that is read from front to back.

    Args:
        name: Its name, for messages.
        rows: The split, its images not decoded.
        image_column: Column of `rows` with the images.
        label_column: Column of `rows` with class indices.
        mode: PIL mode that images are converted to, 'L' or 'RGB'.
        length: Examples of an epoch.
        digest: Tells the files, as they are today, from others.
        num_classes: Labels lie below; None while that isn't known.
    """

    name: str
    rows: datasets.IterableDataset
    image_column: str
    label_column: str
    mode: str
    length: int
    digest: str
    num_classes: int | None = None

    def __len__(self) -> int:
        return self.length

    def located(self, places: Sequence[int]) -> tuple[str, list[int]]:
        """What some of an epoch's examples are known by: their places in its stream."""
        return 'places', list(places)

    def num_lanes(self, batch_size: int, asked: int | None) -> int:
        """Lanes to read in: a power of two where the recipe names no number."""
        most = min(self.rows.num_shards, batch_size)
        return min(asked or 2 ** int(np.log2(min(most, _MAX_LANES))), most)

    def read(self, lane: int, num_lanes: int, buffer: int, seed: int, epoch: int) -> Iterator[tuple[Encoded, int]]:
        """The examples of a lane, pass after pass, without end.

        Args:
            lane: Which of them.
            num_lanes: How many there are.
            buffer: Examples among which the next is drawn.
            seed: Seed of the run.
            epoch: The epoch, from 0.

        Raises:
            TrainError: The files can't be read on, hold nothing, or a label lies outside [0, C).
        """
        for number in itertools.count():
            rng = generator(Purpose.STREAMED_ORDER, seed, epoch, lane, number)
            is_empty = True
            for row in _through_buffer(self._rows(rng.permutation(self._files(lane, num_lanes))), buffer, rng):
                is_empty = False
                label = row[self.label_column]
                require(isinstance(label, int) and 0 <= label < (self.num_classes or label + 1),
                        f"label {label!r} of an image of split '{self.name}' is outside [0, {self.num_classes}): check"
                        ' data.label_column and model.num_classes')
                yield row[self.image_column], label
            require(not is_empty, f"split '{self.name}': the files of lane {lane} of {num_lanes} hold no examples:"
                                  ' write a smaller number of --data.lanes')

    def _files(self, lane: int, num_lanes: int) -> range:
        return range(lane, self.rows.num_shards, num_lanes)

    def _rows(self, files: Iterable[int]) -> Iterator[dict[str, Any]]:
        try:
            for file in files:
                yield from self.rows.shard(self.rows.num_shards, int(file))
        except Exception as error:  # of the file's format or the network, of many types
            reason = one_line(error)
            raise TrainError(f"split '{self.name}' can't be read on ({type(error).__name__}: {reason}): the checkpoints"
                             ' remain, and the same command goes on from there') from error


class StreamSampler(Sampler['Streamed | None']):
    """The examples of an epoch, read ahead in a thread of their own; None for those that other processes read.

    It has the interface of `EpochSampler`, and yields examples where that yields indices, so that loaders and workers
    treat both alike.

    Args:
        split: The examples.
        batch_size: Examples of a batch, over all processes.
        seed: Seed of the run.
        lanes: Lanes to read in, see `StreamSplit.num_lanes`.
        buffer: Examples among which the next is drawn, over all lanes.
        repeats: How often each example follows itself.
        process: This process and how many there are.

    Attributes:
        epoch: The epoch of the next pass.
        skip: Examples of the next pass to leave out at its start, whole batches; they are read, not decoded.
    """

    def __init__(
            self,
            split: StreamSplit,
            batch_size: int,
            seed: int,
            lanes: int | None = None,
            buffer: int = 1,
            repeats: int = 1,
            process: tuple[int, int] = (0, 1),
    ) -> None:
        self.split = split
        self.batch_size = batch_size
        self.seed = seed
        self.repeats = repeats
        num_lanes = split.num_lanes(batch_size, lanes)
        self.num_lanes = num_lanes
        self.buffer = max(1, buffer // num_lanes)
        self.lanes = [slot * num_lanes // batch_size for slot in range(batch_size)]
        index, count = process
        self.own = range(index * batch_size // count, (index + 1) * batch_size // count)
        self.epoch = 0
        self.skip = 0

    def __len__(self) -> int:
        return len(self.split)

    def indices(self) -> list[int]:
        """Places in the epoch's stream, in order."""
        return list(range(len(self)))

    def __iter__(self) -> Iterator[Streamed | None]:
        for batch in _ahead(self._batches()):
            yield from batch

    def _batches(self) -> Iterator[list[Streamed | None]]:
        own_lanes = {self.lanes[slot] for slot in self.own}
        readers = {
            lane: _repeated(self.split.read(lane, self.num_lanes, self.buffer, self.seed, self.epoch), self.repeats)
            for lane in own_lanes
        }
        for start in range(0, len(self) - self.batch_size + 1, self.batch_size):
            batch: list[Streamed | None] = []
            for slot, lane in enumerate(self.lanes):
                example = next(readers[lane]) if lane in own_lanes else None
                kept = example is not None and slot in self.own
                batch.append(Streamed((self.epoch, start + slot), *example) if kept and example else None)
            if start >= self.skip:
                yield batch


class StreamedImages(Dataset[tuple[Tensor, int]]):
    """Decodes and transforms what a `StreamSampler` has read.

    Args:
        split: The examples.
        transform: Image to tensor.
        seed: Seed of the run.
        skip: Put another example of the batch, drawn by key, in the place of one that can't be decoded.
        workers: Processes that will do so.
    """

    def __init__(
            self, split: StreamSplit, transform: Transform, seed: int, skip: bool = False, workers: int = 0) -> None:
        self.split = split
        self.transform = transform
        self.seed = seed
        self.skip = skip
        self._replaced = torch.zeros(workers + 1, dtype=torch.int64).share_memory_()  # one for each that counts

    def __len__(self) -> int:
        return len(self.split)

    @property
    def num_replaced(self) -> int:
        """How many examples couldn't be decoded so far, and were replaced."""
        return int(self._replaced.sum())

    def __getitems__(self, examples: Sequence[Streamed]) -> list[tuple[Tensor, int]]:
        """The examples of a batch; PyTorch's loaders call this where they find it.

        Raises:
            TrainError: An image can't be decoded, and `skip` isn't set; or none of the batch can be.
        """
        images: dict[int, Any] = {}
        for place, (key, encoded, _) in enumerate(examples):
            try:
                images[place] = self._decoded(key, encoded)
            except TrainError:
                if not self.skip or (len(images) == 0 and place == len(examples) - 1):
                    raise
        good = list(images)
        worker = get_worker_info()
        self._replaced[0 if worker is None else worker.id + 1] += len(examples) - len(good)
        batch = []
        for place, example in enumerate(examples):
            source = place
            if place not in images:
                source = good[int(Draws(self.seed, [example.key]).uniform(Purpose.REPLACE, 1)[0, 0] * len(good))]
            with keyed_randomness(self.seed, *example.key):
                batch.append((self.transform(images[source]), examples[source].label))
        return batch

    def _decoded(self, key: Key, encoded: Encoded) -> Any:
        path = encoded and encoded['path']  # a cell may be empty
        name = f" ('{path}')" * bool(path)
        where = f"image {key[1]} of epoch {key[0]}, both from 0, of split '{self.split.name}'{name}"
        return decode(lambda: encoded, self.split.mode, where)


def _through_buffer(examples: Iterator[T], size: int, rng: np.random.Generator) -> Iterator[T]:
    """The same, each drawn from among so many."""
    held = list(itertools.islice(examples, size - 1))
    for example in examples:
        place = int(rng.integers(size))
        if place == size - 1:
            yield example
        else:
            yield held[place]
            held[place] = example
    for place in rng.permutation(len(held)):
        yield held[place]


def _repeated(examples: Iterator[T], repeats: int) -> Iterator[T]:
    return (example for example in examples for _ in range(repeats))


def _ahead(batches: Iterator[T]) -> Iterator[T]:
    """The same, fetched by a thread some batches ahead."""
    end: Any = object()
    fetch: Callable[[], Any] = lambda: next(batches, end)  # noqa: E731
    pool = ThreadPoolExecutor(1, 'stream')
    try:
        pending: deque[Future[Any]] = deque(pool.submit(fetch) for _ in range(_BATCHES_AHEAD))
        while (batch := pending.popleft().result()) is not end:
            pending.append(pool.submit(fetch))
            yield batch
    finally:
        pool.shutdown(cancel_futures=True)
