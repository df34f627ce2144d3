from __future__ import annotations

import random

import numpy as np
import pytest
import timm
import torch
from accelerate import Accelerator

from timm_collab.train.config import AugmentConfig, DataConfig
from timm_collab.train.data.images import (
    CachedImages,
    EpochSampler,
    TransformedImages,
    evaluation_loader,
    keyed_randomness,
    make_dataset,
    training_loader,
)
from timm_collab.train.data.preprocess import make_preprocessing
from timm_collab.train.data.sources import load_source
from timm_collab.train.errors import TrainError


@pytest.fixture
def source(image_folder):
    return load_source(DataConfig(path=str(image_folder(train=12, test=3))))


@pytest.fixture
def preprocess():
    model = timm.create_model('test_resnet', num_classes=2)

    def make(**augment):
        return make_preprocessing(model, DataConfig(path='here', img_size=16), AugmentConfig(**augment))

    return make


def epochs(dataset, workers, count=2):
    loader, sampler = training_loader(dataset, batch_size=5, workers=workers, seed=3)
    seen = []
    for epoch in range(count):
        sampler.epoch = epoch
        seen.append([torch.cat(parts) for parts in zip(*loader, strict=True)])
    return seen


@pytest.mark.parametrize('cache_mb', [0, 100])
def test_augmentation_does_not_depend_on_workers_or_cache(source, preprocess, cache_mb):
    random_crops = preprocess(color_jitter=0.4, auto_augment='rand-m9-mstd0.5-inc1', re_prob=0.5)
    reference = epochs(make_dataset(source.train, random_crops, True, seed=3, cache_mb=100), workers=0)
    got = epochs(make_dataset(source.train, random_crops, True, seed=3, cache_mb=cache_mb), workers=2)
    for (images, labels), (expected_images, expected_labels) in zip(got, reference, strict=True):
        assert torch.equal(images, expected_images) and torch.equal(labels, expected_labels)
    assert not torch.equal(reference[0][0], reference[1][0])


def test_an_image_is_augmented_anew_each_epoch(source, preprocess):
    dataset = make_dataset(source.train, preprocess(), True, seed=3, cache_mb=100)
    first, again, later = (dataset[key][0] for key in ((0, 7), (0, 7), (1, 7)))
    assert torch.equal(first, again) and not torch.equal(first, later)


def test_keyed_randomness_leaves_other_draws_alone():
    def draw():
        return random.random(), np.random.rand(), torch.rand(1).item()

    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    expected = draw()
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    with keyed_randomness(0, 0, 0):
        inside = draw()
    assert draw() == expected != inside


def test_sampler_passes_each_index_once_in_an_order_of_its_epoch():
    sampler = EpochSampler(20, seed=0)
    orders = []
    for epoch in (0, 1, 0):
        sampler.epoch = epoch
        keys = list(sampler)
        assert {key[0] for key in keys} == {epoch}
        orders.append([key[1] for key in keys])
        assert sorted(orders[-1]) == list(range(20))
    assert orders[0] == orders[2] != orders[1]


def test_sampler_survives_accelerate(source, preprocess):
    dataset = make_dataset(source.train, preprocess(), True, seed=3, cache_mb=100)
    loader, sampler = training_loader(dataset, 4, workers=0, seed=3)
    loader = Accelerator(cpu=True).prepare(loader)
    passes = []
    for epoch in (0, 1, 0):
        sampler.epoch = epoch
        passes.append(torch.cat([images for images, _ in loader]))
    assert torch.equal(passes[0], passes[2]) and not torch.equal(passes[0], passes[1])


def test_what_is_cached(source, preprocess):
    still, moving = preprocess(no_aug=True), preprocess()
    assert isinstance(make_dataset(source.train, still, True, 0, cache_mb=100), CachedImages)
    assert isinstance(make_dataset(source.test, moving, False, 0, cache_mb=100), CachedImages)
    assert isinstance(make_dataset(source.test, still, False, 0, cache_mb=0), TransformedImages)
    assert make_dataset(source.train, moving, True, 0, cache_mb=100).decoded is not None
    assert make_dataset(source.train, moving, True, 0, cache_mb=0).decoded is None


def test_cached_and_uncached_tensors_are_equal(source, preprocess):
    cached, uncached = (make_dataset(source.test, preprocess(), False, 0, cache_mb=mb) for mb in (100, 0))
    loaders = [evaluation_loader(dataset, 4, workers=0) for dataset in (cached, uncached)]
    for (images, labels), (expected_images, expected_labels) in zip(*loaders, strict=True):
        assert torch.equal(images, expected_images) and torch.equal(labels, expected_labels)


def test_broken_image_shows_while_caching(image_folder, preprocess):
    folder = image_folder(train=40)
    (folder / 'train' / 'dog' / '3.png').write_bytes(b'no image at all')
    source = load_source(DataConfig(path=str(folder)))
    for no_aug in (True, False):
        with pytest.raises(TrainError, match="of split 'train' can't be decoded"):
            make_dataset(source.train, preprocess(no_aug=no_aug), True, 0, cache_mb=100)
