"""Tuning of the RL arms' options: the same number of trials for every arm, compared on validation worlds.

The choice sees validation problems of seeds that no study uses, and nothing else. The first trials of an arm are drawn
at random over wide ranges; each later round is drawn around the best so far, also beyond what has been tried, so that
a best value at the edge of the ranges is followed outwards.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from random import Random
from statistics import fmean
from typing import Any

from prmbench import tasks
from prmbench.core import result_files, writing
from prmbench.core.progress import JobProgress
from prmbench.core.records import UserError
from prmbench.studies.miniature.rl_study import (
    STUDY_ARMS,
    VALIDATION_SAMPLES,
    ArmRuns,
    Scale,
    run_missing,
)
from prmbench.studies.miniature.world import World, seed_world

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
ROUNDS = (8, 4)
"""Trials of every arm in the first round, which is random over the ranges, and in each later one."""
REACH = 4.0
"""Later rounds draw each option between its best value so far divided and multiplied by this."""
RL_SEED = 0
SCALE = Scale(validate_every=0, validation_split="validation")
TABLE_FILE = "tuning_rl.json"
_Trial = tuple[str, str, dict[str, float]]
"""Name of its runs, arm, options."""


def tune(
    root: Path,
    progress: JobProgress | None = None,
    scale: Scale = SCALE,
    rounds: Sequence[int] = ROUNDS,
    arms: Sequence[str] = (),
) -> dict[str, Any]:
    """Runs every trial on every validation seed; continues where an earlier call was interrupted.

    Trials that the table in `root` has already are not run again, so a search can go on from a committed table.

    Args:
        root: folder of the worlds, the runs and the table.
        progress: receives the progress of every job.
        scale: length of the runs and sizes of their data.
        rounds: trials of every arm in each round.
        arms: arms that are tuned now, all by default; lines of others stay in the table.

    Returns:
        The table of all trials, best of each arm first; also written to `root/tuning_rl.json` after each round.
    """
    out = root / "runs-rl"
    worlds = [seed_world(root, seed) for seed in VALIDATION_SEEDS]
    lines = _read_lines(root / TABLE_FILE, scale)
    drawn: dict[str, list[dict[str, float]]] = {arm: [] for arm in arms or SPACE}
    table: dict[str, Any] = {}
    for count in rounds:
        for arm, earlier in drawn.items():
            earlier.extend(draw_options(arm, len(earlier), count, _best(lines, arm, earlier)))
        missing = _missing(lines, drawn)
        _run_trials(worlds, out, missing, scale, progress)
        lines += _new_lines(out, missing)
        table = _table(lines, scale)
        writing.write_atomic(root / TABLE_FILE, result_files.canonical_json(table))
    return table


def _run_trials(
    worlds: Sequence[World], out: Path, trials: Sequence[_Trial], scale: Scale, progress: JobProgress | None
) -> None:
    """Runs trials on every world, after making what they start from."""
    arms = {name: STUDY_ARMS["plain"][arm] for name, arm, _ in trials}
    options = {name: options for name, _, options in trials}
    run_missing([ArmRuns(world, RL_SEED, arms, scale, tuned=options) for world in worlds], out, progress)


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


def _missing(lines: Sequence[Mapping[str, Any]], drawn: Mapping[str, Sequence[dict[str, float]]]) -> list[_Trial]:
    """Returns the drawn trials without a line. Raises UserError where a line of that name has other options."""
    named = [(f"{arm}-{i}", arm, options) for arm, tried in drawn.items() for i, options in enumerate(tried)]
    known = {line["trial"]: line["options"] for line in lines}
    for name, _, options in named:
        if known.get(name, options) != options:
            raise UserError(f"{TABLE_FILE}: trial {name} is of another search; take another folder (--worlds)")
    return [trial for trial in named if trial[0] not in known]


def _read_lines(path: Path, scale: Scale) -> list[dict[str, Any]]:
    """Returns the lines of a table that was made with the same worlds and sizes; none where there is no table."""
    if not path.exists():
        return []
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
        is_same = all(table[name] == value for name, value in _facts(scale).items())
        lines = [line for line in table["settings"] if line["trial"]]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: is not a table of tune-rl ({error!r}); take another folder (--worlds)") from error
    if not is_same:
        raise UserError(f"{path}: was made with other worlds or sizes; take another folder (--worlds)")
    return lines


def _new_lines(out: Path, trials: Sequence[_Trial]) -> list[dict[str, Any]]:
    accuracies: dict[str, dict[str, tuple[float, float]]] = {}
    for run in tasks.read_runs(out) if trials else ():
        config = run.result.manifest.config
        values = [trace.values for trace in run.scores]
        before_after = fmean(v[0] for v in values), fmean(v[-1] for v in values)
        accuracies.setdefault(config["arm"], {})[str(config["sft_seed"])] = before_after
    return [_table_line(trial, accuracies[trial[0]]) for trial in trials]


def _facts(scale: Scale) -> dict[str, Any]:
    """Returns what all lines of a table share."""
    return {
        "seeds": list(VALIDATION_SEEDS),
        "split": scale.validation_split,
        "problems": scale.validation_prompts,
        "steps": scale.steps,
        "metric": f"avg@{VALIDATION_SAMPLES} after the last step; before: before the first",
    }


def _table(lines: Sequence[dict[str, Any]], scale: Scale) -> dict[str, Any]:
    """Returns the table with the best options of each arm, and whether they are inside what was tried."""
    settings = sorted(lines, key=lambda line: (line["arm"], -line["mean"]))
    arms = [arm for arm in SPACE if any(line["arm"] == arm for line in settings)]
    return {
        **_facts(scale),
        "trials": {arm: sum(line["arm"] == arm for line in settings) for arm in arms},
        "ranges": {arm: {name: list(bounds) for name, bounds in SPACE[arm].items()} for arm in arms},
        "settings": settings,
        "chosen": {arm: _best(settings, arm) for arm in arms},
        "interior": {arm: _interior(settings, arm) for arm in arms},
    }


def _best(
    lines: Sequence[Mapping[str, Any]], arm: str, among: Sequence[Mapping[str, float]] | None = None
) -> dict[str, float]:
    """Returns the best options of an arm, of those `among` if given; empty where none has a line."""
    own = [line for line in lines if line["arm"] == arm and (among is None or line["options"] in among)]
    return dict(max(own, key=lambda line: line["mean"])["options"]) if own else {}


def _interior(lines: Sequence[Mapping[str, Any]], arm: str) -> dict[str, bool]:
    """Returns whether lower and higher values than the best were tried, by option."""
    tried = [line["options"] for line in lines if line["arm"] == arm]
    return {
        name: min(options[name] for options in tried) < value < max(options[name] for options in tried)
        for name, value in _best(lines, arm).items()
    }


def _table_line(trial: _Trial, by_seed: Mapping[str, tuple[float, float]]) -> dict[str, Any]:
    name, arm, options = trial
    after = {seed: round(last, 4) for seed, (_, last) in sorted(by_seed.items())}
    before = {seed: round(first, 4) for seed, (first, _) in sorted(by_seed.items())}
    mean = round(fmean(after.values()), 4)
    return {"trial": name, "arm": arm, "options": options, "before": before, "after": after, "mean": mean}
