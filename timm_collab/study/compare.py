"""Means, deviations, and differences that are paired by seed, with their confidence intervals."""
from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

CONFIDENCE = 0.95
CLEAR_PAIRS = 3


@dataclass(frozen=True)
class Difference:
    """The mean of paired differences.

    Args:
        mean: The mean.
        half_width: Half the width of its 95 % confidence interval; NaN of a single pair.
        count: Number of pairs.
    """

    mean: float
    half_width: float
    count: int

    @property
    def is_clear(self) -> bool:
        """Whether the interval leaves out zero, of enough pairs: two differ by the same now and then."""
        return self.count >= CLEAR_PAIRS and abs(self.mean) > self.half_width


def mean_and_std(values: Sequence[float]) -> tuple[float, float]:
    """Mean and sample standard deviation, NaN of a single value."""
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else math.nan


def paired_difference(values: Mapping[int, float], baseline: Mapping[int, float]) -> Difference | None:
    """Mean of `values - baseline` over the seeds that both have, with Student's interval; None if they share none."""
    differences = [values[seed] - baseline[seed] for seed in sorted(values.keys() & baseline.keys())]
    if not differences:
        return None
    mean, std = mean_and_std(differences)
    count = len(differences)
    half_width = student_quantile(count - 1) * std / math.sqrt(count) if count > 1 else math.nan
    return Difference(mean, half_width, count)


def student_quantile(freedom: int, confidence: float = CONFIDENCE) -> float:
    """The t that Student's distribution stays within with this probability, by integrating its density.

    With x = tan(u) sqrt(freedom) the density becomes cos(u)^(freedom - 1), which a sum over equal steps integrates to
    many digits.

    Args:
        freedom: Degrees of freedom, at least 1.
        confidence: The probability.
    """
    u = (np.arange(200_000) + 0.5) * (math.pi / 2 / 200_000)
    mass = np.cumsum(np.cos(u) ** (freedom - 1))
    index = int(np.searchsorted(mass, confidence * mass[-1]))
    return math.tan(u[index]) * math.sqrt(freedom)
