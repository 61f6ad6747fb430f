"""Tuning of the reward models' constants: four settings per method, compared on validation seeds.

The choice sees the subset `val` of seeds that no study uses, and nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product
from pathlib import Path
from statistics import fmean
from typing import Any

from prmbench import tasks
from prmbench.config import Loss
from prmbench.core import result_files, writing
from prmbench.core.progress import JobProgress
from prmbench.studies.miniature.recipes import Recipe
from prmbench.studies.miniature.reward_model_study import TUNING_SUBSET, run_study

VALIDATION_SEEDS = (1000, 1001)
"""The seeds of studies begin at 0."""
LEARNING_RATES = (1e-3,)
# The paper's margin of 5 is out of a short completion's reach. The early and late variants of IPVRM take what is
# chosen for IPVRM.
GRID: Mapping[Loss, tuple[tuple[float, float | None], ...]] = {
    "ipvrm": tuple(product((10.0, 30.0), (0.0, 0.5))),
    "implicit_prm": ((0.1, None), (0.2, None), (0.5, None), (1.0, None)),
    "dpo_rm": ((0.2, None), (0.5, None), (1.0, None), (2.0, None)),
    "q_rm": tuple(product((0.2, 1.0), (0.0, 0.5))),
}
"""Loss -> pairs of (beta, margin)."""
PROTOCOL = f"step_sum/calibrated_in_sample:{TUNING_SUBSET}"


def settings() -> dict[str, Recipe]:
    """Returns every setting by name: four of (beta, margin) for each method, at one learning rate."""
    return {
        f"{loss}-{i}": Recipe(loss, beta, margin, rate)
        for loss, constants in GRID.items()
        for i, ((beta, margin), rate) in enumerate(product(constants, LEARNING_RATES))
    }


def tune(root: Path, progress: JobProgress | None = None) -> dict[str, Any]:
    """Trains every setting on every validation seed.

    Returns:
        The table of F1 values, best setting of each loss first; also written to `root/tuning.json`.
    """
    out = root / "runs"
    recipes = settings()
    run_study(VALIDATION_SEEDS, recipes, root, out, progress, tuning=True)
    f1_by_setting: dict[str, dict[int, float]] = {}
    for path in sorted(out.glob("*.json")):
        result = tasks.read_run(path).result
        rows = [r for r in result.rows if (r.subset, r.protocol, r.metric) == (TUNING_SUBSET, PROTOCOL, "f1")]
        f1_by_setting.setdefault(result.manifest.model, {})[result.manifest.seed] = rows[0].value or 0.0
    lines = [
        {**_constants(recipes[name]), **_f1_columns(by_seed)}
        for name, by_seed in f1_by_setting.items()
        if name in recipes
    ]
    lines.sort(key=lambda line: (line["loss"], -line["mean_f1"]))
    table = {"seeds": list(VALIDATION_SEEDS), "subset": TUNING_SUBSET, "protocol": PROTOCOL, "settings": lines}
    writing.write_atomic(root / "tuning.json", result_files.canonical_json(table))
    return table


def _constants(recipe: Recipe) -> dict[str, Any]:
    return {name: getattr(recipe, name) for name in ("loss", "beta", "margin", "learning_rate")}


def _f1_columns(by_seed: Mapping[int, float]) -> dict[str, Any]:
    f1 = {str(seed): round(value, 4) for seed, value in sorted(by_seed.items())}
    return {"f1": f1, "mean_f1": round(fmean(by_seed.values()), 4)}
