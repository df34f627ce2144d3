"""Classes that occur unequally often, and their weights in the loss.

Array names end in their shape: N examples, C classes.
"""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...config import DataConfig
from ...errors import nearest, require
from ..random_streams import Floats
from .label_column import Labels


def class_counts(labels: Labels, num_classes: int) -> Floats:
    """Number of examples of each class [C]; labels [N, C] count for as much as they say."""
    if labels.ndim == 2:
        return labels.sum(axis=0, dtype=np.float64)
    return np.bincount(labels, minlength=num_classes).astype(np.float64)


def is_imbalanced(labels: Labels, num_classes: int) -> bool:
    """Whether the most frequent class has more than twice the examples of the rarest one that occurs."""
    count_C = class_counts(labels, num_classes)
    return bool(count_C.max() > 2 * count_C[count_C > 0].min())


def class_weights(
        config: DataConfig, labels: Labels | None, names: Sequence[str] | None, num_classes: int) -> Tensor | None:
    """The weights of the classes in the loss that `data.class_weights` asks for.

    Their mean over the training images of an epoch is 1, so that they change what is learned and not how fast. Where
    the number of images of each class is unknown, or `data.sampling` makes it equal, it is the mean over the classes.

    Args:
        config: The data keys of the recipe.
        labels: The labels to train on; None for a stream.
        names: Names of the classes, if they have any.
        num_classes: Number of classes, C.

    Returns:
        Weights [C], float32, 1 for a class without images where they follow from the number of images; None where the
        recipe asks for none.

    Raises:
        TrainError: The recipe names a class that the data doesn't have, or no training image has a weight.
    """
    asked = config.class_weights
    if asked is None:
        return None
    count_C = np.ones(num_classes)
    if labels is not None:
        count_C = class_counts(labels, num_classes)
    seen_C = count_C > 0
    weight_C = np.ones(num_classes)
    if isinstance(asked, Mapping):
        weight_C = _named(asked, names or [str(label) for label in range(num_classes)])
    else:
        beta = config.effective_beta
        # The effective number of examples (Cui et al. 2019, https://arxiv.org/abs/1901.05555), or their number.
        effective_C = count_C if beta is None else (1 - beta ** count_C) / (1 - beta)
        weight_C[seen_C] = 1 / effective_C[seen_C]
    drawn_C = seen_C.astype(np.float64) if config.sampling == 'balanced' else count_C
    total = (weight_C * drawn_C).sum()
    require(total > 0, 'data.class_weights: every training image has weight 0')
    weight_C *= drawn_C.sum() / total
    if not isinstance(asked, Mapping):
        weight_C[~seen_C] = 1.0
    return torch.from_numpy(weight_C).float()


def _named(asked: Mapping[Any, float], names: Sequence[str]) -> Floats:
    index = {name: label for label, name in enumerate(names)}
    weight_C = np.ones(len(names))
    for name, weight in asked.items():
        known = str(name)
        require(known in index, f"data.class_weights: there is no class '{known}', the {len(names)} classes are"
                                f' {", ".join(names[:8])}{", ..." if len(names) > 8 else ""}{nearest(known, names)}')
        weight_C[index[known]] = weight
    return weight_C


def absent_classes(config: DataConfig, labels: Labels, names: Sequence[str] | None, num_classes: int) -> str | None:
    """A note on classes without images, where the recipe wants to make up for rare ones; None if there are none."""
    if config.sampling != 'balanced' and not isinstance(config.class_weights, str):
        return None
    absent = np.flatnonzero(class_counts(labels, num_classes) == 0).tolist()
    if not absent:
        return None
    key = 'data.class_weights' if config.class_weights else 'data.sampling balanced'
    named = ', '.join(names[label] if names else str(label) for label in absent[:8])
    return (f"{len(absent)} of {num_classes} classes have no training image, which {key} can't make up for: {named}"
            f'{", ..." if len(absent) > 8 else ""}')
