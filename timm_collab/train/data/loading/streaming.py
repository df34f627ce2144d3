"""Streaming: a training split that is read sequentially, for data too large to download or copy first.

The files of a split are distributed over lanes. Each lane reads its files in an order drawn for each pass, through a
shuffle buffer, and every batch takes the same number of examples from each lane. The content of an epoch depends on the
seed, the number of lanes and the batch size, but not on the number of processes or workers: a process reads the lanes
of its part of a batch, and workers only decode images.

A lane that reaches its end starts over. If files differ in length, an epoch has some examples twice and lacks others.
"""
from __future__ import annotations

import itertools
import json
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

import datasets
import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, Sampler, get_worker_info

from ...errors import TrainError, one_line, require
from ..augment.preprocess import Transform
from ..decoding.image_split import BadImage, BadImageError, Encoded, decode, file_name
from ..labels.class_names import ClassIndex, declared_names, label_of
from ..random_streams import Draws, Key, Purpose, generator, keyed_randomness

_MAX_LANES = 16
_BATCHES_AHEAD = 4
_LISTED_BYTES = 2**20
T = TypeVar('T')


class Streamed(NamedTuple):
    """An example that has been read but not decoded."""

    key: Key
    encoded: Encoded
    label: int
    file: str


@dataclass(frozen=True)
class StreamSplit:
    """A split that is read sequentially.

    Args:
        name: Name of the split, for messages.
        rows: All rows of the split, images not decoded.
        image_column: Column of `rows` with the images.
        label_column: Column of `rows` with class indices or names.
        mode: PIL mode that images are converted to, 'L' or 'RGB'.
        length: Number of examples per epoch.
        digest: Identifies the files in their current version.
        classes: The class indices of its labels.
        skips_missing: Whether examples without a label are left out, instead of an error.
        num_classes: Number of classes; None while it is unknown.
        bit_depth: Number of bits that 16-bit images use.
    """

    name: str
    rows: datasets.IterableDataset
    image_column: str
    label_column: str
    mode: str
    length: int
    digest: str
    classes: ClassIndex = field(default_factory=lambda: ClassIndex(None))
    skips_missing: bool = False
    num_classes: int | None = None
    bit_depth: int = 16

    def __len__(self) -> int:
        return self.length

    def located(self, places: Sequence[int]) -> tuple[str, list[int]]:
        """Where some of the examples of an epoch come from: `places`, and their positions in its stream."""
        return 'places', list(places)

    def num_lanes(self, batch_size: int, asked: int | None) -> int:
        """Number of lanes: a power of two unless the recipe sets it."""
        most = min(self.rows.num_shards, batch_size)
        return min(asked or 2 ** int(np.log2(min(most, _MAX_LANES))), most)

    def read(self, lane: int, num_lanes: int, buffer: int, seed: int, epoch: int) -> Iterator[tuple[Encoded, int, str]]:
        """Iterate over the examples of a lane with label and file, pass after pass, without end.

        Args:
            lane: Index of the lane.
            num_lanes: Number of lanes.
            buffer: Size of the shuffle buffer.
            seed: Seed of the run.
            epoch: The epoch, from 0.

        Raises:
            TrainError: The files can't be read or are empty, or a label is missing or outside [0, C).
        """
        for number in itertools.count():
            rng = generator(Purpose.STREAMED_ORDER, seed, epoch, lane, number)
            is_empty = True
            for example in self._labelled(
                    _shuffled(self._rows(rng.permutation(self._files(lane, num_lanes))), buffer, rng)):
                is_empty = False
                yield example
            require(not is_empty, f"split '{self.name}': the files of lane {lane} of {num_lanes} are empty: write"
                                  ' a smaller number of --data.lanes')

    def read_once(self) -> Iterator[tuple[Encoded, int, str]]:
        """Iterate over all examples once, in the order of the files; content and errors are those of `read`."""
        return self._labelled(self._rows(range(self.rows.num_shards)))

    def _labelled(self, rows: Iterable[dict[str, Any]]) -> Iterator[tuple[Encoded, int, str]]:
        declared = declared_names(self.rows.features[self.label_column])
        for row in rows:
            label = self._class_of(row[self.label_column], declared)
            if label is not None:
                yield row[self.image_column], label, file_name(row, self.image_column)

    def _class_of(self, value: Any, declared: Sequence[str] | None) -> int | None:
        """Class index of a label; None if there is none and such examples are left out."""
        what = f"label {value!r} of an image of split '{self.name}'"
        try:
            label = label_of(value, declared)
        except ValueError as error:
            raise TrainError(f'{what}: {error}: check data.label_column') from None
        if label is None:
            require(self.skips_missing, f'{what} means none: write --data.on_missing_label skip to leave it out')
            return None
        found = self.classes.find(label)
        require(found is not None and found < (self.num_classes or found + 1),
                f'{what} is outside [0, {self.num_classes}), or none of the class names: check data.label_column,'
                ' data.classes and model.num_classes')
        return found

    def _files(self, lane: int, num_lanes: int) -> range:
        return range(lane, self.rows.num_shards, num_lanes)

    def _rows(self, files: Iterable[int]) -> Iterator[dict[str, Any]]:
        try:
            for file in files:
                yield from self.rows.shard(self.rows.num_shards, int(file))
        except Exception as error:  # file formats and the network have many types
            reason = one_line(error)
            raise TrainError(f"split '{self.name}' can't be read on ({type(error).__name__}: {reason}): the same"
                             ' command resumes from the last checkpoint') from error


class StreamSampler(Sampler['Streamed | None']):
    """The examples of an epoch, read ahead in a background thread; None for those that other processes read.

    The interface is that of `EpochSampler`, with examples instead of indices, so that loaders and workers treat both
    the same.

    Args:
        split: The examples.
        batch_size: Examples per batch, over all processes.
        seed: Seed of the run.
        lanes: Number of lanes, see `StreamSplit.num_lanes`.
        buffer: Size of the shuffle buffer, over all lanes.
        repeats: Repeats of each example in a row.
        process: Index of this process, and number of processes.

    Attributes:
        epoch: Epoch of the next pass.
        skip: Number of examples to skip at the start of the next pass, whole batches. They are read but not decoded.
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
        """Positions in the stream of the epoch, in order."""
        return list(range(len(self)))

    def __iter__(self) -> Iterator[Streamed | None]:
        for batch in _prefetched(self._batches()):
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
    """Dataset that decodes and transforms the examples of a `StreamSampler`.

    Args:
        split: The examples.
        transform: Transform from image to tensor.
        seed: Seed of the run.
        skip: Replace an example that can't be decoded by another one of the batch, drawn by key.
        workers: Number of worker processes.
    """

    def __init__(
            self, split: StreamSplit, transform: Transform, seed: int, skip: bool = False, workers: int = 0) -> None:
        self.split = split
        self.transform = transform
        self.seed = seed
        self.skip = skip
        self.workers = workers
        # Per worker, and here: a count, and a list in JSON lines with the end of its last one.
        self._replaced = torch.zeros(workers + 1, dtype=torch.int64).share_memory_()
        self._listed = torch.zeros(workers + 1, _LISTED_BYTES, dtype=torch.uint8).share_memory_()
        self._ends = torch.zeros(workers + 1, dtype=torch.int64).share_memory_()

    def __len__(self) -> int:
        return len(self.split)

    @property
    def num_replaced(self) -> int:
        """Number of examples so far that couldn't be decoded and were replaced."""
        return int(self._replaced.sum())

    def __getitems__(self, examples: Sequence[Streamed]) -> list[tuple[Tensor, int]]:
        """The examples of a batch. PyTorch's loaders prefer this to `__getitem__`.

        Raises:
            TrainError: An image can't be decoded, and `skip` isn't set; or none of the batch can be.
        """
        images: dict[int, Any] = {}
        bad = []
        for place, example in enumerate(examples):
            try:
                images[place] = self._decoded(example)
            except BadImageError as error:
                if not self.skip or (len(images) == 0 and place == len(examples) - 1):
                    raise
                bad.append(BadImage(self.split.name, example.key[1], example.file, error.reason))
        good = list(images)
        self._list(bad)
        batch = []
        for place, example in enumerate(examples):
            source = place
            if place not in images:
                source = good[int(Draws(self.seed, [example.key]).uniform(Purpose.REPLACE, 1)[0, 0] * len(good))]
            with keyed_randomness(self.seed, *example.key):
                batch.append((self.transform(images[source]), examples[source].label))
        return batch

    @property
    def bad(self) -> list[BadImage]:
        """Examples so far that were replaced, with their place in the stream of their epoch as row."""
        lines = [
            line for listed, end in zip(self._listed, self._ends.tolist(), strict=True)
            for line in listed[:end].numpy().tobytes().splitlines()
        ]
        return [BadImage(*json.loads(line)) for line in lines]

    def _list(self, bad: Sequence[BadImage]) -> None:
        worker = get_worker_info()
        place = 0 if worker is None else worker.id + 1
        self._replaced[place] += len(bad)
        for image in bad:
            line = np.frombuffer(json.dumps(image).encode() + b'\n', dtype=np.uint8)
            start = int(self._ends[place])
            if start + len(line) <= _LISTED_BYTES:
                self._listed[place, start:start + len(line)] = torch.from_numpy(line.copy())
                self._ends[place] = start + len(line)

    def _decoded(self, example: Streamed) -> Image.Image:
        epoch, place = example.key[:2]

        def where() -> str:
            name = f" ('{example.file}')" if example.file else ''
            return f"image {place} of epoch {epoch}, both from 0, of split '{self.split.name}'{name}"

        return decode(lambda: example.encoded, self.split.mode, where, self.split.bit_depth).image


def _shuffled(examples: Iterator[T], size: int, rng: np.random.Generator) -> Iterator[T]:
    """Shuffle examples with a buffer of this size."""
    buffer = list(itertools.islice(examples, size - 1))
    for example in examples:
        place = int(rng.integers(size))
        if place == size - 1:
            yield example
        else:
            yield buffer[place]
            buffer[place] = example
    for place in rng.permutation(len(buffer)):
        yield buffer[place]


def _repeated(examples: Iterator[T], repeats: int) -> Iterator[T]:
    return (example for example in examples for _ in range(repeats))


def _prefetched(batches: Iterator[T]) -> Iterator[T]:
    """Fetch batches ahead in a background thread."""
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
