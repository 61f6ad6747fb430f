"""Equivalence tests against scipy, against simulation, and the verdicts that follow from them."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from prmbench.metrics.equivalence import (
    MARGINS,
    Verdict,
    equivalence_p,
    equivalence_p_of_interval,
    holm_where_tested,
    margin_of,
    verdict,
)

VALUES = np.array([0.004, 0.011, -0.002, 0.007, 0.001])


@pytest.mark.parametrize("shift", [-0.03, -0.012, 0.0, 0.004, 0.02])
def test_two_one_sided_t_tests_are_those_of_scipy(shift: float) -> None:
    values = VALUES + shift
    error = float(values.std(ddof=1) / math.sqrt(len(values)))
    above = stats.ttest_1samp(values, -0.02, alternative="greater").pvalue
    below = stats.ttest_1samp(values, 0.02, alternative="less").pvalue
    assert equivalence_p(float(values.mean()), error, 4, -0.02, 0.02) == pytest.approx(max(above, below))
    assert equivalence_p(float(values.mean()), error, 4, -math.inf, 0.02) == pytest.approx(below)
    assert equivalence_p(float(values.mean()), error, 4, -0.02, math.inf) == pytest.approx(above)


@pytest.mark.parametrize("difference", np.linspace(-0.03, 0.03, 13))
def test_p_is_below_five_percent_exactly_where_the_90_percent_interval_is_inside(difference: float) -> None:
    half = float(stats.t.ppf(0.95, 9)) * 0.005
    is_inside = difference - half > -0.02 and difference + half < 0.02
    assert (equivalence_p(difference, 0.005, 9, -0.02, 0.02) < 0.05) == is_inside


@pytest.mark.parametrize(("difference", "p"), [(0.0, 0.0), (0.019, 0.0), (0.02, 1.0), (-0.021, 1.0)])
def test_without_spread_the_difference_itself_decides(difference: float, p: float) -> None:
    assert equivalence_p(difference, 0.0, 4, -0.02, 0.02) == p


def test_a_true_difference_on_the_margin_is_called_equivalent_in_one_case_of_twenty() -> None:
    rng = np.random.default_rng(0)
    samples = rng.normal(0.02, 0.01, (4000, 8))
    errors = samples.std(axis=1, ddof=1) / math.sqrt(8)
    p = [equivalence_p(m, e, 7, -0.02, 0.02) for m, e in zip(samples.mean(axis=1), errors, strict=True)]
    assert np.mean(np.array(p) < 0.05) == pytest.approx(0.05, abs=0.012)


@pytest.mark.parametrize("difference", [-0.015, 0.0, 0.004, 0.012])
def test_intervals_agree_with_the_normal_test(difference: float) -> None:
    exact = equivalence_p(difference, 0.006, math.inf, -0.02, 0.02)
    half = 1.959964 * 0.006
    by_interval = equivalence_p_of_interval(difference, difference - half, difference + half, 0.02)
    assert by_interval == pytest.approx(exact, abs=1e-6)


def test_each_bound_is_tested_with_the_side_of_the_interval_towards_it() -> None:
    wide_above = equivalence_p_of_interval(0.0, -0.001, 0.04, 0.02)
    wide_below = equivalence_p_of_interval(0.0, -0.04, 0.001, 0.02)
    assert wide_above == pytest.approx(wide_below)
    assert wide_above > 0.05
    assert equivalence_p_of_interval(0.0, None, None, 0.02) is None


@pytest.mark.parametrize(
    ("difference", "p", "p_equivalent", "expected"),
    [
        (0.1, 0.01, 0.9, "yes"),
        (-0.1, 0.01, 0.9, "no"),
        (0.1, 0.06, 0.9, "unclear"),
        (0.001, 0.6, 0.01, "equivalent"),
        (0.005, 0.01, 0.01, "equivalent"),  # significant, and too small to decide anything
        (0.1, 0.01, None, "yes"),
        (0.1, None, None, "unclear"),
        (0.0, 0.05, 0.05, "unclear"),
    ],
)
def test_verdicts(difference: float, p: float | None, p_equivalent: float | None, expected: Verdict) -> None:
    assert verdict(difference, p, p_equivalent) == expected


def test_margins_belong_to_metrics_and_say_why() -> None:
    assert margin_of("f1") is MARGINS["F1"]
    assert margin_of("best_of@8") is MARGINS["best-of-N accuracy"]
    assert margin_of("avg@4") is MARGINS["policy accuracy"]
    assert margin_of("threshold") is None
    assert (MARGINS["F1"].text, MARGINS["policy accuracy"].text) == ("2 points", "1 point")
    assert all(margin.reason and 0 < margin.value < 0.1 for margin in MARGINS.values())


def test_holm_leaves_out_what_was_not_tested() -> None:
    assert holm_where_tested([0.02, None, 0.01]) == [0.02, None, 0.02]
