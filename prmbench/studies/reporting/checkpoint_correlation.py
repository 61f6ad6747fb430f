"""Correlation across checkpoints whose seeds are clusters: pooled, within worlds, within methods; bootstrap of seeds.

Knows nothing of runs or metrics; a row is two numbers and what it shares with other rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from prmbench.metrics.first_error import Floats, bootstrap_weights, interval
from prmbench.report.stats import ROUNDING

Coefficient = Literal["spearman", "pearson"]
Within = Literal["pooled", "world", "method"]
REPLICATES = 1000
FEWEST = 6
"""Seeds of an interval. Five that all agree could be chance at the 5% level: two-sided, 2 / 2^5 = 0.0625."""
SMALLEST = 3
"""Rows of a correlation: two always lie on a line."""


@dataclass(frozen=True, slots=True)
class Point:
    """A checkpoint: a predictor and an outcome."""

    x: float
    y: float
    cluster: int
    """Its seed; rows of one seed share a policy and its problems, and are resampled together."""
    world: str
    """Rows of one world differ by their method alone."""
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
    """Seeds whose own rows, taken alone, give a coefficient above zero."""
    told: int
    """Seeds whose own rows give one at all."""


def correlate(points: Sequence[Point], how: Coefficient, within: Within = "pooled") -> Correlation | None:
    """None where fewer than SMALLEST rows differ in both numbers.

    `within`: both numbers are taken relative to their world (what is left is between methods) or to their method (what
    is left is between seeds); ranks are taken there too. A world's own rank correlation is so averaged over worlds.
    """
    x, y = (np.array([getattr(p, name) for p in points], dtype=float) for name in ("x", "y"))
    names = ["" if within == "pooled" else getattr(p, within) for p in points]
    group = np.array([[a == b for b in names] for a in names], dtype=float).reshape(len(points), len(points))
    seeds, cluster = np.unique([p.cluster for p in points], return_inverse=True)
    value = _coefficients(x, y, group, np.ones((1, len(points))), how)[0]
    if len(points) < SMALLEST or np.isnan(value):
        return None
    lo = hi = None
    if len(seeds) >= FEWEST:
        lo, hi = interval(_coefficients(x, y, group, bootstrap_weights(cluster, REPLICATES, seed=0)[1:], how))
    alone = [_alone(x, y, cluster == i, how) for i in range(len(seeds))]
    known = [v for v in alone if not np.isnan(v)]
    return Correlation(float(value), lo, hi, len(points), len(seeds), sum(v > ROUNDING for v in known), len(known))


def _alone(x: Floats, y: Floats, chosen: Floats, how: Coefficient) -> float:
    """The coefficient of one seed's rows."""
    n = int(chosen.sum())
    if n < SMALLEST:
        return float("nan")
    return float(_coefficients(x[chosen], y[chosen], np.ones((n, n)), np.ones((1, n)), how)[0])


def _coefficients(x: Floats, y: Floats, group: Floats, weights: Floats, how: Coefficient) -> Floats:
    """[n], [n], [n, n] same group, [b, n] how often each row is there -> [b]; nan where nothing varies."""
    a, b = (_centred(_ranks(v, group, weights) if how == "spearman" else v, group, weights) for v in (x, y))
    above, square = (weights * a * b).sum(axis=1), (weights * a * a).sum(axis=1) * (weights * b * b).sum(axis=1)
    return _share(above, np.sqrt(square), ROUNDING, np.nan)


def _ranks(values: Floats, group: Floats, weights: Floats) -> Floats:
    """[n] -> [b, n]: the share of a row's group below it, equal ones counting half; unmoved by doubling a group."""
    below = (values[:, None] < values) + 0.5 * (values[:, None] == values)
    return _share(weights @ (group * below), weights @ group)


def _centred(values: Floats, group: Floats, weights: Floats) -> Floats:
    """[n] or [b, n] -> [b, n]: minus the mean of the row's group."""
    return values - _share((weights * values) @ group, weights @ group)


def _share(above: Floats, below: Floats, least: float = 0.0, otherwise: float = 0.0) -> Floats:
    """`above / below`; groups that were not drawn have no weight, so that their shares do not matter."""
    found: Floats = np.divide(above, below, out=np.full_like(above, otherwise), where=below > least)
    return found
