from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data.transforms import CenterCropOrPad, RandomCropOrPad, RandomResizedCropAndInterpolation, ResizeKeepRatio
from torchvision import transforms

from timm_collab.train.data.augment.crops import Flip, KeepRatioCrop, PaddedCrop, ResizedCrop, UnsupportedError
from timm_collab.train.data.random_streams import Draws, Purpose

COUNT = 4000
DRAWS = Draws(0, [(0, index) for index in range(COUNT)])


def assert_same_distribution(a: Any, b: Any) -> None:
    """Two samples of integers, by the greatest distance of their distribution functions (Kolmogorov and Smirnov)."""
    a, b = np.asarray(a), np.asarray(b)
    grid = np.arange(min(a.min(), b.min()), max(a.max(), b.max()) + 1)
    below = [(each[:, None] <= grid).mean(axis=0) for each in (a, b)]
    assert np.abs(below[0] - below[1]).max() < 2.2 * np.sqrt(1 / len(a) + 1 / len(b))  # 1 in 10,000 by chance


@pytest.mark.parametrize(('scale', 'ratio'), [((0.08, 1.0), (3 / 4, 4 / 3)), ((0.6, 1.0), (0.9, 2.0))])
def test_boxes_are_distributed_as_in_timm(scale: tuple[float, float], ratio: tuple[float, float]) -> None:
    crop = RandomResizedCropAndInterpolation(16, scale, ratio)
    image = Image.new('L', (28, 20))
    random.seed(0)
    timms = np.array([crop.get_params(image, scale, ratio) for _ in range(COUNT)])
    for ours, expected in zip(ResizedCrop(crop).boxes(DRAWS, 20, 28), timms.T, strict=True):
        assert_same_distribution(ours, expected)


def test_padded_crop_reaches_every_offset_uniformly() -> None:
    image = torch.zeros(1, 8, 8, dtype=torch.uint8)
    image[0, 4, 4] = 255
    moved = PaddedCrop(transforms.RandomCrop(8, padding=2))(image.repeat(COUNT, 1, 1, 1), DRAWS)
    where = moved.flatten(1).argmax(dim=1)
    counts = np.bincount(where, minlength=64).reshape(8, 8)
    assert counts[2:7, 2:7].sum() == COUNT
    expected = COUNT / 25
    assert ((counts[2:7, 2:7] - expected)**2 / expected).sum() < 24 + 5 * np.sqrt(48)


@pytest.mark.parametrize(('kind', 'dim'), [(transforms.RandomHorizontalFlip, 2), (transforms.RandomVerticalFlip, 1)])
def test_flips(kind: type, dim: int) -> None:
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (COUNT, 1, 3, 4), dtype=np.uint8))
    flipped = Flip(kind(p=0.3))(images, DRAWS)
    turned = torch.tensor([torch.equal(a, b.flip(dim)) for a, b in zip(flipped, images, strict=True)])
    same = torch.tensor([torch.equal(a, b) for a, b in zip(flipped, images, strict=True)])
    assert bool((turned ^ same).all())
    assert abs(turned.double().mean() - 0.3) < 5 * np.sqrt(0.3 * 0.7 / COUNT)


@pytest.mark.parametrize('crop', [CenterCropOrPad, RandomCropOrPad])
def test_crop_that_keeps_the_ratio_matches_timm(crop: type, monkeypatch: pytest.MonkeyPatch) -> None:
    resize = ResizeKeepRatio(16, random_scale_prob=0.5, random_scale_range=(0.6, 1.3), random_scale_area=True,
                             random_aspect_prob=0.5, random_aspect_range=(0.8, 1.25))
    ours = KeepRatioCrop(resize, crop(16, padding_mode='reflect'))
    array = np.random.default_rng(0).integers(0, 256, (20, 24, 3), dtype=np.uint8)
    got = ours(torch.from_numpy(array).permute(2, 0, 1).repeat(COUNT, 1, 1, 1), DRAWS)

    uniform = DRAWS.uniform(Purpose.CROP, 6)
    sizes = ours._resized(uniform[:, :4], 20, 24)
    random.seed(0)
    timms = np.array([
        resize.get_params(Image.new('L', (24, 20)), (16, 16), 0.0, 0.5, (0.6, 1.3), True, 0.5, (0.8, 1.25))
        for _ in range(COUNT)
    ])
    for axis in range(2):
        assert_same_distribution(sizes[:, axis], timms[:, axis])
    # The rest is the same for the same size and the same share of the way to the last offset.
    place = crop(16, padding_mode='reflect')
    for index in range(60):
        share = iter(uniform[index, 4:])
        monkeypatch.setattr(random, 'randint', lambda low, high, share=share: int(next(share) * (high - low + 1)) + low)
        resized = transforms.functional.resize(Image.fromarray(array), sizes[index].tolist())
        assert np.array_equal(got[index].permute(1, 2, 0), np.asarray(place(resized)))


def test_other_ways_to_pad_are_unsupported() -> None:
    with pytest.raises(UnsupportedError, match='pads in a way without a batched form'):
        PaddedCrop(transforms.RandomCrop(8, padding=2, padding_mode='reflect'))
    with pytest.raises(UnsupportedError, match='pad in a way without a batched form'):
        KeepRatioCrop(ResizeKeepRatio(16), CenterCropOrPad(16))
