"""Seeded label noise for classification data sets.

Two protocols carry the same name, "symmetric noise", in the literature, and differ in what a rate means:

- `symmetric-exclude` replaces a label by one of the other C - 1 classes, so the realised rate *is* the rate asked for
  (Co-teaching, Han et al. 2018; CIFAR-N, Wei et al. 2022);
- `symmetric-include` redraws a label over all C classes, so a redrawn label keeps its value with probability 1 / C and
  the realised rate is (1 - 1 / C) times the rate asked for (DivideMix, Li et al. 2020; ELR, Liu et al. 2020).

Array names end in their shape: N examples.
"""
from __future__ import annotations

from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

NoiseKind = Literal['none', 'symmetric-exclude', 'symmetric-include']
NOISE_KINDS: tuple[str, ...] = get_args(NoiseKind)

# Keeps the draws independent of whatever else a caller seeds with the same number.
_STREAM = 0x6C61626C


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
) -> npt.NDArray[np.int64]:
    """Corrupt a fixed share of the labels, reproducibly.

    Exactly `round(rate * N)` examples are drawn without replacement (the first ones of a seeded permutation) and their
    labels replaced, rather than each example with its own coin toss: the rate then is the same for every seed. With
    equal seeds a lower rate corrupts a subset of what a higher rate corrupts, to the same wrong labels, so runs that
    differ in the rate alone are paired.

    Args:
        labels_N: Clean class indices [N]; not modified.
        num_classes: Number of classes C.
        kind: `'symmetric-exclude'`, `'symmetric-include'` or `'none'` (see the module's docstring).
        rate: Share of the examples to corrupt, in [0, 1].
        seed: Non-negative seed of all draws.

    Returns:
        A new array of class indices [N].

    Raises:
        ValueError: For an unknown kind, a rate outside [0, 1], a label outside [0, C), or `symmetric-exclude` with
            fewer than two classes.
    """
    if kind not in NOISE_KINDS:
        raise ValueError(f'unknown kind of noise {kind!r}: choose one of {", ".join(NOISE_KINDS)}')
    if not 0.0 <= rate <= 1.0:
        raise ValueError(f'noise rate must lie in [0, 1], got {rate}')
    noisy_N = _check_labels(labels_N, num_classes)
    if kind == 'none' or rate == 0.0:
        return noisy_N
    if kind == 'symmetric-exclude' and num_classes < 2:
        raise ValueError(f'symmetric-exclude needs another class to flip to, got num_classes={num_classes}')

    rng = np.random.default_rng((seed, _STREAM))
    chosen = rng.permutation(noisy_N.size)[:round(rate * noisy_N.size)]
    # Drawn for all N, used for the chosen ones: what makes a lower rate a subset of a higher one.
    if kind == 'symmetric-exclude':
        shift_N = rng.integers(1, num_classes, size=noisy_N.size)
        noisy_N[chosen] = (noisy_N[chosen] + shift_N[chosen]) % num_classes
    else:
        redrawn_N = rng.integers(0, num_classes, size=noisy_N.size)
        noisy_N[chosen] = redrawn_N[chosen]
    return noisy_N


def realised_rate(clean_N: npt.ArrayLike, noisy_N: npt.ArrayLike) -> float:
    """Share of the examples whose label differs between two arrays of class indices [N] (0 for empty arrays).

    Raises:
        ValueError: If the arrays differ in shape.
    """
    clean, noisy = np.asarray(clean_N), np.asarray(noisy_N)
    if clean.shape != noisy.shape:
        raise ValueError(f'clean and noisy labels must have the same shape, got {clean.shape} and {noisy.shape}')
    return float(np.mean(clean != noisy)) if clean.size else 0.0
