"""Numbers of images: of each split, of each class in it, and of what was left out.

`timm-collab inspect` prints them, so does a run when it starts, and `summary.json` holds them.

Array names end in their shape: N examples, C classes. `labels` are class indices [N], zeros and ones [N, C], or
probabilities [N, C].
"""
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from .decoding.image_split import ImageSplit
from .labels.label_column import Labels, hard_labels, padded
from .loading.streaming import StreamSplit
from .splits import Splits

ROLES = ('train', 'val', 'test')
UNREADABLE = "can't be decoded"
"""Reason for images that are left out with `data.on_bad_image: skip`."""


@dataclass(frozen=True)
class SplitCounts:
    """The images of a split.

    Args:
        name: Name of the split.
        images: Number of images.
        per_class: Number of images of each class by its name; None for a stream, whose labels are unknown.
    """

    name: str
    images: int
    per_class: dict[str, int] | None

    @property
    def extremes(self) -> tuple[str, str] | None:
        """The smallest and the largest class; None where counts are unknown. Of equals, the first."""
        if not self.per_class:
            return None
        return min(self.per_class, key=self.per_class.__getitem__), max(self.per_class, key=self.per_class.__getitem__)

    def to_dict(self) -> dict[str, Any]:
        """The counts as in JSON."""
        return {'name': self.name, 'images': self.images, 'per_class': self.per_class}


def class_names(names: list[str] | None, num_classes: int) -> list[str]:
    """Names of the classes in order; those without a name are called by their number."""
    return [str(number) for number in range(num_classes)] if names is None else list(names)


def per_class(labels: Labels, num_classes: int) -> npt.NDArray[np.int64]:
    """Number of images of each class [C]: several labels count for each of them, probabilities for the largest."""
    labels = hard_labels(labels)
    if labels.ndim == 1:
        return np.bincount(labels, minlength=num_classes)
    return padded(labels, num_classes).sum(axis=0, dtype=np.int64)


def count_labels(name: str, labels: Labels, classes: list[str]) -> SplitCounts:
    """Count the images of a split with this name and these labels, for the names of all classes in order."""
    count_C = per_class(labels, len(classes))
    return SplitCounts(name, len(labels), dict(zip(classes, count_C.tolist(), strict=True)))


def count_splits(splits: Splits) -> dict[str, SplitCounts]:
    """Count the images of a run by the role of their split, `train`, `val` or `test`; noise doesn't count."""
    classes = class_names(splits.label_names, splits.num_classes)
    found = {}
    for role in ROLES:
        split: ImageSplit | StreamSplit | None = getattr(splits, role)
        if isinstance(split, StreamSplit):
            found[role] = SplitCounts(split.name, len(split), None)
        elif split is not None:
            before_noise = {'train': splits.clean, 'val': splits.val_clean}.get(role)
            labels = split.labels if before_noise is None else before_noise
            found[role] = count_labels(split.name, labels, classes)
    return found


def all_left_out(left_out: Mapping[str, int], num_unreadable: int) -> dict[str, int]:
    """Numbers of what is in no split by reason, images that can't be decoded among them; the largest first."""
    found = {**left_out, **({UNREADABLE: num_unreadable} if num_unreadable else {})}
    return dict(sorted(found.items(), key=lambda item: -item[1]))
