"""Random crops and flips of timm's training transforms, for a whole batch of images of one size.

Each is built from the transform that it replaces, and draws from the same distributions.

Shapes: B batch, C channels, H and W height and width before, h and w after, A attempts.
"""
from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from timm.data.transforms import CenterCropOrPad, RandomCropOrPad, RandomResizedCropAndInterpolation, ResizeKeepRatio
from torch import Tensor
from torchvision import transforms
from torchvision.transforms import InterpolationMode

from ..random_streams import Draws, Floats, Ints, Purpose, between
from ..transfer import to_device
from .resample import INTERPOLATIONS, is_vertical_first, resample, weights

_ATTEMPTS = 10  # as in timm and torchvision
Boxes = tuple[Ints, Ints, Ints, Ints]


class UnsupportedError(Exception):
    """A transform has no batched form; the message says why."""


def interpolation_name(mode: object) -> str:
    """Name of an interpolation that `resample` supports."""
    name = mode.value if isinstance(mode, InterpolationMode) else str(mode)
    if name not in INTERPOLATIONS:
        raise UnsupportedError(f"interpolation '{name}' is applied image by image")
    return name


class Flip:
    """`RandomHorizontalFlip` or `RandomVerticalFlip`."""

    def __init__(self, flip: transforms.RandomHorizontalFlip | transforms.RandomVerticalFlip) -> None:
        horizontal = isinstance(flip, transforms.RandomHorizontalFlip)
        self.p = flip.p
        self.dim = -1 if horizontal else -2
        self.purpose = Purpose.HFLIP if horizontal else Purpose.VFLIP

    def __call__(self, images_BCHW: Tensor, draws: Draws) -> Tensor:
        """Flip a random subset of the images."""
        flipped_B111 = to_device(draws.uniform(self.purpose, 1) < self.p, images_BCHW.device)[..., None, None]
        return torch.where(flipped_B111, images_BCHW.flip(self.dim), images_BCHW)


class PaddedCrop:
    """`RandomCrop`: pad with black pixels on each side, then crop at a random position."""

    def __init__(self, crop: transforms.RandomCrop) -> None:
        if crop.padding_mode != 'constant' or crop.fill != 0 or not isinstance(crop.padding, int):
            raise UnsupportedError(f'{crop} pads in a way without a batched form')
        self.padding = crop.padding
        self.size = tuple(crop.size)

    def __call__(self, images_BCHW: Tensor, draws: Draws) -> Tensor:
        """Crop the images."""
        padded = F.pad(images_BCHW, (self.padding,) * 4)
        windows = padded.unfold(2, self.size[0], 1).unfold(3, self.size[1], 1)  # [B, C, offsets, offsets, h, w]
        uniform = draws.uniform(Purpose.CROP, 2)
        top_B, left_B = (
            to_device(between(uniform[:, axis], 0, windows.shape[2 + axis] - 1), windows.device)
            for axis in range(2)
        )
        return windows[torch.arange(len(windows), device=windows.device), :, top_B, left_B]


class ResizedCrop:
    """`RandomResizedCropAndInterpolation`: a crop of random area and aspect ratio, resized."""

    def __init__(self, crop: RandomResizedCropAndInterpolation) -> None:
        self.size = tuple(crop.size)
        self.scale = tuple(crop.scale)
        self.ratio = tuple(crop.ratio)
        self.interpolation = interpolation_name(crop.interpolation)

    def __call__(self, images_BCHW: Tensor, draws: Draws) -> Tensor:
        """Crop and resize the images."""
        top_B, left_B, height_B, width_B = self.boxes(draws, *images_BCHW.shape[2:])
        rows, columns = (
            to_device(self._axis(*axis), images_BCHW.device)
            for axis in ((top_B, height_B, images_BCHW.shape[2], self.size[0]),
                         (left_B, width_B, images_BCHW.shape[3], self.size[1]))
        )
        return resample(images_BCHW, rows, columns, is_vertical_first((height_B, width_B), self.size))

    def boxes(self, draws: Draws, H: int, W: int) -> Boxes:
        """Top, left, height and width of each crop: the first of ten attempts that fits, or else the centre."""
        uniform = draws.uniform(Purpose.CROP, 4 * _ATTEMPTS)
        area_BA, shape_BA, top_BA, left_BA = uniform.reshape(-1, 4, _ATTEMPTS).swapaxes(0, 1)
        area_BA = _scaled(area_BA, *self.scale) * H * W
        shape_BA = np.exp(_scaled(shape_BA, math.log(self.ratio[0]), math.log(self.ratio[1])))
        width_BA = np.rint(np.sqrt(area_BA * shape_BA)).astype(np.int64)
        height_BA = np.rint(np.sqrt(area_BA / shape_BA)).astype(np.int64)
        fits_BA = (width_BA <= W) & (height_BA <= H)
        boxes = between(top_BA, 0, H - height_BA), between(left_BA, 0, W - width_BA), height_BA, width_BA
        row, attempt_B = np.arange(len(fits_BA)), fits_BA.argmax(axis=1)
        top, left, height, width = (
            np.where(fits_BA.any(axis=1), of_BA[row, attempt_B], otherwise)
            for of_BA, otherwise in zip(boxes, self._centre(H, W), strict=True)
        )
        return top, left, height, width

    def _centre(self, H: int, W: int) -> tuple[int, int, int, int]:
        height, width = H, W
        shape = W / H
        if shape < min(self.ratio):
            height = round(W / min(self.ratio))
        elif shape > max(self.ratio):
            width = round(H * max(self.ratio))
        return (H - height) // 2, (W - width) // 2, height, width

    def _axis(self, start_B: Ints, length_B: Ints, source: int, target: int) -> Floats:
        result = np.zeros((len(start_B), target, source))
        for each, start, length in zip(result, start_B.tolist(), length_B.tolist(), strict=True):
            each[:, start:start + length] = weights(length, target, self.interpolation)
        return result


class KeepRatioCrop:
    """`ResizeKeepRatio`, then `CenterCropOrPad` or `RandomCropOrPad`: resize by a random factor, then crop or pad."""

    def __init__(self, resize: ResizeKeepRatio, crop: CenterCropOrPad | RandomCropOrPad) -> None:
        if crop.padding_mode != 'reflect' or not resize.random_scale_area:
            raise UnsupportedError(f'{resize} and {crop} resize and pad in a way without a batched form')
        self.resize = resize
        self.size = tuple(crop.size)
        self.is_centred = isinstance(crop, CenterCropOrPad)
        self.interpolation = interpolation_name(resize.interpolation)

    def __call__(self, images_BCHW: Tensor, draws: Draws) -> Tensor:
        """Resize and crop the images."""
        uniform = draws.uniform(Purpose.CROP, 6)
        sides_B2 = self._resized(uniform[:, :4], images_BCHW.shape[2], images_BCHW.shape[3])
        rows, columns = (
            to_device(np.stack([
                weights(source, side, self.interpolation)[self._indices(side, target, offset)]
                for side, offset in zip(sides_B2[:, axis].tolist(), uniform[:, 4 + axis].tolist(), strict=True)
            ]), images_BCHW.device)
            for axis, (source, target) in enumerate(zip(images_BCHW.shape[2:], self.size, strict=True))
        )
        order_B = is_vertical_first((images_BCHW.shape[2], images_BCHW.shape[3]), (sides_B2[:, 0], sides_B2[:, 1]))
        return resample(images_BCHW, rows, columns, order_B)

    def _resized(self, uniform_B4: Floats, H: int, W: int) -> Ints:
        """Height and width to resize each image to, [B, 2]."""
        resize = self.resize
        side = H / resize.size[0], W / resize.size[1]
        ratio = max(side) * resize.longest + min(side) * (1 - resize.longest)
        scaled_B, area_B, warped_B, warp_B = uniform_B4.T
        factor_B = np.where(scaled_B < resize.random_scale_prob,
                            1 / np.sqrt(_scaled(area_B, *resize.random_scale_range)), 1)
        low, high = (math.log(end) for end in resize.random_aspect_range)
        warp_B = np.where(warped_B < resize.random_aspect_prob, np.sqrt(np.exp(_scaled(warp_B, low, high))), 1)
        return np.rint(np.stack([H * factor_B / warp_B, W * factor_B * warp_B], axis=1) / ratio).astype(np.int64)

    def _indices(self, side: int, target: int, uniform: float) -> Ints:
        """Indices into a resized axis that make up the result; reflected beyond its ends."""
        spare = side - target
        # Pixels before the first pixel of the result; negative if padding is needed.
        if self.is_centred:
            start = round(spare / 2) if spare > 0 else -(-spare // 2)
        else:
            start = int(math.copysign(between(np.float64(uniform), 0, abs(spare)), spare))
        kept = np.arange(max(start, 0), min(start + target, side))
        if spare >= 0:
            return kept
        return np.pad(np.arange(side), (-start, target - side + start), mode='reflect')


def _scaled(uniform: Floats, low: float, high: float) -> Floats:
    return low + (high - low) * uniform
