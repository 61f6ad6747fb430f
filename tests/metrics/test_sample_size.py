"""Sizes of studies: against the closed form for many units, by simulation for few, and their interval."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from prmbench.metrics.sample_size import detectable, deviation_interval, needed


def test_many_units_follow_the_normal_formula() -> None:
    """n = ((z(0.975) + z(0.80)) s / d)^2, which is 7.849 s^2 / d^2."""
    assert needed(0.5, 0.02) == pytest.approx((1.959964 + 0.841621) ** 2 * 0.25 / 0.0004, rel=0.001)
    assert detectable(0.5, 100_000) == pytest.approx(2.801585 * 0.5 / math.sqrt(100_000), rel=1e-4)


@pytest.mark.parametrize(("level", "power"), [(0.05, 0.8), (0.01, 0.9), (0.1, 0.5)])
@pytest.mark.parametrize("difference", [0.01, 0.05, 0.2])
def test_needed_is_the_first_size_at_which_the_difference_is_detectable(
    difference: float, level: float, power: float
) -> None:
    n = needed(0.1, difference, level, power)
    assert n is not None
    assert detectable(0.1, n, level, power) <= difference
    assert n == 2 or detectable(0.1, n - 1, level, power) > difference


@pytest.mark.parametrize(("difference", "power"), [(0.10, 0.8), (0.06, 0.8), (0.10, 0.95)])
def test_studies_of_the_needed_size_find_the_difference_that_often(difference: float, power: float) -> None:
    n = needed(0.1, difference, power=power)
    assert n is not None
    draws = np.random.default_rng(0).normal(difference, 0.1, (4000, n))
    found = np.mean(stats.ttest_1samp(draws, 0.0, axis=1).pvalue < 0.05)
    assert found == pytest.approx(power, abs=0.03)


def test_what_no_study_could_find_has_no_size() -> None:
    assert needed(1.0, 1e-6) is None


@pytest.mark.parametrize("n", [3, 12])
def test_the_interval_of_a_deviation_covers_it_in_95_of_100_pilots(n: int) -> None:
    pilots = np.random.default_rng(1).normal(0.0, 2.0, (4000, n)).std(axis=1, ddof=1)
    covered = [lo <= 2.0 <= hi for lo, hi in (deviation_interval(float(s), n) for s in pilots)]
    assert np.mean(covered) == pytest.approx(0.95, abs=0.012)
    assert deviation_interval(1.0, n)[1] == pytest.approx(math.sqrt((n - 1) / stats.chi2.ppf(0.025, n - 1)))
