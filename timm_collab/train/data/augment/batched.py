"""timm's transforms for whole batches: steps without randomness run once per image, the others once per batch.

A pipeline of timm is translated step by step, with ranges and probabilities read from it, so timm alone defines what
the keys of a recipe mean. If a step has no batched form, the whole pipeline runs image by image.

Shapes: B batch, C channels, H and W height and width before, h and w after.
"""
from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from timm.data.random_erasing import RandomErasing
from timm.data.transforms import CenterCropOrPad, RandomResizedCropAndInterpolation, ResizeKeepRatio
from torch import Tensor
from torchvision import transforms

from ..random_streams import Draws, Key
from .crops import Flip, KeepRatioCrop, PaddedCrop, ResizedCrop, UnsupportedError
from .pixels import Erase, Jitter, Normalise

Stage = Callable[[Tensor, Draws], Tensor]

_SINGLE: dict[type, Callable[..., Stage]] = {
    transforms.RandomCrop: PaddedCrop,
    RandomResizedCropAndInterpolation: ResizedCrop,
    transforms.RandomHorizontalFlip: Flip,
    transforms.RandomVerticalFlip: Flip,
    transforms.ColorJitter: Jitter,
    transforms.Normalize: Normalise,
    RandomErasing: Erase,
}


@dataclass(frozen=True)
class BatchTransform:
    """A pipeline of timm, split in two.

    Args:
        once: First steps, without randomness, applied once to each image before it is stored.
        stages: Other steps, applied to each batch of stored images: uint8 [B, C, H, W] to float32 [B, C, h, w].
    """

    once: transforms.Compose
    stages: tuple[Stage, ...]

    def __call__(self, images_BCHW: Tensor, seed: int, keys: Sequence[Key]) -> Tensor:
        """Transform a batch into the input of a model.

        Args:
            images_BCHW: Stored images, uint8.
            seed: Seed of the run.
            keys: Keys of the images. Draws depend on seed and key alone.
        """
        draws = Draws(seed, keys)
        for stage in self.stages:
            images_BCHW = stage(images_BCHW, draws)
        return images_BCHW

    @property
    def resizes(self) -> bool:
        """Whether each batch is resized, which is slow on a CPU for large images."""
        return any(isinstance(stage, (ResizedCrop, KeepRatioCrop)) for stage in self.stages)


def translate(pipeline: transforms.Compose) -> BatchTransform:
    """Translate a pipeline for batches.

    Args:
        pipeline: Result of `timm.data.create_transform`, from images to normalised tensors.

    Raises:
        UnsupportedError: A step has no batched form.
    """
    steps = _flat(pipeline)
    start = next((index for index, step in enumerate(steps) if not _is_deterministic(step)), len(steps))
    once, rest = steps[:start], steps[start:]
    if not any(isinstance(step, transforms.Normalize) for step in rest):
        raise UnsupportedError('the images are not normalised')
    stages: list[Stage] = []
    position = 0
    while position < len(rest):
        step = rest[position]
        if isinstance(step, ResizeKeepRatio):
            position += 1
            stages.append(KeepRatioCrop(step, rest[position]))
        elif type(step) in _SINGLE:
            stages.append(_SINGLE[type(step)](step))
        elif not isinstance(step, transforms.ToTensor):  # part of `Normalise`
            raise UnsupportedError(f'{type(step).__name__} is applied image by image')
        position += 1
    return BatchTransform(transforms.Compose(once), tuple(stages))


def _flat(pipeline: transforms.Compose) -> list[Any]:
    steps: list[Any] = []
    for step in pipeline.transforms:
        steps += _flat(step) if isinstance(step, transforms.Compose) else [step]
    return steps


def _is_deterministic(step: object) -> bool:
    if isinstance(step, ResizeKeepRatio):
        return not step.random_scale_prob and not step.random_aspect_prob
    return isinstance(step, (transforms.Resize, transforms.CenterCrop, CenterCropOrPad))
