"""Images are counted by split and class, for any form of labels."""
from __future__ import annotations

import numpy as np
import pytest

from timm_collab.train.data.counts import all_left_out, class_names, count_labels, count_splits
from timm_collab.train.data.sources import load_source
from timm_collab.train.data.splits import make_splits


@pytest.mark.parametrize(('labels', 'counts'), [
    (np.array([0, 2, 2, 0, 2]), [2, 0, 3]),
    (np.array([[1, 0, 1], [0, 0, 0], [1, 0, 0]], dtype=np.uint8), [2, 0, 1]),
    (np.array([[1, 1]] * 300, dtype=np.uint8), [300, 300, 0]),
    (np.array([[0.2, 0.1, 0.7], [0.5, 0.4, 0.1]], dtype=np.float32), [1, 0, 1]),
], ids=['classes', 'several labels', 'more than a byte', 'probabilities'])
def test_images_of_each_class(labels, counts):
    found = count_labels('train', labels, ['a', 'b', 'c'])
    assert found.to_dict() == {
        'name': 'train', 'images': len(labels), 'per_class': dict(zip('abc', counts, strict=True))}


def test_smallest_and_largest_class():
    assert count_labels('train', np.array([0, 2, 2, 0, 1]), ['a', 'b', 'c']).extremes == ('b', 'a')


def test_classes_without_names_are_numbered():
    assert class_names(None, 3) == ['0', '1', '2']
    assert class_names(['x', 'y'], 2) == ['x', 'y']


def test_what_is_left_out_comes_in_order():
    assert list(all_left_out({'hidden': 2, 'not an image': 5}, 3).items()) == [
        ('not an image', 5), ("can't be decoded", 3), ('hidden', 2)]
    assert all_left_out({}, 0) == {}


def test_labels_of_a_run_are_counted_before_noise(recipe):
    config = recipe('--noise.rate=0.5', '--data.max_train_samples=null')
    splits = make_splits(load_source(config.data), config)
    counts = count_splits(splits)
    assert list(counts) == ['train', 'val', 'test'] and counts['train'].images == len(splits.train)
    for number, of_class in enumerate(counts['train'].per_class.values()):
        assert of_class == (splits.clean == number).sum() != (splits.train.labels == number).sum()
    assert counts['test'].per_class == {str(number): 50 for number in range(10)}
