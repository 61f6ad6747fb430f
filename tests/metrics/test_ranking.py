"""AUROC and average precision of wrong steps: by hand, and against scikit-learn in every replicate."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn import metrics

from prmbench.metrics.ranking import rank_low_scores

ONCE = np.ones((1, 5))


def test_by_hand_with_a_tie() -> None:
    """Wrong steps at .1 and .5; right ones at .5, .7 and .2: five of six pairs are won, and one is tied."""
    score = np.array([0.1, 0.5, 0.5, 0.7, 0.2])
    wrong = np.array([True, True, False, False, False])
    areas = rank_low_scores(score, wrong, np.arange(5), ONCE)
    assert areas.auroc[0] == pytest.approx((3 + 0.5 + 1) / 6)
    assert areas.auprc[0] == pytest.approx((1 / 1 + 2 / 4) / 2)  # the tied right step is flagged with the wrong one
    reversed_areas = rank_low_scores(-score, wrong, np.arange(5), ONCE)
    assert reversed_areas.auroc[0] == pytest.approx(1 - 4.5 / 6)


def test_a_constant_score_is_chance() -> None:
    areas = rank_low_scores(np.zeros(5), np.array([True, False, False, False, True]), np.arange(5), ONCE)
    assert (areas.auroc[0], areas.auprc[0]) == (0.5, pytest.approx(0.4))


def test_a_replicate_without_one_kind_of_step_has_no_area() -> None:
    weights = np.array([[1.0, 1], [0, 2], [2, 0]])
    areas = rank_low_scores(np.array([0.1, 0.9]), np.array([True, False]), np.arange(2), weights)
    assert areas.auroc.tolist() == pytest.approx([1, np.nan, np.nan], nan_ok=True)
    assert areas.auprc.tolist() == pytest.approx([1, np.nan, np.nan], nan_ok=True)


@pytest.mark.parametrize("digits", [1, 2, 12])
@pytest.mark.parametrize("seed", range(3))
def test_weighted_areas_are_scikit_learns(digits: int, seed: int) -> None:
    """Many ties with one digit, none with twelve; whole traces are drawn again, as the bootstrap does."""
    rng = np.random.default_rng([seed, digits])
    trace = rng.integers(0, 40, 300)
    wrong = rng.random(300) < 0.2
    score = (rng.normal(0, 1, 300) - wrong).round(digits)
    weights = rng.multinomial(40, np.full(40, 1 / 40), 5).astype(float)
    areas = rank_low_scores(score, wrong, trace, weights)
    for row in range(5):
        weight = weights[row][trace]
        auroc = metrics.roc_auc_score(wrong, -score, sample_weight=weight)
        auprc = metrics.average_precision_score(wrong, -score, sample_weight=weight)
        assert auroc > 0.6, "the sign would show"
        assert areas.auroc[row] == pytest.approx(auroc, abs=1e-12)
        assert areas.auprc[row] == pytest.approx(auprc, abs=1e-12)
