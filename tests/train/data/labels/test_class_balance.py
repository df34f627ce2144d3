"""Weights of classes and an order that evens them out, compared with their definitions."""
from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from timm_collab.train.config import DataConfig
from timm_collab.train.data.labels.class_balance import absent_classes, class_counts, class_weights, is_imbalanced
from timm_collab.train.data.loading.sampler import BalancedOrder
from timm_collab.train.errors import TrainError

LABELS = np.repeat([0, 1, 2], [6, 3, 1])
NAMES = ['cat', 'dog', 'eel']


def weights(asked, labels=LABELS, names=NAMES, num_classes=3, **keys) -> list[float]:
    config = DataConfig(path='here', class_weights=asked, **keys)
    return class_weights(config, labels, names, num_classes).tolist()


def test_balanced_weights_are_inverse_to_the_number_of_images():
    assert weights('balanced') == pytest.approx([10 / (3 * 6), 10 / (3 * 3), 10 / 3])


@pytest.mark.parametrize(('asked', 'beta'), [('effective', 0.999), ('effective:0.9', 0.9), ('effective:0', 0.0)])
def test_effective_number_of_images(asked, beta):
    raw = np.array([(1 - beta) / (1 - beta ** count) for count in (6, 3, 1)])
    expected = raw * 10 / (raw * [6, 3, 1]).sum()
    assert weights(asked) == pytest.approx(expected)


def test_a_mapping_names_classes_and_is_scaled_to_a_mean_of_one_over_the_images():
    expected = np.array([0.5, 1, 4]) * 10 / (0.5 * 6 + 3 + 4)
    assert weights({'cat': 0.5, 'eel': 4}) == pytest.approx(expected)
    assert weights({0: 0.5, '2': 4}, names=None) == pytest.approx(expected)
    # Of a stream the numbers of images are unknown; balanced sampling makes them equal.
    even = np.array([0.5, 1, 4]) * 3 / 5.5
    assert weights({'cat': 0.5, 'eel': 4}, labels=None) == pytest.approx(even)
    assert weights({'cat': 0.5, 'eel': 4}, sampling='balanced') == pytest.approx(even)


@settings(deadline=None, max_examples=50)
@given(
    st.lists(st.integers(0, 4), min_size=1, max_size=40), st.sampled_from(['balanced', 'effective', 'effective:0.5']))
def test_the_mean_over_the_images_is_one_and_rarer_classes_weigh_more(labels, asked):
    labels_N = np.array(labels)
    weight_C = np.array(weights(asked, labels_N, None, 5))
    count_C = np.bincount(labels_N, minlength=5)
    assert weight_C[labels_N].mean() == pytest.approx(1, rel=1e-6)
    assert np.all(weight_C[count_C == 0] == 1) and np.all(np.isfinite(weight_C))
    seen = np.flatnonzero(count_C)
    assert all(weight_C[a] >= weight_C[b] * (1 - 1e-6) for a in seen for b in seen if count_C[a] <= count_C[b])


def test_soft_labels_count_for_as_much_as_they_say():
    labels_NC = np.array([[0.5, 0.5, 0], [1, 0, 0], [0.5, 0.25, 0.25], [0, 0, 1]], dtype=np.float32)
    assert class_counts(labels_NC, 3).tolist() == [2, 0.75, 1.25]
    assert weights('balanced', labels_NC) == pytest.approx([4 / (3 * 2), 4 / (3 * 0.75), 4 / (3 * 1.25)])


def test_without_the_key_there_are_no_weights():
    assert class_weights(DataConfig(path='here'), LABELS, NAMES, 3) is None


@pytest.mark.parametrize(('asked', 'names', 'message'), [
    ({'cta': 2}, NAMES, r"no class 'cta', the 3 classes are cat, dog, eel; did you mean 'cat'\?"),
    ({'3': 2}, None, "no class '3', the 3 classes are 0, 1, 2"),
    ({'cat': 0, 'dog': 0, 'eel': 0}, NAMES, 'every training image has weight 0'),
])
def test_weights_that_fit_no_data_are_refused(asked, names, message):
    with pytest.raises(TrainError, match=message):
        weights(asked, names=names)


def test_classes_without_images_are_noted():
    config = DataConfig(path='here', class_weights='balanced')
    note = absent_classes(config, np.array([0, 2]), NAMES, 3)
    assert note == "1 of 3 classes have no training image, which data.class_weights can't make up for: dog"
    assert absent_classes(config, LABELS, NAMES, 3) is None
    assert absent_classes(DataConfig(path='here'), np.array([0, 2]), NAMES, 3) is None
    many = absent_classes(DataConfig(path='here', sampling='balanced'), np.array([0, 2]), None, 20)
    assert many == ("18 of 20 classes have no training image, which data.sampling balanced can't make up for: 1, 3, 4,"
                    ' 5, 6, 7, 8, 9, ...')


def test_imbalanced_is_more_than_twice_the_rarest():
    assert is_imbalanced(LABELS, 3) and not is_imbalanced(np.array([0, 0, 1]), 3)


def spread(counts) -> int:
    return max(counts) - min(counts)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=60), st.integers(0, 3), st.integers(0, 6), st.integers(0, 40))
def test_classes_and_their_images_come_equally_often(labels, seed, epoch, shorter):
    class_N = np.array(labels)
    count = max(len(labels) - shorter, 1)
    order = BalancedOrder(class_N, seed)
    drawn = [order.places(each, count) for each in range(epoch + 1)]
    for index_N in (drawn[-1][0], np.concatenate([index for index, _ in drawn])):  # one epoch, and all so far
        times = Counter(index_N.tolist())
        assert spread([sum(times[i] for i in np.flatnonzero(class_N == c)) for c in np.unique(class_N)]) <= 1
        assert all(spread([times[i] for i in np.flatnonzero(class_N == c)]) <= 1 for c in np.unique(class_N))
    index_N, before_N = drawn[-1]
    assert len(index_N) == count == len(set(zip(index_N.tolist(), before_N.tolist(), strict=True)))


def test_the_order_depends_on_seed_and_epoch_alone():
    class_N = np.repeat([0, 1], [90, 10])
    first = [BalancedOrder(class_N, 3).places(epoch, 100)[0] for epoch in range(3)]
    order = BalancedOrder(class_N, 3)
    assert all(np.array_equal(order.places(epoch, 100)[0], first[epoch]) for epoch in (2, 0, 1))
    assert not np.array_equal(first[0], first[1])
    assert not np.array_equal(first[0], BalancedOrder(class_N, 4).places(0, 100)[0])
    assert set(first[0]) != set(first[1]) and len(set(np.concatenate(first)) & set(range(90))) == 90  # in 2 epochs
    # Shuffled: the two classes don't take turns.
    assert 30 < np.count_nonzero(np.diff(class_N[first[0]])) < 70
