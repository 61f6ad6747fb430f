"""How reliable two measures of a checkpoint are, and their correlation without the attenuation by noise.

The reliability of a mean of k RL seeds is its intraclass correlation, from one-way variance components: 1 - (mean
square within checkpoints) / (mean square between them). That of a metric over problems takes the squared standard error
of its interval in the place of the variance within.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from prmbench.metrics.first_error import Floats, bootstrap_weights
from prmbench.metrics.intervals import interval
from prmbench.studies.reporting.checkpoint_correlation import (
    MIN_POINTS,
    MIN_SEEDS,
    REPLICATES,
    Within,
    _centred,
    _coefficients,
    _divide,
)

MIN_RELIABILITY = 0.2
"""Below this no correlation is disattenuated: it would be noise divided by almost nothing."""
MAX_REFUSED = 0.1
"""Share of bootstrap replicates below MIN_RELIABILITY from which on there is no interval."""
ONE_SEED = "one RL seed: reliability unknown, so the correlation says nothing about the absence of a relation"


@dataclass(frozen=True, slots=True)
class Measured:
    """A checkpoint: a predictor with its squared standard error, and an outcome by RL seed."""

    x: float
    x_error: float | None
    """Squared standard error of x over its problems; None where unknown."""
    y: tuple[float, ...]
    """The outcome of each RL seed, in their order."""
    cluster: int
    world: str
    method: str


@dataclass(frozen=True, slots=True)
class Disattenuated:
    """Pearson's correlation, the reliabilities, and the correlation of what is measured without noise."""

    value: float
    n: int
    seeds: int
    """RL seeds of every checkpoint."""
    x_reliability: float | None
    y_reliability: float | None
    corrected: float | None = None
    """May exceed 1 in size where reliabilities are too low by chance; `refusal` then says so."""
    lo: float | None = None
    hi: float | None = None
    refusal: str = ""
    """Why there is no corrected value or no interval; empty where there are both."""


def disattenuate(points: Sequence[Measured], within: Within = "pooled") -> Disattenuated | None:
    """Returns the correlation with and without attenuation; None with too few points or without variation.

    Args:
        points: the checkpoints; of their RL seeds as many are used as the poorest has.
        within: as for `checkpoint_correlation.correlate`. Within worlds, what all methods of a world and RL seed have
            in common is no noise.
    """
    if len(points) < MIN_POINTS:
        return None
    seeds = min(len(p.y) for p in points)
    if within == "world":
        points = [p for p in points if sum(q.world == p.world for q in points) > 1]
    if len(points) < MIN_POINTS:
        return None
    x, y = np.array([p.x for p in points]), np.array([p.y[:seeds] for p in points], dtype=float)
    names = ["" if within == "pooled" else getattr(p, within) for p in points]
    same_group = np.array([[a == b for b in names] for a in names], dtype=float)
    errors = None if any(p.x_error is None for p in points) else np.array([p.x_error for p in points], dtype=float)
    clusters, cluster = np.unique([p.cluster for p in points], return_inverse=True)
    weights = bootstrap_weights(cluster, REPLICATES, seed=0)
    weights[0] = 1.0
    r = _coefficients(x, y.mean(axis=1), same_group, weights, "pearson")
    if np.isnan(r[0]):
        return None
    x_reliability = None if errors is None else _metric_reliability(x, errors, same_group, weights)
    y_reliability = None if seeds == 1 else _seed_reliability(y, same_group, weights, within)
    result = Disattenuated(
        value=float(r[0]),
        n=len(points),
        seeds=seeds,
        x_reliability=None if x_reliability is None else float(x_reliability[0]),
        y_reliability=None if y_reliability is None else float(y_reliability[0]),
    )
    refusal = _refusal(result.x_reliability, result.y_reliability)
    if refusal or x_reliability is None or y_reliability is None:
        return replace(result, refusal=refusal)
    usable = (x_reliability > MIN_RELIABILITY) & (y_reliability > MIN_RELIABILITY) & ~np.isnan(r)
    corrected = r / np.sqrt(np.where(usable, x_reliability * y_reliability, 1.0))
    lo = hi = None
    if len(clusters) < MIN_SEEDS:
        refusal = f"fewer than {MIN_SEEDS} worlds: no interval"
    elif 1 - usable[1:].mean() > MAX_REFUSED:
        refusal = f"no interval: a reliability is below {MIN_RELIABILITY:g} in {1 - usable[1:].mean():.0%} of resamples"
    else:
        lo, hi = interval("percentile", float(corrected[0]), corrected[1:][usable[1:]], len(clusters))
    if abs(corrected[0]) > 1:
        refusal = "; ".join(
            filter(None, ("above 1 in size, which no correlation is: the reliabilities are too low by chance", refusal))
        )
    return replace(result, corrected=float(corrected[0]), lo=lo, hi=hi, refusal=refusal)


def _refusal(x_reliability: float | None, y_reliability: float | None) -> str:
    if y_reliability is None:
        return ONE_SEED
    if x_reliability is None:
        return "the predictor has no interval, so its reliability is unknown"
    for name, value in (("outcome", y_reliability), ("predictor", x_reliability)):
        if value <= MIN_RELIABILITY:
            return f"the {name}'s reliability is {value:.2f}: too near 0"
    return ""


def _between(means: Floats, same_group: Floats, weights: Floats) -> tuple[Floats, Floats]:
    """Returns, by resample, the mean square of the checkpoints' values around their group's, and its df."""
    centred = _centred(means, same_group, weights)
    groups = _divide(weights, weights @ same_group).sum(axis=1)
    df = weights.sum(axis=1) - groups
    return _divide((weights * centred * centred).sum(axis=1), df), df


def _metric_reliability(x: Floats, errors: Floats, same_group: Floats, weights: Floats) -> Floats:
    """Returns [b]: 1 - mean squared error / variance between checkpoints, at least 0."""
    between, _ = _between(x, same_group, weights)
    noise = _divide(weights @ errors, weights.sum(axis=1))
    return np.clip(1 - _divide(noise, between, default=1.0), 0.0, 1.0)


def _seed_reliability(y: Floats, same_group: Floats, weights: Floats, within: Within) -> Floats:
    """Returns [b]: the intraclass correlation of the mean over RL seeds, at least 0. y: [n, k]."""
    k = y.shape[1]
    if within == "world":
        y = y - (same_group @ y) / same_group.sum(axis=1, keepdims=True)
    between, df = _between(y.mean(axis=1), same_group, weights)
    noise = weights @ y.var(axis=1, ddof=1)
    noise = _divide(noise, df if within == "world" else weights.sum(axis=1))
    return np.clip(1 - _divide(noise, k * between, default=1.0), 0.0, 1.0)
