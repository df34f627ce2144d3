"""Verify the head tree of one architecture: its structure, its split points and its numbers."""
from __future__ import annotations

import gc
import time
import warnings
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import timm
import torch
from torch import Tensor

from ..model.collab_model import CollabModel
from ..split.meta import blank_images, on_meta
from ..split.points import default_input_size, split_points
from .checks import check_logits, check_partition, check_pruned, check_training, settle, vary

HEADS = 4
SMALL = (112, 128)  # pixels: enough for most architectures, a multiple of their patches and windows, and quick
OK = 'ok'
NO_CLASSIFIER = 'no classifier'


@dataclass
class Row:
    """The results for an architecture.

    Attributes:
        arch: Name of the architecture.
        module: The timm module that defines it.
        params: Parameters, in millions.
        gmacs: Multiply-adds for one image at the default size, in billions.
        points: Number of listed split points.
        tree: The default tree with four heads.
        structure: `ok`, `no classifier` for a network without one, or the error.
        numbers: `ok`, the error, or empty if not checked.
        size: Height and width of the images, at which numbers were checked.
        seconds: Time that it took.
    """

    arch: str
    module: str = ''
    params: float = 0.
    gmacs: float = 0.
    points: int = 0
    tree: str = ''
    structure: str = ''
    numbers: str = ''
    size: str = ''
    seconds: float = 0.

    @property
    def failed(self) -> bool:
        """Whether a check failed."""
        return self.structure not in (OK, NO_CLASSIFIER) or self.numbers.startswith('failed')


def start_worker() -> None:
    """Set up a worker: one thread, and rare garbage collection, as networks without weights have many objects."""
    torch.set_num_threads(1)
    gc.set_threshold(100_000, 50, 100)


def examine(arch: str) -> Row:
    """Create the default tree with four heads on the meta device, list split points, prune the first and last head.

    Args:
        arch: Name of the architecture.
    """
    row = Row(arch)
    start = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        try:
            _structure(row)
            row.structure = row.structure or OK
        except Exception as error:
            row.structure = _failure(error)
    row.seconds = round(time.perf_counter() - start, 2)
    return row


def check_numbers(row: Row) -> Row:
    """Check numbers with random weights: every head and its pruned network, and a training step of one head.

    Args:
        row: Result of `examine`; `numbers`, `size` and `seconds` are updated.
    """
    start = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        try:
            row.size = _numbers(row)
            row.numbers = OK
        except Exception as error:
            row.numbers = _failure(error)
    gc.collect()
    row.seconds = round(row.seconds + time.perf_counter() - start, 2)
    return row


def _structure(row: Row) -> None:
    with torch.device('meta'):
        plain = _plain(row.arch)
    row.module = type(plain).__module__.rpartition('.')[2]
    row.params = round(sum(param.numel() for param in plain.parameters()) / 1e6, 2)
    size = default_input_size(plain, {})
    row.size = 'x'.join(map(str, size[1:]))
    try:
        with torch.device('meta'):
            model = _tree(row.arch, plain)
    except ValueError:
        if getattr(_run(plain, size), 'shape', None) == (2, plain.num_classes):
            raise
        row.structure = NO_CLASSIFIER
        return
    points = split_points(plain)
    row.points = len(points)
    row.gmacs = round(points[0].network_macs / 1e9, 2)
    row.tree = str(model.tree)
    check_partition(model, plain)
    check_pruned(model, plain, heads=(0, HEADS - 1))


def _numbers(row: Row) -> str:
    torch.manual_seed(0)
    plain, kwargs, x = _small(row.arch, **_dropout(row.arch))
    model = _tree(row.arch, plain, **kwargs)
    vary(model)
    settle(model, x)
    check_partition(model, plain)
    check_logits(model, plain, x)
    del plain
    check_training(model, x, head=HEADS - 1)
    return 'x'.join(map(str, x.shape[2:]))


def _plain(arch: str, **kwargs: Any) -> Any:
    """Create a network of the architecture, with 10 classes if it has no classifier by default."""
    plain = timm.create_model(arch, **kwargs)
    return plain if getattr(plain, 'num_classes', 0) else timm.create_model(arch, num_classes=10, **kwargs)


def _tree(arch: str, plain: Any, **kwargs: Any) -> CollabModel:
    model: CollabModel = timm.create_model(f'collab_{arch}', heads=HEADS, num_classes=plain.num_classes, **kwargs)
    return model


def _run(plain: Any, size: tuple[int, ...]) -> Any:
    """Run a network on the meta device on two images."""
    with on_meta():
        return plain.eval()(blank_images(plain, 2, *size))


def _dropout(arch: str) -> dict[str, float]:
    """Return arguments that add dropout and drop path, as far as the architecture supports them."""
    for names in (('drop_rate', 'drop_path_rate'), ('drop_path_rate',), ('drop_rate',)):
        with suppress(TypeError), torch.device('meta'):
            kwargs = dict.fromkeys(names, .1)
            timm.create_model(arch, **kwargs)
            return kwargs
    return {}


def _small(arch: str, **kwargs: Any) -> tuple[Any, dict[str, Any], Tensor]:
    """Create a plain network that is fast to run: its arguments, and two images smaller than its default if possible.

    The network either accepts images of any size, or can be created for another size with `img_size`.
    """
    with torch.device('meta'):
        template = _plain(arch, **kwargs)
    channels, *default = default_input_size(template, {})
    fixed = template.pretrained_cfg.get('fixed_input_size')
    for size in (size for size in SMALL if size < max(default)):
        for extra in [{'img_size': size}] if fixed else [{}, {'img_size': size}]:
            x = torch.randn(2, channels, size, size)
            with suppress(Exception), torch.no_grad():  # any error of a size that it does not support
                with torch.device('meta'):
                    _run(_plain(arch, **kwargs, **extra), x.shape[1:])
                plain = _plain(arch, **kwargs, **extra)
                plain.eval()(x)
                return plain, {**kwargs, **extra}, x
    return _plain(arch, **kwargs), kwargs, torch.randn(2, channels, *default)


def _failure(error: Exception) -> str:
    return f'failed: {type(error).__name__}: {error}'.replace('\n', ' ')[:300]
