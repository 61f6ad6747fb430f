"""What a run leaves on disk to go on from: checkpoints of both models, and the completions of the step in progress.

Randomness is a function of (seed, position, sample), so nothing of it is saved.
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
from prmbench.rl.step_rollouts import Draw
from prmbench.rl.token_rows import Row
from prmbench.training import checkpoints, run_folder, run_setup

DRAWN = "drawn"
"""Folder of the completions that the step in progress trains on, one file a process."""


@dataclass(slots=True)
class Progress:
    """Where a run stands: what a checkpoint holds besides weights and optimizers."""

    done: int = 0
    """Steps, that of the first rollouts included."""
    cursor: int = 0
    """Next position in the stream of prompts."""
    halved: bool = False
    """Whether memory ran out, so that micro-batches are half of what --batch-tokens says."""
    skipped: dict[str, int] = field(default_factory=dict)
    """By model: updates in a row that were left out for not being finite."""
    left_out: int = 0
    """All such updates of the run."""
    empty: int = 0
    """Steps in a row that found nothing to train on."""


@dataclass(frozen=True)
class _Facts(run_folder.Facts):
    """What a checkpoint says beside its tensors."""

    progress: Progress
    stepped: list[str]
    """Whose optimizer has made a step."""


Optimizers = Mapping[str, torch.optim.Optimizer]
"""By `policy` and `rm`."""


def save(job: Job, models: Models, optimizers: Optimizers, at: Progress) -> None:
    """Writes a checkpoint. All processes call it."""
    stepped = sorted(name for name, optimizer in optimizers.items() if optimizer.state)
    state = _state(models, optimizers, stepped)
    run_setup.save_checkpoint(job, at.done, state, {"progress": asdict(at), "stepped": stepped})


def resume(job: Job, models: Models, optimizers: Optimizers) -> Progress:
    """Puts the newest checkpoint back, if there is one. Raises UserError on another run's. All processes call it."""

    def put_back(facts: _Facts, state: dict[str, Any]) -> None:
        for name, runner in _trained(models, optimizers).items():
            checkpoints.put_back(runner.model, optimizers[name] if name in facts.stepped else None, state[name])

    newest = run_setup.restore(job, _Facts, lambda facts: _state(models, optimizers, facts.stepped), put_back)
    return newest[1].progress if newest else Progress()


def _state(models: Models, optimizers: Optimizers, stepped: Sequence[str]) -> dict[str, Any]:
    """`stepped`: whose optimizer has made a step, and so has a state."""
    return {
        name: checkpoints.training_state(runner.model, optimizers[name] if name in stepped else None)
        for name, runner in _trained(models, optimizers).items()
    }


def _trained(models: Models, optimizers: Optimizers) -> dict[str, Any]:
    runners = {"policy": models.policy, "rm": models.rm}
    return {name: runners[name] for name in optimizers}


# --- completions of the step in progress ------------------------------------------------------------------


def keep(job: Job, done: int, draw: Draw) -> None:
    """Writes a step's completions, so that a run that ends in the midst of it need not draw them again."""
    head = {
        "run": result_files.short_hash(job.identity),
        "done": done,
        "tally": dict(draw.tally),
        "cursor": draw.cursor,
    }
    lines = [head, *(_to_json(row) for row in draw.rows)]
    writing.write_atomic(_path(job), "".join(f"{json.dumps(line)}\n" for line in lines))


def kept(job: Job, done: int) -> Draw | None:
    """The completions of step `done`, if every process has its own of them; they were drawn by the same weights."""
    mine = _read(job, done)
    return mine if all(processes.gathered(mine is not None)) else None


def _read(job: Job, done: int) -> Draw | None:
    try:
        head, *rows = [json.loads(line) for line in reading.json_lines(reading.read_text(_path(job)))]
        if (head["run"], head["done"]) != (result_files.short_hash(job.identity), done):
            return None
        return Draw(tuple(map(_row, rows)), head["tally"], head["cursor"])
    except (UserError, ValueError, KeyError, TypeError, RecursionError):
        return None  # not there, or not whole: the completions are drawn again


def _path(job: Job) -> Path:
    return job.config.out / DRAWN / f"{processes.rank()}.jsonl"


def _to_json(row: Row) -> dict[str, Any]:
    told = {f.name: getattr(row, f.name) for f in fields(Row) if f.name != "rollout"}
    return {"rollout": rollouts.to_row(row.rollout), **told}


def _row(told: Mapping[str, Any]) -> Row:
    rollout = rollouts.from_row(told["rollout"])
    return Row(rollout, tuple(told["ids"]), told["start"], told["group"], tuple(told["logprobs"]), told["masked"])
