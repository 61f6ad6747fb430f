"""Variance components against simulated worlds and plain t-tests; reliabilities and disattenuated correlations."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from prmbench.studies.reporting.nested_seeds import estimate
from prmbench.studies.reporting.reliability import ONE_SEED, Measured, disattenuate
from prmbench.studies.reporting.variance_components import components, cube, design

TRUE = {
    "method": 9.0,
    "world": 4.0,
    "RL seed (in a world)": 1.0,
    "problem (in a world)": 6.0,
    "method x world": 2.0,
    "method x RL seed": 3.0,
    "method x problem": 0.5,
    "RL seed x problem": 1.5,
    "rest (method x RL seed x problem)": 2.5,
}


def _simulate(shape: tuple[int, int, int, int], seed: int) -> Any:
    rng, (m, w, s, p) = np.random.default_rng(seed), shape
    shapes = [(m, 1, 1, 1), (1, w, 1, 1), (1, w, s, 1), (1, w, 1, p), (m, w, 1, 1), (m, w, s, 1), (m, w, 1, p)]
    shapes += [(1, w, s, p), shape]
    return sum(rng.normal(0, v**0.5, size) for v, size in zip(TRUE.values(), shapes, strict=True))


def test_components_are_those_of_the_simulation_on_average() -> None:
    runs = [components(_simulate((7, 9, 4, 6), seed)) for seed in range(150)]
    assert [part.name for part in runs[0]] == list(TRUE)
    for i, (name, true) in enumerate(TRUE.items()):
        estimates = [part[i].variance for part in runs]
        error = np.std(estimates) / 150**0.5
        assert abs(np.mean(estimates) - true) < 4 * error + 0.06, name  # clipping at 0 lifts small ones a little
    assert [part.levels for part in runs[0]] == [7, 9, 36, 54, 63, 252, 378, 216, 1512]


@pytest.mark.parametrize("axis", range(4))
def test_an_effect_of_one_axis_alone_is_its_component(axis: int) -> None:
    shape = [3, 4, 2, 5]
    if axis >= 2:  # nested in worlds: other levels in every world
        effect = np.random.default_rng(1).normal(size=[1, 4, *(shape[k] if k == axis else 1 for k in (2, 3))])
        effect -= effect.mean(axis=axis, keepdims=True)
    else:
        effect = np.arange(shape[axis], dtype=float).reshape([-1 if k == axis else 1 for k in range(4)])
    parts = {part.name: part for part in components(np.broadcast_to(effect, shape).copy())}
    name = ("method", "world", "RL seed (in a world)", "problem (in a world)")[axis]
    assert {n for n, part in parts.items() if part.variance > 1e-12} == {name}
    if axis < 2:
        assert parts[name].variance == pytest.approx(np.var(np.arange(shape[axis]), ddof=1))


def _runs(values: Any) -> dict[tuple[int, int], dict[str, float]]:
    w, s, p = values.shape
    return {(i, j): {f"{i}.{k}": float(values[i, j, k]) for k in range(p)} for i in range(w) for j in range(s)}


def test_the_cube_holds_what_all_methods_have() -> None:
    values = np.arange(24.0).reshape(2, 3, 4)
    full, poor = _runs(values), _runs(-values)
    del poor[1, 0]
    poor[0, 2] = {k: v for k, v in poor[0, 2].items() if k != "0.1"}
    held = cube({"a": full, "b": poor})
    assert held is not None
    assert held.shape == (2, 2, 2, 3)  # the second world lost its first seed, the first world a problem
    assert held[0, 0].tolist() == [[0, 2, 3], [4, 6, 7]]
    assert held[0, 1].tolist() == [[16, 17, 18], [20, 21, 22]]
    assert (held[1] == -held[0]).all()
    assert cube({}) is None
    assert cube({"a": full, "b": {}}) is None


def test_a_design_detects_what_the_t_test_of_the_worlds_does() -> None:
    values = _simulate((1, 8, 5, 12), 3)[0]
    spread, estimated = design(_runs(values)), estimate(_runs(values))
    assert spread is not None
    assert estimated is not None
    assert estimated.mdd is not None
    assert min(spread.world_variance, spread.seed_variance, spread.problem_variance) > 0  # or 0 would stand for less
    assert spread.detectable(8, 5) == pytest.approx(estimated.mdd)
    assert spread.detectable(8, 50) < spread.detectable(8, 5) < spread.detectable(4, 5)
    goal = spread.detectable(8, 5) / 2
    needed = spread.worlds_for(goal, 5)
    assert needed is not None
    assert spread.detectable(needed, 5) <= goal < spread.detectable(needed - 1, 5)
    assert spread.worlds_for(0.0, 5) is None
    assert design(_runs(values[:, :1])) is None


# --- reliability ------------------------------------------------------------------------------------------


def _points(seeds: int, noise: float, slope: float = 1.0, shared: float = 0.0) -> list[Measured]:
    """Ten worlds of eight checkpoints; y is slope * true x + noise of each RL seed, and what a world's seed shares."""
    rng, points = np.random.default_rng(5), []
    for world in range(10):
        of_seed = rng.normal(0, shared, seeds) if shared else np.zeros(seeds)
        for method in range(8):
            true = rng.normal()
            y = slope * true + rng.normal(0, noise, seeds) + of_seed
            points.append(Measured(true + rng.normal(0, 0.5), 0.25, tuple(y), world, f"w{world}", f"m{method}"))
    return points


@pytest.mark.parametrize("within", ["pooled", "world", "method"])
def test_reliabilities_and_the_correlation_without_noise(within: Any) -> None:
    """x: 1 / (1 + 0.25) = 0.8; y of four seeds at noise 2: 1 / (1 + 4 / 4) = 0.5; r is 1 but for these."""
    result = disattenuate(_points(4, 2.0), within)
    assert result is not None
    assert result.x_reliability == pytest.approx(0.8, abs=0.1)
    assert result.y_reliability == pytest.approx(0.5, abs=0.15)
    assert result.value == pytest.approx((0.8 * 0.5) ** 0.5, abs=0.12)
    assert result.corrected == pytest.approx(
        result.value / (result.x_reliability * result.y_reliability) ** 0.5  # type: ignore[operator]
    )
    assert result.lo is not None
    assert result.hi is not None
    assert result.lo < 1.0 < result.hi
    turned = disattenuate([replace(p, y=tuple(-v for v in p.y)) for p in _points(4, 2.0)], within)
    assert turned is not None
    assert turned.corrected == pytest.approx(-result.corrected)  # type: ignore[operator]


def test_what_a_seed_shares_in_a_world_is_noise_between_worlds_alone() -> None:
    points = _points(3, 0.3, shared=4.0)
    within, pooled = disattenuate(points, "world"), disattenuate(points, "pooled")
    assert within is not None
    assert pooled is not None
    assert within.y_reliability == pytest.approx(1 / (1 + 0.09 / 3), abs=0.02)
    assert pooled.y_reliability is not None
    assert pooled.y_reliability < 0.7


def test_one_seed_says_that_nothing_is_known() -> None:
    result = disattenuate(_points(1, 2.0))
    assert result is not None
    assert (result.y_reliability, result.corrected, result.refusal) == (None, None, ONE_SEED)


def test_no_reliability_no_correction() -> None:
    """Checkpoints whose means differ far less than their seeds."""
    flat = [replace(p, y=(p.y[0], -p.y[0], 0.01 * p.y[1])) for p in _points(3, 1.0)]
    result = disattenuate(flat)
    assert result is not None
    assert result.y_reliability == 0.0
    assert (result.corrected, result.lo, result.hi) == (None, None, None)
    assert result.refusal.startswith("the outcome's reliability is")
    noisy = disattenuate([replace(p, x_error=9.0) for p in _points(3, 1.0)])
    assert noisy is not None
    assert noisy.refusal == "the predictor's reliability is 0.00: too near 0"
    unknown = disattenuate([replace(p, x_error=None) for p in _points(3, 1.0)])
    assert unknown is not None
    assert unknown.refusal == "the predictor has no interval, so its reliability is unknown"


def test_a_value_above_one_comes_with_a_word() -> None:
    """The error of x is told too large, so its reliability is too low."""
    result = disattenuate([replace(p, x=float(np.mean(p.y)), x_error=0.5) for p in _points(5, 0.2)])
    assert result is not None
    assert result.corrected is not None
    assert result.corrected > 1
    assert result.refusal.startswith("above 1 in size")


def test_few_worlds_have_no_interval() -> None:
    few = [p for p in _points(4, 1.0) if p.cluster < 5]
    result = disattenuate([replace(p, x=p.x if i % 3 else -p.x) for i, p in enumerate(few)])
    assert result is not None
    assert result.corrected is not None
    assert abs(result.corrected) < 1
    assert (result.lo, result.refusal) == (None, "fewer than 6 worlds: no interval")
