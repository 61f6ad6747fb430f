"""Means and paired differences of runs whose RL seeds are nested in SFT seeds, and whose problems are shared or not.

One estimator for policies, monitors and reward models; knows nothing of arms.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, variance

from prmbench.report.stats import LEVEL, POWER, ROUNDING, t_quantile, t_two_sided_p

Seeds = tuple[int, int]
"""SFT seed, RL seed."""
Runs = Mapping[Seeds, Mapping[str, float]]
"""Run -> problem -> number; a number that is of the whole run stands under the problem WHOLE."""
WHOLE = ""
EXPLAINED = (
    "Intervals are Student's t over the means of the SFT seeds, because runs that start from one SFT model are not "
    "independent; where all runs share their problems, the variance of the mean over problems is added and the degrees "
    "of freedom are Satterthwaite's (an interval slightly too wide, never too narrow)."
)


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean over SFT seeds of means over RL seeds; ends are None where nothing varies that could be measured."""

    value: float
    lo: float | None
    hi: float | None
    p: float | None
    """Two-sided, against 0; None for a single run, whose interval is over problems only."""
    mdd: float | None
    """The smallest true difference from 0 that a test at 5% finds with power 0.80, given this spread."""
    sft_seeds: int
    runs: int
    positive: int
    """Runs whose mean is above zero."""

    @property
    def single(self) -> bool:
        """True where the interval says nothing of other SFT seeds, since there is but one."""
        return self.sft_seeds == 1


def whole(values: Mapping[Seeds, float]) -> Runs:
    """Numbers that are of whole runs."""
    return {seeds: {WHOLE: value} for seeds, value in values.items()}


def difference(first: Runs, second: Runs) -> Runs:
    """First minus second, paired by both seeds and by problem; what only one of them has is left out."""
    found = {}
    for seeds in sorted(first.keys() & second.keys()):
        a, b = first[seeds], second[seeds]
        gaps = {problem: a[problem] - b[problem] for problem in sorted(a.keys() & b.keys())}
        if gaps:
            found[seeds] = gaps
    return found


def estimate(runs: Runs) -> Estimate | None:
    """Mean, interval, p and what could have been found; None without a run."""
    means = {seeds: fmean(values.values()) for seeds, values in sorted(runs.items()) if values}
    if not means:
        return None
    sft = sorted({seeds[0] for seeds in means})
    by_sft = [fmean(m for seeds, m in means.items() if seeds[0] == s) for s in sft]
    # With a single SFT seed its RL seeds are all there is to vary.
    units = by_sft if len(sft) > 1 else list(means.values())
    value, positive = fmean(by_sft), sum(m > ROUNDING for m in means.values())
    parts = [_error(units)] + ([_error(_by_problem(runs, sft))] if _shared(runs) or len(means) == 1 else [])
    squares = [(square, df) for square, df in parts if df > 0]
    if not squares:
        return Estimate(value, None, None, None, None, len(sft), len(means), positive)
    error = math.sqrt(sum(square for square, _ in squares))
    df = _satterthwaite(squares)
    reach = t_quantile((1 + LEVEL) / 2, df)
    t = abs(value) / error if error > ROUNDING else math.inf if abs(value) > ROUNDING else 0.0
    alone = len(means) == 1  # how much training varies is not known, so nothing can be tested
    return Estimate(
        value=value,
        lo=value - reach * error,
        hi=value + reach * error,
        p=None if alone else t_two_sided_p(t, df),
        mdd=None if alone else (reach + t_quantile(POWER, df)) * error,
        sft_seeds=len(sft),
        runs=len(means),
        positive=positive,
    )


def _error(values: Sequence[float]) -> tuple[float, int]:
    """Squared standard error of the mean, and its degrees of freedom (0: a single value)."""
    return (variance(values) / len(values), len(values) - 1) if len(values) > 1 else (0.0, 0)


def _shared(runs: Runs) -> bool:
    """Do all runs have (nearly) the same problems? If not, SFT seeds have their own, and vary with them already."""
    sets = [set(values) for values in runs.values() if values]
    common = set.intersection(*sets)
    return WHOLE not in common and all(2 * len(common) > len(one) for one in sets)


def _by_problem(runs: Runs, sft: Sequence[int]) -> list[float]:
    """Each common problem's number, the mean over SFT seeds of means over RL seeds."""
    kept = {seeds: values for seeds, values in runs.items() if values}
    common = sorted(set.intersection(*(set(values) for values in kept.values())))
    return [fmean(fmean(v[problem] for seeds, v in kept.items() if seeds[0] == s) for s in sft) for problem in common]


def _satterthwaite(squares: Sequence[tuple[float, int]]) -> int:
    """Degrees of freedom of a sum of squared errors, rounded down."""
    below = sum(square**2 / df for square, df in squares)
    if below < ROUNDING**4:
        return min(df for _, df in squares)
    return max(1, math.floor(sum(square for square, _ in squares) ** 2 / below + ROUNDING))
