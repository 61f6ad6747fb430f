"""Floors of first-error F1: closed forms, simulations, and the real subsets."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from prmbench.metrics import first_error, floors
from prmbench.metrics.first_error import Sample


def test_flags_at_the_best_rate_by_hand() -> None:
    """Many right traces of two steps and errors at step 1: a = (1-p)^2, b = p (1-p), at best F1 8/27 at p = 1/3."""
    steps, label = np.full(3000, 2), np.tile([-1, 1, 1], 1000)
    actual = floors.random_flags(steps, label)
    assert actual.shape == (floors.RANDOM_SCORERS,)
    assert actual.mean() == pytest.approx(8 / 27, abs=0.003)
    # One step: 2 p (1 - p), at best 0.5.
    assert floors.random_flags(np.ones(2000, dtype=int), np.tile([-1, 0], 1000)).mean() == pytest.approx(0.5, abs=0.003)


def scorers(steps: np.ndarray, label: np.ndarray, count: int, seed: int) -> list[Sample]:
    rng = np.random.default_rng(seed)
    samples = []
    for _ in range(count):
        scores = np.where(np.arange(steps.max()) < steps[:, None], rng.random((len(steps), steps.max())), np.inf)
        samples.append(Sample(*first_error.match_intervals(scores, label), label >= 0, np.arange(len(label))))
    return samples


def f1_of(data: Sample, threshold: np.ndarray) -> float:
    ones = np.ones((1, len(data)))
    return float(first_error.harmonic(*first_error.accuracies(data, data.matches(threshold), ones))[0])


def test_each_rule_has_the_floor_that_random_scorers_reach_under_it() -> None:
    """Other random scorers, judged as a model is; a rule that tunes on the traces themselves profits most."""
    rng = np.random.default_rng(1)
    steps = rng.integers(1, 6, 60)
    label = np.array([rng.integers(-1, k) for k in steps])
    fold = first_error.fold_splits([f"{i:02}" for i in range(60)])
    ones = np.ones((1, 60))
    oracle, calibrated, crossed = [], [], []
    for data, tuning in zip(scorers(steps, label, 300, 2), scorers(steps[::-1], label[::-1], 300, 3), strict=True):
        oracle.append(f1_of(data, first_error.best_threshold(data, ones)))
        calibrated.append(f1_of(data, first_error.best_threshold(tuning, ones)))
        crossed.append(first_error.f1_at_rates(data, first_error.out_of_fold_rates(data, fold[:1])[0], ones)[0][0])
    actual = (
        floors.random_oracle(steps, label),
        floors.random_calibrated(steps, label, steps[::-1], label[::-1]),
        floors.random_cross_validated(steps, label, fold),
    )
    for ours, theirs in zip(actual, (oracle, calibrated, crossed), strict=True):
        assert ours.mean() == pytest.approx(np.mean(theirs), abs=0.015)
        assert np.quantile(ours, [0.1, 0.9]) == pytest.approx(np.quantile(theirs, [0.1, 0.9]), abs=0.03)
    renumbered = np.array([9, -2, 4, 3, 7])[fold]
    assert (floors.random_cross_validated(steps, label, renumbered) == actual[2]).all()
    assert actual[0].mean() > floors.random_flags(steps, label).mean() + 0.01
    assert actual[0].mean() > actual[1].mean() + 0.03
    assert actual[0].mean() > actual[2].mean() + 0.03


def test_runs_on_the_same_labels_share_their_floors() -> None:
    steps, label = np.array([2, 3, 2, 2]), np.array([-1, 0, 1, -1])
    assert floors.random_oracle(steps, label) is floors.random_oracle(steps.copy(), label.copy())
    assert (floors.random_oracle(steps, label) != floors.random_oracle(steps, label[::-1])).any()


def test_position_floor_by_hand() -> None:
    """Two of three errors at step 1, found at probability q: 2 (2/3 q) (1 - q) / (2/3 q + 1 - q)."""
    q = np.linspace(0, 1, 100_001)
    expected = (2 * (2 / 3 * q) * (1 - q) / (2 / 3 * q + 1 - q)).max()
    label = np.array([1, 1, 0, -1, -1])
    assert floors.position_floor(label, np.ones((1, 5)))[0] == pytest.approx(expected, abs=1e-6)
    assert np.isnan(floors.position_floor(label, np.array([[1.0, 1, 1, 0, 0]])))[0]


EXPECTED = {"gsm8k": (24.8, 44.4), "math": (22.1, 35.9), "olympiadbench": (20.9, 29.2)}
"""Position-only and outcome-oracle F1 of the real subsets, computed independently, in percent."""
FLAGGED = {"gsm8k": 19.8, "math": 18.4, "olympiadbench": 14.4}
"""Expected F1 at the best flag rate; an expected maximum, over thresholds tuned on the traces, is higher."""


@pytest.mark.parametrize("subset", EXPECTED)
def test_floors_of_the_real_subsets(shared_data: Path, subset: str) -> None:
    rows = json.loads((shared_data / "processbench" / f"{subset}.json").read_text())
    label = np.array([r["label"] for r in rows])
    steps = np.array([len(r["steps"]) for r in rows])
    outcome = np.array([int(r["final_answer_correct"]) for r in rows])
    ones = np.ones((1, len(rows)))
    actual = floors.position_floor(label, ones), floors.outcome_floor(label, outcome, ones)
    assert [round(100 * f[0], 1) for f in actual] == list(EXPECTED[subset])
    assert 100 * floors.random_flags(steps, label).mean() == pytest.approx(FLAGGED[subset], abs=0.3)


def test_the_expected_maximum_on_the_three_real_subsets(shared_data: Path) -> None:
    """An independent Monte-Carlo run gave 18.4, where the best flag rate reaches 17.6."""
    means = []
    for subset in EXPECTED:
        rows = json.loads((shared_data / "processbench" / f"{subset}.json").read_text())
        steps, label = np.array([len(r["steps"]) for r in rows]), np.array([r["label"] for r in rows])
        means.append(floors.random_oracle(steps, label).mean())
    assert 100 * np.mean(means) == pytest.approx(18.4, abs=0.15)
