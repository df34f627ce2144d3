"""Which images, how they become tensors, and which of their labels are corrupted."""
from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Literal

from ..errors import require
from .key import KeyGroup, key


@dataclass(frozen=True, kw_only=True)
class DataConfig(KeyGroup):
    """Which images, and how they become tensors."""

    _prefix = 'data.'

    path: str | None = key(
        None, 'local folder (of images in a folder per class, where train/, val/ and test/ hold such folders or all'
              ' is one split; of parquet, arrow or WebDataset files, whose names begin with their split; or written by'
              ' save_to_disk); file of one of these types, or CSV, TSV or JSON-lines file (.jsonl) with a column of'
              ' image paths; glob pattern of such files; dataset id on the Hub (user/name); timm: and the name of one'
              " of timm's readers; or builtin:digits; required")
    name: str | None = key(None, 'configuration of a dataset of the Hub, or of a clone of one, that has several')
    revision: str | None = key(None, 'branch, tag or commit of a Hub dataset')
    root: str | None = key(None, "for path timm:NAME: folder or file for timm's reader; the splits must be named")
    train_split: str = key('train', 'name of the training split')
    val_split: str | None = key('auto', "validation split; 'auto': 'validation', 'val', 'valid' or 'dev' if it exists;"
                                        ' null: hold out val_fraction of the training split')
    test_split: str | None = key('auto', "test split, evaluated once at the end; 'auto': 'test', 'testing' or 'eval' if"
                                         ' it exists; null: none')
    val_fraction: float = key(
        0.1, 'fraction of each class of the training split to hold out if there is no val_split; with several labels,'
             ' an image counts for its rarest', gt=0, lt=1)
    image_column: str = key('image', "column with the images; if no column is called 'image', the only one with images,"
                                      ' or of a CSV, TSV or JSON-lines file file_name, filename, path or file')
    label_column: str = key('label', "column with the labels, class names or indices; if no column is called"
                                     " 'label', the only one with class labels")
    classes: str | None = key(
        None, 'file with the names of the classes, one per line, in the order of their indices; by default the names'
              ' and their order come from the training split')
    on_missing_label: Literal['fail', 'skip'] = key(
        'fail', 'what to do with a row without a label (empty, or -1): stop and name it (fail), or leave it out and'
                ' report how many (skip)')
    soft_labels: bool = key(False, 'label_column contains C numbers per image, such as the votes of annotators, which'
                                   ' are normalised to probabilities and learned as such; evaluation takes the class'
                                   ' with the largest')
    multi_label: bool = key(False, 'images have any number of labels: label_column contains lists of class indices or'
                                   ' names, or a row of zeros and ones, one per class; needs objective.hard: bce, and'
                                   ' reports mean average precision')
    class_weights: str | dict[str, float] | None = key(
        None, "weight of each class in the loss for the labels: 'balanced' (inverse to its number of training images),"
              " 'effective' (Cui et al. 2019, beta 0.999; effective:0.99 for another), or a mapping from class names to"
              ' weights, where classes left out have weight 1; scaled to a mean of 1 over the training images, or over'
              ' the classes where they are streamed or data.sampling is balanced')
    sampling: Literal['shuffled', 'balanced'] = key(
        'shuffled', 'how an epoch draws the training images: each once (shuffled), or equally many of each class'
                    ' (balanced), so that images of rare classes come more than once')
    max_train_samples: int | None = key(
        None, 'train on a random subset with this many images, drawn class by class; the validation images that are'
              ' held out are bounded in proportion', ge=1)
    max_val_samples: int | None = key(
        None, 'hold out at most this many images for validation, but one of each class; by default in proportion to'
              ' max_train_samples, or else all of val_fraction', ge=1)
    streaming: bool = key(False, 'read the training split sequentially from where it is stored, without downloading or'
                                 ' copying it first; validation and test splits are stored in the cache of the datasets'
                                 ' library')
    num_train_samples: int | None = key(
        None, 'for streaming: images per epoch, if the dataset does not give its size', ge=1)
    shuffle_buffer: int = key(10_000, 'for streaming: size of the shuffle buffer in images', ge=1)
    lanes: int | None = key(
        None, 'for streaming: groups of files that are read in parallel, each batch taking the same number of images'
              ' from each; best a multiple of the number of processes; by default a power of two, at most 16', ge=1)
    img_size: int | list[int] | None = key(
        None, "side of the square input in pixels, or [height, width]; the architecture's own by default")
    in_chans: int = key(3, 'input channels: 3 (colour) or 1 (grey); images are converted')
    mean: list[float] | None = key(None, "channel means for normalisation; the architecture's by default")
    std: list[float] | None = key(None, "channel standard deviations for normalisation; the architecture's by default")
    interpolation: Literal['bilinear', 'bicubic', 'nearest'] | None = key(
        None, "interpolation for resizing images; the architecture's by default")
    crop_pct: float | None = key(
        None, "centre crop in evaluation as a fraction of the image; by default the architecture's, or the whole image"
              ' where training sees whole images, with augment.no_aug or augment.crop: pad', gt=0, le=1)
    pipeline: Literal['auto', 'batch', 'image'] = key(
        'auto', 'how training images are augmented: in whole batches of decoded images, on the device (batch), one by'
                ' one by timm (image), or in batches if recipe and data allow it (auto)')
    workers: int | Literal['auto'] = key(
        'auto', "worker processes that decode and augment images, per training process; 'auto': one for each of its CPU"
                ' cores but one, at most 16, and none where a pass over the images takes less than two seconds or they'
                ' are augmented in whole batches', ge=0)
    bit_depth: int = key(16, 'for images with 16 bits per value: how many of them are used, such as 12; values are'
                             ' scaled to 8 bits', ge=8, le=16)
    cache_mb: int = key(1024, 'keep the decoded images of a split in memory up to this size in MB; 0: decode each time',
                        ge=0)
    cache_dir: str | None = key(None, 'folder that stores decoded images for later runs; by default beside the cache of'
                                      " the datasets library, see HF_HOME; '': none")
    on_bad_image: Literal['fail', 'skip'] = key(
        'fail', "what to do with an image that can't be decoded: stop and name it (fail), or leave it out and list it"
                ' in bad_images.csv (skip); images that are decoded as they are used are replaced by another one')

    def __post_init__(self) -> None:
        super().__post_init__()
        require(not (self.multi_label and str(self.path).startswith('timm:')),
                f"data.multi_label: timm's readers give one label per image, got data.path '{self.path}'")
        require(self.in_chans in (1, 3), f'data.in_chans must be 1 (grey) or 3 (colour), got {self.in_chans}')
        self._check_streaming()
        if self.soft_labels:
            require(not self.multi_label, 'data.soft_labels are probabilities of one class per image: leave out'
                                          ' data.multi_label')
            require(not self.streaming and not str(self.path).startswith('timm:'),
                    "data.soft_labels need a column of lists in a table: leave out data.streaming, and write no path of"
                    " timm's readers")
        require(not isinstance(self.img_size, list) or len(self.img_size) == 2,
                f'data.img_size must be the side of a square, or [height, width], got {self.img_size}')
        require(self.sides is None or min(self.sides) >= 1, f'data.img_size must be at least 1, got {self.img_size}')
        for name in ('mean', 'std'):
            values = getattr(self, name)
            require(values is None or len(values) in (1, self.in_chans),
                    f'data.{name} needs 1 or in_chans={self.in_chans} values, got {values}')
        require(self.std is None or min(self.std) > 0, f'data.std must be positive, got {self.std}')
        self._check_class_weights()
        require(self.sampling != 'balanced' or not self.multi_label,
                'data.sampling balanced draws equally many images of each class, and with data.multi_label an image has'
                ' several: leave it out')

    @property
    def effective_beta(self) -> float | None:
        """Beta of `class_weights: effective`; None for weights by the plain number of images."""
        kind, _, beta = str(self.class_weights).partition(':')
        return float(beta or 0.999) if kind == 'effective' else None

    def _check_class_weights(self) -> None:
        asked = self.class_weights
        if asked is None:
            return
        require(not self.multi_label,
                'data.class_weights weighs the one class of an image, and with data.multi_label an image has several:'
                ' leave it out')
        if isinstance(asked, dict):
            for name, weight in asked.items():
                require(math.isfinite(weight) and weight >= 0,
                        f"data.class_weights: the weight of class '{name}' must be a number from 0, got {weight}")
            # YAML reads the class 0 as a number.
            object.__setattr__(self, 'class_weights', {str(name): weight for name, weight in asked.items()})
            return
        require(re.fullmatch(r'balanced|effective(:(0|0?\.\d+))?', asked),
                f"data.class_weights '{asked}': write balanced, effective, effective:BETA with a BETA in [0, 1), or a"
                ' mapping from class names to weights such as {cat: 2, dog: 0.5}')
        require(self.sampling != 'balanced',
                f'data.class_weights {asked} and data.sampling balanced both make up for rare classes: leave one out')

    @property
    def sides(self) -> tuple[int, int] | None:
        """Height and width of the input; None for those of the architecture."""
        if self.img_size is None:
            return None
        height, width = [self.img_size] * 2 if isinstance(self.img_size, int) else self.img_size
        return height, width

    def _check_streaming(self) -> None:
        if not self.streaming:
            for name, default in (('num_train_samples', None), ('lanes', None), ('shuffle_buffer', 10_000)):
                require(getattr(self, name) == default,
                        f'data.{name} is for streamed data: write --data.streaming true, or leave it out')
            return
        refused = {
            'multi_label': (self.multi_label, 'labels of streamed data are single class indices'),
            'max_train_samples': (self.max_train_samples is not None, 'write data.num_train_samples'),
            'val_split': (self.val_split is None, "images can't be held out of streamed data: name the split"),
            'class_weights': (isinstance(self.class_weights, str),
                              'the number of images per class is unknown: write a mapping from class names to weights'),
            'sampling': (self.sampling == 'balanced',
                         'labels are unknown before they are read: write a mapping to weights as data.class_weights'),
            'pipeline': (self.pipeline == 'batch', 'streamed images are augmented one by one'),
            'path': (str(self.path).startswith('timm:'), "timm's readers are not streamed: name the files"),
        }
        for name, (is_set, why) in refused.items():
            require(not is_set, f"data.streaming doesn't go with data.{name} {getattr(self, name)}: {why}")


@dataclass(frozen=True, kw_only=True)
class AugmentConfig(KeyGroup):
    """Random transforms of training images, by timm's `create_transform` and with its names."""

    _prefix = 'augment.'

    no_aug: bool = key(False, 'no random transforms: resize and centre crop')
    crop: Literal['rrc', 'rkrc', 'rkrr', 'pad'] = key(
        'rrc', "random crop: timm's train_crop_mode, or 'pad': pad by crop_padding, then crop to img_size (CIFAR)")
    crop_padding: int = key(4, 'for crop: pad, pixels of padding on each side', ge=0)
    scale: list[float] | None = key(None, "range of the area of the crop, [low, high]; timm's for the crop by default")
    ratio: list[float] | None = key(None, "range of the aspect ratio of the crop, [low, high]; timm's by default")
    hflip: float = key(0.5, 'probability of a horizontal flip', ge=0, le=1)
    vflip: float = key(0.0, 'probability of a vertical flip', ge=0, le=1)
    color_jitter: float = key(0.0, 'strength of brightness, contrast and saturation jitter', ge=0)
    auto_augment: str | None = key(None, "timm's policy string, such as rand-m9-mstd0.5-inc1")
    re_prob: float = key(0.0, 'probability of random erasing', ge=0, le=1)
    repeats: int = key(1, 'repeated augmentation (Hoffer et al. 2020): versions of each image in a row; an epoch has'
                          ' correspondingly fewer different images', ge=1)
    mixup: float = key(0.0, 'mixup alpha: blend each batch with its reverse (Zhang et al. 2018); 0: off', ge=0)
    cutmix: float = key(0.0, 'cutmix alpha: paste a part of the reversed batch (Yun et al. 2019); 0: off', ge=0)
    mixup_prob: float = key(1.0, 'probability of mixup or cutmix', ge=0, le=1)
    mixup_switch_prob: float = key(0.5, 'probability of cutmix if both are on', ge=0, le=1)
    mixup_mode: Literal['batch', 'pair', 'elem'] = key(
        'batch', 'draw the mixing parameters per batch, per pair, or per image (elem)')
    mixup_off_epoch: int = key(0, 'epoch, counted from 0, from which mixup and cutmix are off; 0: never', ge=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ('scale', 'ratio'):
            values = getattr(self, name)
            require(values is None or (len(values) == 2 and 0 < values[0] <= values[1]),
                    f'augment.{name} must be [low, high] with 0 < low <= high, got {values}')

    @property
    def mixes(self) -> bool:
        """Whether mixup or cutmix is on."""
        return self.mixup > 0 or self.cutmix > 0


@dataclass(frozen=True, kw_only=True)
class NoiseConfig(KeyGroup):
    """Label noise, in the training data, and where asked for in the validation data."""

    _prefix = 'noise.'

    kind: Literal['none', 'symmetric-exclude', 'symmetric-include', 'pair', 'matrix', 'column'] = key(
        'symmetric-exclude', 'flip to one of the other classes (symmetric-exclude), redraw over all classes'
                             ' (symmetric-include), flip to the next class (pair), draw by a transition matrix'
                             ' (matrix), take the labels of another column (column), or none')
    rate: float = key(
        0.0, 'fraction of training labels to corrupt; a matrix or a column has its own rate', ge=0, le=1)
    matrix: list[list[float]] | None = key(
        None, 'for kind: matrix, row c has the probability of each class for an image of class c')
    column: str | None = key(
        None, 'for kind: column, the column of the training split with the labels to train on; validation and test use'
              ' data.label_column')
    val: bool = key(False, 'the validation labels have such noise too, as where nobody has clean ones; the test labels'
                           ' never have')

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ('matrix', 'column'):
            given = getattr(self, name) is not None
            require(given or self.kind != name, f'noise.kind {name} needs noise.{name}')
            require(not given or self.kind == name,
                    f'noise.{name} needs noise.kind {name}, got noise.kind {self.kind}')
            require(not given or self.rate == 0, f'noise.kind {name} has its own rate: leave out noise.rate')

    @property
    def is_on(self) -> bool:
        """Whether labels are changed."""
        return self.kind in ('matrix', 'column') or (self.kind != 'none' and self.rate > 0)
