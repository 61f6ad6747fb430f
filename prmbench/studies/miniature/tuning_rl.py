"""The values of the miniature's arms: as many settings for every arm, chosen on validation seeds and problems.

A choice sees validation problems of seeds that no study uses, and nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from statistics import fmean
from typing import Any

from prmbench import tasks
from prmbench.config.distrl_options import Arm
from prmbench.core import result_files, writing
from prmbench.core.progress import Tell
from prmbench.studies.miniature import pool, rl
from prmbench.studies.miniature.recipes import METHODS
from prmbench.studies.miniature.rl import Runs, Scale, StudyArm
from prmbench.studies.miniature.tuning import SEEDS

RATES = tuple({"learning_rate": rate} for rate in (1e-4, 3e-4, 5e-4, 1e-3))
BRANCHES = tuple({"alpha": alpha, "gae_weight": weight} for alpha, weight in product((0.1, 1.0), (0.0, 1.0)))
WEIGHTS = tuple({"gae_weight": weight} for weight in (0.05, 0.2, 1.0, 3.0))
# Variants of an arm (frozen, naive, ...) take what is chosen for it; all other values are the preset's.
GRID: Mapping[Arm, Sequence[Mapping[str, float]]] = {
    "grpo": RATES,
    "grpo_ipvrm": WEIGHTS,
    "distrl_ipvrm": BRANCHES,
    "distrl_implicit_prm": BRANCHES,
    "distrl_dpo_rm": BRANCHES,
    "prime": WEIGHTS,
    "spro": WEIGHTS,
    "reinforce_q_rm": RATES,
}
SCALE = Scale(validate_every=0, split="validation")


def settings() -> dict[str, StudyArm]:
    """Every setting by name."""
    return {f"{arm}-{i}": StudyArm(arm, given) for arm, rows in GRID.items() for i, given in enumerate(rows)}


def tune(root: Path, tell: Tell | None = None, scale: Scale = SCALE) -> dict[str, Any]:
    """Runs every setting on every validation seed; the table, best first, also in `root/tuning_rl.json`."""
    out, named = root / "runs-rl", settings()
    worlds = [rl.place(root, seed) for seed in SEEDS]
    pool.run(
        {f"seed {made.seed}": partial(rl.reward_models, made, METHODS, scale.sizes) for made in worlds},
        tell,
    )
    pool.run({f"seed {m.seed}": partial(rl.run, Runs(m, 0, named, scale), out) for m in worlds}, tell)
    found: dict[str, dict[str, tuple[float, float]]] = {}
    for run in tasks.read_runs(out):
        told = run.result.manifest.config
        values = [trace.values for trace in run.scores]
        ends = fmean(v[0] for v in values), fmean(v[-1] for v in values)
        found.setdefault(told["arm"], {})[str(told["sft_seed"])] = ends
    lines = [_line(named[name], by_seed) for name, by_seed in found.items() if name in named]
    lines.sort(key=lambda line: (line["arm"], -line["mean"]))
    table = {
        "seeds": list(SEEDS),
        "split": scale.split,
        "problems": scale.prompts,
        "steps": scale.steps,
        "metric": f"avg@{rl.SAMPLES} after the last step; before: before the first",
        "settings": lines,
    }
    writing.write_atomic(root / "tuning_rl.json", result_files.canonical_json(table))
    return table


def _line(arm: StudyArm, by_seed: Mapping[str, tuple[float, float]]) -> dict[str, Any]:
    after = {seed: round(last, 4) for seed, (_, last) in sorted(by_seed.items())}
    before = {seed: round(first, 4) for seed, (first, _) in sorted(by_seed.items())}
    mean = round(fmean(after.values()), 4)
    return {"arm": arm.arm, "options": dict(arm.options), "before": before, "after": after, "mean": mean}
