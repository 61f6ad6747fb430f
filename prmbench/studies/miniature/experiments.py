"""What reward models learn from other completions than the world's: outcomes dealt out anew, and late markers.

The data and the recipes; they are trained and judged by study.py. The runs show on what a method's F1 rests.
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
MARKED = "marker1"
"""Data whose marker tells the outcome nine times in ten; the reward models of the marked panel learn from it."""


def shuffled(rows: Sequence[Rollout], seed: int) -> list[Rollout]:
    """As many right and wrong ones as before, but which ones they are is chance."""
    outcomes = [row.outcome for row in rows]
    Random(f"shuffled/{seed}").shuffle(outcomes)
    return [replace(row, outcome=outcome, verdict="") for row, outcome in zip(rows, outcomes, strict=True)]


def _bare(rows: Sequence[Rollout], _: int) -> list[Rollout]:
    return [late_markers.unmarked(row) for row in rows]


def _marked(rows: Sequence[Rollout], seed: int, noise: float) -> list[Rollout]:
    return late_markers.marked(rows, noise, seed)


VARIANTS: Mapping[str, Callable[[Sequence[Rollout], int], list[Rollout]]] = {
    "shuffled": shuffled,
    "marker0": _bare,
    MARKED: partial(_marked, noise=0.1),
    "marker5": partial(_marked, noise=late_markers.UNINFORMATIVE),
}
"""Name of the data -> what makes it of the world's completions and seed."""
SHUFFLED = {f"{loss}_shuffled": Recipe(loss, data="shuffled") for loss in LOSSES}
"""For a plain world: does step F1 fall to what chance reaches?"""
MARKERS = {f"{loss}_{name}": Recipe(loss, data=name) for name in ("marker0", MARKED, "marker5") for loss in LOSSES}
"""For a marked world, whose judged traces have no marker: who reads the outcome off it, instead of the steps?"""


def write_data(made: World, name: str) -> None:
    """Makes a variant of the world's training data, unless it is there. `name` may be the world's own."""
    path = made.data(name)
    if name != TRAINING and not path.exists():
        rollouts.write(path, VARIANTS[name](rollouts.read(made.training), made.seed))
