"""Are values probabilities? ECE, Brier score, AUC, correlation and Platt scaling, over resampled problems.

Platt scaling is scikit-learn's logistic regression. The other numbers are computed for a thousand weightings of the
problems at once, from targets anywhere in [0, 1]: scikit-learn's AUC takes one weighting at a time (some forty times
as long), its Brier score needs targets of 0 or 1, and its calibration curve knows no weights. The tests hold them
against scikit-learn's where both exist.

Pure functions of predictions and targets in [0, 1]. `problem` [n] says which problem a prediction is of, `draws`
[b, c] how often each problem is drawn; what comes back is [b].
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import special

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

BINS = 10
RIDGE = 1e-6
"""On both of Platt's numbers: keeps them finite where one value separates the targets; moves no usual fit."""
_TOLERANCE = 1e-12
"""Of Newton's method: the largest component of the gradient per row."""
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
    return np.asarray(special.expit(x))


def log_odds(p: Floats) -> Floats:
    """Inverse of `sigmoid`; probabilities of 0 and 1 are first moved inside by 1e-9."""
    return np.asarray(special.logit(np.clip(p, _CLIP, 1 - _CLIP)))


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
    """Fit Platt scaling: the logistic regression of a target in [0, 1] on x, [n] each.

    A target of 0.75 is a right row of weight 0.75 and a wrong one of weight 0.25. The intercept is a column of the
    design, so that RIDGE bounds it, too.

    Returns:
        (slope, intercept) of the log-odds.
    """
    from sklearn.linear_model import LogisticRegression  # loads for a second: only calibration runs need it

    centre, spread = float(x.mean()), float(x.std())
    scale = spread if spread > _FLAT * max(1.0, abs(centre)) else np.inf  # what does not vary gets slope 0
    design = np.stack([(x - centre) / scale, np.ones(len(x))], axis=1)
    # Not newton-cholesky, which gives up with a warning where one value separates many targets.
    model = LogisticRegression(C=1 / RIDGE, fit_intercept=False, solver="newton-cg", tol=_TOLERANCE, max_iter=1000)
    model.fit(
        np.concatenate([design, design]),
        np.repeat([1, 0], len(x)),
        sample_weight=np.concatenate([target, 1 - target]),
    )
    slope, intercept = (float(theta) for theta in model.coef_[0])
    return slope / scale, intercept - slope * centre / scale


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
