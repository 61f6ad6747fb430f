"""Tuning of the RL arms' options: the same number of trials for every arm, compared on validation worlds.

The choice sees validation problems of seeds that no study uses, and nothing else. The first trials of an arm are drawn
at random over wide ranges; each later round is drawn around the best so far, also beyond what has been tried, so that
a best value at the edge of the ranges is followed outwards.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from random import Random
from statistics import fmean
from typing import Any

from prmbench import tasks
from prmbench.core import result_files, writing
from prmbench.core.progress import JobProgress
from prmbench.core.records import UserError
from prmbench.studies.miniature import process_pool
from prmbench.studies.miniature.recipes import DEMO_METHODS
from prmbench.studies.miniature.rl_study import (
    STUDY_ARMS,
    VALIDATION_SAMPLES,
    ArmRuns,
    Scale,
    run_arms,
    train_reward_models,
)
from prmbench.studies.miniature.world import seed_world

_RATE = {"learning_rate": (1e-4, 1e-3)}
_GAE = {**_RATE, "gae_weight": (0.02, 2.0)}
_BRANCHES = {**_GAE, "alpha": (0.03, 3.0)}
SPACE: Mapping[str, Mapping[str, tuple[float, float]]] = {
    "grpo": _RATE,
    "grpo_extra": _RATE,
    "grpo_ipvrm": _GAE,
    "distrl_ipvrm": _BRANCHES,
    "distrl_implicit_prm": _BRANCHES,
    "distrl_dpo_rm": _BRANCHES,
    "prime": _GAE,
    "spro": _GAE,
    "reinforce_q_rm": _RATE,
    "vineppo": _RATE,
    "grpo_vps": {**_RATE, "step_weight": (0.1, 3.0)},
}
"""Arm of the study -> option -> range of its first trials, log-uniform. Variants of DistRL with IPVRM take its options;
a reward model as the policy has nothing to tune; all other options are the preset's."""
VALIDATION_SEEDS = (1000, 1001)
"""Seeds of the worlds; those of studies begin at 0."""
ROUNDS = (8, 4, 4)
"""Trials of every arm in the first round, which is random over the ranges, and in each later one."""
REACH = 4.0
"""Later rounds draw each option between its best value so far divided and multiplied by this."""
RL_SEED = 0
SCALE = Scale(validate_every=0, validation_split="validation")
TABLE_FILE = "tuning_rl.json"


def tune(
    root: Path, progress: JobProgress | None = None, scale: Scale = SCALE, rounds: Sequence[int] = ROUNDS
) -> dict[str, Any]:
    """Runs every trial on every validation seed; continues where an earlier call was interrupted.

    Args:
        root: folder of the worlds, the runs and the table.
        progress: receives the progress of every job.
        scale: length of the runs and sizes of their data.
        rounds: trials of every arm in each round.

    Returns:
        The table of all trials, best of each arm first; also written to `root/tuning_rl.json` after each round.
    """
    out = root / "runs-rl"
    worlds = {f"seed {seed}": seed_world(root, seed) for seed in VALIDATION_SEEDS}
    process_pool.run_jobs(
        {name: partial(train_reward_models, world, DEMO_METHODS, scale.world_sizes) for name, world in worlds.items()},
        progress,
    )
    trials: dict[str, list[dict[str, float]]] = {arm: [] for arm in SPACE}
    table: dict[str, Any] = {}
    for number, count in enumerate(rounds):
        for arm, earlier in trials.items():
            center = _best(table, arm)["options"] if table else {}
            earlier.extend(draw_options(arm, len(earlier), count, center))
        arms = {name: STUDY_ARMS["plain"][arm] for name, arm, _ in _named(trials)}
        options = {name: options for name, _, options in _named(trials)}
        jobs = {
            f"{name}, round {number + 1}": partial(run_arms, ArmRuns(world, RL_SEED, arms, scale, tuned=options), out)
            for name, world in worlds.items()
        }
        process_pool.run_jobs(jobs, progress)
        table = _table(out, trials, scale, rounds[: number + 1])
        writing.write_atomic(root / TABLE_FILE, result_files.canonical_json(table))
    return table


def draw_options(arm: str, first: int, count: int, center: Mapping[str, float]) -> list[dict[str, float]]:
    """Returns the options of a round's trials: over the arm's ranges, or around `center` where it has values.

    Each option's range is cut into `count` equal parts of its logarithm, and each part has one trial, at random.
    """
    rng = Random(f"rl-tuning/{arm}/{first}")
    columns: dict[str, list[float]] = {}
    for name, ranges in SPACE[arm].items():
        low, high = (center[name] / REACH, center[name] * REACH) if center else ranges
        parts = rng.sample(range(count), count)
        columns[name] = [float(f"{low * (high / low) ** ((part + rng.random()) / count):.3g}") for part in parts]
    return [{name: values[i] for name, values in columns.items()} for i in range(count)]


def chosen(path: Path) -> dict[str, dict[str, float]]:
    """Returns the chosen options of each arm. Raises UserError on a file that is not a table of `tune`."""
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
        return {arm: dict(options) for arm, options in table["chosen"].items()}
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise UserError(
            f"--tuning {path}: is not a table of tune-rl ({error!r}); run tune-rl, and name its table"
        ) from error


def _named(trials: Mapping[str, Sequence[dict[str, float]]]) -> list[tuple[str, str, dict[str, float]]]:
    """Returns (name, arm, options) of every trial."""
    return [(f"{arm}-{i}", arm, options) for arm, tried in trials.items() for i, options in enumerate(tried)]


def _table(
    out: Path, trials: Mapping[str, Sequence[dict[str, float]]], scale: Scale, rounds: Sequence[int]
) -> dict[str, Any]:
    accuracies: dict[str, dict[str, tuple[float, float]]] = {}
    for run in tasks.read_runs(out):
        config = run.result.manifest.config
        values = [trace.values for trace in run.scores]
        before_after = fmean(v[0] for v in values), fmean(v[-1] for v in values)
        accuracies.setdefault(config["arm"], {})[str(config["sft_seed"])] = before_after
    lines = [_table_line(arm, options, accuracies[name]) for name, arm, options in _named(trials)]
    lines.sort(key=lambda line: (line["arm"], -line["mean"]))
    table: dict[str, Any] = {
        "seeds": list(VALIDATION_SEEDS),
        "split": scale.validation_split,
        "problems": scale.validation_prompts,
        "steps": scale.steps,
        "metric": f"avg@{VALIDATION_SAMPLES} after the last step; before: before the first",
        "trials_per_arm": sum(rounds),
        "rounds": list(rounds),
        "ranges": {arm: {name: list(bounds) for name, bounds in space.items()} for arm, space in SPACE.items()},
        "settings": lines,
    }
    return _with_choice(table)


def _with_choice(table: dict[str, Any]) -> dict[str, Any]:
    """Returns the table with the best options of each arm, and whether they are inside what was tried."""
    table["chosen"] = {arm: _best(table, arm)["options"] for arm in SPACE}
    table["interior"] = {arm: _interior(table, arm) for arm in SPACE}
    return table


def _best(table: Mapping[str, Any], arm: str) -> dict[str, Any]:
    best: dict[str, Any] = next(line for line in table["settings"] if line["arm"] == arm)
    return best


def _interior(table: Mapping[str, Any], arm: str) -> dict[str, bool]:
    """Returns whether lower and higher values than the best were tried, by option."""
    tried = [line["options"] for line in table["settings"] if line["arm"] == arm]
    best = _best(table, arm)["options"]
    return {
        name: min(options[name] for options in tried) < value < max(options[name] for options in tried)
        for name, value in best.items()
    }


def _table_line(arm: str, options: Mapping[str, float], by_seed: Mapping[str, tuple[float, float]]) -> dict[str, Any]:
    after = {seed: round(last, 4) for seed, (_, last) in sorted(by_seed.items())}
    before = {seed: round(first, 4) for seed, (first, _) in sorted(by_seed.items())}
    mean = round(fmean(after.values()), 4)
    return {"arm": arm, "options": dict(options), "before": before, "after": after, "mean": mean}
