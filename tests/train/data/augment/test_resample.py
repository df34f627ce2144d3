from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from timm_collab.train.data.augment import resample as module
from timm_collab.train.data.augment.resample import INTERPOLATIONS, is_vertical_first, resample, weights

side = st.integers(1, 70)


def stack(*matrices: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.stack(matrices))


@settings(deadline=None, max_examples=60)
@given(before=st.tuples(side, side), after=st.tuples(side, side), interpolation=st.sampled_from(INTERPOLATIONS))
def test_resizing_matches_pillow_bit_for_bit(
        before: tuple[int, int], after: tuple[int, int], interpolation: str,
) -> None:
    array = np.random.default_rng(sum(before)).integers(0, 256, (*before, 3), dtype=np.uint8)
    expected = Image.fromarray(array).resize(after[::-1], getattr(Image.Resampling, interpolation.upper()))
    rows, columns = (stack(weights(*axis, interpolation)) for axis in zip(before, after, strict=True))
    order_B = is_vertical_first(before, after)
    got = resample(torch.from_numpy(array).permute(2, 0, 1)[None], rows, columns, order_B)
    assert np.array_equal(got[0].permute(1, 2, 0).numpy(), np.asarray(expected))


@pytest.mark.parametrize('interpolation', ['bilinear', 'bicubic'])
def test_result_does_not_depend_on_the_batch(interpolation: str) -> None:
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (17, 3, 24, 31), dtype=np.uint8))
    rows = stack(*[np.pad(weights(8 + each, 20, interpolation), ((0, 0), (0, 16 - each))) for each in range(17)])
    columns = stack(*[weights(31, 33, interpolation)] * 17)
    order_B = np.arange(17) % 3 == 0
    together = resample(images, rows, columns, order_B)
    for each in range(17):
        one = slice(each, each + 1)
        assert torch.equal(resample(images[one], rows[one], columns[one], order_B[one])[0], together[each])
    assert not torch.equal(together, resample(images, rows, columns, ~order_B))


def test_newer_pillow_may_resize_vertically_first(monkeypatch) -> None:
    monkeypatch.setattr(module, '_MAY_SWAP', True)
    heights, widths = np.array([40, 40, 40, 16, 8]), np.array([20, 30, 22, 20, 20])
    assert is_vertical_first((heights, widths), (16, 20)).tolist() == [True, True, True, False, False]
    assert is_vertical_first((17, 10), (10, 6)).tolist() == [False] and is_vertical_first((7, 7), (2, 6)).all()
    monkeypatch.setattr(module, '_MAY_SWAP', False)
    assert not is_vertical_first((heights, widths), (16, 20)).any()


def test_weights_sum_to_one_and_are_read_only() -> None:
    made = weights(32, 20, 'bicubic')
    assert np.abs(made.sum(axis=1) - 1).max() < 1e-5 and made.min() < 0
    with pytest.raises(ValueError, match='read-only'):
        made[0, 0] = 1
