"""Tuning of the RL arms' constants: four settings per arm, compared on validation seeds and validation problems.

The choice sees validation problems of seeds that no study uses, and nothing else.
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
from prmbench.core.progress import JobProgress
from prmbench.studies.miniature import process_pool
from prmbench.studies.miniature.recipes import DEMO_METHODS
from prmbench.studies.miniature.reward_model_tuning import VALIDATION_SEEDS
from prmbench.studies.miniature.rl_study import (
    VALIDATION_SAMPLES,
    ArmRuns,
    Scale,
    StudyArm,
    run_arms,
    train_reward_models,
)
from prmbench.studies.miniature.world import seed_world

_LEARNING_RATES = tuple({"learning_rate": rate} for rate in (1e-4, 3e-4, 5e-4, 1e-3))
_BRANCH_WEIGHTS = tuple({"alpha": alpha, "gae_weight": weight} for alpha, weight in product((0.1, 1.0), (0.0, 1.0)))
_GAE_WEIGHTS = tuple({"gae_weight": weight} for weight in (0.05, 0.2, 1.0, 3.0))
# Variants of an arm (frozen, naive, ...) take what is chosen for it; all other values are the preset's.
GRID: Mapping[Arm, Sequence[Mapping[str, float]]] = {
    "grpo": _LEARNING_RATES,
    "grpo_ipvrm": _GAE_WEIGHTS,
    "distrl_ipvrm": _BRANCH_WEIGHTS,
    "distrl_implicit_prm": _BRANCH_WEIGHTS,
    "distrl_dpo_rm": _BRANCH_WEIGHTS,
    "prime": _GAE_WEIGHTS,
    "spro": _GAE_WEIGHTS,
    "reinforce_q_rm": _LEARNING_RATES,
}
SCALE = Scale(validate_every=0, validation_split="validation")


def settings() -> dict[str, StudyArm]:
    """Returns every setting by name."""
    return {f"{arm}-{i}": StudyArm(arm, options) for arm, rows in GRID.items() for i, options in enumerate(rows)}


def tune(root: Path, progress: JobProgress | None = None, scale: Scale = SCALE) -> dict[str, Any]:
    """Runs every setting on every validation seed.

    Returns:
        The table of accuracies, best setting of each arm first; also written to `root/tuning_rl.json`.
    """
    out, arms = root / "runs-rl", settings()
    worlds = {f"seed {seed}": seed_world(root, seed) for seed in VALIDATION_SEEDS}
    process_pool.run_jobs(
        {name: partial(train_reward_models, world, DEMO_METHODS, scale.world_sizes) for name, world in worlds.items()},
        progress,
    )
    process_pool.run_jobs(
        {name: partial(run_arms, ArmRuns(world, 0, arms, scale), out) for name, world in worlds.items()}, progress
    )
    accuracies: dict[str, dict[str, tuple[float, float]]] = {}
    for run in tasks.read_runs(out):
        config = run.result.manifest.config
        values = [trace.values for trace in run.scores]
        before_after = fmean(v[0] for v in values), fmean(v[-1] for v in values)
        accuracies.setdefault(config["arm"], {})[str(config["sft_seed"])] = before_after
    lines = [_table_line(arms[name], by_seed) for name, by_seed in accuracies.items() if name in arms]
    lines.sort(key=lambda line: (line["arm"], -line["mean"]))
    table = {
        "seeds": list(VALIDATION_SEEDS),
        "split": scale.validation_split,
        "problems": scale.validation_prompts,
        "steps": scale.steps,
        "metric": f"avg@{VALIDATION_SAMPLES} after the last step; before: before the first",
        "settings": lines,
    }
    writing.write_atomic(root / "tuning_rl.json", result_files.canonical_json(table))
    return table


def _table_line(arm: StudyArm, by_seed: Mapping[str, tuple[float, float]]) -> dict[str, Any]:
    after = {seed: round(last, 4) for seed, (_, last) in sorted(by_seed.items())}
    before = {seed: round(first, 4) for seed, (first, _) in sorted(by_seed.items())}
    mean = round(fmean(after.values()), 4)
    return {"arm": arm.arm, "options": dict(arm.options), "before": before, "after": after, "mean": mean}
