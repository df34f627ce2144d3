"""Which images, how they become tensors, and which of their labels are made wrong."""
from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from ..errors import require
from .key import key


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which images, and how they become tensors."""

    path: str | None = key(
        None, 'a local folder (of parquet files, of WebDataset shards, of images in a folder per class, or written by'
              ' save_to_disk), a parquet, arrow or tar file or a pattern of such files, a data-set id of the Hub'
              " (user/name), timm: and the name of one of timm's readers, or builtin:digits; required")
    name: str | None = key(None, 'configuration of a data set of the Hub that has several')
    revision: str | None = key(None, 'branch, tag or commit of a data set of the Hub')
    root: str | None = key(None, "folder or file that a reader of timm's reads, with path timm:NAME; its splits must be"
                                 " named")
    train_split: str = key('train', 'name of the training split')
    val_split: str | None = key('auto', "validation split; 'auto': 'validation' or 'val' if there is one, null: hold"
                                        " out val_fraction of the training split")
    test_split: str | None = key('auto', "test split, measured once at the end; 'auto': 'test' if there is one, null:"
                                         " none")
    val_fraction: float = key(0.1, 'share of each class of the training split held out when there is no val_split; of'
                                   ' several labels an image counts for its rarest')
    image_column: str = key('image', "column with the images; where none is called 'image', the only one that holds"
                                     ' images')
    label_column: str = key('label', "column with the labels: class indices, or class names; where none is called"
                                     " 'label', the only one of class labels")
    multi_label: bool = key(False, 'an image has any number of labels: label_column holds lists of class indices or'
                                   ' names, or a row of zeros and ones, one for each class; needs objective.hard: bce,'
                                   ' and measures mean average precision')
    max_train_samples: int | None = key(None, 'train on so many images only, drawn at random, class by class')
    streaming: bool = key(False, 'read the training split from front to back where it lies, without fetching or copying'
                                 ' it first; validation and test splits are kept in the cache of the datasets library')
    num_train_samples: int | None = key(None, 'images of an epoch, of streamed data that do not say how many there are')
    shuffle_buffer: int = key(10_000, 'images among which the next of streamed data is drawn')
    lanes: int | None = key(None, 'groups of files of streamed data that are read side by side, every batch taking as'
                                  ' many images from each; best a multiple of the number of processes. When left out a'
                                  ' power of two, 16 at most')
    img_size: int | None = key(None, "side of the square input in pixels; the architecture's own when left out")
    in_chans: int = key(3, 'input channels: 3 (colour) or 1 (grey); images are converted')
    mean: list[float] | None = key(None, "channel means for normalisation; the architecture's when left out")
    std: list[float] | None = key(None, "channel deviations for normalisation; the architecture's when left out")
    interpolation: Literal['bilinear', 'bicubic', 'nearest'] | None = key(
        None, "how images are resized; the architecture's when left out")
    crop_pct: float | None = key(None, "centre crop of evaluation as a share of the image; the architecture's when left"
                                       ' out')
    pipeline: Literal['auto', 'batch', 'image'] = key(
        'auto', 'how training images are augmented: whole batches of decoded images at once, on the device (batch), one'
                ' by one as timm does (image), or in batches where the recipe and the data allow (auto)')
    workers: int = key(0, 'processes that decode and augment one by one, per training process')
    cache_mb: int = key(1024, 'keep decoded images up to so many MB a split; 0 decodes each time')
    cache_dir: str | None = key(None, 'folder for decoded images, so that the next run need not decode them; beside the'
                                      " cache of the datasets library when left out, see HF_HOME; '' for none")
    on_bad_image: Literal['fail', 'skip'] = key(
        'fail', "what to do about an image that can't be decoded: stop and name it (fail), or leave it out, or put"
                ' another in its place where images are decoded as they are used, and say how many (skip)')

    def __post_init__(self) -> None:
        require(0.0 < self.val_fraction < 1.0, f'data.val_fraction must lie between 0 and 1, got {self.val_fraction}')
        require(not (self.multi_label and str(self.path).startswith('timm:')),
                f"data.multi_label: timm's readers give one label of an image, got data.path '{self.path}'")
        require(self.in_chans in (1, 3), f'data.in_chans must be 1 (grey) or 3 (colour), got {self.in_chans}')
        require(self.img_size is None or self.img_size >= 1, f'data.img_size must be at least 1, got {self.img_size}')
        require(self.max_train_samples is None or self.max_train_samples >= 1,
                f'data.max_train_samples must be at least 1, got {self.max_train_samples}')
        self._check_streaming()
        require(self.crop_pct is None or 0.0 < self.crop_pct <= 1.0,
                f'data.crop_pct must lie in (0, 1], got {self.crop_pct}')
        require(self.workers >= 0, f'data.workers must be 0 or more, got {self.workers}')
        require(self.cache_mb >= 0, f'data.cache_mb must be 0 or more, got {self.cache_mb}')
        for name in ('mean', 'std'):
            values = getattr(self, name)
            require(values is None or len(values) in (1, self.in_chans),
                    f'data.{name} needs 1 or in_chans={self.in_chans} values, got {values}')
        require(self.std is None or min(self.std) > 0, f'data.std must be positive, got {self.std}')

    def _check_streaming(self) -> None:
        for name in ('num_train_samples', 'lanes', 'shuffle_buffer'):
            value = getattr(self, name)
            require(value is None or value >= 1, f'data.{name} must be at least 1, got {value}')
            require(self.streaming or value in (None, 10_000), f'data.{name} is for streamed data: write'
                                                               ' --data.streaming true, or leave it out')
        if not self.streaming:
            return
        refused = {
            'multi_label': (self.multi_label, 'the labels of what is streamed are single class indices'),
            'max_train_samples': (self.max_train_samples is not None, 'write data.num_train_samples'),
            'val_split': (self.val_split is None, 'no images can be held out of what is streamed: name the split'),
            'pipeline': (self.pipeline == 'batch', 'streamed images are augmented one by one'),
            'path': (str(self.path).startswith('timm:'), "timm's readers are not streamed: name the files"),
        }
        for name, (is_set, why) in refused.items():
            require(not is_set, f"data.streaming doesn't go with data.{name} {getattr(self, name)}: {why}")


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """Random transforms of training images, by timm's `create_transform` and under its names."""

    no_aug: bool = key(False, 'no random transform at all: resize and centre crop')
    crop: Literal['rrc', 'rkrc', 'rkrr', 'pad'] = key(
        'rrc', "random crop: timm's train_crop_mode, or 'pad': pad by crop_padding, then crop to img_size (CIFAR)")
    crop_padding: int = key(4, 'pixels of padding on each side for crop: pad')
    scale: list[float] | None = key(None, "area range of the crop, [low, high]; timm's for the crop when left out")
    ratio: list[float] | None = key(None, "aspect-ratio range of the crop, [low, high]; timm's when left out")
    hflip: float = key(0.5, 'probability of a horizontal flip')
    vflip: float = key(0.0, 'probability of a vertical flip')
    color_jitter: float = key(0.0, 'strength of brightness, contrast and saturation jitter')
    auto_augment: str | None = key(None, "timm's policy string, e.g. rand-m9-mstd0.5-inc1")
    re_prob: float = key(0.0, 'probability of random erasing')
    repeats: int = key(1, 'so many versions of each image follow each other, of so many fewer images an epoch'
                          ' (repeated augmentation, Hoffer et al. 2020)')
    mixup: float = key(0.0, 'mixup alpha: blend each batch with itself reversed (Zhang et al. 2018); 0 for none')
    cutmix: float = key(0.0, 'cutmix alpha: paste a part of the reversed batch (Yun et al. 2019); 0 for none')
    mixup_prob: float = key(1.0, 'probability of mixup or cutmix')
    mixup_switch_prob: float = key(0.5, 'probability of cutmix, where both are on')
    mixup_mode: Literal['batch', 'pair', 'elem'] = key('batch', 'whether batch, pair or image (elem) has a mixture')
    mixup_off_epoch: int = key(0, 'epoch (from 0) from which on nothing is mixed; 0: none')

    def __post_init__(self) -> None:
        for name in ('mixup', 'cutmix'):
            alpha = getattr(self, name)
            require(math.isfinite(alpha) and alpha >= 0, f'augment.{name} must be 0 or more, got {alpha}')
        require(self.mixup_off_epoch >= 0, f'augment.mixup_off_epoch must be 0 or more, got {self.mixup_off_epoch}')
        for name in ('hflip', 'vflip', 're_prob', 'mixup_prob', 'mixup_switch_prob'):
            require(0.0 <= getattr(self, name) <= 1.0,
                    f'augment.{name} is a probability in [0, 1], got {getattr(self, name)}')
        for name in ('scale', 'ratio'):
            values = getattr(self, name)
            require(values is None or (len(values) == 2 and 0 < values[0] <= values[1]),
                    f'augment.{name} must be [low, high] with 0 < low <= high, got {values}')
        require(self.repeats >= 1, f'augment.repeats must be at least 1, got {self.repeats}')
        require(self.crop_padding >= 0, f'augment.crop_padding must be 0 or more, got {self.crop_padding}')
        require(self.color_jitter >= 0, f'augment.color_jitter must be 0 or more, got {self.color_jitter}')

    @property
    def mixes(self) -> bool:
        """Whether images of a batch are mixed."""
        return self.mixup > 0 or self.cutmix > 0


@dataclass(frozen=True, kw_only=True)
class NoiseConfig:
    """Label noise, in the training part only."""

    kind: Literal['none', 'symmetric-exclude', 'symmetric-include', 'pair', 'matrix', 'column'] = key(
        'symmetric-exclude', 'flip to one of the other classes (symmetric-exclude), redraw over all classes'
                             ' (symmetric-include), flip to the next class (pair), draw by a matrix (matrix), take'
                             ' the labels of another column (column), or none')
    rate: float = key(0.0, 'share of the training labels to corrupt; of a matrix or a column it is their own')
    matrix: list[list[float]] | None = key(
        None, 'for kind matrix: in row c, the probability of each class for an image of class c')
    column: str | None = key(
        None, 'for kind column: column of the training split with the labels to train on; validation and test keep'
              ' data.label_column')

    def __post_init__(self) -> None:
        require(0.0 <= self.rate <= 1.0, f'noise.rate must lie in [0, 1], got {self.rate}')
        for name in ('matrix', 'column'):
            given = getattr(self, name) is not None
            require(given or self.kind != name, f'noise.kind {name} needs noise.{name}')
            require(not given or self.kind == name,
                    f'noise.{name} needs noise.kind {name}, got noise.kind {self.kind}')
            require(not given or self.rate == 0, f'noise.kind {name} has a rate of its own: leave out noise.rate')
