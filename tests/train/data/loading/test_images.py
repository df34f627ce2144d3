from __future__ import annotations

import numpy as np
import pytest
import timm
import torch
from accelerate import Accelerator, skip_first_batches
from PIL import Image

from timm_collab.train.config import AugmentConfig, DataConfig
from timm_collab.train.data.augment.preprocess import make_preprocessing
from timm_collab.train.data.loading import images as module
from timm_collab.train.data.loading.images import (
    BatchedImages,
    EpochSampler,
    TransformedImages,
    evaluation_loader,
    make_dataset,
    training_loader,
)
from timm_collab.train.data.sources import load_source
from timm_collab.train.errors import TrainError

ONE_BY_ONE = dict(pipeline='image')
BATCHES = dict(pipeline='batch')


@pytest.fixture
def source(image_folder):
    return load_source(DataConfig(path=str(image_folder(train=12, test=3))))


@pytest.fixture
def preprocess():
    model = timm.create_model('test_resnet', num_classes=2)

    def make(**augment):
        return make_preprocessing(model, DataConfig(path='here', img_size=16), AugmentConfig(**augment))

    return make


def make(split, preprocessing, is_training=True, **keys):
    return make_dataset(split, preprocessing, is_training, seed=3, config=DataConfig(path='here', **keys))


def epochs(dataset, workers, count=2, batch_size=5):
    loader, sampler = training_loader(dataset, batch_size, workers=workers, seed=3)
    seen = []
    for epoch in range(count):
        sampler.epoch = epoch
        seen.append([torch.cat(parts) for parts in zip(*loader, strict=True)])
    return seen


@pytest.mark.parametrize('cache_mb', [0, 100])
def test_augmentation_does_not_depend_on_workers_or_memory(source, preprocess, cache_mb):
    random_crops = preprocess(color_jitter=0.4, auto_augment='rand-m9-mstd0.5-inc1', re_prob=0.5)
    reference = epochs(make(source.train, random_crops), workers=0)
    got = epochs(make(source.train, random_crops, cache_mb=cache_mb), workers=2)
    for (images, labels), (expected_images, expected_labels) in zip(got, reference, strict=True):
        assert torch.equal(images, expected_images) and torch.equal(labels, expected_labels)
    assert not torch.equal(reference[0][0], reference[1][0])


def test_batch_matches_single_images(source, preprocess):
    dataset = make(source.train, preprocess(color_jitter=0.4, re_prob=0.5), **BATCHES)
    (images, labels), again = epochs(dataset, workers=0, count=1)[0], epochs(dataset, workers=2, count=1, batch_size=3)
    assert images.shape == (20, 3, 16, 16)
    assert torch.equal(images, again[0][0][:20]) and torch.equal(labels, again[0][1][:20])
    sampler = EpochSampler(24, seed=3)
    for place, key in enumerate(list(sampler)[:20]):
        image, label = dataset[key]
        assert torch.equal(image, images[place]) and label == labels[place] == source.train.labels[key[1]]


@pytest.mark.parametrize('keys', [BATCHES, ONE_BY_ONE], ids=str)
def test_augmentation_differs_per_epoch_and_repeat(source, preprocess, keys):
    dataset = make(source.train, preprocess(), **keys)
    first, again, later, repeat = (dataset[key][0] for key in ((0, 7), (0, 7), (1, 7), (0, 7, 1)))
    assert torch.equal(first, again)
    assert not torch.equal(first, later) and not torch.equal(first, repeat) and not torch.equal(later, repeat)


def test_sampler_shuffles_all_indices_per_epoch():
    sampler = EpochSampler(20, seed=0)
    orders = []
    for epoch in (0, 1, 0):
        sampler.epoch = epoch
        keys = list(sampler)
        assert {key[0] for key in keys} == {epoch}
        orders.append([key[1] for key in keys])
        assert sorted(orders[-1]) == list(range(20))
    assert orders[0] == orders[2] != orders[1]


def test_repeats_are_in_a_row_and_keep_the_length_of_an_epoch():
    once, sampler = EpochSampler(20, seed=0), EpochSampler(20, seed=0, repeats=3)
    keys = list(sampler)
    assert len(keys) == len(sampler) == 20
    order = [key[1] for key in once]
    assert keys == [(0, order[place // 3], place % 3) for place in range(20)]


@pytest.mark.parametrize('repeats', [1, 3])
def test_a_rare_image_that_comes_again_is_augmented_anew(source, preprocess, repeats):
    split = source.train.take(np.array([0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 12]))  # one image of the second class
    dataset = make(split, preprocess(), **BATCHES)
    loader, sampler = training_loader(dataset, 11, 0, seed=3, repeats=repeats, balanced=True)
    sampler.epoch = 2
    [(images, labels)] = loader
    assert len(set(sampler)) == 11 and [key[1] for key in sampler] == sampler.indices()
    seen = [image for image, label in zip(images, labels, strict=True) if label == 1]
    assert len(seen) >= 5
    assert not any(torch.equal(a, b) for place, a in enumerate(seen) for b in seen[:place])


def test_balanced_sampler_goes_on_in_the_middle_of_an_epoch():
    class_N = np.array([0] * 15 + [1] * 5)
    whole, resumed = EpochSampler(20, 0, 2, class_N), EpochSampler(20, 0, 2, class_N)
    for sampler in (whole, resumed):
        sampler.epoch = 4
    resumed.skip = 7
    assert list(resumed) == list(whole)[7:] and len(list(whole)) == 20


def test_sampler_works_with_accelerate(source, preprocess):
    for keys in (BATCHES, ONE_BY_ONE):
        loader, sampler = training_loader(make(source.train, preprocess(), **keys), 4, workers=0, seed=3)
        loader = Accelerator(cpu=True).prepare(loader)
        passes = []
        for epoch in (0, 1, 0):
            sampler.epoch = epoch
            passes.append(torch.cat([images for images, _ in loader]))
        assert torch.equal(passes[0], passes[2]) and not torch.equal(passes[0], passes[1])


@pytest.mark.parametrize('keys', [BATCHES, ONE_BY_ONE], ids=str)
def test_epoch_resumed_in_the_middle_gives_the_same_batches(source, preprocess, keys):
    loader, sampler = training_loader(make(source.train, preprocess(re_prob=0.5), **keys), 4, workers=0, seed=3)
    loader = Accelerator(cpu=True).prepare(loader)
    sampler.epoch = 2
    whole, rest = list(loader), list(skip_first_batches(loader, 2))
    assert len(rest) == len(whole) - 2 == 4
    for batch, expected in zip(rest, whole[2:], strict=True):
        assert all(torch.equal(*parts) for parts in zip(batch, expected, strict=True))


def test_choice_of_pipeline(source, preprocess):
    still, moving = preprocess(no_aug=True), preprocess()
    assert isinstance(make(source.train, still), BatchedImages)
    assert isinstance(make(source.train, moving), BatchedImages)
    assert isinstance(make(source.test, moving, is_training=False, **ONE_BY_ONE), BatchedImages)
    assert isinstance(make(source.test, still, is_training=False, cache_mb=0), TransformedImages)
    assert make(source.train, moving, **ONE_BY_ONE).decoded is not None
    assert make(source.train, moving, cache_mb=0).decoded is None
    assert make(source.train, preprocess(auto_augment='rand-m9')).decoded is not None


def test_large_images_are_resized_one_by_one_by_default(source, preprocess, monkeypatch):
    monkeypatch.setattr(module, 'BATCHED_SIDE', 7)
    assert isinstance(make(source.train, preprocess()), TransformedImages)
    assert isinstance(make(source.train, preprocess(), **BATCHES), BatchedImages)
    assert isinstance(make(source.train, preprocess(crop='pad')), BatchedImages)


@pytest.mark.parametrize(('augment', 'keys', 'message'), [
    (dict(auto_augment='rand-m9'), dict(), 'RandAugment is applied image by image'),
    (dict(), dict(cache_mb=0), "images of split 'train' take about 1 MB, more than data.cache_mb 0"),
])
def test_impossible_batch_pipeline_is_refused(source, preprocess, augment, keys, message):
    with pytest.raises(TrainError, match=f'data.pipeline batch: .*{message}.*pipeline auto'):
        make(source.train, preprocess(**augment), **keys, **BATCHES)


def test_images_of_different_sizes(image_folder, preprocess):
    folder = image_folder(train=40)
    for path in ('0.png', '1.png'):
        Image.new('RGB', (9, 30)).save(folder / 'train' / 'cat' / path)
    for path in ('0.png', '1.png'):  # one is in the probe; the other is found only while decoding
        split = load_source(DataConfig(path=str(folder))).train
        assert isinstance(make(split, preprocess(crop='pad')), BatchedImages)
        assert len(make(split, preprocess()).decoded) == 80
        with pytest.raises(TrainError, match="'train' differ in size"):
            make(split, preprocess(), **BATCHES)
        Image.new('RGB', (8, 8)).save(folder / 'train' / 'cat' / path)


def test_evaluation_is_the_same_from_memory_and_from_files(source, preprocess):
    cached, uncached = (make(source.test, preprocess(), is_training=False, cache_mb=mb) for mb in (100, 0))
    loaders = [evaluation_loader(dataset, 4, workers=0) for dataset in (cached, uncached)]
    count = 0
    for (images, labels), (expected_images, expected_labels) in zip(*loaders, strict=True):
        assert torch.equal(images, expected_images) and torch.equal(labels, expected_labels)
        count += len(images)
    assert count == 6


def spoil(folder, *numbers):
    for number in numbers:
        (folder / 'train' / 'dog' / f'{number}.png').write_bytes(b'no image at all')


@pytest.mark.parametrize('augment', [dict(no_aug=True), dict(), dict(auto_augment='rand-m9')], ids=str)
def test_broken_image_is_found_while_decoding(image_folder, preprocess, augment):
    folder = image_folder(train=40)
    spoil(folder, 3)
    split = load_source(DataConfig(path=str(folder))).train
    with pytest.raises(TrainError, match="of split 'train' can't be decoded"):
        make(split, preprocess(**augment))
    assert len(make(split, preprocess(**augment), on_bad_image='skip')) == 79


@pytest.mark.parametrize('workers', [0, 2])
def test_broken_image_is_replaced_on_the_fly(image_folder, preprocess, workers):
    folder = image_folder(train=12)
    spoil(folder, 3, 4)
    split = load_source(DataConfig(path=str(folder))).train
    seen = []
    for _ in range(2):
        dataset = make(split, preprocess(), cache_mb=0, on_bad_image='skip')
        seen.append(epochs(dataset, workers, batch_size=4))
        assert len(dataset) == 24 and dataset.num_replaced == 2
    for (images, labels), (expected_images, expected_labels) in zip(*seen, strict=True):
        assert torch.equal(images, expected_images) and torch.equal(labels, expected_labels)
    bad = [row for row in range(24) if row not in dataset.kept_N or dataset._bad_N[row]]
    replaced = [dataset._image((epoch, bad[0]))[0] for epoch in range(8)]
    assert len(set(replaced)) > 1 and not set(replaced) & set(bad)
    assert [dataset.used((epoch, bad[0])) for epoch in range(8)] == replaced
    assert sorted(image.row for image in dataset.bad) == bad
    label = dataset[0, bad[0]][1]
    assert label == split.labels[replaced[0]]
    with pytest.raises(TrainError, match="can't be decoded"):
        make(split, preprocess(), cache_mb=0)[0, bad[0]]


def test_error_if_no_image_can_be_decoded(image_folder, preprocess):
    folder = image_folder(train=3)
    split = load_source(DataConfig(path=str(folder))).train
    dataset = make(split, preprocess(), cache_mb=0, on_bad_image='skip')
    for path in folder.rglob('*.png'):
        path.write_bytes(b'')
    with pytest.raises(TrainError, match="can't be decoded"):
        dataset[0, 0]


@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')
def test_gpu_gives_the_same_images(source, preprocess):
    config = DataConfig(path='here', **BATCHES)
    keys = [(0, index) for index in range(24)]
    made = [
        make_dataset(source.train, preprocess(color_jitter=0.4, re_prob=0.5), True, 3, config, torch.device(device))
        for device in ('cpu', 'cuda')
    ]
    (images, labels), (on_gpu, labels_on_gpu) = (dataset.__getitems__(keys) for dataset in made)
    assert on_gpu.is_cuda and np.array_equal(labels, labels_on_gpu.cpu())
    torch.testing.assert_close(on_gpu.cpu(), images, rtol=0, atol=1e-6)


def test_images_in_batches_have_no_workers(source, preprocess, monkeypatch):
    monkeypatch.setattr(module, 'num_workers', lambda dataset, asked: {'auto': 2}[asked])
    one_by_one, batches = (make(source.train, preprocess(), **keys) for keys in (ONE_BY_ONE, BATCHES))
    assert training_loader(one_by_one, 4, 'auto', 0)[0].num_workers == 2
    assert evaluation_loader(one_by_one, 4, 'auto').num_workers == 2
    assert training_loader(batches, 4, 'auto', 0)[0].num_workers == 0
