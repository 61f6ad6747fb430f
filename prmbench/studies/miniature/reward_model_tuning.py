"""Tuning of the reward models' constants: the same number of random trials for every loss, on validation worlds.

The choice sees the subset `val` of seeds that no study uses, and nothing else. random_search.py has the rule by which
ranges are extended and the search ends; it is written into the table of the trials before the first of them is run.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from prmbench.core import result_files, writing
from prmbench.core.progress import JobProgress
from prmbench.core.records import NonFiniteError, UserError
from prmbench.studies.miniature import process_pool
from prmbench.studies.miniature.random_search import (
    Range,
    Ranges,
    Round,
    Search,
    Trial,
    at_edges,
    best_trials,
    mean_or_zero,
    rounds,
)
from prmbench.studies.miniature.recipes import Recipe
from prmbench.studies.miniature.reward_model_study import (
    TUNING_SUBSET,
    TUNING_THRESHOLD_RULES,
    evaluate_reward_model,
    train_reward_model,
    training_config,
)
from prmbench.studies.miniature.world import ActivityProgress, Sizes, World, build_world, load_traces, seed_world

VALIDATION_SEEDS = (1000, 1001, 1002, 1003)
"""The seeds of studies begin at 0."""
PROTOCOL = f"step_sum/calibrated_in_sample:{TUNING_SUBSET}"
TABLE = "tuning.json"
F1BySeed = Mapping[str, float | None]
"""Seed of a world -> F1; None where training diverged."""
REFERENCE_FOLDER = "reference"
"""Folder of the reference's log-probabilities, which all trials of a world share."""

# Two decades of each rate and beta, about what earlier runs had found best for the loss. The paper's margin of 5 is
# out of a short completion's reach.
_RATE = Range(1e-4, 1e-2)
_MARGIN = Range(0.0, 2.0, "linear", fixed_low=True)
_IPVRM: Ranges = {"learning_rate": _RATE, "beta": Range(1.0, 100.0), "margin": _MARGIN}
SPACES: Mapping[str, Ranges] = {
    "ipvrm": _IPVRM,
    "ipvrm_early": _IPVRM,
    "ipvrm_late": _IPVRM,
    "implicit_prm": {"learning_rate": _RATE, "beta": Range(0.05, 5.0)},
    "dpo_rm": {"learning_rate": _RATE, "beta": Range(0.1, 10.0)},
    "q_rm": {"learning_rate": _RATE, "beta": Range(0.1, 10.0), "margin": _MARGIN},
}
"""Loss -> the ranges that its first trials are drawn from. Implicit PRM and DPO-RM have no margin."""
SEARCH = Search(SPACES)


def tune(
    root: Path,
    seeds: Sequence[int] = VALIDATION_SEEDS,
    search: Search = SEARCH,
    progress: JobProgress | None = None,
    sizes: Sizes | None = None,
    earlier: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Trains and scores every trial on every validation world; continues where an earlier call was interrupted.

    Args:
        root: folder of the worlds, the trials' results and the table.
        seeds: of the validation worlds.
        search: losses, ranges, numbers of trials.
        progress: receives the progress of every world.
        sizes: of the worlds.
        earlier: settings that were looked at before the search, listed in the table apart from it.

    Returns:
        The table of all trials, also written to `root/tuning.json` after every round.

    Raises:
        UserError: a trial's file is of another search, or a process failed.
    """
    facts: dict[str, Any] = {"seeds": list(seeds), "subset": TUNING_SUBSET, "protocol": PROTOCOL}
    facts |= {"rule": search.rule(), "search_seed": search.seed, "earlier": dict(earlier or {})}
    f1: dict[str, F1BySeed] = {}
    values: dict[str, float] = {}
    done: list[Round] = []
    for new in rounds(search, values):
        done.append(new)
        _write_table(root, facts, done, f1)
        jobs = {
            f"seed {seed}, round {new.number}": partial(_run_trials, seed_world(root, seed), root, new.trials, sizes)
            for seed in seeds
        }
        process_pool.run_jobs(jobs, progress)
        f1 |= {trial.key: _f1_by_seed(root, trial, seeds) for trial in new.trials}
        values |= {trial.key: mean_or_zero(list(f1[trial.key].values())) for trial in new.trials}
    at_edge = at_edges(done[-1].ranges, best_trials([t for of_round in done for t in of_round.trials], values))
    stopped = f"the limit of {search.limit} trials" if at_edge else "every best trial lies inside its ranges"
    return _write_table(root, {**facts, "stopped": stopped, "at_edge": at_edge}, done, f1)


def recipe_of(trial: Trial) -> Recipe:
    """Returns the recipe of a trial."""
    return Recipe(loss=trial.name, **trial.values)  # type: ignore[arg-type]


# --- trials ---------------------------------------------------------------------------------------------


def _run_trials(
    world: World, root: Path, trials: Sequence[Trial], sizes: Sizes | None, progress: ActivityProgress
) -> None:
    """Trains and scores the trials that have no result on one world yet; a killed process loses one trial."""
    missing = [trial for trial in trials if not _is_done(world, root, trial)]
    if not missing:
        return
    build_world(world, sizes or Sizes(), progress, ("steps",))
    traces = {"steps": [t for t in load_traces(world, ("steps",))["steps"] if t.subset == TUNING_SUBSET]}
    for i, trial in enumerate(missing, 1):
        start = time.process_time()
        f1 = _trial_f1(world, trial, traces)
        result = {"recipe": _constants(trial), "f1": f1, "cpu_seconds": round(time.process_time() - start, 1)}
        writing.write_atomic(_result_path(world, root, trial), result_files.canonical_json(result))
        shutil.rmtree(training_config(world, _folder_name(trial), recipe_of(trial)).out)
        progress(f"trial {trial.key}", i, len(missing))


def _trial_f1(world: World, trial: Trial, traces: Mapping[str, Sequence[Any]]) -> float | None:
    """Trains and scores one trial; None where training diverged."""
    name, recipe = _folder_name(trial), recipe_of(trial)
    folder = training_config(world, name, recipe).out
    try:
        train_reward_model(world, name, recipe, lambda *_: None)
        runs = evaluate_reward_model(world, name, recipe, traces, TUNING_THRESHOLD_RULES, folder / "runs")
    except NonFiniteError:
        return None
    finally:
        _keep_reference(folder)
    rows = [r for r in runs[0].result.rows if (r.subset, r.protocol, r.metric) == (TUNING_SUBSET, PROTOCOL, "f1")]
    return round(rows[0].value or 0.0, 6)


def _keep_reference(folder: Path) -> None:
    """Moves the reference's log-probabilities out of a trial's folder, beside which the next trials find them."""
    kept = folder.parent / REFERENCE_FOLDER
    for path in folder.glob("reference-*"):
        kept.mkdir(exist_ok=True)
        path.rename(kept / path.name)


def _folder_name(trial: Trial) -> str:
    return f"trials/{trial.key}"


def _result_path(world: World, root: Path, trial: Trial) -> Path:
    return root / "trials" / f"seed-{world.seed}" / f"{trial.key}.json"


def _constants(trial: Trial) -> dict[str, Any]:
    return {"loss": trial.name, "margin": None, **trial.values}


def _is_done(world: World, root: Path, trial: Trial) -> bool:
    """Whether the trial has a result. Raises UserError on a result of another search."""
    path = _result_path(world, root, trial)
    if not path.exists():
        return False
    if json.loads(path.read_text(encoding="utf-8"))["recipe"] != _constants(trial):
        raise UserError(f"{path}: is of a search with other ranges or numbers of trials; take another folder")
    return True


def _f1_by_seed(root: Path, trial: Trial, seeds: Sequence[int]) -> F1BySeed:
    paths = {seed: _result_path(seed_world(root, seed), root, trial) for seed in seeds}
    return {str(seed): json.loads(path.read_text(encoding="utf-8"))["f1"] for seed, path in paths.items()}


# --- the table ------------------------------------------------------------------------------------------


def _write_table(
    root: Path, facts: Mapping[str, Any], done: Sequence[Round], f1: Mapping[str, F1BySeed]
) -> dict[str, Any]:
    """Writes the table: the rounds, every finished trial with its F1 on each world, and the best of each loss."""
    trials = [trial for of_round in done for trial in of_round.trials if trial.key in f1]
    values = {trial.key: mean_or_zero(list(f1[trial.key].values())) for trial in trials}
    lines = [
        {
            **_constants(trial),
            **{"trial": trial.number, "round": trial.round, "f1": dict(f1[trial.key])},
            "mean_f1": round(values[trial.key], 6),
        }
        for trial in sorted(trials, key=lambda trial: trial.key)
    ]
    chosen = {
        loss: {**_constants(trial), "trial": trial.number, "mean_f1": round(values[trial.key], 6)}
        for loss, trial in best_trials(trials, values).items()
    }
    table = {"stopped": "", **facts, "rounds": list(map(_round_record, done)), "trials": lines, "chosen": chosen}
    writing.write_atomic(root / TABLE, result_files.canonical_json(table))
    return table


def _round_record(of_round: Round) -> dict[str, Any]:
    ranges = {
        name: {option: [span.low, span.high] for option, span in space.items()}
        for name, space in of_round.ranges.items()
    }
    per_loss = len(of_round.trials) // len(of_round.ranges)
    return {"round": of_round.number, "trials_a_loss": per_loss, "ranges": ranges, "extended": of_round.extended}


def read_earlier(path: Path) -> dict[str, Any]:
    """Returns what an earlier table lists: the settings of a table from before the search, else its `earlier`.

    Raises:
        UserError: the file is no table of tuning.
    """
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
        return {name: value for name, value in table.get("earlier", table).items() if name not in ("trials", "chosen")}
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(f"{path}: is no table of tuning ({error})") from error
