"""Images of any depth, decoded to eight bits or refused."""
from __future__ import annotations

import io

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from timm_collab.train.data.image_split import decode
from timm_collab.train.errors import TrainError

RAMP = np.arange(64).reshape(8, 8) * 4  # 0 to 252


def decoded(values: npt.NDArray[np.generic], kind: str = 'tiff') -> npt.NDArray[np.uint8]:
    file = io.BytesIO()
    Image.fromarray(values).save(file, kind)
    return np.asarray(decode(lambda: {'bytes': file.getvalue(), 'path': None}, 'L', lambda: 'the image', 16).image)


@pytest.mark.parametrize('kind', ['png', 'tiff'])
def test_sixteen_bit_images_keep_their_upper_eight_bits(kind: str) -> None:
    assert np.array_equal(decoded((RAMP * 256 + 255).astype(np.uint16), kind), RAMP)


@pytest.mark.parametrize('dtype', [np.int32, np.float32])
def test_thirty_two_bit_images_with_values_below_256(dtype: type[np.generic]) -> None:
    assert np.array_equal(decoded(RAMP.astype(dtype)), RAMP)


@pytest.mark.parametrize('values', [
    (RAMP * 256).astype(np.int32), (RAMP - 1).astype(np.int32), (RAMP / 252).astype(np.float32),
    (RAMP * 256).astype(np.float32), np.full((8, 8), np.nan, np.float32),
])
def test_thirty_two_bit_images_with_other_values_are_refused(values: npt.NDArray[np.generic]) -> None:
    """Clipped they'd be white, or black, without a word."""
    with pytest.raises(TrainError, match=r"the image can't be decoded .*are not integers from 0 to 255: store it"):
        decoded(values)


def test_missing_image() -> None:
    with pytest.raises(TrainError, match=r"the image can't be decoded \(ValueError: it is missing\)"):
        decode(lambda: None, 'L', lambda: 'the image', 16)
