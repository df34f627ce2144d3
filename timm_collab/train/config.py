"""The recipe: typed, documented, and refusing nonsense before anything is loaded.

Each group of keys is a frozen dataclass. A field's `help` is its only documentation: `--help` prints it. Values that
can be judged without loading a model or data are judged in `__post_init__`; the rest where they are first used.
"""
from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any, Literal

from ..tree import HeadTree, HeadTreeError
from .errors import TrainError, require

COLLAB_PREFIX = 'collab_'


def key(default: Any, help: str) -> Any:
    """A documented key of the recipe with its default."""
    make = {'default_factory': default} if callable(default) else {'default': default}
    return field(**make, metadata={'help': help})


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """What is trained."""

    name: str | None = key(None, "architecture: 'collab_' and a timm name, e.g. collab_resnet18 (a plain timm name is"
                                 " taken for the network itself and needs heads: 1); required")
    heads: int | None = key(None, 'number of heads; 4, or as many as the tree has, when left out')
    pattern: Literal['hierarchical', 'simple', 'instances'] = key(
        'hierarchical', 'how heads share layers when no tree is given')
    tree: str | dict[str, Any] | None = key(
        None, "head tree, e.g. 'layer2:2,layer3:2', or a nested mapping; in place of heads and pattern")
    num_classes: int | None = key(None, 'number of classes; read from the data when left out')
    pretrained: bool = key(False, "start from the backbone's pretrained weights")
    branch_init: Literal['classifier', 'perturb', 'fresh', 'copy'] = key(
        'classifier', 'how heads that start from pretrained weights differ, see timm_collab.CollabModel')
    rescale: bool = key(True, 'backpropagation rescaling at each split (off for ablation)')
    kwargs: dict[str, Any] = key(dict, 'further arguments of timm.create_model, e.g. drop_path_rate')

    def __post_init__(self) -> None:
        require(self.heads is None or self.heads >= 1, f'model.heads must be at least 1, got {self.heads}')
        require(self.num_classes is None or self.num_classes >= 2,
                f'model.num_classes must be at least 2, got {self.num_classes}')

        own = {field.name: f'write model.{field.name}' for field in dataclasses.fields(self)}
        own |= {'in_chans': 'write data.in_chans', 'kept_head': 'the validation data choose it'}
        for name in sorted(own.keys() & self.kwargs.keys()):
            raise TrainError(f"model.kwargs can't hold '{name}': {own[name]}")
        if self.tree is not None:
            try:
                found = HeadTree.of(self.tree).num_heads
            except HeadTreeError as error:
                raise TrainError(f'model.tree: {error}') from None
            require(self.heads in (None, found),
                    f"model.heads is {self.heads} but model.tree '{self.tree}' has {found}: leave one out")
        if self.name is not None and not self.name.startswith(COLLAB_PREFIX):
            require(self.num_heads == 1,
                    f"model.name '{self.name}' is a network without a head tree: write '{COLLAB_PREFIX}{self.name}' to"
                    f' train it with {self.num_heads} heads, or --model.heads 1 to train it alone')

    @property
    def num_heads(self) -> int:
        """Number of heads that the keys together ask for."""
        if self.tree is not None:
            return HeadTree.of(self.tree).num_heads
        return 4 if self.heads is None else self.heads

    @property
    def architecture(self) -> str:
        """Name of the target network, without the prefix."""
        return (self.name or '').removeprefix(COLLAB_PREFIX)

    def single(self) -> ModelConfig:
        """The same network without a tree."""
        return dataclasses.replace(self, heads=1, tree=None, pattern='hierarchical')


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which images, and how they become tensors."""

    path: str | None = key(
        None, 'a local folder (of parquet files, or of images in a folder per class), a data-set id of the Hub'
              ' (user/name), or builtin:digits; required')
    train_split: str = key('train', 'name of the training split')
    val_split: str | None = key('auto', "validation split; 'auto': 'validation' or 'val' if there is one, null: hold"
                                        " out val_fraction of the training split")
    test_split: str | None = key('auto', "test split, measured once at the end; 'auto': 'test' if there is one, null:"
                                         " none")
    val_fraction: float = key(0.1, 'share of each class of the training split held out when there is no val_split')
    image_column: str = key('image', 'column with the images')
    label_column: str = key('label', 'column with the labels: class indices, or class names')
    max_train_samples: int | None = key(None, 'train on so many images only, drawn at random, class by class')
    img_size: int | None = key(None, "side of the square input in pixels; the architecture's own when left out")
    in_chans: int = key(3, 'input channels: 3 (colour) or 1 (grey); images are converted')
    mean: list[float] | None = key(None, "channel means for normalisation; the architecture's when left out")
    std: list[float] | None = key(None, "channel deviations for normalisation; the architecture's when left out")
    interpolation: Literal['bilinear', 'bicubic', 'nearest'] | None = key(
        None, "how images are resized; the architecture's when left out")
    crop_pct: float | None = key(None, "centre crop of evaluation as a share of the image; the architecture's when left"
                                       ' out')
    workers: int = key(0, 'processes that decode and augment, per training process')
    cache_mb: int = key(1024, 'keep decoded images, and tensors that need no random transform, up to so many MB a'
                              ' split; 0 decodes each time')

    def __post_init__(self) -> None:
        require(0.0 < self.val_fraction < 1.0, f'data.val_fraction must lie between 0 and 1, got {self.val_fraction}')
        require(self.in_chans in (1, 3), f'data.in_chans must be 1 (grey) or 3 (colour), got {self.in_chans}')
        require(self.img_size is None or self.img_size >= 1, f'data.img_size must be at least 1, got {self.img_size}')
        require(self.max_train_samples is None or self.max_train_samples >= 1,
                f'data.max_train_samples must be at least 1, got {self.max_train_samples}')
        require(self.crop_pct is None or 0.0 < self.crop_pct <= 1.0,
                f'data.crop_pct must lie in (0, 1], got {self.crop_pct}')
        require(self.workers >= 0, f'data.workers must be 0 or more, got {self.workers}')
        require(self.cache_mb >= 0, f'data.cache_mb must be 0 or more, got {self.cache_mb}')
        for name in ('mean', 'std'):
            values = getattr(self, name)
            require(values is None or len(values) in (1, self.in_chans),
                    f'data.{name} needs 1 or in_chans={self.in_chans} values, got {values}')
        require(self.std is None or min(self.std) > 0, f'data.std must be positive, got {self.std}')


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
        require(self.crop_padding >= 0, f'augment.crop_padding must be 0 or more, got {self.crop_padding}')
        require(self.color_jitter >= 0, f'augment.color_jitter must be 0 or more, got {self.color_jitter}')

    @property
    def mixes(self) -> bool:
        """Whether images of a batch are mixed."""
        return self.mixup > 0 or self.cutmix > 0


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """timm's `create_optimizer_v2`."""

    name: str = key('sgd', "timm's name of the optimizer (sgd is with Nesterov momentum, momentum without)")
    lr: float = key(0.1, 'learning rate')
    momentum: float = key(0.9, 'momentum, of optimizers that have one')
    weight_decay: float = key(1e-4, 'weight decay, not applied to biases and normalisation layers')
    layer_decay: float | None = key(None, 'factor by which each layer learns slower than the one above it')
    clip_grad: float | None = key(None, 'limit of the gradient, of the kind clip_mode names')
    clip_mode: Literal['norm', 'value', 'agc'] = key(
        'norm', 'what clip_grad limits: the norm of all gradients, each value, or (agc, heads left out) the norm of'
                " each unit's gradient relative to its weights'")
    kwargs: dict[str, Any] = key(dict, "further arguments of timm's optimizer, e.g. {betas: [0.9, 0.95]}")

    def __post_init__(self) -> None:
        require(math.isfinite(self.lr) and self.lr > 0, f'optim.lr must be positive, got {self.lr}')
        require(0.0 <= self.momentum < 1.0, f'optim.momentum must lie in [0, 1), got {self.momentum}')
        require(self.weight_decay >= 0, f'optim.weight_decay must be 0 or more, got {self.weight_decay}')
        require(self.layer_decay is None or 0.0 < self.layer_decay <= 1.0,
                f'optim.layer_decay must lie in (0, 1], got {self.layer_decay}')
        require(self.clip_grad is None or (math.isfinite(self.clip_grad) and self.clip_grad > 0),
                f'optim.clip_grad must be positive, got {self.clip_grad}')
        own = {field.name for field in dataclasses.fields(self)}
        for name in sorted(own & self.kwargs.keys()):
            raise TrainError(f"optim.kwargs can't hold '{name}': write optim.{name}")


@dataclass(frozen=True, kw_only=True)
class SchedConfig:
    """timm's `create_scheduler_v2`, stepped after every update."""

    name: Literal['cosine', 'multistep', 'step', 'poly', 'tanh', 'none'] = key('cosine', 'learning-rate schedule')
    warmup_epochs: int = key(0, 'epochs of linear warm-up')
    warmup_lr: float = key(1e-5, 'learning rate at the start of the warm-up')
    min_lr: float = key(0.0, 'learning rate that cosine, poly and tanh end at')
    decay_epochs: float = key(30, 'epochs between drops of step')
    decay_milestones: list[int] = key(lambda: [150, 225], 'epochs of the drops of multistep')
    decay_rate: float = key(0.1, 'factor of each drop')

    def __post_init__(self) -> None:
        require(self.warmup_epochs >= 0, f'sched.warmup_epochs must be 0 or more, got {self.warmup_epochs}')
        require(self.min_lr >= 0, f'sched.min_lr must be 0 or more, got {self.min_lr}')
        require(self.warmup_lr >= 0, f'sched.warmup_lr must be 0 or more, got {self.warmup_lr}')
        require(self.decay_epochs > 0, f'sched.decay_epochs must be positive, got {self.decay_epochs}')


@dataclass(frozen=True, kw_only=True)
class EmaConfig:
    """A running average of the weights of the whole tree, by timm's `ModelEmaV3`."""

    decay: float | None = key(
        None, 'keep the running average of the weights with this decay per update, e.g. 0.9998; none when left out')
    warmup: bool = key(False, 'raise the decay from 0 during the first updates')

    def __post_init__(self) -> None:
        require(self.decay is None or 0.0 <= self.decay < 1.0, f'ema.decay must lie in [0, 1), got {self.decay}')
        require(self.decay is not None or not self.warmup, 'ema.warmup needs ema.decay')


@dataclass(frozen=True, kw_only=True)
class ObjectiveConfig:
    """The collaborative objective (`timm_collab.CollaborativeLoss`)."""

    beta: float = key(0.5, 'weight of the labels; 1 - beta is that of the consensus of the other heads')
    temperature: float = key(2.0, 'temperature of the consensus term')
    scale_by_t2: bool = key(True, 'multiply the consensus term by the square of the temperature')
    smoothing: float = key(0.0, 'label smoothing of the hard term')
    kind: Literal['collaborative', 'mutual'] = key(
        'collaborative', 'what a head learns from the others: their consensus, or (mutual, as in Deep Mutual Learning)'
                         ' each of their predictions')
    ramp_up_epochs: float = key(0.0, 'epochs in which the weight of the other heads rises from 0 to 1 - beta')
    ramp_up: Literal['linear', 'gaussian'] = key('gaussian', 'how it rises: linear, or exp(-5 (1 - t)^2)')

    def __post_init__(self) -> None:
        require(0.0 <= self.beta <= 1.0, f'objective.beta must lie in [0, 1], got {self.beta}')
        require(math.isfinite(self.temperature) and self.temperature > 0,
                f'objective.temperature must be positive, got {self.temperature}')
        require(math.isfinite(self.ramp_up_epochs) and self.ramp_up_epochs >= 0,
                f'objective.ramp_up_epochs must be 0 or more, got {self.ramp_up_epochs}')
        require(0.0 <= self.smoothing < 1.0, f'objective.smoothing must lie in [0, 1), got {self.smoothing}')


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


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """A whole recipe."""

    output: str | None = key(None, 'run folder; a fresh one under runs/ when left out')
    seed: int = key(0, 'seed of the weights, the order, the augmentation, the hold-out and the noise')
    epochs: int = key(100, 'passes over the training data')
    batch_size: int = key(128, 'images per update, over all processes together')
    compare_single: bool = key(False, 'train the network without a tree as well, under the same recipe, into single/'
                                       ' (with one head that is the run itself)')
    grad_accum_steps: int = key(1, 'compute each batch in so many parts, one after the other, to need less memory')
    grad_checkpointing: bool = key(False, 'keep few activations and compute the others again, to need less memory')
    channels_last: bool = key(False, 'channels-last memory layout, faster for convolutions on many devices')
    mixed_precision: Literal['no', 'fp16', 'bf16'] | None = key(
        None, 'mixed precision; what accelerate was launched with when left out')
    cpu_threads: int | None = key(None, "threads that PyTorch computes with on the CPU; PyTorch's choice when left out")
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    sched: SchedConfig = field(default_factory=SchedConfig)
    ema: EmaConfig = field(default_factory=EmaConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    noise: NoiseConfig = field(default_factory=NoiseConfig)

    def __post_init__(self) -> None:
        require(self.model.name is not None, 'model.name is missing: start from a recipe, --config quickstart, or name'
                                             ' an architecture, e.g. --model.name collab_resnet18')
        require(self.data.path is not None, 'data.path is missing: write e.g. --data.path ./my-images, --data.path'
                                            ' uoft-cs/cifar10 or --data.path builtin:digits')
        require(0 <= self.seed < 2**32, f'seed must lie in [0, 2**32), got {self.seed}')
        require(self.epochs >= 1, f'epochs must be at least 1, got {self.epochs}')
        require(self.batch_size >= 1, f'batch_size must be at least 1, got {self.batch_size}')
        require(self.grad_accum_steps >= 1, f'grad_accum_steps must be at least 1, got {self.grad_accum_steps}')
        require(self.batch_size % self.grad_accum_steps == 0,
                f'batch_size {self.batch_size} is computed in grad_accum_steps={self.grad_accum_steps} equal parts:'
                ' make it a multiple')
        require(self.cpu_threads is None or self.cpu_threads >= 1,
                f'cpu_threads must be at least 1, got {self.cpu_threads}')
        require(self.sched.warmup_epochs < self.epochs or self.sched.name == 'none',
                f'sched.warmup_epochs ({self.sched.warmup_epochs}) must be fewer than epochs ({self.epochs})')

    def to_dict(self) -> dict[str, Any]:
        """All keys as plain data, nested by group; `output` left out, for a recipe belongs to no one folder."""
        keys = dataclasses.asdict(self)
        del keys['output']
        return keys
