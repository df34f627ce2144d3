"""Pixel-value transforms of timm's training pipeline for a whole batch: jitter, normalisation, erasing.

Shapes: B batch, C channels, H and W height and width, A attempts.
"""
from __future__ import annotations

import numpy as np
import torch
from timm.data.random_erasing import RandomErasing
from torch import Tensor
from torchvision import transforms

from ..random_streams import Draws, Purpose, between
from ..transfer import to_device
from .crops import UnsupportedError

_ATTEMPTS = 10
_JITTERS = ('brightness', 'contrast', 'saturation')


class Jitter:
    """`ColorJitter` without hue, on uint8 images, with the arithmetic of Pillow."""

    def __init__(self, jitter: transforms.ColorJitter) -> None:
        if jitter.hue is not None:
            raise UnsupportedError('hue jitter is applied image by image')
        self.ranges = [getattr(jitter, name) for name in _JITTERS]

    def __call__(self, images_BCHW: Tensor, draws: Draws) -> Tensor:
        """Change brightness, contrast and saturation, in a random order per image."""
        uniform = draws.uniform(Purpose.COLOR, 2 * len(_JITTERS))
        order_BJ = np.argsort(uniform[:, len(_JITTERS):], axis=1)
        x = images_BCHW.float()
        for step in range(len(_JITTERS)):
            for which, limits in enumerate(self.ranges):
                row = np.flatnonzero(order_BJ[:, step] == which)
                if limits is None or not row.size:
                    continue
                factor_M = limits[0] + (limits[1] - limits[0]) * uniform[row, which]
                row_M = to_device(row, x.device)
                x[row_M] = adjust(x[row_M], to_device(factor_M.astype(np.float32), x.device), _JITTERS[which])
        return x.to(torch.uint8)


def adjust(x_BCHW: Tensor, factor_B: Tensor, what: str) -> Tensor:
    """Pillow's `ImageEnhance`: blend an image with black, its mean grey or its grey version.

    Args:
        x_BCHW: Images with integer values from 0 to 255, as floating point.
        factor_B: Weight of the image in the blend: 1 leaves it unchanged.
        what: `brightness`, `contrast` or `saturation`.
    """
    if what == 'brightness':
        other = torch.zeros_like(x_BCHW[:, :1])
    else:
        other = _grey(x_BCHW)
        if what == 'contrast':
            other = (other.mean(dim=(1, 2, 3), keepdim=True, dtype=torch.float64) + 0.5).floor().to(x_BCHW.dtype)
    return (other + factor_B[:, None, None, None] * (x_BCHW - other)).clamp_(0, 255).floor_()


def _grey(x_BCHW: Tensor) -> Tensor:
    if x_BCHW.shape[1] == 1:
        return x_BCHW
    red, green, blue = x_BCHW.unbind(dim=1)
    # Pillow's fixed-point weights of ITU-R 601; the sum stays below 2**24, where float32 is exact
    return ((red * 19595 + green * 38470 + blue * 7471 + 32768) / 65536).floor_().unsqueeze(1)


class Normalise:
    """`ToTensor` and `Normalize`: the same operations in the same order, with bitwise equal results."""

    def __init__(self, normalize: transforms.Normalize) -> None:
        self.mean_C11, self.std_C11 = (
            torch.as_tensor(values, dtype=torch.float32).view(-1, 1, 1) for values in (normalize.mean, normalize.std)
        )

    def __call__(self, images_BCHW: Tensor, draws: Draws) -> Tensor:
        """Convert integers from 0 to 255 to normalised float32."""
        x = images_BCHW.to(torch.float32, memory_format=torch.contiguous_format).div_(255)
        if self.mean_C11.device != x.device:  # only once, because a copy per batch would wait for the device
            self.mean_C11, self.std_C11 = self.mean_C11.to(x.device), self.std_C11.to(x.device)
        return x.sub_(self.mean_C11).div_(self.std_C11)


class Erase:
    """`RandomErasing` with zeros, on normalised images."""

    def __init__(self, erasing: RandomErasing) -> None:
        if erasing.rand_color or erasing.per_pixel or erasing.max_count != 1:
            raise UnsupportedError('random erasing with noise or several boxes is applied image by image')
        self.probability = erasing.probability
        self.area = erasing.min_area, erasing.max_area
        self.log_ratio = erasing.log_aspect_ratio

    def __call__(self, images_BCHW: Tensor, draws: Draws) -> Tensor:
        """Erase a box in a random subset of the images: the first of ten attempts that fits."""
        H, W = images_BCHW.shape[2:]
        uniform = draws.uniform(Purpose.ERASE, 1 + 4 * _ATTEMPTS)
        area_BA, shape_BA, top_BA, left_BA = uniform[:, 1:].reshape(-1, 4, _ATTEMPTS).swapaxes(0, 1)
        area_BA = (self.area[0] + (self.area[1] - self.area[0]) * area_BA) * H * W
        shape_BA = np.exp(self.log_ratio[0] + (self.log_ratio[1] - self.log_ratio[0]) * shape_BA)
        height_BA = np.rint(np.sqrt(area_BA * shape_BA)).astype(np.int64)
        width_BA = np.rint(np.sqrt(area_BA / shape_BA)).astype(np.int64)
        fits_BA = (width_BA < W) & (height_BA < H)
        chosen_B = fits_BA.argmax(axis=1)
        erased_B = fits_BA.any(axis=1) & (uniform[:, 0] <= self.probability)
        inside = []
        for position_BA, length_BA, size in ((top_BA, height_BA, H), (left_BA, width_BA, W)):
            start_BA = between(position_BA, 0, size - length_BA)
            start_B1, length_B1 = (np.take_along_axis(each, chosen_B[:, None], 1) for each in (start_BA, length_BA))
            pixel = np.arange(size)
            inside.append((pixel >= start_B1) & (pixel < start_B1 + length_B1) & erased_B[:, None])
        rows_BH, columns_BW = (to_device(each, images_BCHW.device) for each in inside)
        return images_BCHW.masked_fill_((rows_BH[:, :, None] & columns_BW[:, None, :]).unsqueeze(1), 0)
