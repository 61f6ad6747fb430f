"""Ablations of the reward models' training data: shuffled outcomes, and late markers that reveal the outcome.

They show what a method's F1 rests on. This module makes the data and the recipes; reward_model_study.py trains and
judges them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from random import Random

from prmbench.config import Loss
from prmbench.data import rollouts
from prmbench.data.rollouts import Rollout
from prmbench.studies.miniature import late_markers
from prmbench.studies.miniature.recipes import TRAINING, Recipe
from prmbench.studies.miniature.world import World

LOSSES: tuple[Loss, ...] = ("ipvrm", "implicit_prm", "dpo_rm")
INFORMATIVE_MARKER = "marker1"
"""Data whose marker agrees with the outcome nine times in ten; reward models of the marker panel are trained on it."""


def shuffle_outcomes(rows: Sequence[Rollout], seed: int) -> list[Rollout]:
    """Returns the completions with their outcomes permuted at random, so that outcomes carry no information."""
    outcomes = [row.outcome for row in rows]
    Random(f"shuffled/{seed}").shuffle(outcomes)
    return [replace(row, outcome=outcome, verdict="") for row, outcome in zip(rows, outcomes, strict=True)]


def _unmarked(rows: Sequence[Rollout], _seed: int) -> list[Rollout]:
    return [late_markers.remove_marker(row) for row in rows]


def _marked(rows: Sequence[Rollout], seed: int, noise: float) -> list[Rollout]:
    return late_markers.add_markers(rows, noise, seed)


VARIANTS: Mapping[str, Callable[[Sequence[Rollout], int], list[Rollout]]] = {
    "shuffled": shuffle_outcomes,
    "marker0": _unmarked,
    INFORMATIVE_MARKER: partial(_marked, noise=0.1),
    "marker5": partial(_marked, noise=late_markers.UNINFORMATIVE),
}
"""Name of the data -> function of the world's completions and its seed that makes it."""
SHUFFLED = {f"{loss}_shuffled": Recipe(loss, data="shuffled") for loss in LOSSES}
"""Recipes for a plain world. Question: does step F1 fall to the level of random scores?"""
MARKERS = {
    f"{loss}_{name}": Recipe(loss, data=name) for name in ("marker0", INFORMATIVE_MARKER, "marker5") for loss in LOSSES
}
"""Recipes for a marked world, whose judged traces have no marker. Question: which methods rely on the marker?"""

INFORMATIVE = {name: recipe for name, recipe in MARKERS.items() if recipe.data == INFORMATIVE_MARKER}
"""Recipes of the reward models that the RL study's marker panel starts from."""


def write_data(world: World, name: str) -> None:
    """Writes a variant of the world's training data unless it exists; does nothing for the unaltered data."""
    path = world.data(name)
    if name != TRAINING and not path.exists():
        rollouts.write(path, VARIANTS[name](rollouts.read(world.training), world.seed))
