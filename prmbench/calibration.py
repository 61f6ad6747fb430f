"""Are values probabilities? ECE, Brier score, AUC, correlation and Platt scaling, in numpy, over resampled problems.

Pure functions of predictions and targets in [0, 1]. `problem` [n] says which problem a prediction is of, `draws`
[b, c] how often each problem is drawn; what comes back is [b].
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

BINS = 10
RIDGE = 1e-6
"""On both of Platt's numbers: keeps them finite where one value separates the targets; moves no usual fit."""
_MOST_NEWTON_STEPS = 100
_CONVERGED = 1e-10
_CLIP = 1e-9
_FLAT = 1e-12
_CHUNK = 64
"""Replicates whose weights per prediction are held at a time."""


@dataclass(frozen=True, slots=True)
class Resampled:
    """Which problem each of n predictions is of, and how often each problem is drawn."""

    problem: Ints
    draws: Floats

    def sums(self, values: Floats) -> Floats:
        """[n] or [n, k] -> [b] or [b, k]: weighted sums."""
        per_problem = np.zeros((self.draws.shape[1], *values.shape[1:]))
        np.add.at(per_problem, self.problem, values)
        return np.asarray(self.draws @ per_problem)

    def keep(self, chosen: Bools) -> Resampled:
        """Of some of the predictions."""
        return Resampled(self.problem[chosen], self.draws)


def sigmoid(x: Floats) -> Floats:
    """1 / (1 + exp(-x)), without overflow."""
    return np.asarray(np.exp(-np.logaddexp(0.0, -x)))


def log_odds(p: Floats) -> Floats:
    """Inverse of `sigmoid`, of probabilities that are not quite 0 or 1."""
    kept = np.clip(p, _CLIP, 1 - _CLIP)
    return np.asarray(np.log(kept) - np.log1p(-kept))


def _ratio(part: Floats, whole: Floats) -> Floats:
    return np.asarray(np.divide(part, whole, out=np.full(np.shape(part), np.nan), where=whole > 0))


# --- how far predictions are from targets ---------------------------------------------------------------


def brier(p: Floats, target: Floats, of: Resampled) -> Floats:
    """Mean squared distance of prediction and target, [b]."""
    return _ratio(of.sums((p - target) ** 2), of.sums(np.ones(len(p))))


def bins(p: Floats, count: int = BINS) -> Ints:
    """Bin 0..count-1 of each prediction, of equal mass; equal predictions share the bin of their middle one."""
    _, member, times = np.unique(p, return_inverse=True, return_counts=True)
    middle = times.cumsum() - times / 2
    return np.floor(count * middle / len(p)).astype(np.int64)[member]


@dataclass(frozen=True, slots=True)
class Reliability:
    """Prediction against observation by bin. nan where a bin is empty."""

    predicted: Floats
    """[b, bins] mean prediction."""
    observed: Floats
    """[b, bins] mean target."""
    count: Ints
    """[bins] predictions in the sample."""
    ece: Floats
    """[b] mean distance of the two, weighted by the bins' mass."""


def reliability(p: Floats, target: Floats, of: Resampled, count: int = BINS) -> Reliability:
    """Equal-mass bins of the sample, kept in every replicate."""
    member = np.eye(count)[bins(p, count)]
    mass, predicted, observed = (of.sums(member * x[:, None]) for x in (np.ones(len(p)), p, target))
    ece = _ratio(np.abs(predicted - observed).sum(axis=1), mass.sum(axis=1))
    return Reliability(_ratio(predicted, mass), _ratio(observed, mass), member.sum(axis=0).astype(np.int64), ece)


# --- do higher values mean better odds? -------------------------------------------------------------------


def auc(score: Floats, positive: Bools, of: Resampled) -> Floats:
    """Chance that a positive scores above a negative, ties half, [b]; nan without both sorts."""
    order = np.argsort(score, kind="stable")
    starts = np.flatnonzero(np.diff(score[order], prepend=-np.inf) > 0) if len(score) else np.zeros(0, dtype=np.int64)
    problem, yes = of.problem[order], positive[order].astype(float)
    found = []
    for at in range(0, len(of.draws), _CHUNK):
        weight = of.draws[at : at + _CHUNK, problem]
        if not len(starts):
            found.append(np.full(len(weight), np.nan))
            continue
        above, below = (np.add.reduceat(weight * y, starts, axis=1) for y in (yes, 1 - yes))
        beaten = below.cumsum(axis=1) - below / 2  # negatives with a lower score, and half of those with the same
        found.append(_ratio((above * beaten).sum(axis=1), above.sum(axis=1) * below.sum(axis=1)))
    return np.concatenate(found)


def pearson(x: Floats, y: Floats, of: Resampled) -> Floats:
    """Correlation, [b]; nan where one of the two does not vary."""
    if not len(x):
        return np.full(len(of.draws), np.nan)
    x, y = x - x.mean(), y - y.mean()  # for digits: a correlation does not mind
    mass, sx, sy, sxx, syy, sxy = of.sums(np.stack([np.ones(len(x)), x, y, x * x, y * y, x * y], axis=1)).T
    spread = np.maximum(mass * sxx - sx * sx, 0) * np.maximum(mass * syy - sy * sy, 0)
    flat = spread <= _FLAT * (mass * sxx) * (mass * syy)
    out = np.full(len(mass), np.nan)
    return np.asarray(np.divide(mass * sxy - sx * sy, np.sqrt(spread), out=out, where=~flat))


# --- Platt scaling ------------------------------------------------------------------------------------------


def platt(x: Floats, target: Floats) -> tuple[float, float]:
    """(slope, intercept) of the logistic regression of a target in [0, 1] on x, by Newton's method."""
    centre, spread = float(x.mean()), float(x.std())
    scale = spread if spread > _FLAT * max(1.0, abs(centre)) else np.inf  # what does not vary gets slope 0
    design = np.stack([(x - centre) / scale, np.ones(len(x))], axis=1)

    def loss(theta: Floats) -> float:
        z = design @ theta
        return float((np.logaddexp(0.0, z) - target * z).sum() + RIDGE / 2 * theta @ theta)

    theta, best = np.zeros(2), loss(np.zeros(2))
    for _ in range(_MOST_NEWTON_STEPS):
        p = sigmoid(design @ theta)
        gradient = design.T @ (p - target) + RIDGE * theta
        curvature = (design * (p * (1 - p))[:, None]).T @ design + RIDGE * np.eye(2)
        step = np.linalg.solve(curvature, gradient)
        size = 1.0
        while loss(theta - size * step) > best and size > _CONVERGED:
            size /= 2  # far from the optimum a whole step may overshoot
        theta = theta - size * step
        best = loss(theta)
        if np.abs(step).max() < _CONVERGED:
            break
    return float(theta[0] / scale), float(theta[1] - theta[0] * centre / scale)


def cross_fitted(x: Floats, target: Floats, fold: Ints) -> Floats:
    """Log-odds [n] of Platt scaling, each fold under the numbers that the other folds gave."""
    found = np.empty(len(x))
    for held_out in np.unique(fold):
        here = fold == held_out
        slope, intercept = platt(x[~here], target[~here])
        found[here] = slope * x[here] + intercept
    return found


def cross_fitted_mean(target: Floats, fold: Ints) -> Floats:
    """[n]: the other folds' mean target, the best that a constant can honestly know."""
    means = {f: target[fold != f].mean() for f in np.unique(fold).tolist()}
    return np.array([means[f] for f in fold.tolist()])
