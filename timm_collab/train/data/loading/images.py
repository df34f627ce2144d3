"""Splits as PyTorch datasets and loaders, with draws that depend on seed, epoch and index alone.

Shapes: N examples, B batch, C channels, H and W height and width of the decoded images, h and w of the input.
"""
from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ...config import DataConfig, TrainConfig
from ...distributed.signals import ignore_stop_signals
from ...errors import require
from ..augment.batched import BatchTransform, translate
from ..augment.crops import UnsupportedError
from ..augment.preprocess import Preprocessing, Transform
from ..decoding.cache import cache_folder
from ..decoding.contents import Contents
from ..decoding.decoded import Decoded, SizesDifferError, decode_list, decode_tensor, probe
from ..decoding.image_split import BadImage, BadImageError, ImageSplit, Rows
from ..labels.label_column import as_target, hard_labels
from ..random_streams import Draws, Key, Purpose, keyed_randomness
from ..transfer import to_device
from .sampler import EpochSampler
from .streaming import StreamedImages, StreamSampler, StreamSplit
from .workers import Workers, num_workers, stream_workers

_MB = 2**20
_REPLACEMENTS = 100
BATCHED_SIDE = 128
"""Images with a longer side are resized faster one by one: the work of `resample` grows faster than Pillow's."""


class BatchedImages(Dataset[tuple[Tensor, Tensor]]):
    """Decoded images of one size, transformed in whole batches.

    Args:
        decoded: The images, as a tensor.
        transform: Transform of a batch.
        seed: Seed of the run.
        device: Device of the transform. The images move there too if they need at most a quarter of its free memory.

    Attributes:
        contents: What the files of the images hold.
        sample: The same, of the images that were looked at before training: all.
        bad: Images that were left out.
    """

    def __init__(self, decoded: Decoded, transform: BatchTransform, seed: int, device: torch.device) -> None:
        assert isinstance(decoded.images, Tensor)
        self.split = decoded.split
        self.kept_N = decoded.kept_N
        self.transform = transform
        self.seed = seed
        self.device = device
        self.images_NCHW = decoded.images
        if device.type == 'cuda' and 4 * self.images_NCHW.nbytes <= torch.cuda.mem_get_info(device)[0]:
            self.images_NCHW = self.images_NCHW.to(device)
        self.labels = torch.from_numpy(self.split.labels).to(self.images_NCHW.device)
        self.num_replaced = 0
        self.contents = self.sample = decoded.contents
        self.bad = decoded.bad

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, key: Key | int) -> tuple[Tensor, Tensor]:
        images, target_B = self.__getitems__([key])
        return images[0], target_B[0]

    def __getitems__(self, keys: Sequence[Key | int]) -> tuple[Tensor, Tensor]:
        """A finished batch: images [B, C, h, w] and targets. PyTorch's loaders prefer this to `__getitem__`."""
        keys_B = [_key(key) for key in keys]
        index_B = to_device(np.array([key[1] for key in keys_B]), self.images_NCHW.device)
        images_BCHW = self.images_NCHW[index_B].to(self.device)
        return self.transform(images_BCHW, self.seed, keys_B), as_target(self.labels[index_B].to(self.device))


class TransformedImages(Dataset[tuple[Tensor, Tensor | int]]):
    """A split whose images are transformed one by one.

    Args:
        split: The examples.
        transform: Transform from image to tensor.
        seed: Seed of the run.
        decoded: The decoded images of the whole split, if they are in memory.
        skip: Replace an example that can't be decoded by another one, drawn by key.
        sample: What the files of a few images hold, where the split isn't in memory.

    Attributes:
        contents: What the files of the images hold; None where they are decoded as they are used.
        sample: The same, of the images that were looked at before training; None where none was.
    """

    def __init__(
            self,
            split: ImageSplit,
            transform: Transform,
            seed: int,
            decoded: Decoded | None = None,
            skip: bool = False,
            sample: Contents | None = None,
    ) -> None:
        self.split = split if decoded is None else decoded.split
        self.kept_N: Rows = np.arange(len(split)) if decoded is None else decoded.kept_N
        self.transform = transform
        self.seed = seed
        self.decoded: Any = None if decoded is None else decoded.images
        self.contents = None if decoded is None else decoded.contents
        self.sample = sample if self.contents is None else self.contents
        self.skip = skip
        self._left_out = [] if decoded is None else decoded.bad
        # Workers mark here what they replaced, in whole bytes, because packed bits would be written together.
        self._bad_N = torch.zeros(len(self.split) if skip else 0, dtype=torch.bool).share_memory_()

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, key: Key | int) -> tuple[Tensor, Tensor | int]:
        key = _key(key)
        index, image = self._image(key)
        label = self.split.labels[index]
        with keyed_randomness(self.seed, *key):
            return self.transform(image), torch.from_numpy(label).float() if label.ndim else int(label)

    @property
    def num_replaced(self) -> int:
        """Number of examples so far that couldn't be decoded and were replaced."""
        return int(self._bad_N.sum())

    @property
    def bad(self) -> list[BadImage]:
        """Images that were left out, and those that were replaced so far."""
        replaced = []
        for index in np.flatnonzero(self._bad_N.numpy()).tolist():
            try:
                self.split.image(index)
            except BadImageError as error:
                replaced.append(self.split.bad(index, error))
        return [*self._left_out, *replaced]

    def used(self, key: Key) -> int:
        """Index of the example that `self[key]` gave: another one than in the key where that one was replaced."""
        return next(index for index in self._candidates(key) if not self.skip or not self._bad_N[index])

    def _candidates(self, key: Key) -> Iterator[int]:
        """The index of a key, and those of the examples that replace it one after the other."""
        yield key[1]
        for attempt in range(_REPLACEMENTS - 1):
            draw = Draws(self.seed, [key]).uniform(Purpose.REPLACE, attempt + 1)[0, attempt]
            yield int(draw * len(self.split))

    def _image(self, key: Key) -> tuple[int, Image.Image]:
        if self.decoded is not None:
            return key[1], self.decoded[key[1]]
        for index in self._candidates(key):
            try:
                return index, self.split.image(index)
            except BadImageError as error:
                if not self.skip:
                    raise
                self._bad_N[index] = True
                last = error
        raise last


def make_training_dataset(
        split: ImageSplit | StreamSplit,
        preprocessing: Preprocessing,
        seed: int,
        config: DataConfig,
        device: torch.device | None = None,
        progress: bool = False,
) -> BatchedImages | TransformedImages | StreamedImages:
    """Like `make_dataset`, for the training split, which may be streamed."""
    if isinstance(split, StreamSplit):
        workers = stream_workers(len(split), config.workers)
        return StreamedImages(split, preprocessing.training, seed, config.on_bad_image == 'skip', workers)
    return make_dataset(split, preprocessing, True, seed, config, device, progress)


def make_dataset(
        split: ImageSplit,
        preprocessing: Preprocessing,
        is_training: bool,
        seed: int,
        config: DataConfig,
        device: torch.device | None = None,
        progress: bool = False,
) -> BatchedImages | TransformedImages:
    """Make a dataset of a split, decoded into memory if it fits into `data.cache_mb`.

    In memory, all images have been decoded on return, so a broken one is found before training. A larger split is
    decoded as it is used.

    Args:
        split: The examples.
        preprocessing: The transforms.
        is_training: Whether to apply the training transform or the evaluation transform.
        seed: Seed of the run.
        config: The data keys of the recipe.
        device: Device of the training.
        progress: Show a progress bar if decoding takes longer than a second.

    Raises:
        TrainError: An image can't be decoded, or the recipe asks for batches and the data or a transform rule them out.
    """
    pipeline = preprocessing.training if is_training else preprocessing.evaluation
    skip = config.on_bad_image == 'skip'
    try:
        return _batched(split, pipeline, is_training, seed, config, device, progress)
    except UnsupportedError as error:
        require(not is_training or config.pipeline != 'batch',
                f'data.pipeline batch: {error}. Write --data.pipeline auto')
    decoded, probed = None, probe(split, _unchanged, skip)
    if probed.num_bytes <= config.cache_mb * _MB:
        decoded = decode_list(split, _unchanged, skip, progress)
    return TransformedImages(split, pipeline, seed, decoded, skip, probed.contents)


def _batched(
        split: ImageSplit,
        pipeline: Transform,
        is_training: bool,
        seed: int,
        config: DataConfig,
        device: torch.device | None,
        progress: bool,
) -> BatchedImages:
    if config.pipeline == 'image' and is_training:  # without randomness, both ways give the same
        raise UnsupportedError('the recipe asks for images one by one')
    transform = translate(pipeline)
    skip = config.on_bad_image == 'skip'
    probed = probe(split, transform.once, skip)
    if probed.num_bytes > config.cache_mb * _MB:
        raise UnsupportedError(f"the images of split '{split.name}' take about {probed.num_bytes // _MB + 1} MB, more"
                               f' than data.cache_mb {config.cache_mb}')
    differ = UnsupportedError(f"the images of split '{split.name}' differ in size, and augment.crop is not pad")
    if probed.shape is None:
        raise differ
    if config.pipeline == 'auto' and transform.resizes and max(probed.shape[:2]) > BATCHED_SIDE:
        raise UnsupportedError(f'images larger than {BATCHED_SIDE} pixels are resized one by one')
    try:
        decoded = decode_tensor(split, transform.once, probed.shape, skip, cache_folder(config.cache_dir), progress)
    except SizesDifferError:
        raise differ from None
    # `resample` needs float64, which not every type of device has.
    on_device = device is not None and device.type == 'cuda'
    return BatchedImages(decoded, transform, seed, device if on_device and device else torch.device('cpu'))


def used_indices(dataset: Any, keys: Iterable[Key]) -> list[int]:
    """Index of the example that a dataset gave for each key, see `TransformedImages.used`."""
    return [dataset.used(key) if isinstance(dataset, TransformedImages) else key[1] for key in keys]


def training_loader(
        dataset: Any,
        batch_size: int,
        workers: Workers,
        seed: int,
        repeats: int = 1,
        balanced: bool = False,
) -> tuple[DataLoader, EpochSampler]:
    """Loader of shuffled full batches, and its sampler. Set `epoch` of the sampler before each pass.

    Args:
        dataset: The images.
        batch_size: Images per batch.
        workers: `data.workers` of the recipe.
        seed: Seed of the run.
        repeats: See `EpochSampler`.
        balanced: Draw every class equally often; soft labels count as their largest.
    """
    sampler = EpochSampler(len(dataset), seed, repeats, hard_labels(dataset.split.labels) if balanced else None)
    return _loader(dataset, batch_size, workers, sampler=sampler, drop_last=True), sampler


def stream_loader(
        dataset: StreamedImages, config: TrainConfig, process: tuple[int, int]) -> tuple[DataLoader, StreamSampler]:
    """Loader of full batches of a stream, of which this process reads its part, and its sampler."""
    data = config.data
    sampler = StreamSampler(
        dataset.split, config.batch_size, config.seed, data.lanes, data.shuffle_buffer, config.augment.repeats, process)
    return _loader(dataset, config.batch_size, dataset.workers, sampler=sampler, drop_last=True), sampler


def evaluation_loader(dataset: Any, batch_size: int, workers: Workers) -> DataLoader:
    """Loader of every example once, in order."""
    return _loader(dataset, batch_size, workers)


def _loader(dataset: Any, batch_size: int, workers: Workers, **kwargs: Any) -> DataLoader:
    is_batched = isinstance(dataset, BatchedImages)
    # Making a batch is faster than passing it between processes.
    workers = 0 if is_batched else num_workers(dataset, workers)
    return DataLoader(
        dataset,
        batch_size=batch_size,
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=torch.cuda.is_available() and not (is_batched and dataset.device.type == 'cuda'),
        collate_fn=_unchanged if is_batched else None,
        worker_init_fn=ignore_stop_signals,
        **kwargs,
    )


def _key(key: Key | int) -> Key:
    return key if isinstance(key, tuple) else (0, key)


def _unchanged(value: Any) -> Any:
    return value
