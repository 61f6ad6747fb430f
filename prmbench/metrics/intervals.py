"""Intervals, p-values and detectable differences, all from one standard error, so that none contradicts another.

A statistic comes with its bootstrap replicates, which resample whole problems. Their spread gives a standard error;
Student's t with one degree of freedom less than there are problems gives the width. benchmarks/coverage.py measures how
often the intervals contain the truth.
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import special

Floats = NDArray[np.float64]
Kind = Literal["share", "share_difference", "difference", "percentile", "range"]
"""How an interval is made from replicates.

`share`: Wilson's score interval, for numbers between 0 and 1. `difference`: Student's t;
`share_difference` ends at -1 and 1. `percentile`: quantiles of the
replicates, moved outwards for few problems. `range`: the central 95% of the replicates themselves, which are draws of
something random."""
LEVEL, POWER = 0.95, 0.80
ROUNDING = 1e-12
"""Standard errors and differences below this are rounding."""
Ends = tuple[float, float] | tuple[None, None]


def t_quantile(p: float, problems: int) -> float:
    """Returns Student's quantile for a number over so many problems; the normal one if their number is 0: unknown."""
    return float(special.stdtrit(problems - 1, p) if problems > 1 else special.ndtri(p))


def standard_error(replicates: Floats, problems: int) -> float:
    """Computes the standard error of a statistic from its bootstrap replicates; nan from fewer than two finite ones.

    Resampling c problems gives a variance that is too small by (c - 1) / c, which is corrected.
    """
    finite = replicates[np.isfinite(replicates)]
    if finite.size <= 1:
        return math.nan
    correction = problems / (problems - 1) if problems > 1 else 1.0
    return float(finite.std(ddof=1) * math.sqrt(correction))


def interval(kind: Kind, centre: float, replicates: Floats, problems: int) -> Ends:
    """Computes a 95% interval.

    Args:
        kind: How it is made.
        centre: The estimate that it surrounds.
        replicates: The statistic in each bootstrap sample, [b].
        problems: Number of resampled problems; 0 if it is unknown and large.

    Returns:
        The ends; (None, None) with fewer than two finite replicates.
    """
    error = standard_error(replicates, problems)
    if math.isnan(error) or math.isnan(centre):
        return None, None
    if kind == "share":
        return share_interval(centre, error, problems)
    if kind in ("difference", "share_difference"):
        half = t_quantile((1 + LEVEL) / 2, problems) * _error_of_difference(centre, error, problems)
        bound = 1.0 if kind == "share_difference" else math.inf
        return max(centre - half, -bound), min(centre + half, bound)
    tail = (1 - LEVEL) / 2
    if kind == "percentile" and problems > 1:
        # Hesterberg (2015): as much further out as Student's t is wider than the normal distribution.
        tail = float(special.ndtr(-math.sqrt(problems / (problems - 1)) * t_quantile(1 - tail, problems)))
    low, high = np.quantile(replicates[np.isfinite(replicates)], [tail, 1 - tail])
    return float(low), float(high)


def share_interval(value: float, error: float, problems: int) -> tuple[float, float]:
    """Computes Wilson's 95% score interval of a number between 0 and 1.

    The size of the sample in Wilson's formula is the number of independent yes-or-no trials that would have the same
    standard error (Korn and Graubard, 1998): value (1 - value) / error^2. Where all problems agree there is no standard
    error, and their number is taken. So the interval has a width even at 0 and at 1, and stays between them.
    """
    value = min(max(value, 0.0), 1.0)
    variance = value * (1 - value)
    if error > ROUNDING and variance > ROUNDING:
        size = variance / error**2
    elif problems > 0:
        size = float(problems)
    else:
        return value, value
    t = t_quantile((1 + LEVEL) / 2, problems)
    shrunk = 1 + t * t / size
    middle = (value + t * t / (2 * size)) / shrunk
    half = t * math.sqrt(variance / size + (t / (2 * size)) ** 2) / shrunk
    low, high = middle - half, middle + half
    if variance <= ROUNDING:  # at 0 or 1, where replicates with other thresholds may still differ
        low, high = min(low, value - t * error), max(high, value + t * error)
    return max(low, 0.0), min(high, 1.0)


def _error_of_difference(difference: float, error: float, problems: int) -> float:
    """The standard error; where all problems differ by the same, however few they are, one that shrinks with them."""
    if error > ROUNDING or abs(difference) <= ROUNDING:
        return error
    return abs(difference) / math.sqrt(max(problems, 1))


def two_sided_p(difference: float, replicates: Floats, problems: int) -> float | None:
    """Computes the two-sided p-value of "no difference": below 0.05 exactly where the 95% interval excludes 0."""
    error = _error_of_difference(difference, standard_error(replicates, problems), problems)
    if math.isnan(error):
        return None
    t = abs(difference) / max(error, ROUNDING)
    return float(2 * (special.stdtr(problems - 1, -t) if problems > 1 else special.ndtr(-t)))


def detectable_difference(replicates: Floats, problems: int, paired: bool = False) -> float | None:
    """Computes the smallest true difference that a two-sided 5% test detects in 80% of experiments.

    Args:
        replicates: Bootstrap replicates of a difference (`paired`) or of one run's number, [b].
        problems: Number of resampled problems.
        paired: If False, the other run is assumed to be independent with equal variance, which adds a factor sqrt(2).
    """
    error = standard_error(replicates, problems)
    if math.isnan(error):
        return None
    quantiles = t_quantile((1 + LEVEL) / 2, problems) + t_quantile(POWER, problems)
    return quantiles * error * (1.0 if paired else math.sqrt(2))
