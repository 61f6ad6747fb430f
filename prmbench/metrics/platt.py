"""Platt scaling that is fitted again for every bootstrap replicate, by Newton's method for all replicates at once.

scikit-learn's logistic regression takes one weighting of the data at a time, a thousand of which take minutes. The
tests compare every fit with it.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import special

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

RIDGE = 1e-6
"""L2 penalty on slope and intercept: keeps them finite on separable targets, and changes no usual fit."""
_FLAT = 1e-12
_TOLERANCE = 1e-9
"""Newton's method stops after a step below this; it converges quadratically, so the error is far below."""
_MAX_STEPS, _MAX_HALVINGS = 100, 30
_SAFE = 0.5
"""A Newton step that moves no log-odds by more than this lowers the loss: curvature then changes by less than e^0.5."""


def fit_platt(x: Floats, target: Floats, weights: Floats) -> Floats:
    """Fit Platt scaling: the logistic regression of a target in [0, 1] on x.

    A target of 0.75 counts as a positive row of weight 0.75 and a negative one of weight 0.25.

    Args:
        x: Log-odds or other values, [n].
        target: [n] in [0, 1].
        weights: How often each row is drawn in each replicate, [b, n].

    Returns:
        Slope and intercept of the log-odds, [b, 2]; nan in replicates that draw no row.
    """
    centre, spread = float(x.mean()), float(x.std())
    scale = spread if spread > _FLAT * max(1.0, abs(centre)) else np.inf  # a constant x gets slope 0
    design = np.stack([(x - centre) / scale, np.ones(len(x))])
    start = _minimise(np.zeros((1, 2)), design, target, weights.mean(axis=0, keepdims=True))  # near all of the others
    theta = _minimise(np.repeat(start, len(weights), axis=0), design, target, weights)
    theta[~weights.any(axis=1)] = np.nan
    slope = theta[:, 0] / scale
    return np.stack([slope, theta[:, 1] - slope * centre], axis=1)


def _minimise(theta: Floats, design: Floats, target: Floats, weights: Floats) -> Floats:
    """Returns the minimum of the penalised loss in each replicate, [b, 2], from a start theta."""
    theta = theta.copy()
    active = np.arange(len(theta))
    for _ in range(_MAX_STEPS):
        if not len(active):
            break
        step = _newton_step(theta[active], design, target, weights[active])
        theta[active] -= _shortened(step, theta[active], design, target, weights[active])
        active = active[np.abs(step).max(axis=1) > _TOLERANCE]
    return theta


def _newton_step(theta: Floats, design: Floats, target: Floats, weights: Floats) -> Floats:
    """The inverse Hessian times the gradient of the penalised loss, [b, 2]."""
    p = special.expit(theta @ design)
    gradient = (weights * (p - target)) @ design.T + RIDGE * theta
    curvature = weights * p * (1 - p)
    products = np.stack([design[0] ** 2, design[0], np.ones_like(design[0])])
    a, b, c = (curvature @ products.T).T
    a, c = a + RIDGE, c + RIDGE
    determinant = a * c - b * b
    first = (c * gradient[:, 0] - b * gradient[:, 1]) / determinant
    second = (a * gradient[:, 1] - b * gradient[:, 0]) / determinant
    return np.stack([first, second], axis=1)


def _shortened(step: Floats, theta: Floats, design: Floats, target: Floats, weights: Floats) -> Floats:
    """Returns the steps, halved in each replicate until its loss does not rise: a long one may overshoot."""
    step = step.copy()
    rows = np.flatnonzero(np.abs(step @ design).max(axis=1) > _SAFE)
    before = _loss(theta[rows], design, target, weights[rows])
    for _ in range(_MAX_HALVINGS):
        if not len(rows):
            break
        rises = _loss(theta[rows] - step[rows], design, target, weights[rows]) > before
        rows, before = rows[rises], before[rises]
        step[rows] /= 2
    return step


def _loss(theta: Floats, design: Floats, target: Floats, weights: Floats) -> Floats:
    logits = theta @ design
    return np.asarray(
        (weights * (np.logaddexp(0, logits) - target * logits)).sum(axis=1) + RIDGE / 2 * (theta**2).sum(axis=1)
    )


def cross_fitted(x: Floats, target: Floats, fold: Ints, weights: Floats) -> Floats:
    """Returns Platt-scaled log-odds, [b, n]: in each replicate each fold is scaled by a fit on the other folds.

    Args:
        x: Values to scale, [n].
        target: [n] in [0, 1].
        fold: Fold of each value, [n].
        weights: [b, n]. Where a replicate draws nothing of the other folds, the log-odds are nan.
    """
    logits = np.empty(weights.shape)
    for held_out in np.unique(fold):
        in_fold = fold == held_out
        slope, intercept = fit_platt(x[~in_fold], target[~in_fold], weights[:, ~in_fold]).T
        logits[:, in_fold] = slope[:, None] * x[in_fold] + intercept[:, None]
    return logits


def cross_fitted_mean(target: Floats, fold: Ints, weights: Floats) -> Floats:
    """Returns the mean target of the other folds, [b, n]: the best constant that has not seen the fold itself."""
    means = np.full(weights.shape, np.nan)
    for held_out in np.unique(fold):
        in_fold = fold == held_out
        mass = weights[:, ~in_fold].sum(axis=1)
        total = weights[:, ~in_fold] @ target[~in_fold]
        mean = np.divide(total, mass, out=np.full(len(mass), np.nan), where=mass > 0)
        means[:, in_fold] = mean[:, None]
    return means
