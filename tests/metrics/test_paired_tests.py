"""The swap test: by hand on a few traces, and its errors on data without a difference."""

from __future__ import annotations

import math

import numpy as np
import pytest

from prmbench.metrics import first_error, paired_tests
from prmbench.metrics.first_error import Floats, Ints, Sample
from prmbench.metrics.paired_tests import Swapped, SwapTest, adjusted_p


def drawn(label: Ints, separation: float, shared: Floats, rng: np.random.Generator) -> Sample:
    """Traces of four steps; half of the noise is shared by both runs."""
    scores = np.sqrt(0.5) * (shared + rng.standard_normal(shared.shape))
    scores = scores - separation * (np.arange(4) == label[:, None])
    return Sample(*first_error.match_intervals(scores, label), label >= 0, np.arange(len(label)))


def pair(n: int, separations: tuple[float, float], seed: int) -> tuple[Sample, Sample]:
    rng = np.random.default_rng(seed)
    label = np.where(rng.random(n) < 0.6, rng.integers(0, 4, n), -1)
    label[:4] = (-1, -1, 0, 1)
    shared = rng.standard_normal((n, 4))
    first, second = (drawn(label, s, shared, rng) for s in separations)
    return first, second


def oracle_test(first: Sample, second: Sample, swaps: int, seed: int) -> SwapTest:
    both = Swapped(first, second, paired_tests.swaps(len(first), swaps, seed))
    ones = np.ones((1, len(first)))
    observed = [d.matches(first_error.best_threshold(d, ones))[0].astype(float) for d in (first, second)]
    return paired_tests.f1_test(first, (observed[0], observed[1]), both.judged(both.best_thresholds()))


def test_difference_and_standard_error_by_hand() -> None:
    """Four problems: two with an error (right: 1 of 2 against 2 of 2), two without (2 of 2 against 1 of 2)."""
    data = Sample(np.zeros(4), np.ones(4), np.array([True, True, False, False]), np.arange(4))
    first, second = np.array([1.0, 0.0, 1.0, 1.0]), np.array([1.0, 1.0, 1.0, 0.0])
    nothing = np.zeros((0, 4))
    test = paired_tests.f1_test(data, (first, second), (nothing, nothing))
    assert test.difference[0] == pytest.approx(0.0)  # F1 is 2/3 on both sides
    # Derivatives of 2ab / (a + b): by a 2 b^2 / (a + b)^2. First run: a = 1/2, b = 1: 8/9 and 2/9. Second: swapped.
    slope = {"first": (8 / 9, 2 / 9), "second": (2 / 9, 8 / 9)}
    influence = [
        0 - slope["first"][0] * 0.5 / 2,
        0 + slope["first"][0] * 0.5 / 2,
        slope["second"][1] * 0.5 / 2,
        -slope["second"][1] * 0.5 / 2,
    ]
    variance = sum(x * x for x in influence) * 4 / 3 + (0.5 / 4) ** 2
    assert test.error[0] == pytest.approx(math.sqrt(variance))


def test_traces_of_one_problem_are_swapped_together_and_counted_together() -> None:
    data = Sample(np.zeros(4), np.ones(4), np.array([True, True, False, False]), np.array([0, 0, 1, 1]))
    second = Sample(np.full(4, 2.0), np.full(4, 3.0), data.has_error, data.cluster)
    both = Swapped(data, second, np.array([[False, False], [True, False]]))
    right, other = both.judged((np.array([1.0]), np.array([1.0])))
    assert right.tolist() == [[1, 1, 1, 1], [0, 0, 1, 1]]
    assert other.tolist() == [[0, 0, 0, 0], [1, 1, 0, 0]]
    own = both.judged_by_own(1.0, 3.0)
    assert own[0].tolist() == [[1, 1, 1, 1]] * 2
    assert own[1].tolist() == [[1, 1, 1, 1]] * 2


def test_swaps_tune_again() -> None:
    """The best threshold under a swap is that of the swapped run's own traces."""
    first, second = pair(40, (0.5, 2.0), 0)
    swapped = paired_tests.swaps(40, 20, 1)
    both = Swapped(first, second, swapped)
    for row, threshold in zip(swapped, both.best_thresholds()[0], strict=True):
        mixed = Sample(
            np.where(row, second.lo, first.lo), np.where(row, second.hi, first.hi), first.has_error, first.cluster
        )
        assert threshold == pytest.approx(first_error.best_threshold(mixed, np.ones((1, 40)))[0])
    fold = first_error.fold_splits([f"{i:03}" for i in range(40)], splits=2)
    rates = both.out_of_fold(fold)[1]
    for row, rate in zip(swapped, rates, strict=True):
        mixed = Sample(
            np.where(row, first.lo, second.lo), np.where(row, first.hi, second.hi), first.has_error, first.cluster
        )
        assert rate == pytest.approx(first_error.out_of_fold_rates(mixed, fold)[0])


def test_a_common_scale_changes_no_tuned_f1() -> None:
    first, _ = pair(60, (1.0, 1.0), 0)
    steps = np.sort(np.concatenate([v[np.isfinite(v)] for v in (first.lo, first.hi)]))
    scaled = paired_tests.on_one_scale(first, steps)
    assert scaled.hi[np.isfinite(scaled.hi)].max() <= 1
    ones = np.ones((1, 60))
    right = [d.matches(first_error.best_threshold(d, ones))[0] for d in (first, scaled)]
    assert (right[0] == right[1]).all()


def test_p_counts_t_values_at_least_as_far_from_zero() -> None:
    test = SwapTest(np.array([0.4, 0.1, -0.4, 0.5, 0.0]), np.array([0.1, 0.1, 0.1, 0.1, 0.1]))
    assert test.p == pytest.approx((2 + 1) / 5)
    assert SwapTest(np.zeros(5), np.full(5, 0.1)).p == 1.0
    assert SwapTest(np.zeros(1), np.ones(1)).p is None
    assert SwapTest(np.zeros(1), np.ones(1)).interval() == (None, None)
    other = np.array([0.0, 9.0, 0.0, 0.0, 0.0])
    assert adjusted_p(test.t_values, [test.t_values, other]) == pytest.approx((3 + 1) / 5)


def test_the_interval_excludes_zero_exactly_where_p_is_below_five_percent() -> None:
    rng = np.random.default_rng(0)
    rejected = 0
    for _ in range(500):
        null = rng.integers(-8, 9, 60) / 10  # many ties
        test = SwapTest(np.concatenate([[rng.integers(-12, 13) / 10], null]), np.full(61, 0.3))
        low, high = test.interval()
        assert low is not None
        assert high is not None
        assert test.p is not None
        assert (test.p < 0.05) == (low > 0 or high < 0)
        rejected += test.p < 0.05
    assert 100 < rejected < 400


def test_a_difference_of_the_detectable_size_is_found_four_times_in_five() -> None:
    rng = np.random.default_rng(0)
    null = rng.normal(0, 1, 4000)
    size = SwapTest(np.concatenate([[0.0], null]), np.ones(4001)).detectable()
    assert size == pytest.approx(1.96 + 0.84, abs=0.06)


def test_an_average_of_subsets_adds_variances() -> None:
    one = SwapTest(np.array([0.2, 0.1]), np.array([0.3, 0.3]))
    other = SwapTest(np.array([0.4, -0.1]), np.array([0.4, 0.4]))
    mean = paired_tests.average([one, other])
    assert mean.difference.tolist() == pytest.approx([0.3, 0.0])
    assert mean.error[0] == pytest.approx(0.25)


def test_runs_without_a_difference_are_told_apart_in_one_of_twenty_and_a_difference_is_found() -> None:
    """300 pairs of runs, thresholds tuned on the same traces; the bootstrap rejected 1% of such pairs."""
    ps = [oracle_test(*pair(40, (1.5, 1.5), seed), swaps=99, seed=seed).p for seed in range(300)]
    assert 0.025 <= np.mean([p is not None and p < 0.05 for p in ps]) <= 0.08
    found = [oracle_test(*pair(40, (0.5, 3.0), seed), swaps=99, seed=seed) for seed in range(20)]
    assert sum(t.p is not None and t.p < 0.05 for t in found) >= 18
    assert all(t.difference[0] > 0 for t in found)


def test_runs_that_are_both_wrong_on_all_are_not_shown_to_be_equal() -> None:
    """No swap changes anything, and yet 30 traces do not say that a thousand would not either."""
    data = Sample(np.zeros(30), np.ones(30), np.arange(30) % 2 == 0, np.arange(30))
    never = np.where(data.has_error, 0.0, 1.0)
    under_swaps = np.tile(never, (200, 1))
    test = paired_tests.f1_test(data, (never, never), (under_swaps, under_swaps))
    lo, hi = test.interval()
    assert test.p == 1.0
    assert (lo, hi) == (pytest.approx(-1.96 * 0.5 / 30, rel=1e-3), pytest.approx(1.96 * 0.5 / 30, rel=1e-3))
    assert test.detectable() == pytest.approx(1.96 * 0.5 / 30, rel=1e-3)
