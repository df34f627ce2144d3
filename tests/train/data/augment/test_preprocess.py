from __future__ import annotations

from itertools import chain

import numpy as np
import pytest
import timm
import timm.data
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from timm_collab.train.config import AugmentConfig, DataConfig
from timm_collab.train.data.augment.preprocess import make_preprocessing, posterize
from timm_collab.train.data.random_streams import keyed_randomness
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


@pytest.mark.parametrize('augment', [dict(crop='pad'), dict(no_aug=True), dict(no_aug=True, crop='pad')], ids=str)
def test_where_training_sees_whole_images_so_does_evaluation(model, augment):
    made = make(model, **augment)
    assert (made.data_config['crop_pct'], made.data_config['crop_mode']) == (1.0, 'squash') and made.notes == ()
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    untouched = (torch.from_numpy(pixels).permute(2, 0, 1) / 255 - 0.5) / 0.5
    assert torch.equal(made.evaluation(Image.fromarray(pixels)), untouched)


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 80), st.integers(1, 80), st.sampled_from([1, 7, 24, 32, 33, 65]), st.integers(1, 65))
def test_without_augmentation_training_and_evaluation_see_the_same(model, H, W, height, width):
    image = Image.fromarray(np.random.default_rng(H).integers(0, 256, (H, W, 3), dtype=np.uint8))
    no_aug = make(model, dict(img_size=[height, width]), no_aug=True)
    assert torch.equal(no_aug.training(image), no_aug.evaluation(image))
    # Of `crop: pad` the same without its random shift.
    padded = make(model, dict(img_size=[height, width]), crop='pad', crop_padding=0, hflip=0.0)
    assert torch.equal(padded.training(image), padded.evaluation(image))


@pytest.mark.parametrize('augment', [dict(crop='pad'), dict(no_aug=True)], ids=str)
def test_a_crop_pct_of_the_recipe_wins(model, augment):
    made = make(model, dict(crop_pct=0.875), **augment)
    assert (made.data_config['crop_pct'], made.data_config['crop_mode']) == (0.875, 'center')


@pytest.mark.parametrize(('data', 'augment', 'said'), [
    (dict(), dict(), 'shorter side of images to 33 pixels and cuts out the centre, 32x32 (data.crop_pct 0.95)'),
    (dict(crop_pct=0.875), dict(crop='pad'), 'to 36 pixels and cuts out the centre, 32x32 (data.crop_pct 0.875)'),
    (dict(img_size=[24, 160]), dict(), 'images to cover 25x168 pixels and cuts out the centre, 24x160 '),
    (dict(img_size=96), dict(), 'side of images to 101 pixels and cuts out the centre, 96x96 '),
    (dict(img_size=97), dict(), None),
    (dict(img_size=16), dict(), None),  # 16 / 0.95 rounds to 16
    (dict(crop_pct=1.0), dict(), None),
])
def test_a_crop_of_small_images_is_a_note(model, data, augment, said):
    notes = make(model, data, **augment).notes
    assert len(notes) == (said is not None)
    if said is not None:
        assert said in notes[0] and '\n' not in notes[0]
        assert notes[0].endswith("write --data.crop_pct 1 to show the network whole images of the input's shape")


def cut_off(made, width: int, height: int) -> float:
    """The fraction of an image on both sides of, above and below what timm's transform shows."""
    seen = 1.0
    for axis in 'x', 'y':
        ramp = np.linspace(0, 1, width if axis == 'x' else height, dtype=np.float32)
        pixels = np.broadcast_to(ramp if axis == 'x' else ramp[:, None], (height, width))
        image = Image.fromarray(np.ascontiguousarray(pixels))
        for step in made.evaluation.transforms[:2]:  # resize, cut out
            image = step(image)
        shown = np.asarray(image)
        line = shown[shown.shape[0] // 2] if axis == 'x' else shown[:, shown.shape[1] // 2]
        # Ramps run from the centre of the first to that of the last pixel.
        seen *= (line[-1] - line[0]) * (len(ramp) - 1) / len(ramp) * len(line) / (len(line) - 1)
    return float(1 - seen)


@pytest.mark.parametrize(('data', 'width', 'height', 'percent'), [
    (dict(), 400, 240, 44),
    (dict(), 40, 24, 44),
    (dict(crop_pct=1.0), 400, 240, 40),
    (dict(img_size=[24, 40], crop_pct=1.0), 320, 320, 40),
    (dict(img_size=[24, 40]), 320, 320, 46),
    (dict(img_size=[24, 40]), 32, 32, 46),
    (dict(img_size=[24, 40]), 200, 120, None),
    (dict(img_size=[40, 24]), 400, 240, 67),
    (dict(img_size=224, crop_pct=0.875), 500, 300, 54),
    (dict(img_size=224, crop_pct=0.875), 500, 410, None),
])
def test_what_images_of_another_shape_lose_is_a_note(model, data, width, height, percent):
    made = make(model, dict(interpolation='bilinear') | data)
    notes = made.shape_notes({(width, height): 7})
    assert len(notes) == (percent is not None)
    if percent is not None:
        assert f'cuts off {percent} % of ' in notes[0] and '\n' not in notes[0]
        assert 100 * cut_off(made, width, height) == pytest.approx(percent, abs=2.0)
    assert make(model, data | dict(crop_pct=None), crop='pad').shape_notes({(width, height): 7}) == ()


def test_the_loss_by_shape_is_the_mean_over_the_images(model):
    made = make(model, dict(crop_pct=1.0))
    assert made.shape_notes({(64, 32): 1, (32, 32): 3}) == made.shape_notes({}) == ()  # 12.5 %
    assert 'cuts off 38 % of ' in made.shape_notes({(64, 32): 3, (10, 10): 1})[0]


def test_height_and_width(model, image):
    made = make(model, dict(img_size=[24, 40]))
    assert made.data_config['input_size'] == (3, 24, 40)
    assert made.evaluation(image).shape == made.training(image).shape == (3, 24, 40)


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


@pytest.mark.parametrize('policy', ['rand-m9-mstd0.5-inc1', 'augmix-m9-w3', 'original', 'v0', '3a'])
def test_policies_posterize_to_black_where_no_bit_is_kept(model, image, policy):
    pipeline = make(model, auto_augment=policy).training
    ops = [op for step in pipeline.transforms
           for op in (*getattr(step, 'ops', ()), *chain.from_iterable(getattr(step, 'policy', ())))]
    assert ops and timm.data.auto_augment.posterize not in [op.aug_fn for op in ops]
    found = [op for op in ops if op.aug_fn is posterize]
    assert policy == '3a' or found  # which has none
    for op in found:
        assert np.asarray(op.aug_fn(image, 0)).max() == 0 and op.aug_fn(image, 0).size == image.size
        for bits in range(1, 9):
            expected = timm.data.auto_augment.posterize(image, bits)
            assert (np.asarray(op.aug_fn(image, bits)) == np.asarray(expected)).all()


def test_a_usual_policy_draws_no_bits_and_goes_on(model, image):
    pipeline = make(model, auto_augment='rand-m10-mstd0.5-inc1').training
    for seed in range(200):
        with keyed_randomness(seed):
            assert pipeline(image).shape == (3, 32, 32)
