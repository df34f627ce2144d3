"""Seeded label noise for classification data sets.

Two protocols in the literature are called "symmetric noise", with different meanings of the rate:

- `symmetric-exclude` replaces a label by one of the other C - 1 classes. The realised rate *is* the requested rate
  (Co-teaching, Han et al. 2018; CIFAR-N, Wei et al. 2022).
- `symmetric-include` redraws a label over all C classes. A redrawn label keeps its value with probability 1 / C, and
  the realised rate is (1 - 1 / C) times the requested rate (DivideMix, Li et al. 2020; ELR, Liu et al. 2020).

Real annotators confuse some classes more than others:

- `pair` replaces label c by c + 1, and the last by 0 (Co-teaching, Han et al. 2018).
- `matrix` draws each label from its class's row of a matrix of transition probabilities (Patrini et al. 2017).

Array names end in their shape: N examples, C classes.
"""
from __future__ import annotations

from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from ..random_streams import Purpose, generator

NoiseKind = Literal['none', 'symmetric-exclude', 'symmetric-include', 'pair', 'matrix']
NOISE_KINDS: tuple[str, ...] = get_args(NoiseKind)


def _check_labels(labels_N: npt.ArrayLike, num_classes: int) -> npt.NDArray[np.int64]:
    labels = np.asarray(labels_N)
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f'labels must be a flat array of integers, got {labels.dtype} of shape {labels.shape}')
    bad = np.flatnonzero((labels < 0) | (labels >= num_classes))
    if bad.size:
        raise ValueError(
            f'label {labels[bad[0]]} at index {bad[0]} is outside [0, {num_classes}): '
            f'pass num_classes > the largest label'
        )
    return labels.astype(np.int64)


def apply_noise(
        labels_N: npt.ArrayLike,
        num_classes: int,
        kind: NoiseKind = 'symmetric-exclude',
        rate: float = 0.0,
        seed: int = 0,
        matrix_CC: npt.ArrayLike | None = None,
        purpose: Purpose = Purpose.NOISE,
) -> npt.NDArray[np.int64]:
    """Corrupt a fixed fraction of the labels, reproducibly.

    Exactly `round(rate * N)` examples are drawn without replacement, the first ones of a seeded permutation, so the
    rate is the same for every seed. With equal seeds a lower rate corrupts a subset of the examples that a higher rate
    corrupts, to the same wrong labels: runs that differ only in the rate are paired. A matrix has its own rates, and
    each example is drawn independently.

    Args:
        labels_N: Clean class indices [N]; not modified.
        num_classes: Number of classes C.
        kind: `'symmetric-exclude'`, `'symmetric-include'`, `'pair'`, `'matrix'` or `'none'` (see the module's
            docstring).
        rate: Fraction of the examples to corrupt, in [0, 1]; 0 for a matrix.
        seed: Non-negative seed.
        matrix_CC: For kind matrix: row c has the probability of each class for an example of class c.
        purpose: The random stream to draw from.

    Returns:
        A new array of class indices [N].

    Raises:
        ValueError: Unknown kind, rate outside [0, 1], label outside [0, C), `symmetric-exclude` or `pair` with fewer
            than two classes, or a matrix that is invalid or given with another kind.
    """
    if kind not in NOISE_KINDS:
        raise ValueError(f'unknown kind of noise {kind!r}: choose one of {", ".join(NOISE_KINDS)}')
    if not 0.0 <= rate <= 1.0:
        raise ValueError(f'noise rate must lie in [0, 1], got {rate}')
    if (kind == 'matrix') != (matrix_CC is not None):
        raise ValueError(f"a matrix and kind 'matrix' go together, got kind {kind!r}")
    noisy_N = _check_labels(labels_N, num_classes)
    rng = generator(purpose, seed)
    if matrix_CC is not None:
        if rate:
            raise ValueError(f'the matrix determines how many labels change, leave the rate at 0, got {rate}')
        return _transition(noisy_N, check_matrix(matrix_CC, num_classes), rng)
    if kind == 'none' or rate == 0.0:
        return noisy_N
    if kind in ('symmetric-exclude', 'pair') and num_classes < 2:
        raise ValueError(f'{kind} needs another class to flip to, got num_classes={num_classes}')

    chosen = rng.permutation(noisy_N.size)[:round(rate * noisy_N.size)]
    # Drawn for all N but used only for the chosen ones, so that a lower rate corrupts a subset of a higher one.
    if kind == 'pair':
        noisy_N[chosen] = (noisy_N[chosen] + 1) % num_classes
    elif kind == 'symmetric-exclude':
        shift_N = rng.integers(1, num_classes, size=noisy_N.size)
        noisy_N[chosen] = (noisy_N[chosen] + shift_N[chosen]) % num_classes
    else:
        redrawn_N = rng.integers(0, num_classes, size=noisy_N.size)
        noisy_N[chosen] = redrawn_N[chosen]
    return noisy_N


def check_matrix(matrix_CC: npt.ArrayLike, num_classes: int) -> npt.NDArray[np.float64]:
    """Return the matrix as an array after checking that each of its C rows is a distribution over C classes.

    Raises:
        ValueError: Another shape, a negative or non-finite entry, or a row that doesn't sum to 1 (within 1e-6).
    """
    try:
        matrix = np.asarray(matrix_CC, dtype=np.float64)
    except (TypeError, ValueError):
        raise ValueError('the rows of the matrix must be equally long lists of numbers') from None
    if matrix.shape != (num_classes, num_classes):
        raise ValueError(f'the matrix must be {num_classes} x {num_classes}, a row per class, got {matrix.shape}')
    for row, entries in enumerate(matrix):
        if not np.all(entries >= 0) or abs(entries.sum() - 1) > 1e-6:
            raise ValueError(f'row {row} of the matrix must be probabilities that sum to 1, got {entries.tolist()}')
    return matrix


def _transition(
        labels_N: npt.NDArray[np.int64],
        matrix_CC: npt.NDArray[np.float64],
        rng: np.random.Generator,
) -> npt.NDArray[np.int64]:
    drawn_N = rng.random(labels_N.size)
    noisy_N = labels_N.copy()
    for label, row in enumerate(matrix_CC.cumsum(axis=1)):
        of_class = labels_N == label
        row[row >= row[-1]] = 1.0  # the sum may be a little less than 1, or be reached before the last class
        noisy_N[of_class] = np.searchsorted(row, drawn_N[of_class], side='right')
    return noisy_N


def confusion(clean_N: npt.ArrayLike, noisy_N: npt.ArrayLike, num_classes: int) -> npt.NDArray[np.int64]:
    """Confusion matrix [C, C]: number of examples per class (row) and label (column).

    Args:
        clean_N: True class indices [N].
        noisy_N: Labels [N].
        num_classes: Number of classes C.

    Raises:
        ValueError: If the arrays differ in shape, or a label is outside [0, C).
    """
    clean, noisy = _check_labels(clean_N, num_classes), _check_labels(noisy_N, num_classes)
    _check_shapes(clean, noisy)
    counts = np.bincount(clean * num_classes + noisy, minlength=num_classes ** 2)
    return counts.reshape(num_classes, num_classes)


def realised_rate(clean_N: npt.ArrayLike, noisy_N: npt.ArrayLike) -> float:
    """Fraction of examples whose label differs between two arrays of class indices [N]; 0 for empty arrays.

    Raises:
        ValueError: If the arrays differ in shape.
    """
    clean, noisy = np.asarray(clean_N), np.asarray(noisy_N)
    _check_shapes(clean, noisy)
    return float(np.mean(clean != noisy)) if clean.size else 0.0


def _check_shapes(clean: npt.NDArray[Any], noisy: npt.NDArray[Any]) -> None:
    if clean.shape != noisy.shape:
        raise ValueError(f'clean and noisy labels must have the same shape, got {clean.shape} and {noisy.shape}')
