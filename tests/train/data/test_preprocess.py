from __future__ import annotations

import pytest
import timm
import timm.data
import torch
from PIL import Image

from timm_collab.train.config import AugmentConfig, DataConfig
from timm_collab.train.data.preprocess import make_preprocessing
from timm_collab.train.errors import TrainError


@pytest.fixture(scope='module')
def model():
    return timm.create_model('test_resnet', num_classes=2)


@pytest.fixture
def image() -> Image.Image:
    return Image.linear_gradient('L').convert('RGB')


def make(model, data=None, **augment):
    keys = {'path': 'here', 'img_size': 32, **(data or {})}
    return make_preprocessing(model, DataConfig(**keys), AugmentConfig(**augment))


def test_recipe_overrides_the_settings_of_the_architecture(model):
    recommended = make(model, dict(img_size=None)).data_config
    assert recommended['input_size'] == (3, 160, 160) and recommended['crop_pct'] == 0.95
    asked = make(model, dict(mean=[0.1, 0.2, 0.3], std=[0.4], crop_pct=1.0, interpolation='nearest')).data_config
    assert asked['input_size'] == (3, 32, 32) and asked['crop_pct'] == 1.0 and asked['interpolation'] == 'nearest'
    assert asked['mean'] == (0.1, 0.2, 0.3) and asked['std'] == (0.4, 0.4, 0.4)


def test_grey_input(model):
    made = make(model, dict(in_chans=1))
    assert made.data_config['input_size'] == (1, 32, 32) and made.data_config['mean'] == (0.5,)
    assert made.evaluation(Image.linear_gradient('L')).shape == (1, 32, 32)


def test_evaluation_matches_timm_with_the_saved_config(model, image):
    made = make(model)
    model = timm.create_model('test_resnet', num_classes=2, pretrained_cfg_overlay=dict(input_size=(3, 32, 32)))
    expected = timm.data.create_transform(**timm.data.resolve_data_config({}, model=model))
    assert torch.equal(made.evaluation(image), expected(image))


def test_no_aug_is_deterministic(model, image):
    made = make(model, no_aug=True)
    assert torch.equal(made.training(image), made.training(image))


@pytest.mark.parametrize('augment', [
    dict(), dict(crop='rkrc'), dict(crop='rkrr', scale=[0.8, 1.0]), dict(crop='pad'), dict(color_jitter=0.4),
    dict(auto_augment='rand-m9-mstd0.5-inc1'), dict(re_prob=0.5), dict(vflip=0.5, hflip=0.0),
], ids=str)
def test_augmentations_are_random_and_keep_the_shape(model, image, augment):
    made = make(model, **augment)
    tensors = [made.training(image) for _ in range(8)]
    assert all(tensor.shape == (3, 32, 32) for tensor in tensors)
    assert any(not torch.equal(tensors[0], tensor) for tensor in tensors[1:])


def test_pad_crop_only_shifts_the_image(model):
    made = make(model, dict(mean=[0.0], std=[1.0]), crop='pad', crop_padding=4, hflip=0.0)
    image = Image.new('RGB', (32, 32))
    image.putpixel((16, 16), (255, 255, 255))
    for _ in range(20):
        _, rows, columns = made.training(image).nonzero(as_tuple=True)
        # One pixel in each of three channels, moved by up to the padding: no resizing, no smoothing.
        assert len(rows) == 3
        assert set(rows.tolist()) | set(columns.tolist()) <= set(range(12, 21))


def test_unknown_policy(model):
    with pytest.raises(TrainError, match='create_transform refuses'):
        make(model, auto_augment='rand-q9')
