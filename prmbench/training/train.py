"""`train-sft` and `train-rm`: one loop for a policy and for every reward model. The loss is a row of losses.py.

The parts lie in training/; here they are put in order. The loop's randomness is a function of (seed, update) alone.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import nn

from prmbench.config import TrainConfig
from prmbench.core import output_checks, processes, provenance, validation
from prmbench.core.records import NonFiniteError
from prmbench.engines.hf import HFEngine
from prmbench.training import checkpoints, losses, optimiser, run_folder, run_setup, setup
from prmbench.training.batching import collate, micro_batches
from prmbench.training.model import Runner
from prmbench.training.setup import Job, Part
from prmbench.training.stopping import stop_requests

Progress = Callable[[int, int, float], None]
"""Called with (updates done, updates in all, tokens a second)."""
Stop = Callable[[int, HFEngine], bool]
"""Called with the updates done and the model in training, in one process; true ends the run there."""


@dataclass(frozen=True, slots=True)
class Trained:
    """A finished run."""

    out: Path
    updates: int
    units: int
    """Completions, pairs or rows of steps that were trained on."""
    left_out: Mapping[str, int]
    """Reason -> how many rows, pairs or prompts."""
    loss: float | None
    """Mean over the last tenth of the updates; None where metrics.jsonl is gone."""
    accuracy: float | None
    """The same, of the loss's own decisions; None where nothing is decided."""
    seconds: float | None
    """Wall clock of the updates, over all sittings; None where metrics.jsonl is gone."""
    fresh: bool = True
    """False when the run was finished before, and nothing was done."""


def train(config: TrainConfig, progress: Progress | None = None, stop: Stop | None = None) -> Trained | None:
    """Trains and writes a model with `prm.json`, `metrics.jsonl` and `train.json` into `config.out`.

    The same command goes on from the newest checkpoint, and does nothing when the run is finished. Under torchrun all
    processes train one model; process 0 writes and gets the result. Raises UserError, NonFiniteError, and
    KeyboardInterrupt after SIGTERM or Ctrl-C, with a checkpoint of the last update done.
    """
    config = setup.resolved(config)
    processes.start(run_setup.placement(config).device)
    job = setup.prepare(config)
    output_checks.check_training(config.out, config)
    with run_setup.opened(job) as record:
        if record["finished"]:
            return _result(job, record.get("result"), fresh=False) if _first() else None
        runner, references = setup.open_models(job)
        updates = _loop(job, runner, references, progress, stop)
        return _export(job, runner, record, updates)


@dataclass(frozen=True, slots=True)
class DryRun:
    """What a run would do."""

    units: int
    """Completions, pairs or rows of steps to train on."""
    left_out: Mapping[str, int]
    held_out: int
    tokens: int
    """Of one pass over the units, padding left out."""
    updates: int
    longest: int
    """Tokens of the longest row; a micro-batch holds at least that many."""
    weights_gib: float
    """Float32 weights, their gradients and the optimizer's state, in one process without shards."""
    memory_gib: float
    """The same with the activations of a micro-batch: a guess."""


def dry_run(config: TrainConfig) -> DryRun:
    """The plan of a run, without loading weights."""
    job = setup.prepare(setup.resolved(config))
    parameters, token_bytes = job.memory
    copies = 1 if job.config.lora_rank else 2 if job.config.optimizer == "sgd" else 4
    weights = copies * 4 * parameters / 2**30
    padded = max(job.budget, *job.training.lengths)
    return DryRun(
        units=job.order.units,
        left_out=job.training.data.left_out,
        held_out=len(job.held_out.data.units) if job.held_out else 0,
        tokens=job.training.data.tokens,
        updates=job.order.updates,
        longest=max(job.training.lengths),
        weights_gib=round(weights, 2),
        memory_gib=round(weights + padded * token_bytes / 2**30, 2),
    )


def _loop(job: Job, runner: Runner, known: setup.References, progress: Progress | None, stop: Stop | None) -> int:
    """All updates that are not done yet; returns how many the run has in all."""
    config, order, parameters = job.config, job.order, runner.trained
    optimizer = optimiser.make(parameters, config)
    update, spent = _resume(job, runner, optimizer)
    begun, tokens = time.monotonic() - spent, 0
    with stop_requests() as stop_requested:
        while update < order.updates:
            # 1. Which units this update takes: the same for any number of processes.
            taken = order.batch_of(update)
            torch.manual_seed(config.seed + 1_000_003 * update)  # should a model's own code draw
            # 2. Forward and backward over my share of them.
            found = _backward(job, job.training, runner, known.training, taken)
            norm = optimiser.clip(parameters, config.max_grad_norm)
            # 3. What all processes have, so that all decide alike.
            found = processes.sums(found)
            _check_finite(job, update, taken, found[0], norm)
            # 4. The update.
            rate = optimiser.learning_rate(job.settings, update, order.updates)
            optimiser.step(optimizer, rate)
            update += 1
            # 5. What is written down of it.
            count = sum(job.training.tokens(i) for i in taken)
            tokens, seconds = tokens + count, time.monotonic() - begun
            facts = {"lr": rate, "grad_norm": norm, "tokens": count, "seen": order.taken(update - 1).stop}
            speed = tokens / max(seconds - spent, 1e-9)
            _log(job, update, found, {**facts, "seconds": round(seconds, 3), "tokens_per_second": round(speed, 1)})
            if progress is not None:
                progress(update, order.updates, speed)
            # 6. Held-out prompts, at the end of each pass and of the run.
            if job.held_out is not None and (order.pass_ends(update) or update == order.updates):
                _validate(job, runner, known, update)
            # 7. The end, or a checkpoint.
            if stop is not None and stop(update, runner.engine):
                _check_weights(job, update, taken, parameters)
                return update
            runner.model.train()  # a callback's engine may have switched it
            asked = stop_requested()
            due = config.save_every and update % config.save_every == 0
            if asked or due or update == order.updates:
                _check_weights(job, update, taken, parameters)
                _save(job, runner, optimizer, update, time.monotonic() - begun)
            if asked and update < order.updates:
                raise KeyboardInterrupt
    return update


def _backward(
    job: Job, part: Part, runner: Runner, known: setup.Known, taken: list[int], learn: bool = True
) -> list[float]:
    """(loss, right decisions, decisions) of this process's share; the gradients, added up, are those of the mean loss.

    Terms are divided by the size of the whole batch, over all processes, and DDP and FSDP average over processes: so
    neither micro-batches nor the number of processes move the result.
    """
    row, settings = job.row, job.settings
    units = [part.data.units[i] for i in taken]
    denominator = losses.denominator(row, [part.sizes[i] for unit in units for i in unit], settings.reduction)
    shares = micro_batches(units, part.lengths, job.budget, processes.world_size())
    mine = shares[processes.rank()]
    total = torch.zeros((), dtype=torch.float64, device=runner.device)
    right, decided = torch.zeros_like(total), 0
    for number, micro in enumerate(mine):
        batch = collate(part.data, micro, row.view == "steps", known, runner.device)
        with processes.accumulating(runner.module, last=number == len(mine) - 1):
            values = runner.values(batch)
            terms = row.terms(values, batch.counted, batch.labels, settings.beta, settings.margin, settings.reduction)
            loss = terms.sum() / denominator * float(batch.real)
            if learn:
                (loss * processes.world_size()).backward()
        total += loss.detach()
        if batch.real:
            hits = losses.hits(row, values.detach(), batch.counted, batch.labels, settings.beta)
            right, decided = right + hits.sum(), decided + hits.numel()
    return [float(total), float(right), float(decided)]


def _check_finite(job: Job, update: int, taken: list[int], loss: float, norm: float) -> None:
    """Raises NonFiniteError before the weights are touched; the sums are the same in all processes."""
    if not (math.isfinite(loss) and math.isfinite(norm)):
        facts = {"update": update + 1, "loss": repr(loss), "grad_norm": repr(norm)}
        _give_up(job, taken, f"loss {loss}, gradient norm {norm}", facts)


def _check_weights(job: Job, update: int, taken: list[int], parameters: Sequence[nn.Parameter]) -> None:
    """Raises NonFiniteError before weights are kept that the last of so many updates has spoilt. All call it."""
    if not optimiser.are_finite(parameters):
        _give_up(job, taken, "it leaves weights that are not finite", {"update": update, "weights": "not finite"})


def _give_up(job: Job, taken: list[int], what: str, facts: Mapping[str, Any]) -> NoReturn:
    path = job.config.out / run_folder.NON_FINITE
    if _first():
        ids = {job.training.data.examples[i].id for n in taken for i in job.training.data.units[n]}
        run_folder.write_non_finite(job.config.out, facts, sorted(ids))
    raise NonFiniteError(
        f"update {facts['update']}: {what}; its rows are named in {path}, "
        f"the last checkpoint is kept; try a lower --learning-rate or --dtype float32"
    )


@torch.no_grad()
def _validate(job: Job, runner: Runner, known: setup.References, update: int) -> None:
    """Logs loss and accuracy on the prompts held out."""
    assert job.held_out is not None
    units = list(range(len(job.held_out.data.units)))
    found = processes.sums(_backward(job, job.held_out, runner, known.held_out, units, learn=False))
    processes.reshard(runner.module)
    if _first():
        run_folder.log(job.config.out, {"update": update, **_rates(found, "validation_")})


def _log(job: Job, update: int, found: list[float], facts: Mapping[str, Any]) -> None:
    if _first():
        epoch = round(job.order.taken(update - 1).stop / job.order.units, 4)
        run_folder.log(job.config.out, {"update": update, "epoch": epoch, **_rates(found), **facts})


def _rates(found: list[float], prefix: str = "") -> dict[str, float | None]:
    loss, right, decided = found
    return {f"{prefix}loss": loss, f"{prefix}accuracy": right / decided if decided else None}


@dataclass(frozen=True)
class _Facts(run_folder.Facts):
    """What a checkpoint says beside its tensors."""

    seconds: float


def _resume(job: Job, runner: Runner, optimizer: torch.optim.Optimizer) -> tuple[int, float]:
    """(updates done, seconds spent) of the newest checkpoint, whose weights are put back; (0, 0) without one."""
    newest = run_setup.restore(
        job,
        _Facts,
        lambda _: checkpoints.training_state(runner.model, optimizer),
        lambda _, state: checkpoints.put_back(runner.model, optimizer, state),
    )
    if _first():
        _updates_logged(job.config.out)  # what is wrong with it is said before the training, not after it
    return (newest[0].step, newest[1].seconds) if newest else (0, 0.0)


@dataclass(frozen=True)
class _Update:
    """A line of metrics.jsonl on an update."""

    loss: float
    accuracy: float | None
    seconds: float


@dataclass(frozen=True)
class _Summary:
    """What train.json says of a run that is finished."""

    updates: int
    loss: float | None
    accuracy: float | None
    seconds: float | None


def _updates_logged(out: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl on updates. Raises UserError on one that is not ours."""
    entries = run_folder.read_log(out, lambda entry: _Update if "loss" in entry else dict)
    return [entry for entry in entries if "loss" in entry]


def _save(job: Job, runner: Runner, optimizer: torch.optim.Optimizer, update: int, seconds: float) -> None:
    state = checkpoints.training_state(runner.model, optimizer)
    run_setup.save_checkpoint(job, update, state, {"seconds": round(seconds, 3)})


def _export(job: Job, runner: Runner, run: Mapping[str, Any], updates: int) -> Trained | None:
    """Writes the model last, and seals the run."""
    config = job.config
    run_folder.save_model(config.out, runner, job.saved_template)
    if not _first():
        return None
    if job.row.backend:
        run_folder.write_card(
            config.out, run_folder.card(job.row, config, {**job.card_facts, "updates": updates}, config.out)
        )
    logged = _updates_logged(config.out)
    last = logged[-max(len(logged) // 10, 1) :]
    decided = [e["accuracy"] for e in last if e["accuracy"] is not None]
    result = {
        "updates": updates,
        "loss": sum(e["loss"] for e in last) / len(last) if last else None,  # somebody may have deleted the file
        "accuracy": sum(decided) / len(decided) if decided else None,
        "seconds": last[-1]["seconds"] if last else None,
        "processes": processes.world_size(),
        "packages": provenance.packages(),
    }
    run_folder.finish(config.out, run, result)
    if not config.save_every:
        checkpoints.remove(config.out / run_folder.CHECKPOINTS)
    return _result(job, result, fresh=True)


def _result(job: Job, result: Mapping[str, Any] | None, fresh: bool) -> Trained:
    out = job.config.out
    summary = validation.read_record(_Summary, result, f"{out / run_folder.RUN}: result", run_folder.ANOTHER)
    left_out = job.training.data.left_out
    return Trained(out, units=job.order.units, left_out=left_out, fresh=fresh, **asdict(summary))


def _first() -> bool:
    return processes.rank() == 0
