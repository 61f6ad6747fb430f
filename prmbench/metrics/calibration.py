"""Calibration metrics over resampled problems: ECE, Brier score, AUC, correlation and Platt scaling.

Platt scaling is scikit-learn's logistic regression. The other numbers are computed for a thousand weightings of the
problems at once, from targets anywhere in [0, 1]: scikit-learn's AUC takes one weighting at a time (some forty times
as long), its Brier score needs targets of 0 or 1, and its calibration curve has no weights. The tests compare them
with scikit-learn's where both exist.

Pure functions of predictions [n] and targets [n] in [0, 1]; results are [b], one for each bootstrap replicate.
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
"""L2 penalty on slope and intercept: keeps them finite on separable targets, and changes no usual fit."""
_TOLERANCE = 1e-12
"""Newton's method stops when the largest component of the gradient per row is below this."""
_CLIP = 1e-9
_FLAT = 1e-12
_CHUNK = 64
"""Replicates that are processed at a time, to bound memory."""


@dataclass(frozen=True, slots=True)
class Resampled:
    """The problem of each of n predictions, [n], and how often each problem is drawn in each replicate, [b, c]."""

    problem: Ints
    draws: Floats

    def sums(self, values: Floats) -> Floats:
        """Sums values [n] or [n, k] over predictions in each replicate: [b] or [b, k]."""
        per_problem = np.zeros((self.draws.shape[1], *values.shape[1:]))
        np.add.at(per_problem, self.problem, values)
        return np.asarray(self.draws @ per_problem)

    def select(self, selected: Bools) -> Resampled:
        """Returns the same resampling for a subset of the predictions."""
        return Resampled(self.problem[selected], self.draws)


def sigmoid(x: Floats) -> Floats:
    """Computes 1 / (1 + exp(-x)) without overflow."""
    return np.asarray(special.expit(x))


def log_odds(p: Floats) -> Floats:
    """Computes the inverse of `sigmoid`; probabilities are first clipped to [1e-9, 1 - 1e-9]."""
    return np.asarray(special.logit(np.clip(p, _CLIP, 1 - _CLIP)))


def _ratio(numerator: Floats, denominator: Floats) -> Floats:
    return np.asarray(
        np.divide(numerator, denominator, out=np.full(np.shape(numerator), np.nan), where=denominator > 0)
    )


# --- how far predictions are from targets ---------------------------------------------------------------


def brier(p: Floats, target: Floats, resampling: Resampled) -> Floats:
    """Computes the mean squared difference of prediction and target, [b]."""
    return _ratio(resampling.sums((p - target) ** 2), resampling.sums(np.ones(len(p))))


def equal_mass_bins(p: Floats, count: int = BINS) -> Ints:
    """Returns each prediction's equal-mass bin, 0..count-1; equal predictions share the bin of their median rank."""
    _, index_of_value, counts = np.unique(p, return_inverse=True, return_counts=True)
    middle = counts.cumsum() - counts / 2
    return np.floor(count * middle / len(p)).astype(np.int64)[index_of_value]


@dataclass(frozen=True, slots=True)
class Reliability:
    """Reliability diagram: mean prediction and mean target by bin, nan where a bin is empty."""

    predicted: Floats
    """[b, bins] mean prediction."""
    observed: Floats
    """[b, bins] mean target."""
    count: Ints
    """[bins] number of predictions in the sample."""
    ece: Floats
    """[b] expected calibration error: mean absolute difference of the two, weighted by the bins' mass."""


def reliability(p: Floats, target: Floats, resampling: Resampled, count: int = BINS) -> Reliability:
    """Computes the reliability diagram with the sample's equal-mass bins, which every replicate uses."""
    membership = np.eye(count)[equal_mass_bins(p, count)]
    mass, predicted, observed = (resampling.sums(membership * x[:, None]) for x in (np.ones(len(p)), p, target))
    ece = _ratio(np.abs(predicted - observed).sum(axis=1), mass.sum(axis=1))
    return Reliability(_ratio(predicted, mass), _ratio(observed, mass), membership.sum(axis=0).astype(np.int64), ece)


# --- do higher values mean better odds? -------------------------------------------------------------------


def auc(score: Floats, positive: Bools, resampling: Resampled) -> Floats:
    """Computes the area under the ROC curve, [b]: ties count half; nan without both positives and negatives."""
    order = np.argsort(score, kind="stable")
    starts = np.flatnonzero(np.diff(score[order], prepend=-np.inf) > 0) if len(score) else np.zeros(0, dtype=np.int64)
    problem, is_positive = resampling.problem[order], positive[order].astype(float)
    areas = []
    for start in range(0, len(resampling.draws), _CHUNK):
        weight = resampling.draws[start : start + _CHUNK, problem]
        if not len(starts):
            areas.append(np.full(len(weight), np.nan))
            continue
        above, below = (np.add.reduceat(weight * y, starts, axis=1) for y in (is_positive, 1 - is_positive))
        negatives_below = below.cumsum(axis=1) - below / 2  # lower scores, and half of the equal ones
        areas.append(_ratio((above * negatives_below).sum(axis=1), above.sum(axis=1) * below.sum(axis=1)))
    return np.concatenate(areas)


def pearson(x: Floats, y: Floats, resampling: Resampled) -> Floats:
    """Computes Pearson's correlation, [b]; nan where one of the two is constant."""
    if not len(x):
        return np.full(len(resampling.draws), np.nan)
    x, y = x - x.mean(), y - y.mean()  # centring leaves the correlation and saves digits
    mass, sx, sy, sxx, syy, sxy = resampling.sums(np.stack([np.ones(len(x)), x, y, x * x, y * y, x * y], axis=1)).T
    spread = np.maximum(mass * sxx - sx * sx, 0) * np.maximum(mass * syy - sy * sy, 0)
    is_constant = spread <= _FLAT * (mass * sxx) * (mass * syy)
    out = np.full(len(mass), np.nan)
    return np.asarray(np.divide(mass * sxy - sx * sy, np.sqrt(spread), out=out, where=~is_constant))


# --- Platt scaling ------------------------------------------------------------------------------------------


def fit_platt(x: Floats, target: Floats) -> tuple[float, float]:
    """Fit Platt scaling: the logistic regression of a target in [0, 1] on x, [n] each.

    A target of 0.75 becomes a positive row of weight 0.75 and a negative one of weight 0.25. The intercept is a column
    of the design, so that RIDGE bounds it, too.

    Returns:
        (slope, intercept) of the log-odds.
    """
    from sklearn.linear_model import LogisticRegression  # importing takes a second, and only calibration needs it

    centre, spread = float(x.mean()), float(x.std())
    scale = spread if spread > _FLAT * max(1.0, abs(centre)) else np.inf  # a constant x gets slope 0
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
    """Returns Platt-scaled log-odds [n], each fold scaled by a fit on the other folds."""
    logits = np.empty(len(x))
    for held_out in np.unique(fold):
        in_fold = fold == held_out
        slope, intercept = fit_platt(x[~in_fold], target[~in_fold])
        logits[in_fold] = slope * x[in_fold] + intercept
    return logits


def cross_fitted_mean(target: Floats, fold: Ints) -> Floats:
    """Returns the mean target of the other folds, [n]: the best constant prediction without seeing the fold itself."""
    means = {f: target[fold != f].mean() for f in np.unique(fold).tolist()}
    return np.array([means[f] for f in fold.tolist()])
