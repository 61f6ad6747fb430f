"""Sizes and copies of the small world that the slow tests of the studies share."""

from __future__ import annotations

import shutil
from pathlib import Path

from prmbench.studies.miniature.world import Sizes, World, seed_world

SIZES = Sizes(
    training_prompts=500,
    judged_traces=80,
    shifted_traces=20,
    best_of_n_prompts=30,
    monte_carlo_traces=10,
    continuations=4,
)


def copy_world(trained: World, root: Path) -> World:
    """Returns a copy of the trained world beneath `root`."""
    world = seed_world(root, trained.seed)
    shutil.copytree(trained.folder, world.folder)
    return world
