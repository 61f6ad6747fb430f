"""Intervals and p-values: against closed forms, and whether they contain the truth on small samples."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from prmbench.metrics import intervals
from prmbench.metrics.first_error import bootstrap_weights


def test_the_quantiles_are_students_with_one_degree_less_than_problems() -> None:
    assert intervals.t_quantile(0.975, 15) == pytest.approx(stats.t.ppf(0.975, 14))
    assert intervals.t_quantile(0.975, 0) == pytest.approx(1.959964)


def test_a_standard_error_is_corrected_for_few_problems() -> None:
    """The bootstrap of a mean of c values has the variance of the biased estimator."""
    values = np.array([0.0, 0.2, 0.9, 0.4])
    replicates = bootstrap_weights(np.arange(4), 40_000, 0)[1:] @ values / 4
    assert intervals.standard_error(replicates, 4) == pytest.approx(values.std(ddof=1) / 2, rel=0.02)
    assert math.isnan(intervals.standard_error(np.array([0.1, math.nan]), 4))


def test_a_share_has_wilsons_interval() -> None:
    """50 of 100: the textbook's 0.404 to 0.596; 10 of 100 by the formula."""
    assert intervals.share_interval(0.5, 0.05, 0) == pytest.approx((0.40383, 0.59617), abs=1e-5)
    z, n, p = 1.959964, 100, 0.1
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    assert intervals.share_interval(p, math.sqrt(p * (1 - p) / n), 0) == pytest.approx((middle - half, middle + half))


def test_where_all_problems_agree_their_number_makes_the_width() -> None:
    t = stats.t.ppf(0.975, 14)
    assert intervals.share_interval(1.0, 0.0, 15) == pytest.approx((1 / (1 + t * t / 15), 1.0))
    assert intervals.share_interval(0.0, 0.0, 15) == pytest.approx((0.0, 1 - 1 / (1 + t * t / 15)))
    low, high = intervals.share_interval(0.5, 0.0, 15)  # each problem has half of its completions right
    assert low < 0.3
    assert high > 0.7


def test_at_the_ends_replicates_that_differ_still_count() -> None:
    assert intervals.share_interval(0.0, 0.2, 400)[1] == pytest.approx(stats.t.ppf(0.975, 399) * 0.2)


def test_p_is_below_five_percent_exactly_where_the_interval_excludes_zero() -> None:
    rng = np.random.default_rng(0)
    seen = set()
    for problems in (2, 5, 15, 60, 0):
        for _ in range(200):
            difference, replicates = float(rng.normal(0, 2)), rng.normal(0, 1, 50)
            low, high = intervals.interval("difference", difference, replicates, problems)
            p = intervals.two_sided_p(difference, replicates, problems)
            assert low is not None
            assert high is not None
            assert p is not None
            assert (p < 0.05) == (low > 0 or high < 0)
            seen.add(p < 0.05)
    assert seen == {True, False}


def test_a_difference_that_all_problems_share_counts_by_their_number() -> None:
    same = np.full(50, 0.3)
    ps = [intervals.two_sided_p(0.3, same, c) for c in (3, 6, 7, 30)]
    assert [p is not None and p < 0.05 for p in ps] == [False, False, True, True]
    assert intervals.two_sided_p(0.0, np.zeros(50), 30) == 1.0
    assert intervals.interval("difference", 0.0, np.zeros(50), 30) == (0.0, 0.0)


def test_detectable_difference_by_hand() -> None:
    replicates = np.array([0.0, 0.1])  # standard deviation 0.1 / sqrt(2)
    assert intervals.detectable_difference(replicates, 0, paired=True) == pytest.approx(2.801585 * 0.1 / math.sqrt(2))
    assert intervals.detectable_difference(replicates, 0) == pytest.approx(2.801585 * 0.1)
    quantiles = stats.t.ppf(0.975, 8) + stats.t.ppf(0.8, 8)
    actual = intervals.detectable_difference(replicates, 9, paired=True)
    assert actual == pytest.approx(quantiles * 0.1 / math.sqrt(2) * math.sqrt(9 / 8))


def test_percentiles_move_outwards_for_few_problems_and_a_range_does_not() -> None:
    replicates = np.random.default_rng(0).normal(0, 1, 20_000)
    plain = intervals.interval("range", 0.0, replicates, 10)
    assert plain == pytest.approx((-1.96, 1.96), abs=0.06)
    wide = intervals.interval("percentile", 0.0, replicates, 10)
    expected = stats.t.ppf(0.975, 9) * math.sqrt(10 / 9)
    assert wide == pytest.approx((-expected, expected), abs=0.1)
    assert intervals.interval("percentile", 0.0, replicates, 0) == plain
    assert intervals.interval("share", 0.5, replicates[:1], 10) == (None, None)


@pytest.mark.parametrize(("problems", "k", "passes"), [(15, 8, False), (15, 8, True), (30, 32, False)])
def test_accuracies_on_few_problems_are_covered(problems: int, k: int, passes: bool) -> None:
    """avg@k and pass@k with problems that are mostly solved or mostly not, where percentiles covered 84 to 92%."""
    rng = np.random.default_rng(0)
    many = rng.beta(0.6, 0.9, 10**6)
    true = (1 - (1 - many) ** k if passes else many).mean()
    weights = bootstrap_weights(np.arange(problems), 300, 0)
    covered = []
    for _ in range(600):
        right = rng.random((problems, k)) < rng.beta(0.6, 0.9, problems)[:, None]
        values = weights @ (right.any(axis=1) if passes else right.mean(axis=1)) / problems
        low, high = intervals.interval("share", float(values[0]), values[1:], problems)
        assert low is not None
        assert high is not None
        covered.append(low <= true <= high)
    assert 0.93 <= np.mean(covered) <= 0.985
