"""Batched transforms compared with timm's: equal pixels for equal draws, and equal distributions of the draws."""
from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torchvision import transforms
from torchvision.transforms import functional

from timm_collab.train.config import AugmentConfig, DataConfig
from timm_collab.train.data.augment.batched import BatchTransform, translate
from timm_collab.train.data.augment.crops import UnsupportedError
from timm_collab.train.data.augment.preprocess import Preprocessing, make_preprocessing
from timm_collab.train.data.random_streams import Draws, keyed_randomness

SIZE = 16
COUNT = 1200
BOUND = 5.5  # standard errors; of the 1,550 numbers compared one would be beyond it once in 17,000 times by chance


@pytest.fixture(scope='module')
def image() -> Image.Image:
    """Neither symmetric nor square, and different in every channel."""
    y, x = np.mgrid[0:20, 0:24]
    channels = 9 * x + 2 * y, 250 - 11 * y, 40 + 6 * ((x * y) % 31)
    return Image.fromarray(np.stack(channels, axis=2).clip(0, 255).astype(np.uint8))


def make(data: dict[str, Any] | None = None, **augment: Any) -> Preprocessing:
    model = timm.create_model('test_resnet', num_classes=2)
    data = {'path': 'here', 'img_size': SIZE, **(data or {})}
    return make_preprocessing(model, DataConfig(**data), AugmentConfig(**augment))


def once(transform: BatchTransform, image: Image.Image, copies: int) -> torch.Tensor:
    array = np.asarray(transform.once(image))
    return torch.from_numpy(array.copy()).permute(2, 0, 1).repeat(copies, 1, 1, 1)


def batched(pipeline: transforms.Compose, image: Image.Image, copies: int) -> torch.Tensor:
    transform = translate(pipeline)
    return transform(once(transform, image, copies), 0, [(0, index) for index in range(copies)])


def features(x: torch.Tensor) -> torch.Tensor:
    """Of each image all pixels, and what tells its scale, place and orientation."""
    x = x.double()
    down, across = (torch.linspace(-1, 1, side, dtype=torch.float64) for side in x.shape[2:])
    whole = (x, x * across, x * down[:, None], x.diff(dim=-1).abs(), x.diff(dim=-2).abs(), x == 0, x.abs())
    return torch.cat([x.flatten(1), *(each.double().mean(dim=(2, 3)) for each in whole)], dim=1)


def deviations(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Of the mean and mean square of each feature, how far apart they are in two samples, in standard errors."""
    scores = []
    a, b = features(a), features(b)
    for x, y in ((a, b), (a.square(), b.square())):
        error = (x.var(dim=0) / len(x) + y.var(dim=0) / len(y)).sqrt()
        scores.append((x.mean(dim=0) - y.mean(dim=0)).abs() / (error + 1e-9))
    return torch.stack(scores)


@pytest.fixture(scope='module')
def timms(image: Image.Image) -> Any:
    """Many draws of a pipeline of timm, one image after the other."""
    made: dict[str, torch.Tensor] = {}

    def draw(**keys: Any) -> torch.Tensor:
        if str(keys) not in made:
            pipeline = make(**keys).training
            with keyed_randomness(1):
                made[str(keys)] = torch.stack([pipeline(image) for _ in range(COUNT)])
        return made[str(keys)]

    return draw


@pytest.mark.parametrize('augment', [
    dict(), dict(scale=[0.3, 0.6], ratio=[0.5, 1.0], hflip=0.0, vflip=0.3), dict(crop='pad'), dict(crop='rkrc'),
    dict(crop='rkrr'), dict(crop='pad', color_jitter=0.4), dict(crop='pad', re_prob=0.5),
], ids=str)
def test_distributions_match_timm(image: Image.Image, timms: Any, augment: dict[str, Any]) -> None:
    ours = batched(make(**augment).training, image, 2 * COUNT)
    assert deviations(ours, timms(**augment)).max() < BOUND


@pytest.mark.parametrize('crop', ['rrc', 'rkrc', 'rkrr', 'pad'])
@pytest.mark.parametrize('img_size', [[12, 20], [20, 12]])
def test_distributions_match_timm_where_height_and_width_differ(
        image: Image.Image, timms: Any, crop: str, img_size: list[int]) -> None:
    keys: dict[str, Any] = dict(data=dict(img_size=img_size), crop=crop, vflip=0.2, re_prob=0.3)
    ours = batched(make(**keys).training, image, 2 * COUNT)
    assert list(ours.shape[2:]) == img_size and deviations(ours, timms(**keys)).max() < BOUND


@pytest.mark.parametrize(('right', 'wrong'), [
    (dict(), dict(scale=[0.2, 1.0])),
    (dict(), dict(ratio=[0.6, 4 / 3])),
    (dict(crop='pad'), dict(crop='pad', crop_padding=3)),
    (dict(crop='pad'), dict(crop='pad', hflip=0.35)),
    (dict(crop='rkrr'), dict(crop='rkrr', scale=[0.7, 1.0])),
    (dict(crop='pad', color_jitter=0.4), dict(crop='pad', color_jitter=0.3)),
    (dict(crop='pad', re_prob=0.5), dict(crop='pad', re_prob=0.3)),
], ids=str)
def test_comparison_detects_a_wrong_range(
        image: Image.Image, timms: Any, right: dict[str, Any], wrong: dict[str, Any],
) -> None:
    assert deviations(batched(make(**wrong).training, image, 2 * COUNT), timms(**right)).max() > BOUND


@pytest.mark.parametrize('interpolation', ['bilinear', 'bicubic', 'nearest'])
def test_resized_crop_matches_pillow(image: Image.Image, interpolation: str) -> None:
    transform = translate(make(dict(interpolation=interpolation), hflip=0.0).training)
    crop = transform.stages[0]
    draws = Draws(0, [(0, index) for index in range(200)])
    got = crop(once(transform, image, 200), draws)
    mode = transforms.InterpolationMode(interpolation)
    for each, *box in zip(got, *crop.boxes(draws, 20, 24), strict=True):  # type: ignore[attr-defined]
        expected = functional.resized_crop(image, *map(int, box), (SIZE, SIZE), mode)
        assert torch.equal(each, functional.pil_to_tensor(expected))


def test_fallback_is_the_centre_crop_of_timm(image: Image.Image) -> None:
    for ratio in ([6.0, 7.0], [0.1, 0.15]):
        preprocessing = make(scale=[1.0, 1.0], ratio=ratio, hflip=0.0)
        assert torch.equal(batched(preprocessing.training, image, 2)[1], preprocessing.training(image))


def test_result_does_not_depend_on_the_batch() -> None:
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (12, 3, 20, 24), dtype=np.uint8))
    keys = [(2, index) for index in range(12)]
    transform = translate(make(color_jitter=0.4, vflip=0.2, re_prob=0.5).training)
    together = transform(images, 5, keys)
    order = torch.randperm(12)
    assert torch.equal(transform(images[order], 5, [keys[index] for index in order]), together[order])
    for index in range(12):
        assert torch.equal(transform(images[index:index + 1], 5, keys[index:index + 1])[0], together[index])
    assert not torch.equal(transform(images, 5, [(3, index) for index in range(12)]), together)


def test_changing_one_transform_leaves_the_others_unchanged(image: Image.Image) -> None:
    plain = batched(make(crop='pad').training, image, 50)
    erased = batched(make(crop='pad', re_prob=0.5).training, image, 50)
    kept = erased != 0
    assert torch.equal(erased[kept], plain[kept]) and not kept.all()


@pytest.mark.parametrize('data', [dict(), dict(crop_pct=1.0), dict(in_chans=1)], ids=str)
def test_evaluation_matches_timm_bit_for_bit(image: Image.Image, data: dict[str, Any]) -> None:
    image = image.convert('L') if data.get('in_chans') == 1 else image
    for pipeline in (make(data).evaluation, make(data, no_aug=True).training):
        transform = translate(pipeline)
        array = np.array(transform.once(image), ndmin=3).reshape(SIZE, SIZE, -1)
        got = transform(torch.from_numpy(array).permute(2, 0, 1)[None], 0, [(0, 0)])
        assert torch.equal(got[0], pipeline(image))


@pytest.mark.parametrize(('pipeline', 'message'), [
    (lambda: make(auto_augment='rand-m9').training, 'RandAugment is applied image by image'),
    (lambda: transforms.Compose([transforms.Resize(SIZE), transforms.ToTensor()]), 'not normalised'),
    (lambda: timm.data.create_transform(SIZE, is_training=True, re_prob=0.5, re_mode='pixel'), 'erasing with noise'),
    (lambda: timm.data.create_transform(SIZE, is_training=True, interpolation='random'), 'interpolation'),
    (lambda: timm.data.create_transform(SIZE, is_training=True, color_jitter=(0.1,) * 4), 'hue jitter'),
])
def test_unsupported_transform_is_named(pipeline: Any, message: str) -> None:
    with pytest.raises(UnsupportedError, match=message):
        translate(pipeline())
