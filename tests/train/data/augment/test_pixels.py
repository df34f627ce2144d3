from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance
from timm.data.random_erasing import RandomErasing
from torchvision import transforms

from timm_collab.train.data.augment.pixels import Erase, Jitter, adjust
from timm_collab.train.data.random_streams import Draws, Purpose

ENHANCE = {'brightness': ImageEnhance.Brightness, 'contrast': ImageEnhance.Contrast, 'saturation': ImageEnhance.Color}


@pytest.mark.parametrize('what', ENHANCE)
@pytest.mark.parametrize('mode', ['RGB', 'L'])
def test_jitter_matches_pillow_bit_for_bit(what: str, mode: str) -> None:
    rng = np.random.default_rng(0)
    arrays = rng.integers(0, 256, (40, 12, 14, 3) if mode == 'RGB' else (40, 12, 14, 1), dtype=np.uint8)
    factors = rng.uniform(0, 2, 40).astype(np.float32)
    x = torch.from_numpy(arrays).permute(0, 3, 1, 2).float()
    got = adjust(x, torch.from_numpy(factors), what).permute(0, 2, 3, 1).numpy()
    for array, factor, mine in zip(arrays, factors.tolist(), got, strict=True):
        image = Image.fromarray(array.squeeze())
        assert image.mode == mode
        assert np.array_equal(mine.squeeze(), np.asarray(ENHANCE[what](image).enhance(factor)))


def test_order_of_jitter_is_drawn_per_image() -> None:
    image = np.random.default_rng(0).integers(0, 256, (3, 8, 8), dtype=np.uint8)
    jitter = Jitter(transforms.ColorJitter(0.4, 0.4, 0.4))
    draws = Draws(0, [(0, index) for index in range(300)])
    got = jitter(torch.from_numpy(image).repeat(300, 1, 1, 1), draws)
    pillow = Image.fromarray(image.transpose(1, 2, 0))
    uniform = draws.uniform(Purpose.COLOR, 6)
    assert len({tuple(order) for order in np.argsort(uniform[:, 3:], axis=1)}) == 6
    for each, row in zip(got.permute(0, 2, 3, 1).numpy(), uniform, strict=True):
        expected = pillow
        for which in np.argsort(row[3:]):
            factor = float(np.float32(0.6 + 0.8 * row[which]))
            expected = list(ENHANCE.values())[which](expected).enhance(factor)
        assert np.array_equal(each, np.asarray(expected))


def test_erased_boxes_are_distributed_as_in_timm() -> None:
    count = 3000
    ours = Erase(RandomErasing(0.5, device='cpu'))
    erased = ours(torch.ones(count, 1, 32, 32), Draws(0, [(0, index) for index in range(count)])) == 0
    timms = RandomErasing(0.5, device='cpu')
    torch.manual_seed(0)
    expected = torch.stack([timms(torch.ones(1, 32, 32)) for _ in range(count)]) == 0
    for of_ours, of_timms in (
        ((each.any(dim=dim).squeeze(1).sum(dim=1).double() for each in (erased, expected))) for dim in (2, 3)
    ):
        assert abs((of_ours == 0).double().mean() - 0.5) < 5 * 0.5 / count**0.5
        grid = torch.linspace(0, 32, 33, dtype=torch.float64)
        below = [(each[:, None] <= grid).double().mean(dim=0) for each in (of_ours, of_timms)]
        assert (below[0] - below[1]).abs().max() < 2.2 * (2 / count)**0.5  # Kolmogorov and Smirnov, beyond 1 in 10,000
    for box in erased[erased.any(dim=(1, 2, 3))][:50, 0]:
        rows, columns = box.any(dim=1).sum(), box.any(dim=0).sum()
        assert box.sum() == rows * columns
