"""A paired test of two runs' F1 that tunes again: studentised swaps of whole problems.

Under "no difference" the two runs are exchangeable problem by problem. So the scores of the two are swapped for a
random half of the problems, thresholds are tuned again on what results, and the difference is divided by its standard
error. How far these t values lie from 0 gives the p-value, and the same distribution gives the interval around the
observed difference: it excludes 0 exactly where p is below 0.05. Dividing by the standard error keeps the test valid
where the runs differ in more than their F1 (Chung and Romano, 2013).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from prmbench.metrics.equivalence import NORMAL_95
from prmbench.metrics.first_error import Floats, Ints, Sample, best_threshold, harmonic
from prmbench.metrics.intervals import LEVEL, POWER, Ends

Bools = NDArray[np.bool_]
_TIE = 1e-9
"""Relative difference below which two t values are equal."""
_CHUNK = 2**17
"""Weights of swaps that are tuned together: their arrays fit into a processor's cache."""
_SPLIT_TRACES = 3_000
"""Traces times splits into folds under each swap, which has ten splits on few traces; on many, splits hardly differ."""


@dataclass(frozen=True, slots=True)
class SwapTest:
    """A difference and its standard error: first as observed, then under each swap; both are [swaps + 1]."""

    difference: Floats
    error: Floats

    @property
    def t_values(self) -> Floats:
        """Differences over their standard errors, [swaps + 1]."""
        differs = np.abs(self.difference) > 1e-12  # noqa: PLR2004 - equal up to rounding
        return np.divide(self.difference, self.error, out=np.zeros_like(self.difference), where=differs)

    @property
    def p(self) -> float | None:
        """The two-sided p-value, (k + 1) / (swaps + 1) with k t values at least as far from 0 as the observed one."""
        return adjusted_p(self.t_values, [self.t_values])

    def interval(self) -> Ends:
        """Returns the 95% interval of the difference, which excludes 0 exactly where p is below 0.05."""
        critical = self._critical()
        if critical is None:
            return None, None
        middle, half = float(self.difference[0]), critical * float(self.error[0])
        return max(middle - half, -1.0), min(middle + half, 1.0)

    def detectable(self) -> float | None:
        """Returns the smallest true difference that the test finds in 80% of experiments."""
        critical = self._critical()
        if critical is None:
            return None
        return (critical + float(np.quantile(np.abs(self.t_values[1:]), 2 * POWER - 1))) * float(self.error[0])

    def _critical(self) -> float | None:
        """The t value that has to be exceeded; None with too few swaps to reject anything."""
        rejecting = math.ceil((1 - LEVEL) * len(self.difference) - _TIE) - 1
        if rejecting < 1:
            return None
        critical = float(np.sort(np.abs(self.t_values[1:]))[-rejecting]) * (1 + _TIE)
        # Where nothing differs under any swap, as when both F1 are 0, swaps say nothing of how much it might.
        return critical or (0.0 if self.t_values[0] else NORMAL_95)


def adjusted_p(t_values: Floats, family: Sequence[Floats]) -> float | None:
    """Computes a p-value that is adjusted for a family of tests by the largest t value (max-T, Westfall and Young).

    Args:
        t_values: Of one test: the observed one, then those under each swap.
        family: The t values of all tests, this one included, under the same swaps.
    """
    if len(t_values) < 2:  # noqa: PLR2004
        return None
    largest = np.max([np.abs(q[1:]) for q in family], axis=0)
    reached = int((largest >= abs(t_values[0]) * (1 - _TIE)).sum())
    return (reached + 1) / len(t_values)


def average(tests: Sequence[SwapTest]) -> SwapTest:
    """Returns the test of the mean difference over subsets, whose problems are swapped independently."""
    error = np.sqrt(np.sum([t.error**2 for t in tests], axis=0)) / len(tests)
    return SwapTest(np.mean([t.difference for t in tests], axis=0), error)


def swaps(problems: int, count: int, seed: int) -> Bools:
    """Draws which problems are swapped, [count, problems]."""
    return np.random.default_rng(seed).random((count, problems)) < 0.5  # noqa: PLR2004


def on_one_scale(data: Sample, readouts: Floats) -> Sample:
    """Returns the sample with shares of steps in place of scores, which changes no F1 under a tuned threshold.

    The scores of two models can have different scales; as shares of their own steps they can share a threshold.

    Args:
        data: The traces of one subset under one model.
        readouts: The readouts of all steps of the run, sorted, [s].
    """

    def share(score: Floats) -> Floats:
        below = np.searchsorted(readouts, score, side="right") / max(len(readouts), 1)
        return np.where(np.isfinite(score), below, score)

    return Sample(share(data.lo), share(data.hi), data.has_error, data.cluster)


class Swapped:
    """Two runs' traces of one subset under swaps: weights of the first run's traces, then of the second's.

    Args:
        first: The first run's traces.
        second: The second run's, on the same labels.
        swapped: Whether each problem is swapped, [swaps, problems].
    """

    def __init__(self, first: Sample, second: Sample, swapped: Bools) -> None:
        self.both = Sample(*(np.concatenate([getattr(first, f), getattr(second, f)]) for f in Sample.__slots__))
        self.traces = len(first)
        is_swapped = swapped[:, first.cluster].astype(float)
        stays = 1 - is_swapped
        self.weights = np.concatenate([stays, is_swapped], axis=1), np.concatenate([is_swapped, stays], axis=1)

    def best_thresholds(self) -> tuple[Floats, Floats]:
        """Returns the best threshold of both runs under each swap."""
        first, second = (np.concatenate([best_threshold(self.both, w) for w in _chunks(w)]) for w in self.weights)
        return first, second

    def judged(self, thresholds: tuple[Floats, Floats]) -> tuple[Floats, Floats]:
        """Returns whether each trace is judged right by both runs, each [swaps, n], at thresholds [swaps] or [1]."""
        first, second = (self._own(self.both.matches(t) * w) for t, w in zip(thresholds, self.weights, strict=True))
        return first, second

    def judged_by_own(self, first: float, second: float) -> tuple[Floats, Floats]:
        """Returns the same where each run keeps a threshold of its own, which is swapped with its traces."""
        own = np.concatenate([np.full(self.traces, first), np.full(self.traces, second)])
        is_right = (self.both.lo < own) & (own <= self.both.hi)
        one, other = (self._own(is_right * w) for w in self.weights)
        return one, other

    def out_of_fold(self, fold: Ints) -> tuple[Floats, Floats]:
        """Returns the share of splits in which thresholds tuned on the other folds judge each trace rightly."""
        splits = min(len(fold), max(2, _SPLIT_TRACES // self.traces))
        folds = np.concatenate([fold[:splits], fold[:splits]], axis=1)
        first, second = (
            self._own(np.concatenate([_out_of_fold(self.both, w, folds) for w in _chunks(w)])) for w in self.weights
        )
        return first, second

    def _own(self, judged: Floats) -> Floats:
        return judged[:, : self.traces] + judged[:, self.traces :]


def _chunks(weights: Floats) -> list[Floats]:
    size = max(1, _CHUNK // max(weights.shape[1], 1))
    return [weights[start : start + size] for start in range(0, max(len(weights), 1), size)]


def _out_of_fold(data: Sample, weights: Floats, fold: Ints) -> Floats:
    rate = np.zeros(weights.shape)
    for split in fold:
        for number in np.unique(split):
            held_out = split == number
            threshold = best_threshold(data, weights * ~held_out)
            rate[:, held_out] += data.matches(threshold)[:, held_out] * weights[:, held_out]
    return rate / len(fold)


def f1_test(data: Sample, observed: tuple[Floats, Floats], swapped: tuple[Floats, Floats]) -> SwapTest:
    """Tests the difference in F1, second minus first.

    Args:
        data: The traces' labels and problems.
        observed: Whether, or in which share of splits, each trace is judged right by the first run and by the second,
            [n] each. Their thresholds are on their own scales.
        swapped: The same under each swap, [swaps, n] each, on a common scale.
    """
    first, second = (np.concatenate([o[None], s]) for o, s in zip(observed, swapped, strict=True))
    problems = int(data.cluster.max(initial=0)) + 1
    influence = np.zeros(first.shape)
    difference = np.zeros(len(first))
    for sign, rate in ((-1.0, first), (1.0, second)):
        error, correct = rate[:, data.has_error].mean(axis=1), rate[:, ~data.has_error].mean(axis=1)
        difference += sign * harmonic(error, correct)
        # Of a trace on F1: the derivative by its group's accuracy times its own deviation from it.
        total = np.maximum(error + correct, 1e-300)
        for group, own, other in ((data.has_error, error, correct), (~data.has_error, correct, error)):
            slope = 2 * (other / total) ** 2 / group.sum()
            influence[:, group] += sign * slope[:, None] * (rate[:, group] - own[:, None])
    by_problem = influence @ np.eye(problems)[data.cluster]
    variance = (by_problem**2).sum(axis=1) * problems / max(problems - 1, 1)
    # The second term is the error of half a problem: without it, problems that all agree would have none, however few.
    return SwapTest(difference, np.sqrt(variance + (0.5 / problems) ** 2))
