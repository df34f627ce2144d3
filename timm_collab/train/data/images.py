"""Splits as torch data sets and loaders, with randomness that depends on (seed, epoch, index) and on nothing else.

Whatever is drawn for an image is drawn from a seed of its own, so a run gives the same images for any number of
workers and processes, and can be taken up in the middle.
"""
from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, TensorDataset
from tqdm import tqdm

from .preprocess import Preprocessing, Transform
from .sources import ImageSplit

Key = tuple[int, int]
"""Epoch and index of an example: all that its random transform depends on, besides the seed of the run."""

_ORDER = 3  # see the streams of splits.py
_MB = 2**20
_PROBE = 32


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


class EpochSampler(Sampler[Key]):
    """All indices in an order drawn for each epoch, each with the epoch it is drawn in.

    The epoch travels with the index and reaches workers that live for many epochs.

    Args:
        length: Number of examples.
        seed: Seed of the run.

    Attributes:
        epoch: The epoch of the next pass.
        skip: Examples of the next pass to leave out at its start, to go on in the middle of an epoch.
    """

    def __init__(self, length: int, seed: int) -> None:
        self.length = length
        self.seed = seed
        self.epoch = 0
        self.skip = 0

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[Key]:
        order = np.random.default_rng((self.seed, _ORDER, self.epoch)).permutation(self.length)
        return ((self.epoch, index) for index in order[self.skip:].tolist())


class TransformedImages(Dataset[tuple[Tensor, int]]):
    """A split whose images are transformed when they are asked for.

    Args:
        split: The examples.
        transform: Image to tensor.
        seed: Seed of the run.
        decoded: The decoded images of the whole split, if they are kept in memory.
    """

    def __init__(
            self,
            split: ImageSplit,
            transform: Transform,
            seed: int,
            decoded: list[Image.Image] | None = None,
    ) -> None:
        self.split = split
        self.transform = transform
        self.seed = seed
        self.decoded = decoded

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, key: Key | int) -> tuple[Tensor, int]:
        epoch, index = key if isinstance(key, tuple) else (0, key)
        image = self.split.image(index) if self.decoded is None else self.decoded[index]
        with keyed_randomness(self.seed, epoch, index):
            return self.transform(image), int(self.split.labels_N[index])


class CachedImages(TensorDataset):
    """A split as tensors that are ready for the model; takes the keys of `EpochSampler` as well as plain indices."""

    def __getitem__(self, key: Key | int) -> tuple[Tensor, ...]:
        return super().__getitem__(key[1] if isinstance(key, tuple) else key)


def make_dataset(
        split: ImageSplit,
        preprocessing: Preprocessing,
        is_training: bool,
        seed: int,
        cache_mb: int,
        progress: bool = False,
) -> Dataset:
    """A split, cached as far as the budget allows.

    Kept in memory are finished tensors where nothing is random, else decoded images. Either way every image has been
    decoded once on return, so a broken one shows before training; a split over the budget is decoded as it is used.

    Args:
        split: The examples.
        preprocessing: The transforms.
        is_training: Whether to apply the training transform or that of evaluation.
        seed: Seed of the run.
        cache_mb: Memory to use at most, in MB.
        progress: Show a progress bar if decoding takes longer than a second.

    Raises:
        TrainError: An image can't be decoded.
    """
    transform = preprocessing.training if is_training else preprocessing.evaluation
    rows = tqdm(range(len(split)), f'reading {split.name}', unit='img', delay=1, leave=False, disable=not progress)
    if not is_training or not preprocessing.training_is_random:
        if 4 * int(np.prod(preprocessing.data_config['input_size'])) * len(split) <= cache_mb * _MB:
            images = torch.stack([transform(split.image(index)) for index in rows])
            return CachedImages(images, torch.from_numpy(split.labels_N))
        return TransformedImages(split, transform, seed)
    if _decoded_bytes(split) <= cache_mb * _MB:
        return TransformedImages(split, transform, seed, [split.image(index) for index in rows])
    return TransformedImages(split, transform, seed)


def _decoded_bytes(split: ImageSplit) -> int:
    """Estimate from a few images, evenly spaced."""
    probed = np.unique(np.linspace(0, len(split) - 1, _PROBE).astype(int))
    sizes = [image.width * image.height * len(image.getbands()) for image in map(split.image, probed.tolist())]
    return int(np.mean(sizes) * len(split))


def training_loader(dataset: Dataset, batch_size: int, workers: int, seed: int) -> tuple[DataLoader, EpochSampler]:
    """Shuffled full batches; set `epoch` of the sampler before each pass."""
    sampler = EpochSampler(len(dataset), seed)  # type: ignore[arg-type]
    loader = _loader(dataset, batch_size, workers, sampler=sampler, drop_last=True)
    return loader, sampler


def evaluation_loader(dataset: Dataset, batch_size: int, workers: int) -> DataLoader:
    """Every example once, in order."""
    return _loader(dataset, batch_size, workers)


def _loader(dataset: Dataset, batch_size: int, workers: int, **kwargs: object) -> DataLoader:
    # Finished tensors leave nothing for workers to do.
    workers = 0 if isinstance(dataset, CachedImages) else workers
    return DataLoader(
        dataset,
        batch_size=batch_size,
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=torch.cuda.is_available(),
        **kwargs,  # type: ignore[arg-type]
    )
