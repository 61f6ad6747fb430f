"""Many seeds of the miniature study: a world and its reward models each. The processes are pool.py's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from prmbench.core.progress import Tell
from prmbench.studies.miniature import pool, world
from prmbench.studies.miniature.recipes import Recipe
from prmbench.studies.miniature.study import seed_runs
from prmbench.studies.miniature.world import Sizes, World


def run(
    seeds: Sequence[int],
    methods: Mapping[str, Recipe],
    root: Path,
    out: Path,
    tell: Tell | None = None,
    sizes: Sizes | None = None,
    tuning: bool = False,
) -> None:
    """Works through the seeds: worlds in `root`, runs in `out`. Goes on where an earlier call was interrupted.

    Raises UserError when a process fails; the others are ended then, and keep what they have finished.
    """
    given = (dict(methods), out, sizes or Sizes(), tuning)
    pool.run({f"seed {seed}": partial(_one, made(root, seed), *given) for seed in seeds}, tell)


def made(root: Path, seed: int) -> World:
    """Where a seed's plain world is."""
    return World(root / f"seed-{seed}", seed)


def _one(place: World, methods: Mapping[str, Recipe], out: Path, sizes: Sizes, tuning: bool, tell: world.Tell) -> None:
    seed_runs(place, methods, out, sizes, tell, tuning)
