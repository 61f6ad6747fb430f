"""What a stopped run continues from: checkpoints of both models, and the rollouts of the step in progress.

Randomness is a function of (seed, position, sample), so no generator's state is saved.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch

from prmbench.core import processes, reading, result_files, writing
from prmbench.core.records import UserError
from prmbench.data import rollouts
from prmbench.rl.models import Models
from prmbench.rl.setup import Job
from prmbench.rl.step_rollouts import StepRollouts
from prmbench.rl.token_rows import Row
from prmbench.training import checkpoints, run_folder, run_setup

DRAWN = "drawn"
"""Folder of the rollouts that the step in progress trains on, one file a process."""


@dataclass(slots=True)
class Progress:
    """How far a run is: what a checkpoint holds besides weights and optimizers."""

    done: int = 0
    """Steps done, that of the first rollouts included."""
    cursor: int = 0
    """Next position in the stream of prompts."""
    halved: bool = False
    """Whether memory ran out, so that micro-batches have half of --batch-tokens."""
    skipped: dict[str, int] = field(default_factory=dict)
    """Number of the last updates in a row that were skipped for not being finite, by model."""
    left_out: int = 0
    """Number of skipped updates of the whole run."""
    empty: int = 0
    """Number of the last steps in a row that had nothing to train on."""


@dataclass(frozen=True)
class _Facts(run_folder.Facts):
    """What a checkpoint holds besides its tensors."""

    progress: Progress
    stepped: list[str]
    """Names of the models whose optimizer has made a step."""


Optimizers = Mapping[str, torch.optim.Optimizer]
"""Optimizers by the names of their models, `policy` and `rm`."""


def save(job: Job, models: Models, optimizers: Optimizers, progress: Progress) -> None:
    """Writes a checkpoint. All processes call it."""
    stepped = sorted(name for name, optimizer in optimizers.items() if optimizer.state)
    state = _state(models, optimizers, stepped)
    run_setup.save_checkpoint(job, progress.done, state, {"progress": asdict(progress), "stepped": stepped})


def resume(job: Job, models: Models, optimizers: Optimizers) -> Progress:
    """Restores the newest checkpoint, if any. Raises UserError on another run's. All processes call it."""

    def put_back(facts: _Facts, state: dict[str, Any]) -> None:
        for name, runner in _trained(models, optimizers).items():
            checkpoints.put_back(runner.model, optimizers[name] if name in facts.stepped else None, state[name])

    newest = run_setup.restore(job, _Facts, lambda facts: _state(models, optimizers, facts.stepped), put_back)
    return newest[1].progress if newest else Progress()


def _state(models: Models, optimizers: Optimizers, stepped: Sequence[str]) -> dict[str, Any]:
    """Returns the state by model; `stepped`: those whose optimizer has made a step, and so has a state."""
    return {
        name: checkpoints.training_state(runner.model, optimizers[name] if name in stepped else None)
        for name, runner in _trained(models, optimizers).items()
    }


def _trained(models: Models, optimizers: Optimizers) -> dict[str, Any]:
    runners = {"policy": models.policy, "rm": models.rm}
    return {name: runners[name] for name in optimizers}


# --- rollouts of the step in progress ------------------------------------------------------------------


def store_rollouts(job: Job, done: int, step: StepRollouts) -> None:
    """Writes a step's rollouts, so that a run stopped within the step need not sample them again."""
    head = {
        "run": result_files.short_hash(job.identity),
        "done": done,
        "tally": dict(step.tally),
        "cursor": step.cursor,
    }
    lines = [head, *(_to_json(row) for row in step.rows)]
    writing.write_atomic(_path(job), "".join(f"{json.dumps(line)}\n" for line in lines))


def stored_rollouts(job: Job, done: int) -> StepRollouts | None:
    """Returns the stored rollouts of the step after `done` steps; None unless every process has its share."""
    share = _read(job, done)
    return share if all(processes.all_gather(share is not None)) else None


def _read(job: Job, done: int) -> StepRollouts | None:
    try:
        head, *rows = [json.loads(line) for line in reading.split_json_lines(reading.read_text(_path(job)))]
        if (head["run"], head["done"]) != (result_files.short_hash(job.identity), done):
            return None
        return StepRollouts(tuple(map(_row, rows)), head["tally"], head["cursor"])
    except (UserError, ValueError, KeyError, TypeError, RecursionError):
        return None  # absent or incomplete: the completions are sampled again


def _path(job: Job) -> Path:
    return job.config.out / DRAWN / f"{processes.rank()}.jsonl"


def _to_json(row: Row) -> dict[str, Any]:
    values = {f.name: getattr(row, f.name) for f in fields(Row) if f.name != "rollout"}
    return {"rollout": rollouts.to_row(row.rollout), **values}


def _row(values: Mapping[str, Any]) -> Row:
    return Row(
        rollouts.from_row(values["rollout"]),
        tuple(values["ids"]),
        values["start"],
        values["group"],
        tuple(values["logprobs"]),
        values["masked"],
        tuple(values.get("step_starts", ())),
        tuple(values.get("step_values", ())),
    )
