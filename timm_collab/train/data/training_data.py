"""The data of a run: its splits as PyTorch datasets."""
from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from ..config import TrainConfig
from ..paths import BAD_IMAGES
from .augment.preprocess import Preprocessing
from .decoding.contents import Contents, Duplicates, duplicates
from .decoding.image_split import BadImage, ImageSplit
from .decoding.stored import stored
from .loading.images import BatchedImages, TransformedImages, make_dataset, make_training_dataset
from .loading.streaming import StreamedImages
from .splits import Splits, check_batch_size


@dataclass(frozen=True)
class TrainingData:
    """The data of a run, ready for loaders.

    Args:
        splits: The splits, without images that could not be decoded.
        preprocessing: The transforms.
        train: Training images.
        val: Validation images.
        test: Test images, if there are any.
        duplicates: Images that occur more than once; None unless all images of all splits are in memory.
    """

    splits: Splits
    preprocessing: Preprocessing
    train: BatchedImages | TransformedImages | StreamedImages
    val: BatchedImages | TransformedImages
    test: BatchedImages | TransformedImages | None
    duplicates: Duplicates | None = None

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
            TrainError: An image can't be decoded, there are too few for a batch, or images of 16 bits use few of them.
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
            val_clean=None if splits.val_clean is None else splits.val_clean[val.kept_N],
            num_skipped=splits.num_images - sum(len(each) for each in (train, val, test) if each is not None),
        )
        check_batch_size(config, len(kept.train))
        data = cls(kept, preprocessing, train, val, test)
        # Of a small split to evaluate on, all images may be dark.
        judged = data.samples[0]
        judged.check_depth(config.data.bit_depth, (val if isinstance(train, StreamedImages) else train).split.name)
        data = dataclasses.replace(data, duplicates=data._find_duplicates())
        notes = (*kept.notes, *data._notes(config))
        return dataclasses.replace(data, splits=dataclasses.replace(kept, notes=notes))

    @property
    def samples(self) -> list[Contents]:
        """What the files of the images hold that were looked at, by split: all in memory, else a few."""
        datasets = [each for each in (self.train, self.val, self.test) if isinstance(each, _LOOKED_AT)]
        return [each.sample for each in datasets if each.sample is not None]

    @property
    def bad(self) -> list[BadImage]:
        """Images that can't be decoded: those left out, and those replaced so far."""
        return [image for each in (self.train, self.val, self.test) if each is not None for image in each.bad]

    @cached_property
    def stored(self) -> dict[str, dict[str, Any]]:
        """What tells whether the files of training and validation data have changed, see `stored`."""
        return {
            role: stored(each.split, each.contents)
            for role, each in (('train', self.train), ('val', self.val)) if isinstance(each, _LOOKED_AT)
        }

    def _find_duplicates(self) -> Duplicates | None:
        found: list[tuple[ImageSplit, Contents]] = []
        for each in (self.train, self.val, self.test):
            if each is None:
                continue
            if isinstance(each, StreamedImages) or each.contents is None:
                return None
            found.append((each.split, each.contents))
        if self.splits.clean is not None:
            found[0] = found[0][0].with_labels(self.splits.clean), found[0][1]
        if self.splits.val_clean is not None:
            found[1] = found[1][0].with_labels(self.splits.val_clean), found[1][1]
        return duplicates(found, self.splits.label_names)

    def _notes(self, config: TrainConfig) -> list[str]:
        """What the user should know about the images, a sentence each."""
        samples, notes = self.samples, []
        total = sum(map(len, samples))
        are_all = isinstance(self.train, _LOOKED_AT) and total == self.splits.num_images
        of_all = f'of {total:,} images' if are_all else f'of the {total:,} images looked at'
        if turned := sum(each.num_turned for each in samples):
            notes.append(f'turned by their EXIF orientation: {turned:,} {of_all}; plain timm ignores it, so open files'
                         ' for the saved model with PIL.ImageOps.exif_transpose')
        if deep := sum(each.num_sixteen_bit for each in samples):
            notes.append(f'with 16 bits per value, scaled by value >> {config.data.bit_depth - 8}: {deep:,} {of_all};'
                         " PIL's convert would make them white, so scale them for the saved model, too")
        if animated := sum(each.num_animated for each in samples):
            notes.append(f'with further frames or pages, of which the first is used: {animated:,} {of_all}')
        evaluated = [each.sample for each in (self.val, self.test) if each is not None and each.sample is not None]
        notes += self.preprocessing.shape_notes(Contents.joined(evaluated).sizes) if evaluated else ()
        if bad := self.bad:
            notes.append(f"left out as they can't be decoded: {len(bad):,} images, for example '{bad[0].where}';"
                         f" {BAD_IMAGES} in the run's folder lists them")
        if self.duplicates is not None:
            notes += self.duplicates.notes()
        return notes


_LOOKED_AT = (BatchedImages, TransformedImages)
