from __future__ import annotations

import numpy as np
import pytest

from timm_collab.train.data.labels.noise import apply_noise, confusion, realised_rate


@pytest.fixture
def labels_N() -> np.ndarray:
    return np.arange(2000) % 10


@pytest.mark.parametrize('rate', [0.0, 0.1, 0.4, 0.999, 1.0])
def test_exclude_realises_exactly_the_rate(labels_N, rate):
    noisy_N = apply_noise(labels_N, 10, kind='symmetric-exclude', rate=rate, seed=3)
    assert realised_rate(labels_N, noisy_N) == rate
    assert noisy_N.min() >= 0 and noisy_N.max() <= 9


def test_exclude_reaches_every_other_class_equally(labels_N):
    zeros_N = np.zeros(18000, dtype=np.int64)
    counts = np.bincount(apply_noise(zeros_N, 10, kind='symmetric-exclude', rate=1.0, seed=0), minlength=10)
    assert counts[0] == 0
    # 2000 expected in each of nine classes, standard deviation 42.
    assert np.all(np.abs(counts[1:] - 2000) < 5 * 42)


def test_include_keeps_one_label_in_num_classes():
    labels_N = np.arange(20000) % 4
    noisy_N = apply_noise(labels_N, 4, kind='symmetric-include', rate=0.5, seed=1)
    # 10,000 redrawn over four classes: a quarter keeps its label; standard deviation of the rate 0.0022.
    assert abs(realised_rate(labels_N, noisy_N) - 0.375) < 5 * 0.0022


def test_same_seed_same_labels_other_seed_other_labels(labels_N):
    first, again, other = (apply_noise(labels_N, 10, rate=0.4, seed=seed) for seed in (7, 7, 8))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_pair_turns_each_class_into_the_next(labels_N):
    noisy_N = apply_noise(labels_N, 10, kind='pair', rate=0.3, seed=2)
    changed = noisy_N != labels_N
    assert np.count_nonzero(changed) == 600
    assert np.array_equal(noisy_N[changed], (labels_N[changed] + 1) % 10)


MATRIX = [[0.7, 0.3, 0.0], [0.0, 1.0, 0.0], [0.2, 0.2, 0.6]]


def test_matrix_sets_the_rate_of_each_confusion():
    labels_N = np.arange(30000) % 3
    noisy_N = apply_noise(labels_N, 3, kind='matrix', matrix_CC=MATRIX, seed=4)
    counts = confusion(labels_N, noisy_N, 3)
    # 10,000 a class, standard deviation at most 50
    assert np.all(np.abs(counts - 10000 * np.asarray(MATRIX)) < 5 * 50)
    assert counts[0, 2] == counts[1, 0] == counts[1, 2] == 0
    assert np.array_equal(noisy_N, apply_noise(labels_N, 3, kind='matrix', matrix_CC=MATRIX, seed=4))
    assert not np.array_equal(noisy_N, apply_noise(labels_N, 3, kind='matrix', matrix_CC=MATRIX, seed=5))


def test_matrix_with_rounding_errors_draws_no_class_of_probability_zero():
    third = [1 / 3 - 3e-7] * 3
    labels_N = np.zeros(30000, dtype=np.int64)
    noisy_N = apply_noise(labels_N, 4, kind='matrix', matrix_CC=[[*third, 0.], *np.eye(4)[1:].tolist()], seed=0)
    assert set(noisy_N) == {0, 1, 2}


def test_confusion_counts_class_by_label():
    assert confusion([0, 0, 1, 2], [0, 1, 1, 0], 3).tolist() == [[1, 1, 0], [0, 1, 0], [1, 0, 0]]
    with pytest.raises(ValueError, match='same shape'):
        confusion([0, 1], [0], 3)


@pytest.mark.parametrize('kind', ['symmetric-exclude', 'symmetric-include', 'pair'])
def test_lower_rate_corrupts_a_subset_of_higher_rate(labels_N, kind):
    low_N, high_N = (apply_noise(labels_N, 10, kind=kind, rate=rate, seed=5) for rate in (0.2, 0.6))
    touched = low_N != labels_N
    assert touched.any()
    assert np.array_equal(low_N[touched], high_N[touched])


def test_input_is_not_modified_and_none_returns_a_copy(labels_N):
    before = labels_N.copy()
    apply_noise(labels_N, 10, rate=0.5, seed=0)
    none_N = apply_noise(labels_N, 10, kind='none', rate=0.5, seed=0)
    assert np.array_equal(labels_N, before)
    assert np.array_equal(none_N, labels_N) and none_N is not labels_N


@pytest.mark.parametrize(('kwargs', 'message'), [
    (dict(kind='symetric'), 'symmetric-exclude, symmetric-include'),
    (dict(rate=1.5), r'rate must lie in \[0, 1\], got 1.5'),
    (dict(rate=float('nan')), 'got nan'),
    (dict(num_classes=5), r'label 5 at index 5 is outside \[0, 5\)'),
    (dict(labels_N=np.array([0.5, 1.0])), 'flat array of integers, got float64'),
    (dict(labels_N=np.zeros(3, dtype=int), num_classes=1, rate=0.5), 'symmetric-exclude needs another class'),
    (dict(labels_N=np.zeros(3, dtype=int), num_classes=1, rate=0.5, kind='pair'), 'pair needs another class'),
    (dict(kind='matrix'), "a matrix and kind 'matrix' go together, got kind 'matrix'"),
    (dict(matrix_CC=np.eye(10)), "a matrix and kind 'matrix' go together, got kind 'symmetric-exclude'"),
    (dict(kind='matrix', matrix_CC=np.eye(10)), 'leave the rate at 0, got 0.1'),
    (dict(kind='matrix', rate=0.0, matrix_CC=np.eye(9)), r'must be 10 x 10, a row per class, got \(9, 9\)'),
    (dict(kind='matrix', rate=0.0, matrix_CC=[[1.0], [1.0, 2.0]]), 'equally long lists'),
    (dict(kind='matrix', rate=0.0, matrix_CC=2 * np.eye(10)), r'row 0 of the matrix must be probabilities .* \[2.0'),
    (dict(kind='matrix', rate=0.0, matrix_CC=np.eye(10) * np.nan), 'row 0 of the matrix'),
])
def test_bad_input_names_the_value(labels_N, kwargs, message):
    with pytest.raises(ValueError, match=message):
        apply_noise(**{'labels_N': labels_N, 'num_classes': 10, 'rate': 0.1, **kwargs})


def test_realised_rate_refuses_different_shapes():
    with pytest.raises(ValueError, match='same shape'):
        realised_rate(np.zeros(3), np.zeros(4))
    assert realised_rate([], []) == 0.0
