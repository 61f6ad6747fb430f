"""Estimates over runs whose RL seeds are nested in SFT seeds: means, paired differences, intervals and tests.

One estimator serves accuracies of policies, monitors of training and reward models.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, variance

from prmbench.metrics.equivalence import equivalence_p
from prmbench.report.stats import LEVEL, POWER, ROUNDING, t_quantile, t_two_sided_p

Seeds = tuple[int, int]
"""(SFT seed, RL seed)."""
RunValues = Mapping[Seeds, Mapping[str, float]]
"""Seeds of a run -> problem -> value; a value of the whole run has the key WHOLE instead of a problem."""
WHOLE = ""
INTERVALS_NOTE = (
    "Intervals are Student's t over the means of the SFT seeds, because runs that start from one SFT model are not "
    "independent; where all runs share their problems, the variance of the mean over problems is added and the degrees "
    "of freedom are Satterthwaite's (an interval slightly too wide, never too narrow)."
)


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean over SFT seeds of means over RL seeds. Bounds are None where no spread can be estimated."""

    value: float
    lo: float | None
    hi: float | None
    p: float | None
    """Two-sided, against 0. None for a single run, whose interval is over problems only."""
    mdd: float | None
    """The smallest true difference that a test at 5% finds with power 0.80, given this spread."""
    sft_seeds: int
    runs: int
    positive: int
    """Runs whose mean is above zero."""
    error: float | None = None
    """Standard error of the value; None where nothing can be tested."""
    df: int | None = None
    """Degrees of freedom of the error."""

    @property
    def has_single_sft_seed(self) -> bool:
        """Whether there is a single SFT seed, so that the interval does not cover variation between SFT seeds."""
        return self.sft_seeds == 1

    def p_within(self, low: float, high: float) -> float | None:
        """Returns the p-value of one-sided tests that the value lies between the bounds; None for a single run."""
        if self.error is None or self.df is None:
            return None
        return equivalence_p(self.value, self.error, self.df, low, high)


def whole_run_values(values: Mapping[Seeds, float]) -> RunValues:
    """Returns values of whole runs in the form of `RunValues`."""
    return {seeds: {WHOLE: value} for seeds, value in values.items()}


def difference(first: RunValues, second: RunValues) -> RunValues:
    """Returns first minus second, paired by both seeds and by problem; unpaired runs and problems are left out."""
    differences = {}
    for seeds in sorted(first.keys() & second.keys()):
        a, b = first[seeds], second[seeds]
        by_problem = {problem: a[problem] - b[problem] for problem in sorted(a.keys() & b.keys())}
        if by_problem:
            differences[seeds] = by_problem
    return differences


def estimate(runs: RunValues) -> Estimate | None:
    """Returns the mean with interval, p-value and minimum detectable difference; None without a run.

    The variance of the mean is that over SFT seeds (over RL seeds when there is one SFT seed). Where all runs have the
    same problems, the variance over problems is added, with Satterthwaite's degrees of freedom.
    """
    means = {seeds: fmean(values.values()) for seeds, values in sorted(runs.items()) if values}
    if not means:
        return None
    sft_seeds = sorted({seeds[0] for seeds in means})
    sft_means = [fmean(m for seeds, m in means.items() if seeds[0] == s) for s in sft_seeds]
    # With a single SFT seed, only its RL seeds vary.
    units = sft_means if len(sft_seeds) > 1 else list(means.values())
    value, positive = fmean(sft_means), sum(m > ROUNDING for m in means.values())
    is_single_run = len(means) == 1
    parts = [_mean_variance(units)]
    if is_single_run or _share_problems(runs):
        parts.append(_mean_variance(_problem_means(runs, sft_seeds)))
    variances = [(square, df) for square, df in parts if df > 0]
    if not variances:
        return Estimate(value, None, None, None, None, len(sft_seeds), len(means), positive)
    error = math.sqrt(sum(square for square, _ in variances))
    df = _satterthwaite_df(variances)
    t_critical = t_quantile((1 + LEVEL) / 2, df)
    t = abs(value) / error if error > ROUNDING else math.inf if abs(value) > ROUNDING else 0.0
    return Estimate(
        value=value,
        lo=value - t_critical * error,
        hi=value + t_critical * error,
        # A single run does not show how much training varies, so nothing can be tested.
        p=None if is_single_run else t_two_sided_p(t, df),
        mdd=None if is_single_run else (t_critical + t_quantile(POWER, df)) * error,
        sft_seeds=len(sft_seeds),
        runs=len(means),
        positive=positive,
        error=None if is_single_run else error,
        df=None if is_single_run else df,
    )


def _mean_variance(values: Sequence[float]) -> tuple[float, int]:
    """Returns the squared standard error of the mean and its degrees of freedom (0 for a single value)."""
    return (variance(values) / len(values), len(values) - 1) if len(values) > 1 else (0.0, 0)


def _share_problems(runs: RunValues) -> bool:
    """Whether all runs have mostly the same problems.

    If not, each SFT seed has problems of its own, and the variance over SFT seeds already includes that over problems.
    """
    problem_sets = [set(values) for values in runs.values() if values]
    common = set.intersection(*problem_sets)
    return WHOLE not in common and all(2 * len(common) > len(problems) for problems in problem_sets)


def _problem_means(runs: RunValues, sft_seeds: Sequence[int]) -> list[float]:
    """Returns each common problem's value: the mean over SFT seeds of means over RL seeds."""
    with_values = {seeds: values for seeds, values in runs.items() if values}
    common = sorted(set.intersection(*(set(values) for values in with_values.values())))
    return [
        fmean(fmean(v[problem] for seeds, v in with_values.items() if seeds[0] == sft_seed) for sft_seed in sft_seeds)
        for problem in common
    ]


def _satterthwaite_df(variances: Sequence[tuple[float, int]]) -> int:
    """Returns the Welch-Satterthwaite degrees of freedom of a sum of (variance, degrees of freedom), rounded down."""
    denominator = sum(square**2 / df for square, df in variances)
    if denominator < ROUNDING**4:
        return min(df for _, df in variances)
    return max(1, math.floor(sum(square for square, _ in variances) ** 2 / denominator + ROUNDING))
