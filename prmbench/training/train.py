"""`train-sft` and `train-rm`: one loop for a policy and for every reward model. The loss is a row of losses.py.

Randomness is a function of (seed, update) alone, so a resumed run repeats nothing and skips nothing.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import nn

from prmbench import config as options
from prmbench.config import TrainConfig
from prmbench.core import output_checks, processes, provenance, validation
from prmbench.core.records import NonFiniteError
from prmbench.engines.hf import HFEngine
from prmbench.training import checkpoints, losses, memory, optimiser, run_folder, run_setup, setup
from prmbench.training.batching import collate, micro_batches
from prmbench.training.model import Runner
from prmbench.training.setup import Job, Logprobs, Part, References
from prmbench.training.stopping import stop_requests
from prmbench.training.tracking import Track, tracker

Progress = Callable[[int, int, float], None]
"""Called with (updates done, updates of the whole run, tokens a second)."""
Stop = Callable[[int, HFEngine], bool]
"""Called with the updates done and the model in training, in one process; returning true ends the run there."""


@dataclass(frozen=True, slots=True)
class Trained:
    """A finished run."""

    out: Path
    updates: int
    units: int
    """Completions, pairs or rows of steps that were trained on."""
    left_out: Mapping[str, int]
    """Number of rows, pairs or prompts that were left out, by reason."""
    loss: float | None
    """Mean over the last tenth of the updates; None where metrics.jsonl is gone."""
    accuracy: float | None
    """Share of right decisions over the same updates; None where the loss decides nothing."""
    seconds: float | None
    """Wall-clock time of the updates, over all sittings; None where metrics.jsonl is gone."""
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
        track = tracker(config.tracker, config.out, options.to_json(config))  # before any weight is loaded
        runner, references = setup.open_models(job)
        updates = _loop(job, runner, references, progress, stop, track)
        return _export(job, runner, record, updates)


@dataclass(frozen=True, slots=True)
class DryRun:
    """The plan of a run."""

    units: int
    """Completions, pairs or rows of steps to train on."""
    left_out: Mapping[str, int]
    held_out: int
    tokens: int
    """Tokens of one pass over the units, without padding."""
    updates: int
    longest: int
    """Tokens of the longest row; a micro-batch holds at least that many."""
    weights_gib: float
    """Weights, their gradients and the optimizer's state, in one process without shards."""
    memory_gib: float
    """The largest of `peak_gib`."""
    peak_gib: Mapping[str, float]
    """Predicted peak of each phase, as training/memory.py describes it."""
    device_gib: float | None
    """Memory of the GPU that would train; None without one."""


def dry_run(config: TrainConfig) -> DryRun:
    """Returns the plan of a run, without loading weights. Raises UserError."""
    job = setup.prepare(setup.resolved(config))
    plan = job.plan
    peaks = memory.training_phases(plan, job.reference_plan, max(job.budget, *job.training.lengths))
    return DryRun(
        units=job.order.units,
        left_out=job.training.data.left_out,
        held_out=len(job.held_out.data.units) if job.held_out else 0,
        tokens=job.training.data.tokens,
        updates=job.order.updates,
        longest=max(job.training.lengths),
        weights_gib=round((plan.weights + plan.gradients + plan.moments) / memory.GIB, 2),
        memory_gib=max(peaks.values()),
        peak_gib=peaks,
        device_gib=processes.device_memory_gib(job.setup.placement.device),
    )


def _loop(
    job: Job,
    runner: Runner,
    references: References,
    progress: Progress | None,
    stop: Stop | None,
    track: Track | None,
) -> int:
    """Makes all updates that are not done yet; returns the number of updates done in all."""
    config, order, parameters = job.config, job.order, runner.trained
    optimizer = optimiser.make(parameters, config)
    update, spent = _resume(job, runner, optimizer)
    begun, tokens = time.monotonic() - spent, 0
    logging.getLogger(__name__).info("update %d of %d is in progress", update + 1, order.updates)
    with stop_requests() as stop_requested:
        while update < order.updates:
            # 1. Which units this update takes: the same for any number of processes.
            batch = order.batch_of(update)
            torch.manual_seed(config.seed + 1_000_003 * update)  # in case the model's code uses random numbers
            # 2. Forward and backward over this process's share of them.
            sums = _backward(job, job.training, runner, references.training, batch)
            norm = optimiser.clip(parameters, config.max_grad_norm)
            # 3. Sums over all processes, so that all decide alike.
            sums = processes.all_reduce_sum(sums, uneven=False)
            _check_finite(job, update, batch, sums[0], norm)
            # 4. The update.
            rate = optimiser.learning_rate(job.settings, update, order.updates)
            optimiser.step(optimizer, rate)
            update += 1
            # 5. Metrics.
            count = sum(job.training.tokens(i) for i in batch)
            tokens, seconds = tokens + count, time.monotonic() - begun
            facts = {"lr": rate, "grad_norm": norm, "tokens": count, "seen": order.positions(update - 1).stop}
            speed = tokens / max(seconds - spent, 1e-9)
            facts |= {"seconds": round(seconds, 3), "tokens_per_second": round(speed, 1)}
            _log(job, track, update, sums, facts)
            if progress is not None:
                progress(update, order.updates, speed)
            # 6. Held-out prompts, at the end of each pass and of the run.
            if job.held_out is not None and (order.pass_ends(update) or update == order.updates):
                _validate(job, track, runner, references, update)
            # 7. The end, or a checkpoint.
            if stop is not None and stop(update, runner.engine):
                _check_weights(job, update, batch, parameters)
                return update
            runner.model.train()  # the callback may have switched to evaluation
            stop_now = stop_requested()
            due = config.save_every and update % config.save_every == 0
            if stop_now or due or update == order.updates:
                _check_weights(job, update, batch, parameters)
                _save(job, runner, optimizer, update, time.monotonic() - begun)
            if stop_now and update < order.updates:
                raise KeyboardInterrupt
    return update


def _backward(
    job: Job, part: Part, runner: Runner, reference: Logprobs | None, batch: list[int], learn: bool = True
) -> list[float]:
    """Returns (loss, right decisions, decisions) of this process's share of a batch of units.

    With `learn` it leaves gradients, whose mean over the processes is the gradient of the mean loss.

    Terms are divided by the size of the whole batch, over all processes, and DDP and FSDP average over processes: so
    the result depends neither on micro-batches nor on the number of processes.
    """
    row, settings = job.row, job.settings
    units = [part.data.units[i] for i in batch]
    denominator = losses.denominator(row, [part.sizes[i] for unit in units for i in unit], settings.reduction)
    shares = micro_batches(units, part.lengths, job.budget, processes.world_size())
    share = shares[processes.rank()]
    total = torch.zeros((), dtype=torch.float64, device=runner.device)
    right, decided = torch.zeros_like(total), 0
    for number, micro_units in enumerate(share):
        micro = collate(part.data, micro_units, row.view == "steps", reference, runner.device)
        with processes.gradient_accumulation(runner.module, last=number == len(share) - 1):
            values = runner.values(micro)
            terms = row.terms(values, micro.counted, micro.labels, settings.beta, settings.margin, settings.reduction)
            loss = terms.sum() / denominator * float(micro.real)
            if learn:
                (loss * processes.world_size()).backward()
        total += loss.detach()
        if micro.real:
            hits = losses.hits(row, values.detach(), micro.counted, micro.labels, settings.beta)
            right, decided = right + hits.sum(), decided + hits.numel()
    return [float(total), float(right), float(decided)]


def _check_finite(job: Job, update: int, batch: list[int], loss: float, norm: float) -> None:
    """Raises NonFiniteError before the weights are changed; all processes have the same numbers."""
    if not (math.isfinite(loss) and math.isfinite(norm)):
        facts = {"update": update + 1, "loss": repr(loss), "grad_norm": repr(norm)}
        _give_up(job, batch, f"loss {loss}, gradient norm {norm}", facts)


def _check_weights(job: Job, update: int, batch: list[int], parameters: Sequence[nn.Parameter]) -> None:
    """Raises NonFiniteError where the last update has left weights that are not finite. All processes call it."""
    if not optimiser.are_finite(parameters):
        _give_up(job, batch, "it leaves weights that are not finite", {"update": update, "weights": "not finite"})


def _give_up(job: Job, batch: list[int], problem: str, facts: Mapping[str, Any]) -> NoReturn:
    path = job.config.out / run_folder.NON_FINITE
    if _first():
        ids = {job.training.data.examples[i].id for n in batch for i in job.training.data.units[n]}
        run_folder.write_non_finite(job.config.out, facts, sorted(ids))
    raise NonFiniteError(
        f"update {facts['update']}: {problem}; its rows are named in {path}, "
        f"the last checkpoint is kept; try a lower --learning-rate or --dtype float32"
    )


@torch.no_grad()
def _validate(job: Job, track: Track | None, runner: Runner, references: References, update: int) -> None:
    """Logs loss and accuracy on the held-out prompts."""
    assert job.held_out is not None
    units = list(range(len(job.held_out.data.units)))
    sums = processes.all_reduce_sum(_backward(job, job.held_out, runner, references.held_out, units, learn=False))
    processes.reshard(runner.module)
    _write_line(job, track, {"update": update, **_loss_and_accuracy(sums, "validation_")})


def _log(job: Job, track: Track | None, update: int, sums: list[float], metrics: Mapping[str, Any]) -> None:
    epoch = round(job.order.positions(update - 1).stop / job.order.units, 4)
    _write_line(job, track, {"update": update, "epoch": epoch, **_loss_and_accuracy(sums), **metrics})


def _write_line(job: Job, track: Track | None, line: Mapping[str, Any]) -> None:
    if _first():
        run_folder.log(job.config.out, line)
        if track is not None:
            track(line["update"], {name: value for name, value in line.items() if name != "update"})


def _loss_and_accuracy(sums: list[float], prefix: str = "") -> dict[str, float | None]:
    loss, right, decided = sums
    return {f"{prefix}loss": loss, f"{prefix}accuracy": right / decided if decided else None}


@dataclass(frozen=True)
class _Facts(run_folder.Facts):
    """What a checkpoint holds besides its tensors."""

    seconds: float
    """Wall-clock time of the updates so far."""


def _resume(job: Job, runner: Runner, optimizer: torch.optim.Optimizer) -> tuple[int, float]:
    """Restores the newest checkpoint; returns (updates done, seconds spent), (0, 0) without one."""
    newest = run_setup.restore(
        job,
        _Facts,
        lambda _: checkpoints.training_state(runner.model, optimizer),
        lambda _, state: checkpoints.put_back(runner.model, optimizer, state),
    )
    if _first():
        _logged_updates(job.config.out)  # an error in it is reported before the training, not after it
    return (newest[0].step, newest[1].seconds) if newest else (0, 0.0)


@dataclass(frozen=True)
class _Update:
    """The fields that a line of metrics.jsonl on an update has at least."""

    loss: float
    accuracy: float | None
    seconds: float


@dataclass(frozen=True)
class _Summary:
    """What train.json holds of a finished run."""

    updates: int
    loss: float | None
    accuracy: float | None
    seconds: float | None


def _logged_updates(out: Path) -> list[dict[str, Any]]:
    """Returns the lines of metrics.jsonl on updates. Raises UserError on a line of another form."""
    entries = run_folder.read_log(out, lambda entry: _Update if "loss" in entry else dict)
    return [entry for entry in entries if "loss" in entry]


def _save(job: Job, runner: Runner, optimizer: torch.optim.Optimizer, update: int, seconds: float) -> None:
    state = checkpoints.training_state(runner.model, optimizer)
    run_setup.save_checkpoint(job, update, state, {"seconds": round(seconds, 3)})


def _export(job: Job, runner: Runner, record: Mapping[str, Any], updates: int) -> Trained | None:
    """Writes the model and marks the run as finished; returns the summary in process 0."""
    config = job.config
    run_folder.save_model(config.out, runner, job.saved_template)
    if not _first():
        return None
    if job.row.backend:
        run_folder.write_card(
            config.out, run_folder.card(job.row, config, {**job.card_facts, "updates": updates}, config.out)
        )
    logged = _logged_updates(config.out)
    last = logged[-max(len(logged) // 10, 1) :]
    accuracies = [e["accuracy"] for e in last if e["accuracy"] is not None]
    result = {
        "updates": updates,
        "loss": sum(e["loss"] for e in last) / len(last) if last else None,  # the file may have been deleted
        "accuracy": sum(accuracies) / len(accuracies) if accuracies else None,
        "seconds": last[-1]["seconds"] if last else None,
        "processes": processes.world_size(),
        "packages": provenance.package_versions(),
    }
    run_folder.finish(config.out, record, result)
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
