"""Splits as torch data sets and loaders, with randomness that depends on (seed, epoch, index) and on nothing else.

Shapes: N examples, B batch, C channels, H and W height and width of the decoded images, h and w of the input.
"""
from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from ..config import DataConfig, TrainConfig
from ..distributed.signals import ignore_stop_signals
from ..errors import TrainError, require
from .batched import BatchTransform, translate
from .cache import cache_folder
from .crops import UnsupportedError
from .decoded import Decoded, SizesDifferError, decode_list, decode_tensor, probe
from .image_split import ImageSplit, Rows
from .keyed import Draws, Key, Purpose, generator, keyed_randomness
from .labels import as_target
from .preprocess import Preprocessing, Transform
from .streams import StreamedImages, StreamSampler, StreamSplit
from .transfer import to_device

_MB = 2**20
_REPLACEMENTS = 100
BATCHED_SIDE = 128
"""Larger images are resized faster one by one: Pillow's work grows with the pixels, that of `resample` faster."""


class EpochSampler(Sampler[Key]):
    """All indices in an order drawn for each epoch, each with the epoch it is drawn in.

    The epoch travels with the index and reaches workers that live for many epochs.

    Args:
        length: Number of examples.
        seed: Seed of the run.
        repeats: How often each index follows itself, the keys counting the repeats; an epoch keeps its length and has
            so many fewer indices, as in timm's `RepeatAugSampler`.

    Attributes:
        epoch: The epoch of the next pass.
        skip: Examples of the next pass to leave out at its start, to go on in the middle of an epoch.
    """

    def __init__(self, length: int, seed: int, repeats: int = 1) -> None:
        self.length = length
        self.seed = seed
        self.repeats = repeats
        self.epoch = 0
        self.skip = 0

    def __len__(self) -> int:
        return self.length

    def indices(self) -> list[int]:
        """Indices of the whole epoch, in order."""
        order = generator(Purpose.ORDER, self.seed, self.epoch).permutation(self.length)
        return order[np.arange(self.length) // self.repeats].tolist()

    def __iter__(self) -> Iterator[Key]:
        indices = self.indices()
        places = range(self.skip, self.length)
        if self.repeats == 1:
            return ((self.epoch, indices[place]) for place in places)
        return ((self.epoch, indices[place], place % self.repeats) for place in places)


class BatchedImages(Dataset[tuple[Tensor, Tensor]]):
    """Decoded images of one size, of which a whole batch is made at once.

    Args:
        decoded: The images, as a tensor.
        transform: What makes them input.
        seed: Seed of the run.
        device: Where to do so. The images are moved there as well if they take at most a quarter of its free memory.
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

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, key: Key | int) -> tuple[Tensor, Tensor]:
        images, target_B = self.__getitems__([key])
        return images[0], target_B[0]

    def __getitems__(self, keys: Sequence[Key | int]) -> tuple[Tensor, Tensor]:
        """A finished batch, images [B, C, h, w] and targets. PyTorch's loaders call this where they find it."""
        keys_B = [_key(key) for key in keys]
        index_B = to_device(np.array([key[1] for key in keys_B]), self.images_NCHW.device)
        images_BCHW = self.images_NCHW[index_B].to(self.device)
        return self.transform(images_BCHW, self.seed, keys_B), as_target(self.labels[index_B].to(self.device))


class TransformedImages(Dataset[tuple[Tensor, Tensor | int]]):
    """A split whose images are transformed one by one when they are asked for.

    Args:
        split: The examples.
        transform: Image to tensor.
        seed: Seed of the run.
        decoded: The decoded images of the whole split, if they are kept in memory.
        skip: Put another example, drawn by key, in the place of one that can't be decoded.
    """

    def __init__(
            self,
            split: ImageSplit,
            transform: Transform,
            seed: int,
            decoded: Decoded | None = None,
            skip: bool = False,
    ) -> None:
        self.split = split if decoded is None else decoded.split
        self.kept_N: Rows = np.arange(len(split)) if decoded is None else decoded.kept_N
        self.transform = transform
        self.seed = seed
        self.decoded: Any = None if decoded is None else decoded.images
        self.skip = skip
        # Workers note here what they replaced; 8 bits each, for packed ones would be written together.
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
        """How many examples couldn't be decoded, among those asked for so far, and were replaced."""
        return int(self._bad_N.sum())

    def _image(self, key: Key) -> tuple[int, Image.Image]:
        index = key[1]
        if self.decoded is not None:
            return index, self.decoded[index]
        for attempt in range(_REPLACEMENTS):
            try:
                return index, self.split.image(index)
            except TrainError:
                if not self.skip or attempt == _REPLACEMENTS - 1:
                    raise
                self._bad_N[index] = True
                draw = Draws(self.seed, [key]).uniform(Purpose.REPLACE, attempt + 1)[0, attempt]
                index = int(draw * len(self.split))
        raise AssertionError('unreachable')


def make_training_dataset(
        split: ImageSplit | StreamSplit,
        preprocessing: Preprocessing,
        seed: int,
        config: DataConfig,
        device: torch.device | None = None,
        progress: bool = False,
) -> BatchedImages | TransformedImages | StreamedImages:
    """As `make_dataset`, of a split to train on, which may be a stream."""
    if isinstance(split, StreamSplit):
        return StreamedImages(split, preprocessing.training, seed, config.on_bad_image == 'skip', config.workers)
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
    """A split, decoded and kept in memory as far as the budget allows.

    If it is kept, every image has been decoded once on return, so a broken one shows before training; a split over the
    budget is decoded as it is used.

    Args:
        split: The examples.
        preprocessing: The transforms.
        is_training: Whether to apply the training transform or that of evaluation.
        seed: Seed of the run.
        config: The data keys of the recipe.
        device: Where the model is trained.
        progress: Show a progress bar if decoding takes longer than a second.

    Raises:
        TrainError: An image can't be decoded; the recipe wants batches where there can be none.
    """
    pipeline = preprocessing.training if is_training else preprocessing.evaluation
    skip = config.on_bad_image == 'skip'
    try:
        return _batched(split, pipeline, is_training, seed, config, device, progress)
    except UnsupportedError as error:
        require(not is_training or config.pipeline != 'batch',
                f'data.pipeline batch: {error}. Write --data.pipeline auto')
    decoded = None
    if probe(split, _unchanged, skip).num_bytes <= config.cache_mb * _MB:
        decoded = decode_list(split, _unchanged, skip, progress)
    return TransformedImages(split, pipeline, seed, decoded, skip)


def _batched(
        split: ImageSplit,
        pipeline: Transform,
        is_training: bool,
        seed: int,
        config: DataConfig,
        device: torch.device | None,
        progress: bool,
) -> BatchedImages:
    # What draws nothing comes out the same either way.
    if config.pipeline == 'image' and is_training:
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
    # The exact arithmetic of `resample` needs float64, which not every kind of device has.
    on_device = device is not None and device.type == 'cuda'
    return BatchedImages(decoded, transform, seed, device if on_device and device else torch.device('cpu'))


def training_loader(
        dataset: Any,
        batch_size: int,
        workers: int,
        seed: int,
        repeats: int = 1,
) -> tuple[DataLoader, EpochSampler]:
    """Shuffled full batches; set `epoch` of the sampler before each pass."""
    sampler = EpochSampler(len(dataset), seed, repeats)
    return _loader(dataset, batch_size, workers, sampler=sampler, drop_last=True), sampler


def stream_loader(
        dataset: StreamedImages, config: TrainConfig, process: tuple[int, int]) -> tuple[DataLoader, StreamSampler]:
    """Full batches of a stream, of which this process, one of so many, reads its part."""
    data = config.data
    sampler = StreamSampler(
        dataset.split, config.batch_size, config.seed, data.lanes, data.shuffle_buffer, config.augment.repeats, process)
    return _loader(dataset, config.batch_size, data.workers, sampler=sampler, drop_last=True), sampler


def evaluation_loader(dataset: Any, batch_size: int, workers: int) -> DataLoader:
    """Every example once, in order."""
    return _loader(dataset, batch_size, workers)


def _loader(dataset: Any, batch_size: int, workers: int, **kwargs: Any) -> DataLoader:
    is_batched = isinstance(dataset, BatchedImages)
    # Whole batches are made faster than they are passed from one process to another.
    workers = 0 if is_batched else workers
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
