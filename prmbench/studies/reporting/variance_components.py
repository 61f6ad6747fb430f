"""Variance components of gains by method, world, RL seed and problem; and what a design can detect.

The estimates are those of a balanced analysis of variance with random effects (method of moments). RL seeds and
problems are nested in worlds; methods are crossed with all of them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from prmbench.metrics.first_error import Floats
from prmbench.report.stats import LEVEL, POWER, t_quantile
from prmbench.studies.reporting.nested_seeds import RunValues

MAX_WORLDS = 10_000


@dataclass(frozen=True, slots=True)
class Component:
    """The variance between the levels of one factor, or of an interaction of factors."""

    name: str
    variance: float
    """0 where the estimate is negative, which happens by chance where the true one is small."""
    is_negative: bool
    levels: int
    """Levels of the factor, counted over all worlds; of an interaction, cells."""


def cube(runs: Mapping[str, RunValues]) -> Floats | None:
    """Returns [methods, worlds, RL seeds, problems] of the cells that all methods have; None without a balanced part.

    A world takes part with the RL seeds that all methods have; all worlds take the number that the poorest has of seeds
    and of problems, the first in order.
    """
    if not runs:
        return None
    seeds = sorted(set.intersection(*({s for s, v in values.items() if v} for values in runs.values())))
    worlds = sorted({sft for sft, _ in seeds})
    by_world = {sft: [pair for pair in seeds if pair[0] == sft] for sft in worlds}
    problems = {
        sft: sorted(set.intersection(*(set(values[pair]) for values in runs.values() for pair in pairs)))
        for sft, pairs in by_world.items()
    }
    worlds = [sft for sft in worlds if problems[sft]]
    if not worlds:
        return None
    seed_count, problem_count = (min(len(part[sft]) for sft in worlds) for part in (by_world, problems))
    return np.array(
        [
            [
                [[values[pair][problem] for problem in problems[sft][:problem_count]] for pair in pairs]
                for sft in worlds
                for pairs in [by_world[sft][:seed_count]]
            ]
            for values in runs.values()
        ],
        dtype=float,
    )


def components(values: Floats) -> tuple[Component, ...]:
    """Returns the variance components of [methods, worlds, RL seeds, problems], each of at least two levels.

    With M methods, W worlds, S seeds and P problems, the expected mean squares are e for M x S x P; e + S MP; e + P MS;
    e + S MP + P MS + SP MW; that + SPW M; e + M SP; e + M SP + P MS + MP S; e + M SP + S MP + MS P; and for worlds
    all of these but M's, + MSP W. They are solved for the components from the bottom upwards.
    """
    m, w, s, p = values.shape
    square = _mean_squares(values)
    estimates = {
        "method": (square["M"] - square["MW"]) / (w * s * p),
        "world": (
            (square["W"] - square["S"] - square["P"] + square["SP"])
            - (square["MW"] - square["MS"] - square["MP"] + square["MSP"])
        )
        / (m * s * p),
        "RL seed (in a world)": (square["S"] - square["SP"] - square["MS"] + square["MSP"]) / (m * p),
        "problem (in a world)": (square["P"] - square["SP"] - square["MP"] + square["MSP"]) / (m * s),
        "method x world": (square["MW"] - square["MS"] - square["MP"] + square["MSP"]) / (s * p),
        "method x RL seed": (square["MS"] - square["MSP"]) / p,
        "method x problem": (square["MP"] - square["MSP"]) / s,
        "RL seed x problem": (square["SP"] - square["MSP"]) / m,
        "rest (method x RL seed x problem)": square["MSP"],
    }
    levels = (m, w, w * s, w * p, m * w, m * w * s, m * w * p, w * s * p, m * w * s * p)
    return tuple(
        Component(name, max(0.0, float(value)), bool(value < 0), count)
        for (name, value), count in zip(estimates.items(), levels, strict=True)
    )


def _mean_squares(values: Floats) -> dict[str, float]:
    """Returns the mean squares by effect: M, W, S and P in W, and their interactions."""
    m, w, s, p = values.shape

    def mean(*kept: int) -> Floats:
        """Returns the means over the axes that are not kept, in the shape of `values` with axes of length 1."""
        result: Floats = values.mean(axis=tuple(axis for axis in range(4) if axis not in kept), keepdims=True)
        return result

    def mean_square(effect: Floats, df: int) -> float:
        return float(np.square(np.broadcast_to(effect, values.shape)).sum()) / df

    total, method, world = mean(), mean(0), mean(1)
    seed, problem, both = mean(1, 2), mean(1, 3), mean(1, 2, 3)
    cells = {"MW": mean(0, 1), "MS": mean(0, 1, 2), "MP": mean(0, 1, 3)}
    method_seed = cells["MS"] - cells["MW"] - seed + world
    method_problem = cells["MP"] - cells["MW"] - problem + world
    rest = values - cells["MS"] - cells["MP"] + cells["MW"] - (both - seed - problem + world)
    return {
        "M": mean_square(method - total, m - 1),
        "W": mean_square(world - total, w - 1),
        "MW": mean_square(cells["MW"] - method - world + total, (m - 1) * (w - 1)),
        "S": mean_square(seed - world, w * (s - 1)),
        "P": mean_square(problem - world, w * (p - 1)),
        "SP": mean_square(both - seed - problem + world, w * (s - 1) * (p - 1)),
        "MS": mean_square(method_seed, (m - 1) * w * (s - 1)),
        "MP": mean_square(method_problem, (m - 1) * w * (p - 1)),
        "MSP": mean_square(rest, (m - 1) * w * (s - 1) * (p - 1)),
    }


# --- one paired difference ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Design:
    """What a comparison of two arms can detect, from the variances of their paired difference."""

    worlds: int
    seeds: int
    problems: int
    world_variance: float
    seed_variance: float
    problem_variance: float
    rest_variance: float

    def detectable(self, worlds: int, seeds: int) -> float:
        """Returns the smallest true difference that a t-test over worlds finds at 5% with power 0.80."""
        of_world = (
            self.world_variance
            + self.seed_variance / seeds
            + self.problem_variance / self.problems
            + self.rest_variance / (seeds * self.problems)
        )
        df = worlds - 1
        return (t_quantile((1 + LEVEL) / 2, df) + t_quantile(POWER, df)) * math.sqrt(of_world / worlds)

    def worlds_for(self, difference: float, seeds: int) -> int | None:
        """Returns the fewest worlds that can detect a difference; None where MAX_WORLDS cannot."""
        low, high = 2, MAX_WORLDS
        if self.detectable(high, seeds) > difference:
            return None
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if self.detectable(middle, seeds) <= difference else (middle + 1, high)
        return low


def design(runs: RunValues) -> Design | None:
    """Returns the variances of a paired difference; None with fewer than two worlds, seeds or problems."""
    values = cube({"": runs})
    if values is None or 1 in values.shape[1:]:
        return None
    d = values[0]
    w, s, p = d.shape
    world, seed, problem = d.mean((1, 2), keepdims=True), d.mean(2, keepdims=True), d.mean(1, keepdims=True)
    rest = float(np.square(d - seed - problem + world).sum()) / (w * (s - 1) * (p - 1))
    square_seed = p * float(np.square(seed - world).sum()) / (w * (s - 1))
    square_problem = s * float(np.square(problem - world).sum()) / (w * (p - 1))
    square_world = s * p * float(np.square(world - d.mean()).sum()) / (w - 1)
    return Design(
        worlds=w,
        seeds=s,
        problems=p,
        world_variance=max(0.0, (square_world - square_seed - square_problem + rest) / (s * p)),
        seed_variance=max(0.0, (square_seed - rest) / p),
        problem_variance=max(0.0, (square_problem - rest) / s),
        rest_variance=rest,
    )
