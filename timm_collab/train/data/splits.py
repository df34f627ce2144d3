"""From the splits of a data set to what is trained on, chosen by and tested on.

Array names end in their shape: N examples, C classes.
"""
from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np

from ...noise import apply_noise, realised_rate
from ..config import TrainConfig
from ..errors import TrainError, require
from .sources import ImageSplit, Labels, Source

# One stream of draws for each purpose, so that changing one of them leaves the others as they were.
_HOLD_OUT, _SUBSET = 1, 2


@dataclass(frozen=True)
class Splits:
    """What a run works with; only `train` ever carries noisy labels, and `clean_N` are those it had before.

    `num_skipped` images could not be decoded and are in none of the splits.
    """

    train: ImageSplit
    val: ImageSplit
    test: ImageSplit | None
    num_classes: int
    label_names: list[str] | None
    clean_N: Labels
    val_origin: str
    num_skipped: int = 0

    @property
    def num_images(self) -> int:
        """Images of all splits together."""
        return sum(len(split) for split in (self.train, self.val, self.test) if split is not None)

    @property
    def noise_rate(self) -> float:
        """Share of the training labels that noise changed."""
        return realised_rate(self.clean_N, self.train.labels_N)

    @property
    def fingerprint(self) -> str:
        """A digest of which rows are trained on, with which labels, and which of them the head is chosen by."""
        digest = hashlib.sha256()
        for split in (self.train, self.val):
            for array_N in (split.row_N, split.labels_N):
                digest.update(str(len(array_N)).encode())
                digest.update(np.ascontiguousarray(array_N, dtype='<i8').tobytes())
        return digest.hexdigest()


def make_splits(source: Source, config: TrainConfig) -> Splits:
    """Hold out validation data if there is none, take the subset asked for, and corrupt the training labels.

    Everything drawn depends on `config.seed` alone.

    Raises:
        TrainError: A label outside [0, C), naming value and row; training images of one class only, or fewer than one
            batch; a noise matrix of another number of classes.
    """
    num_classes = _num_classes(source, config)
    given = None if source.given_N is None else source.train.with_labels(source.given_N)
    for split in (source.train, source.val, source.test, given):
        if split is not None:
            _check_labels(split, num_classes, config)

    train, val, origin = source.train, source.val, ''
    if val is None:
        held_out_N = stratified(train.labels_N, config.data.val_fraction, (config.seed, _HOLD_OUT))
        require(bool(held_out_N.any()), f"split '{train.name}' has no class with two images or more to hold one out for"
                                        ' validation: set data.val_split')
        val, train = train.take(np.flatnonzero(held_out_N)), train.take(np.flatnonzero(~held_out_N))
        origin = f"{config.data.val_fraction:g} of split '{train.name}', held out class by class"
    limit = config.data.max_train_samples
    if limit is not None and limit < len(train):
        train = train.take(np.flatnonzero(_subset(train.labels_N, limit, (config.seed, _SUBSET))))
    require(np.unique(train.labels_N).size >= 2,
            f"all {len(train)} training images of split '{train.name}' have the label {train.labels_N[0]}, there is"
            f" nothing to learn: check data.label_column '{config.data.label_column}'")
    check_batch_size(config, train)

    noisy_N = _noisy(train, source.given_N, num_classes, config)
    return Splits(
        train=train.with_labels(noisy_N),
        val=val,
        test=source.test,
        num_classes=num_classes,
        label_names=source.label_names if len(source.label_names or ()) == num_classes else None,
        clean_N=train.labels_N,
        val_origin=origin or f"split '{val.name}'",
    )


def check_batch_size(config: TrainConfig, train: ImageSplit) -> None:
    """Refuse batches larger than the training data."""
    require(config.batch_size <= len(train), f'batch_size {config.batch_size} is larger than the training data,'
                                             f' {len(train)} images: write --batch_size {len(train)} or less')


def _noisy(train: ImageSplit, given_N: Labels | None, num_classes: int, config: TrainConfig) -> Labels:
    if config.noise.kind == 'column':
        assert given_N is not None
        return given_N[train.row_N]
    try:
        return apply_noise(
            train.labels_N, num_classes, config.noise.kind, config.noise.rate, config.seed, config.noise.matrix
        )
    except ValueError as error:
        raise TrainError(f'noise: {error}') from None


def stratified(labels_N: Labels, fraction: float, seed: tuple[int, ...]) -> np.ndarray:
    """Draw a share of each class: a mask [N].

    Of each class with at least two examples at least one is drawn and at least one left.
    """
    rng = np.random.default_rng(seed)
    mask_N = np.zeros(labels_N.size, dtype=bool)
    for label in np.unique(labels_N):
        members = rng.permutation(np.flatnonzero(labels_N == label))
        if members.size >= 2:
            mask_N[members[:min(max(round(fraction * members.size), 1), members.size - 1)]] = True
    return mask_N


def _subset(labels_N: Labels, size: int, seed: tuple[int, ...]) -> np.ndarray:
    """Draw exactly `size` examples, their classes in the proportions they have: a mask [N]."""
    rng = np.random.default_rng(seed)
    shuffled_N = rng.permutation(labels_N.size)
    by_class_N = shuffled_N[np.argsort(labels_N[shuffled_N], kind='stable')]
    # Every (N / size)-th of the examples sorted by class, in random order within each.
    mask_N = np.zeros(labels_N.size, dtype=bool)
    mask_N[by_class_N[np.arange(size) * labels_N.size // size]] = True
    return mask_N


def _num_classes(source: Source, config: TrainConfig) -> int:
    if config.model.num_classes is not None:
        return config.model.num_classes
    if source.label_names is not None:
        count = len(source.label_names)
    else:
        count = int(source.train.labels_N.max()) + 1
    require(count >= 2, f"split '{source.train.name}' has {max(count, 0)} class: classification needs at least 2, check"
                        f" data.label_column '{config.data.label_column}'")
    return count


def _check_labels(split: ImageSplit, num_classes: int, config: TrainConfig) -> None:
    bad_N = np.flatnonzero((split.labels_N < 0) | (split.labels_N >= num_classes))
    if bad_N.size == 0:
        return
    hint = 'check data.label_column'
    if np.all(split.labels_N == -1):
        hint = 'all labels of this split are -1, it is unlabelled: write --data.test_split null'
    elif config.model.num_classes is not None:
        hint = 'raise model.num_classes, or leave it out to read it from the data'
    require(False, f"label {split.labels_N[bad_N[0]]} in row {split.row_N[bad_N[0]]} of split '{split.name}' is outside"
                   f' [0, {num_classes}): {hint}')
