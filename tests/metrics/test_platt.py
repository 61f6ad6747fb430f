"""Platt scaling in every replicate: by hand, against scikit-learn, and where one value separates the targets."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from prmbench.metrics.calibration import sigmoid
from prmbench.metrics.platt import cross_fitted, cross_fitted_mean, fit_platt

ONCE = np.ones((1, 4))


def case(n: int = 400, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Log-odds with ties, soft targets that follow them, and three weightings by forty problems."""
    rng = np.random.default_rng(seed)
    x = rng.normal(0, 2, n).round(1)
    target = (rng.random(n) < sigmoid(0.7 * x + 0.5)) * rng.choice([1.0, 0.75], n)
    problem = rng.integers(0, 40, n)
    draws = np.concatenate([np.ones((1, 40)), rng.multinomial(40, np.full(40, 1 / 40), 2)]).astype(float)
    return x, target, draws[:, problem]


@pytest.mark.parametrize("shift", [0.0, 7.0])
def test_platt_by_hand(shift: float) -> None:
    """Two values, each with its own mean target: the line goes through both log-odds, here -log 3 and log 3."""
    x = np.array([-1.0, -1.0, 3.0, 3.0]) + shift
    ((slope, intercept),) = fit_platt(x, np.array([0.5, 0.0, 1.0, 0.5]), ONCE)
    assert slope == pytest.approx(np.log(9) / 4, rel=1e-5)
    assert intercept == pytest.approx(-np.log(3) + slope * (1 - shift), abs=1e-5)


def test_every_replicate_has_the_fit_of_scikit_learn() -> None:
    x, target, weights = case()
    fits = fit_platt(x, target, weights)
    for weight, (slope, intercept) in zip(weights, fits, strict=True):
        model = LogisticRegression(C=1e9, solver="newton-cholesky", tol=1e-12)
        rows, labels = np.concatenate([x, x])[:, None], np.repeat([1, 0], len(x))
        model.fit(rows, labels, sample_weight=np.concatenate([weight * target, weight * (1 - target)]))
        assert [slope, intercept] == pytest.approx([model.coef_[0, 0], model.intercept_[0]], abs=1e-6)
    assert np.abs(fits[1] - fits[0]).max() > 0.01, "a replicate is no copy of the sample"


def test_platt_gives_the_numbers_of_the_committed_results() -> None:
    """Recorded from the Newton's method that the first results were made with."""
    x, target, weights = case()
    assert fit_platt(x, target, weights)[0] == pytest.approx((0.534956097746, 0.130690765680), abs=1e-9)


@pytest.mark.parametrize("far", [1e-4, 1.0, 1e4])
def test_platt_stays_finite_on_what_one_value_separates(far: float) -> None:
    x = np.array([-2.0, -1.0, 1.0, 2.0]) * far
    ((slope, intercept),) = fit_platt(x, (x > 0).astype(float), ONCE)
    assert sigmoid(slope * x + intercept) == pytest.approx([0, 0, 1, 1], abs=1e-3)
    ((slope, intercept),) = fit_platt(np.full(4, 0.1), np.array([1.0, 1, 1, 0]), ONCE)
    assert (slope, intercept) == (0.0, pytest.approx(np.log(3), abs=1e-5))
    ((slope, intercept),) = fit_platt(x, np.ones(4), ONCE)
    assert sigmoid(slope * x + intercept).min() > 0.999


def test_an_outlier_does_not_make_newtons_method_overshoot() -> None:
    """Residuals sum to nothing at the optimum, alone and times x, also where full steps would run away."""
    x = np.concatenate([np.linspace(-1, 1, 50), [1e6]])
    target = (np.arange(51) % 3 == 0).astype(float)
    ((slope, intercept),) = fit_platt(x, target, np.ones((1, 51)))
    residual = sigmoid(slope * x + intercept) - target
    assert [residual.sum(), (residual * x).sum() / 1e6] == pytest.approx([0, 0], abs=1e-4)


def test_a_replicate_that_draws_nothing_has_no_fit() -> None:
    fits = fit_platt(np.arange(4.0), np.array([0, 1.0, 0, 1]), np.array([[1.0, 1, 1, 1], [0, 0, 0, 0]]))
    assert np.isfinite(fits[0]).all()
    assert np.isnan(fits[1]).all()


def test_cross_fitting_never_sees_its_own_fold_in_any_replicate() -> None:
    x, target, weights = case()
    fold = np.arange(len(x)) % 2
    actual = cross_fitted(x, target, fold, weights)
    for row in range(3):
        ((slope, intercept),) = fit_platt(x[fold == 1], target[fold == 1], weights[row : row + 1, fold == 1])
        assert actual[row, fold == 0] == pytest.approx(slope * x[fold == 0] + intercept)
    changed = np.where(fold == 0, 1 - target, target)
    again = cross_fitted(x, changed, fold, weights)
    assert (again[:, fold == 0] == actual[:, fold == 0]).all()
    assert (again[:, fold == 1] != actual[:, fold == 1]).all()
    constant = cross_fitted_mean(target, fold, weights)
    assert set(constant[0, fold == 0].tolist()) == {target[fold == 1].mean()}
    assert constant[1, 0] == pytest.approx(np.average(target[fold == 1], weights=weights[1, fold == 1]))
