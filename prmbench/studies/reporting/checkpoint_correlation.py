"""Correlation across checkpoints, pooled, within worlds or within methods, with a bootstrap that resamples seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from prmbench.metrics.first_error import Floats, bootstrap_weights
from prmbench.metrics.intervals import interval
from prmbench.report.stats import ROUNDING

Coefficient = Literal["spearman", "pearson"]
Within = Literal["pooled", "world", "method"]
REPLICATES = 1000
SPLIT_REPLICATES = 200
"""Of each split: the mean over splits varies less than one of them."""
MIN_SEEDS = 6
"""Fewest seeds for an interval. Five that all agree could be chance at the 5% level: two-sided, 2 / 2^5 = 0.0625."""
MIN_POINTS = 3
"""Fewest checkpoints for a correlation: two always lie on a line."""


@dataclass(frozen=True, slots=True)
class Point:
    """A checkpoint: predictor x and outcome y."""

    x: float
    y: float
    cluster: int
    """Its seed. Checkpoints of one seed share a policy and its problems, and are resampled together."""
    world: str
    """Checkpoints of one world differ in their method alone."""
    method: str


@dataclass(frozen=True, slots=True)
class Correlation:
    """A coefficient with the 95% percentile interval of a bootstrap that resamples whole seeds."""

    value: float
    lo: float | None
    """None with fewer than FEWEST seeds."""
    hi: float | None
    n: int
    clusters: int
    positive: int
    """Seeds whose own checkpoints have a coefficient above zero."""
    with_value: int
    """Seeds whose own checkpoints have a coefficient at all."""


def correlate(points: Sequence[Point], how: Coefficient, within: Within = "pooled") -> Correlation | None:
    """Returns the correlation of x and y; None with fewer than MIN_POINTS points or without variation.

    Args:
        points: the checkpoints.
        how: the coefficient.
        within: `pooled` takes values as they are. `world` takes values and ranks relative to the point's world, which
            leaves differences between methods; `method` relative to its method, which leaves those between seeds.
    """
    return correlate_splits([points], how, within)


def correlate_splits(
    splits: Sequence[Sequence[Point]], how: Coefficient, within: Within = "pooled"
) -> Correlation | None:
    """Returns the mean of the correlations over random splits of the problems.

    Args:
        splits: the checkpoints with their values in each split; all else is the same in all splits.
        how: see `correlate`.
        within: see `correlate`.
    """
    points = splits[0]
    names = ["" if within == "pooled" else getattr(p, within) for p in points]
    same_group = np.array([[a == b for b in names] for a in names], dtype=float).reshape(len(points), len(points))
    seeds, cluster = np.unique([p.cluster for p in points], return_inverse=True)
    values = [
        (np.array([p.x for p in split], dtype=float), np.array([p.y for p in split], dtype=float)) for split in splits
    ]
    ones = np.ones((1, len(points)))
    value = np.mean([_coefficients(x, y, same_group, ones, how)[0] for x, y in values])
    if len(points) < MIN_POINTS or np.isnan(value):
        return None
    lo = hi = None
    if len(seeds) >= MIN_SEEDS:
        weights = bootstrap_weights(cluster, REPLICATES if len(splits) == 1 else SPLIT_REPLICATES, seed=0)[1:]
        replicates = np.mean([_coefficients(x, y, same_group, weights, how) for x, y in values], axis=0)
        lo, hi = interval("percentile", float(value), replicates, len(seeds))
    by_seed = [np.mean([_coefficient_of(x, y, cluster == i, how) for x, y in values]) for i in range(len(seeds))]
    defined = [v for v in by_seed if not np.isnan(v)]
    return Correlation(
        float(value), lo, hi, len(points), len(seeds), sum(bool(v > ROUNDING) for v in defined), len(defined)
    )


def _coefficient_of(x: Floats, y: Floats, is_chosen: Floats, how: Coefficient) -> float:
    """Returns the pooled coefficient of the chosen points; nan when there are too few."""
    n = int(is_chosen.sum())
    if n < MIN_POINTS:
        return float("nan")
    return float(_coefficients(x[is_chosen], y[is_chosen], np.ones((n, n)), np.ones((1, n)), how)[0])


def _coefficients(x: Floats, y: Floats, same_group: Floats, weights: Floats, how: Coefficient) -> Floats:
    """Returns a coefficient per resample.

    Args:
        x: [n].
        y: [n].
        same_group: [n, n], 1 where two points are of one group.
        weights: [b, n], how often each point is in each resample.
        how: the coefficient.

    Returns:
        [b]; nan where nothing varies.
    """
    a, b = (_centred(_ranks(v, same_group, weights) if how == "spearman" else v, same_group, weights) for v in (x, y))
    covariance = (weights * a * b).sum(axis=1)
    variances = (weights * a * a).sum(axis=1) * (weights * b * b).sum(axis=1)
    return _divide(covariance, np.sqrt(variances), ROUNDING, np.nan)


def _ranks(values: Floats, same_group: Floats, weights: Floats) -> Floats:
    """[n] -> [b, n]: the share of a point's group below it, ties counting half; independent of the group's size."""
    below = (values[:, None] < values) + 0.5 * (values[:, None] == values)
    return _divide(weights @ (same_group * below), weights @ same_group)


def _centred(values: Floats, same_group: Floats, weights: Floats) -> Floats:
    """[n] or [b, n] -> [b, n]: values minus the mean of the point's group."""
    return values - _divide((weights * values) @ same_group, weights @ same_group)


def _divide(numerator: Floats, denominator: Floats, minimum: float = 0.0, default: float = 0.0) -> Floats:
    """Divides where the denominator is above `minimum`.

    Groups that are not in a resample have weight 0, so the default of their means does not matter.
    """
    quotient: Floats = np.divide(
        numerator, denominator, out=np.full_like(numerator, default), where=denominator > minimum
    )
    return quotient
