"""The parts of a run that a recipe names: model, objective, mixup."""
from __future__ import annotations

import math
import os
from typing import Any

import timm
import timm.loss
import torch
import torch.nn as nn
from timm.data import Mixup
from torch import Tensor

from ..model import CollabModel
from ..model.classifiers import narrow_classifiers, scale_classifiers
from ..objective.baselines import GatedEnsembleLoss, MutualLearningLoss
from ..objective.class_balance import PriorDivergence, WeightedCrossEntropy
from ..objective.image_targets import TARGETS_DTYPE, EarlyLearningRegularization, SelfEnsembleLabelCorrection
from ..objective.loss import CollaborativeLoss
from ..objective.robust import (
    GeneralizedCrossEntropy,
    JointSelection,
    NormalizedCrossEntropy,
    SmallLossSelection,
    SymmetricCrossEntropy,
)
from ..tree import PREFIX
from .config import (
    DataConfig,
    ModelConfig,
    ObjectiveConfig,
    TrainConfig,
)
from .config.objective import PER_IMAGE
from .errors import TrainError, nearest, one_line, require, unknown_architecture

_OF_TIMM = frozenset({'cache_dir', 'exportable', 'no_jit', 'pretrained_cfg', 'pretrained_cfg_overlay', 'scriptable'})
"""Arguments of `timm.create_model` itself, which it does not pass to the architecture."""


def build_model(config: ModelConfig, data: DataConfig, num_classes: int) -> CollabModel:
    """Create the head tree on the CPU; with one head it is the network alone.

    Classifiers that no checkpoint has weights for start as `model.head_init_scale` and `head_init_bias` say.

    Raises:
        TrainError: Unknown architecture or split point, or arguments that the architecture doesn't take.
    """
    architecture = config.architecture
    base = architecture.split('.')[0]
    if not timm.is_model(base):
        raise TrainError(f"model.name '{config.name}': {unknown_architecture(base)}")
    checkpoint = os.path.expanduser(config.checkpoint_path or '')
    require(not checkpoint or os.path.isfile(checkpoint), f"model.checkpoint_path '{checkpoint}' is no file")
    kwargs: dict[str, Any] = {**config.kwargs, **model_args(config, data)}
    if config.tree is not None:
        kwargs['tree'] = config.tree
    else:
        kwargs.update(heads=config.num_heads, pattern=config.pattern)
    try:
        model: CollabModel = timm.create_model(
            f'{PREFIX}{architecture}',
            pretrained=config.pretrained,
            checkpoint_path=checkpoint,
            branch_init=config.branch_init,
            rescale=config.rescale,
            num_classes=num_classes,
            **kwargs,
        )
    except Exception as error:  # whatever an architecture raises on arguments that it doesn't take
        reason = one_line(error) or type(error).__name__
        raise TrainError(f"model '{config.name}' can't be made: {reason}") from error
    if model.fresh_classifiers:
        _init_classifiers(model, config)
    return model


def _init_classifiers(model: CollabModel, config: ModelConfig) -> None:
    """Scale classifiers as the recipe asks, or narrow wide ones on pretrained weights; then set their biases."""
    classifiers = model.get_classifier()
    if config.head_init_scale is not None:
        scale_classifiers(classifiers, config.head_init_scale)
    elif config.pretrained or config.checkpoint_path:
        narrow_classifiers(classifiers)
    if config.head_init_bias is not None:
        with torch.no_grad():
            classifiers.bias.fill_(config.head_init_bias)


def model_args(config: ModelConfig, data: DataConfig) -> dict[str, Any]:
    """Arguments of the architecture itself, for `timm.create_model` and for the saved `config.json`."""
    args = {name: value for name, value in config.kwargs.items() if name not in _OF_TIMM}
    if data.in_chans != 3:
        args['in_chans'] = data.in_chans
    source = timm.models.get_pretrained_cfg(config.architecture, allow_unregistered=True)
    if data.img_size is not None and source is not None and source.fixed_input_size:
        # Transformers with position embeddings are built for one size; convolutional networks take no such argument.
        args.setdefault('img_size', data.img_size)
    return args


def check_input(model: CollabModel, input_size: tuple[int, ...], name: str | None) -> None:
    """Run the model once on zeros, so that an image size that it can't take is an error before training.

    Raises:
        TrainError: It can't.
    """
    try:
        with torch.inference_mode():
            model.eval().forward_heads(torch.zeros(2, *input_size))
    except (RuntimeError, AssertionError, ValueError) as error:
        reason = one_line(error)
        raise TrainError(f"model '{name}' can't take images of {tuple(input_size)} (channels, height, width): {reason};"
                         ' try another data.img_size') from error


def build_criterion(
        config: ObjectiveConfig,
        num_heads: int,
        num_classes: int,
        mixes: bool,
        class_weights: Tensor | None = None,
        labels: Tensor | None = None,
        balanced: bool = False,
) -> CollaborativeLoss:
    """The objective; labels that are mixed are smoothed as they are mixed.

    Args:
        config: Its keys.
        num_heads: Number of heads.
        num_classes: Number of classes, C.
        mixes: Whether images are mixed.
        class_weights: Weight of each class in the loss against the labels, [C].
        labels: Labels of the training images [N], for objectives that remember each image or balance the classes.
        balanced: Whether all classes are drawn equally often.
    """
    smoothing = 0.0 if mixes else config.smoothing
    hard = _hard_loss(config, num_heads, num_classes, smoothing, labels)
    if class_weights is not None:
        hard = WeightedCrossEntropy(class_weights, smoothing)
    options: dict[str, Any] = {
        'temperature': config.temperature, 'beta': config.beta, 'scale_by_t2': config.scale_by_t2,
        'full_labels': config.full_labels}
    if config.balance:
        assert labels is not None
        prior_C = _prior(labels, num_classes, class_weights, balanced)
        options['regularizer'] = PriorDivergence(prior_C, config.balance)
    if config.kind == 'gated' and num_heads > 1:
        return GatedEnsembleLoss(num_heads, num_classes, hard, **options)
    return (MutualLearningLoss if config.kind == 'mutual' else CollaborativeLoss)(hard, **options)


def _hard_loss(
        config: ObjectiveConfig,
        num_heads: int,
        num_classes: int,
        smoothing: float,
        labels: Tensor | None,
) -> nn.Module:
    if config.hard == 'ce':
        return nn.CrossEntropyLoss(label_smoothing=smoothing)
    if config.hard == 'bce':
        return timm.loss.BinaryCrossEntropy(
            smoothing=smoothing, target_threshold=config.bce_target_threshold, sum_classes=config.bce_sum)
    if config.hard == 'gce':
        return GeneralizedCrossEntropy(config.gce_q)
    alpha = {} if config.alpha is None else {'alpha': config.alpha}
    if config.hard == 'sce':
        return SymmetricCrossEntropy(beta=config.reverse, **alpha)
    if config.hard == 'nce_rce':
        return NormalizedCrossEntropy(beta=config.reverse, **alpha)
    if config.hard == 'small_loss':
        assert config.noise_rate is not None
        if config.select == 'joint':
            return JointSelection(config.noise_rate, config.agreement)
        return SmallLossSelection(config.noise_rate)
    assert labels is not None
    options: dict[str, Any] = {
        'view': config.targets if num_heads > 1 else 'own', 'on_host': config.targets_device == 'cpu'}
    if config.targets_momentum is not None:
        options['momentum'] = config.targets_momentum
    if config.hard == 'selc':
        return SelfEnsembleLabelCorrection(labels, num_classes, num_heads, **options)
    return EarlyLearningRegularization(len(labels), num_classes, num_heads, weight=config.elr_weight, **options)


def check_targets(
        config: ObjectiveConfig, num_images: int, num_classes: int, num_heads: int, device: torch.device) -> str | None:
    """Compare the memory of the targets that an objective keeps of each image with what there is.

    Returns:
        A note on large targets, of 1 GB or more.

    Raises:
        TrainError: The targets are larger than the memory where they are kept.
    """
    if config.hard not in PER_IMAGE:
        return None
    stored = 1 if config.targets == 'mean' else num_heads
    size = stored * num_images * num_classes * TARGETS_DTYPE.itemsize
    where = torch.device('cpu') if config.targets_device == 'cpu' else device
    what = (f'objective.hard {config.hard} keeps a target of each image: {stored} x {num_images:,} images x'
            f' {num_classes:,} classes take {size / 1e9:,.1f} GB of the memory of {where}, of each process')
    ways = []
    if stored > 1:
        ways.append(f'--objective.targets mean, one for all heads, for {size / stored / 1e9:,.1f} GB')
    if where.type != 'cpu':
        ways.append('--objective.targets_device cpu, for host memory')
    total = _total_memory(where)
    instead = f': write {", or ".join(ways)}' if ways else ': choose an objective that remembers no images'
    require(size <= total, f'{what}, which has {total / 1e9:,.1f} GB{instead}')
    if size < 1e9:
        return None
    return f'{what}, and of each checkpoint{"; less with " + ", or ".join(ways) if ways else ""}'


def _total_memory(device: torch.device) -> float:
    """Bytes of memory of a device, infinite where unknown."""
    if device.type == 'cuda':
        return float(torch.cuda.get_device_properties(device).total_memory)
    if device.type == 'cpu' and hasattr(os, 'sysconf'):
        return float(os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE'))
    return math.inf


def _prior(labels_N: Tensor, num_classes: int, class_weights: Tensor | None, balanced: bool) -> Tensor:
    """Share of each class [C] in what is learned: by the labels, how often they are drawn, and their weights."""
    count_C = labels_N.bincount(minlength=num_classes).double()
    if balanced:
        count_C = count_C.sign()
    if class_weights is not None:
        count_C = count_C * class_weights.cpu()
    return (count_C / count_C.sum()).float()


def check_compile(config: TrainConfig) -> None:
    """Make sure that what a recipe compiles with is there.

    Raises:
        TrainError: There is no such backend.
    """
    if config.compile:
        known = torch.compiler.list_backends(exclude_tags=())
        require(config.compile_backend in known,
                f"compile_backend '{config.compile_backend}': torch {torch.__version__} has"
                f' {", ".join(known)}{nearest(config.compile_backend, known)}')


def build_mixup(config: TrainConfig, num_classes: int, num_processes: int) -> Mixup | None:
    """timm's mixup and cutmix, None where neither is on.

    It mixes class indices by itself. Where images have rows of labels or targets of their own, each image of a process
    is a class instead, and the mixed labels are its share in each mixture, see `TrainState`.
    """
    augment, smoothing = config.augment, config.objective.smoothing
    if not augment.mixes:
        return None
    # timm's own way to mix rows of labels isn't in every timm that is supported.
    if config.data.multi_label or config.data.soft_labels or config.objective.hard in PER_IMAGE:
        smoothing, num_classes = 0.0, config.batch_size // num_processes
    return Mixup(
        mixup_alpha=augment.mixup,
        cutmix_alpha=augment.cutmix,
        prob=augment.mixup_prob,
        switch_prob=augment.mixup_switch_prob,
        mode=augment.mixup_mode,
        label_smoothing=smoothing,
        num_classes=num_classes,
    )
