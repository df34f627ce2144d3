"""The data of a run: its splits as PyTorch datasets."""
from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch

from ..config import TrainConfig
from .images import BatchedImages, TransformedImages, make_dataset, make_training_dataset
from .preprocess import Preprocessing
from .splits import Splits, check_batch_size
from .streaming import StreamedImages


@dataclass(frozen=True)
class TrainingData:
    """The data of a run, ready for loaders.

    Args:
        splits: The splits, without images that could not be decoded.
        preprocessing: The transforms.
        train: Training images.
        val: Validation images.
        test: Test images, if there are any.
    """

    splits: Splits
    preprocessing: Preprocessing
    train: BatchedImages | TransformedImages | StreamedImages
    val: BatchedImages | TransformedImages
    test: BatchedImages | TransformedImages | None

    @classmethod
    def load(
            cls,
            splits: Splits,
            preprocessing: Preprocessing,
            config: TrainConfig,
            device: torch.device,
            progress: bool,
    ) -> TrainingData:
        """Decode the splits that fit into memory, and probe the others.

        Args:
            splits: The splits.
            preprocessing: The transforms.
            config: The recipe.
            device: Device of the training.
            progress: Whether to show a progress bar.

        Raises:
            TrainError: An image can't be decoded, or there are too few for a batch.
        """
        options: dict[str, Any] = dict(
            preprocessing=preprocessing, seed=config.seed, config=config.data, device=device, progress=progress)
        train = make_training_dataset(splits.train, **options)
        val = make_dataset(splits.val, is_training=False, **options)
        test = None if splits.test is None else make_dataset(splits.test, is_training=False, **options)
        kept = dataclasses.replace(
            splits,
            train=train.split,
            val=val.split,
            test=None if test is None else test.split,
            clean=None if splits.clean is None or isinstance(train, StreamedImages) else splits.clean[train.kept_N],
            num_skipped=splits.num_images - sum(len(each) for each in (train, val, test) if each is not None),
        )
        check_batch_size(config, len(kept.train))
        return cls(kept, preprocessing, train, val, test)
