"""Pillow's resizing as matrix products, bit for bit, with different sizes for the images of a batch.

Pillow resizes one axis after the other; which axis comes first depends on its version. A pixel of the result is a
weighted sum of pixels of that axis, with fixed-point weights, rounded to 8 bits after each axis. All of this is exact
in float64 for any order of summation, so the result depends neither on the device nor on the rest of the batch.

Shapes: B batch, C channels, H and W height and width before, h and w after.
"""
from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import PIL
import torch
from torch import Tensor

from ..random_streams import Floats, Ints

_CHUNK = 2**17  # pixels, 1 MB of float64
_MAY_SWAP = int(PIL.__version__.split('.')[0]) >= 13
_FIXED_POINT = 2.0**22  # Pillow's PRECISION_BITS, 32 less 8 for the pixel and 2 against overflow


def _bilinear(x: Floats) -> Floats:
    return np.maximum(1 - np.abs(x), 0)


def _bicubic(x: Floats) -> Floats:
    a, x = -0.5, np.abs(x)
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * a
    return np.where(x < 1, near, np.where(x < 2, far, 0))


# Function and support of each filter.
_FILTERS: dict[str, tuple[Callable[[Floats], Floats], float]] = {
    'bilinear': (_bilinear, 1.0),
    'bicubic': (_bicubic, 2.0),
}
INTERPOLATIONS = ('nearest', *_FILTERS)


@functools.lru_cache(maxsize=1024)
def weights(source: int, target: int, interpolation: str) -> Floats:
    """Resampling weights of an axis, [target, source], read-only.

    Args:
        source: Number of pixels before.
        target: Number of pixels after.
        interpolation: One of `INTERPOLATIONS`; all but nearest are antialiased, as in Pillow.
    """
    scale = source / target
    if interpolation == 'nearest':
        # Pillow adds up the steps; a product rounds differently and would sometimes select another pixel.
        nearest_T = np.cumsum(np.r_[scale * 0.5, np.full(target - 1, scale)]).astype(int)
        weights_TS = np.eye(source)[np.minimum(nearest_T, source - 1)]
    else:
        centre_T = (np.arange(target) + 0.5) * scale
        function, support = _FILTERS[interpolation]
        filter_scale = max(scale, 1.0)
        first_T = np.maximum((centre_T - support * filter_scale + 0.5).astype(int), 0)[:, None]
        end_T = np.minimum((centre_T + support * filter_scale + 0.5).astype(int), source)[:, None]
        pixel_S = np.arange(source)
        weights_TS = function((pixel_S - centre_T[:, None] + 0.5) * (1 / filter_scale))
        weights_TS = np.where((first_T <= pixel_S) & (pixel_S < end_T), weights_TS, 0)
        weights_TS /= weights_TS.sum(axis=1, keepdims=True)
        weights_TS = np.trunc(weights_TS * _FIXED_POINT + np.copysign(0.5, weights_TS)) / _FIXED_POINT
    weights_TS.setflags(write=False)
    return weights_TS


def is_vertical_first(
        before: tuple[int | Ints, int | Ints],
        after: tuple[int | Ints, int | Ints],
) -> npt.NDArray[np.bool_]:
    """Whether Pillow resizes vertically first: from version 13 on, if the height shrinks by far more pixels.

    Args:
        before: Heights and widths before, [B] or one number for all.
        after: Heights and widths after, likewise.
    """
    fewer_rows, fewer_columns = (np.asarray(old - new) for old, new in zip(before, after, strict=True))
    return np.atleast_1d((fewer_rows > 0) & (fewer_rows > 2 * fewer_columns) & _MAY_SWAP)


def resample(
        images_BCHW: Tensor,
        rows_BhH: Tensor,
        columns_BwW: Tensor,
        vertical_first_B: npt.NDArray[np.bool_],
) -> Tensor:
    """Resize 8-bit images with weights per image.

    Args:
        images_BCHW: Images, uint8.
        rows_BhH: Vertical weights of each image, float64.
        columns_BwW: Horizontal weights of each image, float64.
        vertical_first_B: Which images to resize vertically first.

    Returns:
        uint8 [B, C, h, w].
    """
    if not vertical_first_B.any():
        return _horizontal_first(images_BCHW, rows_BhH, columns_BwW)
    turned_B = torch.from_numpy(vertical_first_B).to(images_BCHW.device)
    turned = _horizontal_first(images_BCHW[turned_B].transpose(2, 3), columns_BwW[turned_B], rows_BhH[turned_B])
    if turned_B.all():
        return turned.transpose(2, 3)
    result = images_BCHW.new_empty((*images_BCHW.shape[:2], rows_BhH.shape[1], columns_BwW.shape[1]))
    result[turned_B] = turned.transpose(2, 3)
    result[~turned_B] = _horizontal_first(images_BCHW[~turned_B], rows_BhH[~turned_B], columns_BwW[~turned_B])
    return result


def _horizontal_first(images_BCHW: Tensor, rows_BhH: Tensor, columns_BwW: Tensor) -> Tensor:
    # A CPU is faster with chunks that fit into its caches, a GPU with the whole batch.
    chunk = max(_CHUNK // images_BCHW[0].numel(), 1) if images_BCHW.device.type == 'cpu' else len(images_BCHW)
    parts = (each.split(chunk) for each in (images_BCHW, rows_BhH, columns_BwW))
    return torch.cat([_resample(*part) for part in zip(*parts, strict=True)])


def _resample(images_BCHW: Tensor, rows_BhH: Tensor, columns_BwW: Tensor) -> Tensor:
    B, C, H, W = images_BCHW.shape
    # `bmm` is fastest with the weights as first factor and the axis to resize as second dimension.
    x_BWCH = images_BCHW.permute(0, 3, 1, 2).to(torch.float64, memory_format=torch.contiguous_format)
    x_BwCH = _rounded(torch.bmm(columns_BwW, x_BWCH.view(B, W, C * H))).view(B, -1, C, H)
    x_BHCw = x_BwCH.permute(0, 3, 2, 1).reshape(B, H, -1)
    x_BhCw = _rounded(torch.bmm(rows_BhH, x_BHCw)).view(B, rows_BhH.shape[1], C, -1)
    return x_BhCw.transpose(1, 2).to(torch.uint8, memory_format=torch.contiguous_format)


def _rounded(x: Tensor) -> Tensor:
    return x.add_(0.5).floor_().clamp_(0, 255)
