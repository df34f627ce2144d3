from __future__ import annotations

import dataclasses

import datasets
import numpy as np
import pytest

from timm_collab.train.config import DataConfig, ModelConfig, NoiseConfig, TrainConfig
from timm_collab.train.data.decoding.image_split import ImageSplit
from timm_collab.train.data.sources import Source
from timm_collab.train.data.splits import make_splits, stratified
from timm_collab.train.errors import TrainError


def split(labels, name='train') -> ImageSplit:
    rows = datasets.Dataset.from_dict({'image': list(range(len(labels)))})
    return ImageSplit(name, rows, 'image', 'L', np.arange(len(labels)), np.asarray(labels))


def recipe(num_classes=None, noise=0.0, batch_size=4, seed=0, **data) -> TrainConfig:
    return TrainConfig(
        seed=seed,
        batch_size=batch_size,
        model=ModelConfig(name='collab_resnet18', num_classes=num_classes),
        data=DataConfig(path='here', **data),
        noise=NoiseConfig(rate=noise),
    )


LABELS = np.repeat(np.arange(5), [100, 50, 20, 10, 2])


def test_hold_out_draws_its_fraction_of_each_class():
    made = make_splits(Source(split(LABELS), None, None, None), recipe(val_fraction=0.1))
    assert np.bincount(made.val.labels).tolist() == [10, 5, 2, 1, 1]
    assert sorted([*made.train.row_N, *made.val.row_N]) == list(range(LABELS.size))
    assert 'held out' in made.val_origin


def test_hold_out_depends_on_the_seed_alone():
    rows = [
        make_splits(Source(split(LABELS), None, None, None), recipe(seed=seed, noise=noise)).val.row_N.tolist()
        for seed, noise in ((1, 0.0), (1, 0.4), (2, 0.0))
    ]
    assert rows[0] == rows[1] != rows[2]


def test_existing_validation_split_is_used_completely():
    made = make_splits(Source(split(LABELS), split([0, 1], 'validation'), None, None), recipe())
    assert (len(made.train), len(made.val), made.val_origin) == (LABELS.size, 2, "split 'validation'")


def test_noise_is_in_the_training_labels_only():
    source = Source(split(LABELS), None, split(LABELS, 'test'), None)
    clean, noisy = (make_splits(source, recipe(noise=rate)) for rate in (0.0, 0.4))
    assert np.array_equal(clean.train.row_N, noisy.train.row_N)
    changed = np.count_nonzero(clean.train.labels != noisy.train.labels)
    assert changed == round(0.4 * len(clean.train))
    assert noisy.noise_rate == changed / len(clean.train)
    assert np.array_equal(noisy.val.labels, LABELS[noisy.val.row_N])
    assert np.array_equal(noisy.test.labels, LABELS)


@pytest.mark.parametrize('size', [4, 17, 90])
def test_subset_is_exact_and_keeps_proportions(size):
    made = make_splits(Source(split(LABELS), split([0], 'val'), None, None), recipe(max_train_samples=size))
    assert len(made.train) == size == len(set(made.train.row_N.tolist()))
    counts = np.bincount(made.train.labels, minlength=5)
    assert np.all(np.abs(counts - size * np.bincount(LABELS) / LABELS.size) < 1)


def test_number_of_classes():
    source = Source(split(LABELS), None, None, None)
    assert make_splits(source, recipe()).num_classes == 5
    assert make_splits(source, recipe(num_classes=7)).num_classes == 7
    names = dataclasses.replace(source, label_names=list('abcdef'))
    made = make_splits(names, recipe())
    assert (made.num_classes, made.label_names) == (6, list('abcdef'))
    assert make_splits(names, recipe(num_classes=7)).label_names is None


@pytest.mark.parametrize(('source', 'config', 'message'), [
    (Source(split(LABELS), None, None, None), recipe(num_classes=4),
     r"label 4 in row 180 of split 'train' is outside \[0, 4\): raise model.num_classes"),
    (Source(split([0, -2, 1]), None, None, None), recipe(),
     r"label -2 in row 1 of split 'train' is outside \[0, 2\): check data.label_column"),
    (Source(split(LABELS), None, split([0, 5], 'test'), None), recipe(),
     r"label 5 in row 1 of split 'test' is outside \[0, 5\): if these are class indices write --model.num_classes 6"),
    (Source(split([0, 0, 0]), None, None, None), recipe(), "split 'train' has 1 class: .* at least 2"),
    (Source(split([1, 1, 1, 1, 1]), split([0, 1], 'val'), None, list('ab')), recipe(),
     "all 5 training images of split 'train' have the label 1, .*check data.label_column"),
    (Source(split(LABELS), None, None, None), recipe(batch_size=1000),
     'batch_size 1000 is larger than the training data, 163 images'),
    (Source(split([0, 1, 2]), None, None, None), recipe(), 'no class with two or more images'),
])
def test_bad_labels_and_sizes(source, config, message):
    with pytest.raises(TrainError, match=message):
        make_splits(source, config)


def test_stratified_leaves_one_of_each_class():
    labels_N = np.array([0, 0, 1, 1, 1, 2])
    for seed in range(20):
        mask_N = stratified(labels_N, 0.99, np.random.default_rng(seed))
        assert np.bincount(labels_N[~mask_N], minlength=3).tolist() == [1, 1, 1]


def test_stratified_draws_class_by_class():
    """Its draws are part of what a recipe means."""
    labels_N = np.random.default_rng(0).integers(-1, 7, 200)
    rng = np.random.default_rng((3, 4))
    expected_N = np.zeros(200, dtype=bool)
    for label in range(-1, 7):
        members = rng.permutation(np.flatnonzero(labels_N == label))
        expected_N[members[:round(0.3 * len(members))]] = True
    assert np.array_equal(stratified(labels_N, 0.3, np.random.default_rng((3, 4))), expected_N)
    assert stratified(labels_N[:0], 0.3, np.random.default_rng(0)).shape == (0,)


def test_noise_column_changes_training_labels_only():
    given = (LABELS + 1) % 5
    source = Source(split(LABELS), None, split(LABELS, 'test'), None, given)
    config = dataclasses.replace(recipe(), noise=NoiseConfig(kind='column', column='worse'))
    made = make_splits(source, config)
    assert np.array_equal(made.train.labels, given[made.train.row_N])
    assert np.array_equal(made.clean, LABELS[made.train.row_N]) and made.noise_rate == 1.0
    assert np.array_equal(made.val.labels, LABELS[made.val.row_N])
    assert np.array_equal(made.test.labels, LABELS)
    with pytest.raises(TrainError, match=r"label 5 in row 0 of split 'train' is outside \[0, 5\)"):
        make_splits(dataclasses.replace(source, given=given * 0 + 5), config)


def test_noise_matrix_must_match_the_classes():
    config = dataclasses.replace(recipe(), noise=NoiseConfig(kind='matrix', matrix=np.eye(5)[::-1].tolist()))
    made = make_splits(Source(split(LABELS), None, None, None), config)
    assert np.array_equal(made.train.labels, 4 - made.clean)
    config = dataclasses.replace(config, noise=NoiseConfig(kind='matrix', matrix=[[1.0]]))
    with pytest.raises(TrainError, match='noise: the matrix must be 5 x 5'):
        make_splits(Source(split(LABELS), None, None, None), config)


@pytest.mark.parametrize(('keys', 'message'), [
    (dict(kind='matrix'), 'noise.kind matrix needs noise.matrix'),
    (dict(kind='column'), 'noise.kind column needs noise.column'),
    (dict(column='worse'), 'noise.column needs noise.kind column, got noise.kind symmetric-exclude'),
    (dict(kind='column', column='worse', rate=0.2), 'noise.kind column has its own rate: leave out noise.rate'),
])
def test_contradicting_noise_keys_are_refused(keys, message):
    with pytest.raises(TrainError, match=message):
        NoiseConfig(**keys)


def balanced(count: int, num_classes: int = 10) -> Source:
    return Source(split(np.arange(count) % num_classes), None, None, None)


def test_a_small_training_set_bounds_what_is_held_out():
    """The training images stay those of a larger held-out set, and are as few of all as asked for."""
    for limit, fraction, expected in ((64, 0.1, 10), (400, 0.1, 44), (400, 0.2, 100), (4000, 0.05, 211)):
        made = make_splits(balanced(5000), recipe(max_train_samples=limit, val_fraction=fraction))
        full = make_splits(balanced(5000), recipe(max_train_samples=limit, val_fraction=fraction, max_val_samples=5000))
        assert (len(made.train), len(made.val), len(full.val)) == (limit, expected, 5000 * fraction)
        assert made.train.row_N.tolist() == full.train.row_N.tolist()
        assert set(made.val.row_N) < set(full.val.row_N) and not set(made.val.row_N) & set(made.train.row_N)
        counts = np.bincount(made.val.labels)
        assert counts.max() - counts.min() <= 1
        assert made.val_origin == "a part of split 'train', held out class by class"
        assert full.val_origin == f"{fraction:g} of split 'train', held out class by class"
    again = make_splits(balanced(5000), recipe(max_train_samples=400, noise=0.4))
    assert again.val.row_N.tolist() == make_splits(balanced(5000), recipe(max_train_samples=400)).val.row_N.tolist()
    other = make_splits(balanced(5000), recipe(max_train_samples=400, seed=1))
    assert other.val.row_N.tolist() != again.val.row_N.tolist()


def test_each_class_keeps_an_image_to_validate_by():
    rare = Source(split(np.repeat(np.arange(20), [2000, *[3] * 19])), None, None, None)
    made = make_splits(rare, recipe(max_train_samples=64))
    assert np.bincount(made.val.labels).tolist() == [1] * 20
    made = make_splits(rare, recipe(max_val_samples=50))
    assert np.bincount(made.val.labels).tolist() == [31, *[1] * 19] and len(made.train) == 2057 - 200 - 19


def test_nothing_is_bounded_without_need():
    plain = make_splits(balanced(500), recipe())
    for keys in (dict(max_train_samples=450), dict(max_val_samples=50), dict(max_train_samples=9999)):
        made = make_splits(balanced(500), recipe(**keys))
        assert made.fingerprint == plain.fingerprint
    given = dataclasses.replace(balanced(500), val=split(np.arange(90) % 10, 'val'))
    assert len(make_splits(given, recipe(max_train_samples=50, max_val_samples=7)).val) == 90
