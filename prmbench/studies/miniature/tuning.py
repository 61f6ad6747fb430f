"""The miniature study's recipes: the same number of settings for every method, chosen on validation seeds.

A choice sees the subset `val` of seeds that no study uses, and nothing else.
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
from prmbench.core.progress import Tell
from prmbench.studies.miniature import seeds
from prmbench.studies.miniature.recipes import Recipe
from prmbench.studies.miniature.study import TUNING

SEEDS = (1000, 1001)
"""Validation seeds; a study begins at 0."""
RATES = (1e-3,)
IPVRM = tuple(product((10.0, 30.0), (0.0, 0.5)))
"""(beta, margin): the paper's margin of 5 is out of a short completion's reach."""
# The early and late variants of IPVRM take what is chosen for IPVRM.
GRID: Mapping[Loss, tuple[tuple[float, float | None], ...]] = {
    "ipvrm": IPVRM,
    "implicit_prm": ((0.1, None), (0.2, None), (0.5, None), (1.0, None)),
    "dpo_rm": ((0.2, None), (0.5, None), (1.0, None), (2.0, None)),
    "q_rm": tuple(product((0.2, 1.0), (0.0, 0.5))),
}
PROTOCOL = f"step_sum/calibrated_in_sample:{TUNING}"


def settings() -> dict[str, Recipe]:
    """Every setting by name: four of (beta, margin) for each method, at one learning rate."""
    return {
        f"{loss}-{i}": Recipe(loss, beta, margin, rate)
        for loss, pairs in GRID.items()
        for i, ((beta, margin), rate) in enumerate(product(pairs, RATES))
    }


def tune(root: Path, tell: Tell | None = None) -> dict[str, Any]:
    """Trains every setting on every validation seed; the table of F1s, best first, also in `root/tuning.json`."""
    out = root / "runs"
    named = settings()
    seeds.run(SEEDS, named, root, out, tell, tuning=True)
    found: dict[str, dict[int, float]] = {}
    for path in sorted(out.glob("*.json")):
        result = tasks.read_run(path).result
        rows = [r for r in result.rows if (r.subset, r.protocol, r.metric) == (TUNING, PROTOCOL, "f1")]
        found.setdefault(result.manifest.model, {})[result.manifest.seed] = rows[0].value or 0.0
    lines = [{**_facts(named[name]), **_scores(by_seed)} for name, by_seed in found.items() if name in named]
    lines.sort(key=lambda line: (line["loss"], -line["mean_f1"]))
    table = {"seeds": list(SEEDS), "subset": TUNING, "protocol": PROTOCOL, "settings": lines}
    writing.write_atomic(root / "tuning.json", result_files.canonical_json(table))
    return table


def _facts(recipe: Recipe) -> dict[str, Any]:
    return {name: getattr(recipe, name) for name in ("loss", "beta", "margin", "learning_rate")}


def _scores(by_seed: Mapping[int, float]) -> dict[str, Any]:
    f1 = {str(seed): round(value, 4) for seed, value in sorted(by_seed.items())}
    return {"f1": f1, "mean_f1": round(fmean(by_seed.values()), 4)}
