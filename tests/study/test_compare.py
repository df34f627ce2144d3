from __future__ import annotations

import math

import pytest

from timm_collab.study.compare import mean_and_std, paired_difference, student_quantile

# Two-sided 95 % points of Student's distribution, from its printed tables.
TABLE = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 9: 2.262, 29: 2.045, 120: 1.980}


@pytest.mark.parametrize(('freedom', 'quantile'), TABLE.items())
def test_quantiles_match_printed_tables(freedom, quantile):
    assert student_quantile(freedom) == pytest.approx(quantile, abs=6e-4)
    assert student_quantile(4, 0.99) == pytest.approx(4.604, abs=1e-3)


def test_differences_are_paired_by_seed():
    # Seeds differ by more than methods: only pairs show the difference.
    baseline = {0: 10.0, 1: 20.0, 2: 30.0, 7: 99.0}
    difference = paired_difference({2: 29.1, 0: 9.0, 1: 18.9, 5: 0.0}, baseline)
    assert difference.count == 3 and difference.mean == pytest.approx(-1.0)
    assert difference.half_width == pytest.approx(4.303 * 0.1 / math.sqrt(3), rel=1e-3)
    assert difference.is_clear
    assert not paired_difference({0: 9.0, 1: 21.0}, baseline).is_clear
    same = paired_difference({0: 9.0, 1: 19.0}, baseline)
    assert (same.mean, same.half_width) == (-1, 0) and not same.is_clear


def test_one_pair_has_no_interval_and_none_no_difference():
    difference = paired_difference({0: 9.0}, {0: 10.0})
    assert (difference.mean, difference.count) == (-1.0, 1) and math.isnan(difference.half_width)
    assert not difference.is_clear
    assert paired_difference({0: 9.0}, {1: 10.0}) is None
    mean, std = mean_and_std([3.0])
    assert mean == 3.0 and math.isnan(std)
