"""Statistics of a study: columns by seed, means, and differences paired by seed with their confidence intervals."""
from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from .grid import Study
from .rows import Row

CONFIDENCE = 0.95
MIN_PAIRS = 3


@dataclass(frozen=True)
class Difference:
    """Mean of paired differences.

    Args:
        mean: The mean.
        half_width: Half the width of its 95 % confidence interval; NaN for a single pair.
        count: Number of pairs.
    """

    mean: float
    half_width: float
    count: int

    @property
    def is_clear(self) -> bool:
        """Whether the interval excludes zero, with at least `MIN_PAIRS` pairs: two pairs may agree by chance."""
        return self.count >= MIN_PAIRS and abs(self.mean) > self.half_width


def by_seed(rows: Sequence[Row], setting: str, method: str, column: str = 'error') -> dict[int, float]:
    """Values of a column for one method in one setting, by seed; runs without a value are left out."""
    found = {row.seed: getattr(row, column) for row in rows if (row.setting, row.method) == (setting, method)}
    return {seed: value for seed, value in found.items() if value is not None}


def relative(study: Study, rows: Sequence[Row], setting: str, method: str, column: str) -> float | None:
    """Mean over the seeds of a column's ratio to the baseline's run with the same seed; None without common seeds."""
    values, baseline = by_seed(rows, setting, method, column), by_seed(rows, setting, study.baseline, column)
    ratios = [values[seed] / baseline[seed] for seed in sorted(values.keys() & baseline.keys())]
    return mean_and_std(ratios)[0] if ratios else None


def mean_and_std(values: Sequence[float]) -> tuple[float, float]:
    """Mean and sample standard deviation, which is NaN for a single value."""
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else math.nan


def paired_difference(values: Mapping[int, float], baseline: Mapping[int, float]) -> Difference | None:
    """Mean of `values - baseline` over common seeds, with Student's confidence interval; None without common seeds."""
    differences = [values[seed] - baseline[seed] for seed in sorted(values.keys() & baseline.keys())]
    if not differences:
        return None
    mean, std = mean_and_std(differences)
    count = len(differences)
    half_width = student_quantile(count - 1) * std / math.sqrt(count) if count > 1 else math.nan
    return Difference(mean, half_width, count)


def student_quantile(freedom: int, confidence: float = CONFIDENCE) -> float:
    """Two-sided quantile of Student's t distribution, by numerical integration of its density.

    With x = tan(u) sqrt(freedom) the density becomes cos(u)^(freedom - 1), which a sum over equal steps integrates
    accurately.

    Args:
        freedom: Degrees of freedom, at least 1.
        confidence: Probability of a value within plus or minus the quantile.
    """
    u = (np.arange(200_000) + 0.5) * (math.pi / 2 / 200_000)
    mass = np.cumsum(np.cos(u) ** (freedom - 1))
    index = int(np.searchsorted(mass, confidence * mass[-1]))
    return math.tan(u[index]) * math.sqrt(freedom)
