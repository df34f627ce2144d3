"""From the splits of a dataset to training, validation and test data.

Array names end in their shape: N examples, C classes; labels are class indices [N], or rows [N, C].
"""
from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace

import numpy as np

from ..config import TrainConfig
from ..errors import TrainError, require
from .decoding.image_split import ImageSplit
from .labels.label_column import Labels, hard_labels, outside, padded, strata, tie_notes
from .labels.noise import apply_noise, realised_rate
from .loading.streaming import StreamSplit
from .random_streams import Purpose, generator
from .sources import Source


@dataclass(frozen=True)
class Splits:
    """The data of a run.

    Args:
        train: Training data, whose labels may have noise.
        val: Validation data, whose labels have noise only with `noise.val`.
        test: Test data, if there is any.
        num_classes: Number of classes.
        label_names: Names of the classes, if known.
        clean: Classes of `train` before noise; None for a stream, whose labels are unknown.
        val_clean: Classes of `val` before noise; None where they have no noise.
        val_origin: How the validation data was chosen.
        num_skipped: Number of images that could not be decoded and are in no split.
        left_out: Number of files and rows that are in no split, by reason.
        notes: What the user should know about how the data was read, a sentence each.
    """

    train: ImageSplit | StreamSplit
    val: ImageSplit
    test: ImageSplit | None
    num_classes: int
    label_names: list[str] | None
    clean: Labels | None
    val_origin: str
    num_skipped: int = 0
    left_out: dict[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    val_clean: Labels | None = None

    @property
    def num_images(self) -> int:
        """Number of images in all splits together."""
        return sum(len(split) for split in (self.train, self.val, self.test) if split is not None)

    @property
    def noise_rate(self) -> float:
        """Fraction of the training labels that noise changed."""
        return 0.0 if self.labels is None else realised_rate(*self.labels)

    @property
    def labels(self) -> tuple[Labels, Labels] | None:
        """The training labels before and after noise, of soft ones the class; None for a stream."""
        if self.clean is None or isinstance(self.train, StreamSplit):
            return None
        return self.clean, hard_labels(self.train.labels)

    @property
    def fingerprint(self) -> str:
        """Digest of the rows and labels of training and validation data."""
        digest = hashlib.sha256()
        for split in (self.train, self.val):
            if isinstance(split, StreamSplit):
                digest.update(f'{split.digest} {split.name} {len(split)}'.encode())
                continue
            for array in (split.row_N, split.labels):
                digest.update(str(len(array)).encode())
                digest.update(np.ascontiguousarray(array, dtype=array.dtype.newbyteorder('<')).tobytes())
        return digest.hexdigest()


def make_splits(source: Source, config: TrainConfig) -> Splits:
    """Hold out validation data if there is none, draw a subset if asked for, and corrupt the training labels.

    All draws depend on `config.seed` alone.

    Raises:
        TrainError: A label is outside [0, C); all training images have one class, or are fewer than one batch; a noise
            matrix has another number of classes.
    """
    num_classes = _num_classes(source, config)
    train = (replace(source.train, num_classes=num_classes) if isinstance(source.train, StreamSplit)
             else _checked(source.train, num_classes, config))
    val, test = (
        None if split is None else _checked(split, num_classes, config) for split in (source.val, source.test)
    )
    clean, val_clean, origin, left_out, notes = None, None, '', dict(source.left_out), source.notes
    if isinstance(train, StreamSplit):
        assert val is not None
    else:
        if val is None:
            train, val, origin = _held_out(train, config)
            notes = (*notes, *tie_notes(val.labels, 'the validation data'))
            val = val.with_labels(hard_labels(val.labels))
        train = _given(train, source, left_out)
        if config.noise.val and origin:
            val = _given(val, source, left_out)
        limit = config.data.max_train_samples
        if limit is not None and limit < len(train):
            subset_N = _subset(strata(train.labels), limit, generator(Purpose.SUBSET, config.seed))
            train = train.take(np.flatnonzero(subset_N))
        _check_variety(train, config)
        clean = hard_labels(train.labels)
        train = train.with_labels(_noisy(train, source, num_classes, config))
        if config.noise.val and config.noise.is_on:
            require(config.noise.kind != 'column' or bool(origin),
                    f"noise.val: column '{config.noise.column}' was read for split '{train.name}' alone: set"
                    ' data.val_split to null to hold validation images out of it')
            val_clean = val.labels
            val = val.with_labels(_noisy(val, source, num_classes, config, Purpose.NOISE_HELD_OUT))
    for split in (val, test):
        _check_labelled(split, config)
    check_batch_size(config, len(train))

    return Splits(
        train=train,
        val=val,
        test=test,
        num_classes=num_classes,
        label_names=source.label_names if len(source.label_names or ()) == num_classes else None,
        clean=clean,
        val_origin=origin or f"split '{val.name}'",
        left_out=left_out,
        notes=notes,
        val_clean=val_clean,
    )


def _held_out(train: ImageSplit, config: TrainConfig) -> tuple[ImageSplit, ImageSplit, str]:
    """Divide the training split: the remaining training data, the validation data, and how it was drawn."""
    held_out_N = stratified(strata(train.labels), config.data.val_fraction, generator(Purpose.HOLD_OUT, config.seed))
    require(bool(held_out_N.any()), f"split '{train.name}' has no class with two or more images to hold one out for"
                                    ' validation: set data.val_split')
    data, part = config.data, f'{config.data.val_fraction:g}'
    train, val = train.take(np.flatnonzero(~held_out_N)), train.take(np.flatnonzero(held_out_N))
    most = data.max_val_samples
    if most is None and data.max_train_samples is not None and data.max_train_samples < len(train):
        most = round(data.max_train_samples * data.val_fraction / (1 - data.val_fraction))
    if most is not None and most < len(val):
        drawn_N = _subset_of_all(strata(val.labels), most, generator(Purpose.SUBSET_HELD_OUT, config.seed))
        val = val.take(np.flatnonzero(drawn_N))
        part = 'a part'
    how = "by each image's rarest label" if data.multi_label else 'class by class'
    return train, val, f"{part} of split '{train.name}', held out {how}"


def check_batch_size(config: TrainConfig, num_images: int) -> None:
    """Raise an error if a batch is larger than the training data."""
    require(config.batch_size <= num_images, f'batch_size {config.batch_size} is larger than the training data,'
                                             f' {num_images} images: write --batch_size {num_images} or less')


def _check_variety(train: ImageSplit, config: TrainConfig) -> None:
    """Raise an error if all training labels are the same."""
    check = f"check data.label_column '{config.data.label_column}'"
    if train.labels.ndim == 1:
        require(np.unique(train.labels).size >= 2,
                f"all {len(train)} training images of split '{train.name}' have the label {train.labels[0]}, there is"
                f' nothing to learn: {check}')
        return
    require(bool((train.labels != train.labels[0]).any()),
            f"all {len(train)} training images of split '{train.name}' have the same labels, there is nothing to learn:"
            f' {check}')


def _check_labelled(split: ImageSplit | None, config: TrainConfig) -> None:
    """Raise an error if no image of an evaluation split has any of several labels."""
    require(split is None or split.labels.ndim == 1 or bool(split.labels.any()),
            f"no image of split '{'' if split is None else split.name}' has a label to evaluate with: check"
            f" data.label_column '{config.data.label_column}'")


def _given(split: ImageSplit, source: Source, left_out: dict[str, int]) -> ImageSplit:
    """Leave out the images without a noisy label, and count them, of a split that has rows of the training split."""
    if source.not_given is None or not (dropped_N := source.not_given[split.row_N]).any():
        return split
    left_out['no label'] = left_out.get('no label', 0) + int(dropped_N.sum())
    return split.take(np.flatnonzero(~dropped_N))


def _noisy(
        split: ImageSplit,
        source: Source,
        num_classes: int,
        config: TrainConfig,
        purpose: Purpose = Purpose.NOISE,
) -> Labels:
    """The labels of a split with noise."""
    if config.noise.kind == 'column':
        assert source.given is not None
        return _checked(split.with_labels(source.given[split.row_N]), num_classes, config).labels
    if split.labels.ndim == 2:  # the recipe can't ask for noise then
        return split.labels
    try:
        return apply_noise(
            split.labels, num_classes, config.noise.kind, config.noise.rate, config.seed, config.noise.matrix, purpose
        )
    except ValueError as error:
        raise TrainError(f'noise: {error}') from None


def stratified(labels_N: Labels, fraction: float, rng: np.random.Generator) -> np.ndarray:
    """Draw a fraction of each class: a mask [N].

    Of each class with at least two examples, at least one is drawn and at least one left.
    """
    mask_N = np.zeros(labels_N.size, dtype=bool)
    by_class_N = np.argsort(labels_N, kind='stable')
    starts = np.flatnonzero(np.diff(labels_N[by_class_N])) + 1
    for members in map(rng.permutation, np.split(by_class_N, starts)):
        if members.size >= 2:
            mask_N[members[:min(max(round(fraction * members.size), 1), members.size - 1)]] = True
    return mask_N


def _subset(labels_N: Labels, size: int, rng: np.random.Generator) -> np.ndarray:
    """Draw exactly `size` examples with the proportions of the classes preserved: a mask [N]."""
    shuffled_N = rng.permutation(labels_N.size)
    by_class_N = shuffled_N[np.argsort(labels_N[shuffled_N], kind='stable')]
    # Every (N / size)-th of the examples, sorted by class and in random order within a class.
    mask_N = np.zeros(labels_N.size, dtype=bool)
    mask_N[by_class_N[np.arange(size) * labels_N.size // size]] = True
    return mask_N


def _subset_of_all(labels_N: Labels, size: int, rng: np.random.Generator) -> np.ndarray:
    """Draw `size` examples like `_subset`, but at least one of each class: a mask [N]."""
    shuffled_N = rng.permutation(labels_N.size)
    first_C = shuffled_N[np.unique(labels_N[shuffled_N], return_index=True)[1]]
    mask_N = np.zeros(labels_N.size, dtype=bool)
    mask_N[first_C] = True
    others_N = np.flatnonzero(~mask_N)
    mask_N[others_N[_subset(labels_N[others_N], max(size - first_C.size, 0), rng)]] = True
    return mask_N


def _num_classes(source: Source, config: TrainConfig) -> int:
    if config.model.num_classes is not None:
        return config.model.num_classes
    if source.label_names is not None:
        count = len(source.label_names)
    elif isinstance(source.train, StreamSplit):
        raise TrainError(f"data.streaming: split '{source.train.name}' doesn't give the number of classes: write"
                         ' --model.num_classes')
    else:
        labels = source.train.labels
        count = int(labels.max()) + 1 if labels.ndim == 1 else labels.shape[1]
    require(count >= 2, f"split '{source.train.name}' has {max(count, 0)} class: classification needs at least 2, check"
                        f" data.label_column '{config.data.label_column}'")
    return count


def _checked(split: ImageSplit, num_classes: int, config: TrainConfig) -> ImageSplit:
    """Check that labels are inside [0, C), and give several labels a column per class."""
    bad = outside(split.labels, num_classes)
    if bad is None:
        return split.with_labels(padded(split.labels, num_classes))
    hint = 'check data.label_column'
    if config.model.num_classes is not None:
        hint = 'raise model.num_classes, or leave it out to read it from the data'
    elif bad[1] >= num_classes:
        hint = f'if these are class indices write --model.num_classes {bad[1] + 1} or more'
    raise TrainError(f"label {bad[1]} in row {split.row_N[bad[0]]} of split '{split.name}' is outside"
                     f' [0, {num_classes}): {hint}')
