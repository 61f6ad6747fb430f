"""Means and paired differences over seeds: t-intervals, p-values, Holm's adjustment, detectable differences.

Seeds are few, so everything uses Student's t, from scipy.special because importing scipy.stats takes much longer.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from scipy import special

from prmbench.metrics.equivalence import equivalence_p

LEVEL = 0.95
POWER = 0.80
ROUNDING = 1e-12
"""Spread and differences below this are float noise, not evidence."""


@dataclass(frozen=True, slots=True)
class Mean:
    """A mean over seeds; the ends are None for a single seed."""

    value: float
    lo: float | None
    hi: float | None
    n: int


@dataclass(frozen=True, slots=True)
class Paired:
    """First minus second over the seeds that both have."""

    difference: float
    lo: float | None
    hi: float | None
    p: float | None
    """Two-sided; None for a single seed."""
    n: int
    positive: int
    """Seeds in which the difference is above zero."""
    mdd: float | None
    """The smallest true difference that a test at 5% detects with power 0.80, given this spread."""
    error: float | None = None
    """Standard error of the difference; None for a single seed."""

    def equivalence_p(self, margin: float) -> float | None:
        """Returns the p-value of two one-sided tests that the difference is within the margin; None for one seed."""
        if self.error is None:
            return None
        return equivalence_p(self.difference, self.error, self.n - 1, -margin, margin)


def t_two_sided_p(t: float, df: int) -> float:
    """Returns P(|T| >= t) of Student's distribution with `df` degrees of freedom, for t >= 0."""
    return float(2 * special.stdtr(df, -t))


def t_quantile(p: float, df: int) -> float:
    """Returns the p-quantile of Student's distribution with `df` degrees of freedom."""
    return float(special.stdtrit(df, p))


def mean(values: Sequence[float]) -> Mean:
    """Computes the mean with its 95% t-interval. Raises ValueError without values."""
    if not values:
        raise ValueError("no value to take a mean of")
    value, n = fmean(values), len(values)
    if n == 1:
        return Mean(value, None, None, 1)
    half = t_quantile((1 + LEVEL) / 2, n - 1) * stdev(values) / math.sqrt(n)
    return Mean(value, value - half, value + half, n)


def paired(first: Mapping[int, float], second: Mapping[int, float]) -> Paired | None:
    """Compares two methods by seed; None if no seed has both."""
    differences = [first[seed] - second[seed] for seed in sorted(first.keys() & second.keys())]
    if not differences:
        return None
    m, positive = mean(differences), sum(gap > ROUNDING for gap in differences)
    if m.lo is None:
        return Paired(m.value, None, None, None, m.n, positive, None)
    df, error = m.n - 1, stdev(differences) / math.sqrt(m.n)
    t = abs(m.value) / error if error > ROUNDING else math.inf if abs(m.value) > ROUNDING else 0.0
    p = t_two_sided_p(t, df)
    mdd = (t_quantile((1 + LEVEL) / 2, df) + t_quantile(POWER, df)) * error
    return Paired(m.value, m.lo, m.hi, p, m.n, positive, mdd, error)
