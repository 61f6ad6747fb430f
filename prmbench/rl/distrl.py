"""`train-distrl`: completions -> old log-probabilities -> reward model -> advantages -> two-branch loss -> policy.

One loop for every arm: what differs are the values of options. The parts lie in rl/; here they are put in order.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

from torch import Tensor

from prmbench import config as options
from prmbench.config.distrl_options import DistRLConfig
from prmbench.core import output_checks, processes
from prmbench.core.records import NonFiniteError, UserError
from prmbench.engines.token_logprobs import CandidateSet
from prmbench.rl import advantages, models, monitors, resume, stall, step_rollouts, updates
from prmbench.rl.alarms import alarms
from prmbench.rl.metrics_log import Log, Tell, tracker
from prmbench.rl.models import Models
from prmbench.rl.out_of_memory import drawing, within_memory
from prmbench.rl.result import Finished, check_draft, export, known_result
from prmbench.rl.resume import Optimizers, Progress
from prmbench.rl.sampler import Source, open_source, step_mismatch, weight_of
from prmbench.rl.setup import Job, prepare, resolved
from prmbench.rl.step_rollouts import Draw
from prmbench.rl.token_rows import Micro, Rows, micro_batches
from prmbench.rl.validation import validate
from prmbench.training import optimiser, run_folder, run_setup
from prmbench.training.model import Runner, open_runner
from prmbench.training.stopping import stop_requests
from prmbench.verification.verifiers import Verifier

T = TypeVar("T")
PATIENCE = 3
"""So many updates in a row may be left out for not being finite; then training stops."""


@dataclass(frozen=True, slots=True)
class Run:
    """A run at work."""

    job: Job
    models: Models
    optimizers: Optimizers
    source: Source
    verifier: Verifier
    at: Progress
    log: Log


def train_distrl(
    config: DistRLConfig, tell: Tell | None = None, told: Mapping[str, Any] | None = None
) -> Finished | None:
    """Trains a policy and its reward model; writes both, `metrics.jsonl`, `train.json` and `result/` into `config.out`.

    The same command goes on from the newest checkpoint, and does nothing when the run is finished. Under torchrun all
    processes train one policy; process 0 writes and gets the summary. `told` replaces fields of the result's manifest.
    Raises UserError, NonFiniteError, RetryError, and KeyboardInterrupt after SIGTERM or Ctrl-C, with a checkpoint.
    """
    config = resolved(config)
    processes.start(run_setup.placement(config).device)
    job = prepare(config)
    output_checks.check_training(config.out, config)
    check_draft(job, told or {})
    fresh = not (config.out / run_folder.RUN).exists()
    with run_setup.opened(job, may_continue=config.resume != "never") as begun:
        if begun["finished"]:
            return known_result(job, begun.get("result")) if processes.rank() == 0 else None
        with Verifier(2) as verifier, stop_requests() as stop_requested:
            try:
                run = _open(job, verifier, tell)
            except UserError:
                if fresh and processes.rank() == 0:
                    (config.out / run_folder.RUN).unlink()  # nothing was begun: the mended command may use the folder
                raise
            _loop(run, stop_requested)
        return export(job, run.models, begun, told or {})


@dataclass(frozen=True, slots=True)
class DryRun:
    """What a run would do."""

    prompts: int
    validation_prompts: int
    completions_a_step: int
    """In the first draw of prompts; `rounds` of them at most."""
    trained_on_a_step: int
    """Most completions that are trained on."""
    policy_updates_a_step: int
    rm_updates_a_step: int
    completions: int
    """Of all steps, validations left out."""
    validation_completions: int
    weights_gib: float
    """Float32 weights, gradients and optimizer state of both models, in one process without shards."""


def dry_run(config: DistRLConfig) -> DryRun:
    """The plan of a run, without loading weights."""
    job = prepare(resolved(config))
    config = job.config
    n, kept, drawn = config.group_size, config.prompts, config.draw
    online = config.reward != "verifier" and config.rm_update == "online"
    validations = 1 + (-(-config.steps // (config.validate_every or config.steps)) if config.steps else 0)
    copies = 1 if config.lora_rank else 4  # adapters weigh little beside the weights
    sizes = job.parameters[0] * copies, job.parameters[1] * (copies if online else 1)
    return DryRun(
        prompts=len(job.prompts),
        validation_prompts=len(job.validation),
        completions_a_step=drawn * n,
        trained_on_a_step=kept * n,
        policy_updates_a_step=-(-kept // (config.minibatch or kept)),
        rm_updates_a_step=-(-kept // (config.rm_minibatch or kept)) if online else 0,
        completions=drawn * n * config.steps,
        validation_completions=validations * len(job.validation) * config.validation_samples,
        weights_gib=round(4 * sum(sizes) / 2**30, 2),
    )


def _open(job: Job, verifier: Verifier, tell: Tell | None) -> Run:
    """Models loaded, the newest checkpoint put back, its weights with the sampler."""
    found = models.open_models(job)
    optimizers = {"policy": optimiser.make(found.policy.trained, job.config)}
    if found.rm is not None and job.config.rm_update == "online":
        optimizers["rm"] = optimiser.make(found.rm.trained, job.config)
    at = resume.resume(job, found, optimizers)
    source = open_source(job, found.policy)
    source.push(at.done)
    track = tracker(job.config.tracker, job.config.out, options.to_json(job.config))
    return Run(job, found, optimizers, source, verifier, at, Log(job.config.out, job.config.steps, tell, track))


def _loop(run: Run, stop_requested: Callable[[], bool]) -> None:
    """All steps that are not done yet."""
    job, at = run.job, run.at
    config, total = job.config, job.config.steps + job.first
    if at.done == 0 and job.validation:
        _validate(run, 0)
    while at.done < total:
        begun, left_out = time.monotonic(), at.left_out
        first = at.done < job.first
        # 1. Completions of the policy as it is; the groups that teach something.
        draw = _drawn(run, first)
        if stop_requested():
            _leave(run)
        line: dict[str, Any] = {"step": at.done + 1 - job.first, **monitors.drawn(draw)}
        if draw.tally["groups"]:
            line |= learn(run, draw, first)
        line["skipped"] = at.left_out - left_out
        at.done, at.cursor = at.done + 1, draw.cursor
        # 6. What is written down, validation, checkpoint.
        _check_weights(run)
        run.source.push(at.done)
        seconds = time.monotonic() - begun
        line |= monitors.machine(draw.tally["tokens"], seconds)
        line = monitors.told(line)
        run.log.step({**line, "alarms": alarms([*run.log.history, line])})
        stall.note(at, line, config)
        step, last = line["step"], at.done == total
        if _validates(job, step):
            _validate(run, step)
        asked = stop_requested()
        due = config.save_every and step % config.save_every == 0
        if asked or last or due or stall.is_stalled(at, config):
            _save(run)
        if asked and not last:
            raise KeyboardInterrupt
        if stall.is_stalled(at, config):
            break
    stall.check(at, run.log.history, config)


def learn(run: Run, draw: Draw, first: bool) -> dict[str, Any]:
    """Parts 2 to 5 of a step, on groups of mixed outcomes."""
    job, config, found = run.job, run.job.config, run.models
    rows = Rows(draw.rows, found.policy.device)
    # 2. Old log-probabilities and candidates, without gradients.
    p_min = config.p_min if config.alpha else 0.0
    candidates, entropy = _within(run, lambda budget: models.old_candidates(found, rows, _micros(rows, budget), p_min))
    old_logprobs = candidates.old_logprobs[:, 0]
    line = monitors.behaviour(rows, candidates, entropy)
    apart = step_mismatch(rows, old_logprobs, run.source, job.setup.placement.dtype)
    weight = weight_of(rows, old_logprobs, run.source)
    if apart is not None:
        line |= {"mismatch_rms": apart.rms, "tis_mean": apart.mean_ratio, "tis_max": apart.max_ratio, "ess": apart.ess}
    # 3. The reward model learns from the same completions first (Eq. 15).
    if "rm" in run.optimizers:
        line |= _update_rm(run, rows, candidates)
    # 4. TD -> scale -> group -> GAE -> plus the outcome's advantage.
    td: Tensor | None = None
    if config.reward != "verifier":
        td = _within(
            run,
            lambda budget: models.temporal_differences(found, rows, _micros(rows, budget), candidates, config),
        )
        line |= monitors.reward_model(rows, td)
        if "rm" not in run.optimizers and not found.scalar:
            line |= monitors.rm_verdicts(rows, td, config.rm_loss)
    assigned = advantages.assign(rows, td, config)
    line |= assigned.metrics
    # 5. The policy, by both branches (Eq. 14).
    line |= _update_policy(run, rows, updates.policy_targets(rows, candidates, assigned, weight, config), first)
    if _validates(job, run.at.done + 1 - job.first):
        line["kl_sft"] = _kl_start(run, rows, candidates)
    return line


def _update_rm(run: Run, rows: Rows, candidates: CandidateSet) -> dict[str, Any]:
    config, runner = run.job.config, run.models.rm
    assert runner is not None
    old_logprobs = candidates.old_logprobs[:, 0]
    reference = old_logprobs if config.reference == "behaviour" else _start(run, run.models, rows, candidates)
    sums, norms = [], []
    for chosen in _minibatches(rows, config.rm_minibatch):
        found = _within(run, partial(updates.rm_gradients, runner, rows, chosen, reference, config))
        norms.append(_step(run, "rm", runner, found["rm_loss"], config.rm_learning_rate))
        sums.append(found)
    return monitors.rm_update(sums, norms)


def _update_policy(run: Run, rows: Rows, targets: updates.PolicyTargets, first: bool) -> dict[str, Any]:
    config, runner = run.job.config, run.models.policy
    sums, norms = [], []
    # The start policy's rollouts are many steps' worth: they are taken as such.
    for chosen in _minibatches(rows, config.prompts if first else config.minibatch):
        found = _within(run, partial(updates.policy_gradients, runner, rows, chosen, targets, config))
        norms.append(_step(run, "policy", runner, found["loss"], config.learning_rate))
        sums.append(found)
    return {
        **monitors.policy_update(sums, norms),
        "learning_rate": optimiser.warmed_up(config.learning_rate, config.warmup, run.at.done),
    }


def _step(run: Run, name: str, runner: Runner, loss: float, peak: float) -> float:
    """One optimizer step, unless loss or gradient are not finite, which all processes see alike; returns the norm."""
    norm = optimiser.clip(runner.trained, run.job.config.max_grad_norm)
    if not (math.isfinite(loss) and math.isfinite(norm)):
        runner.module.zero_grad(set_to_none=True)
        run.at.skipped[name] = run.at.skipped.get(name, 0) + 1
        run.at.left_out += 1
        if run.at.skipped[name] >= PATIENCE:
            raise NonFiniteError(
                f"step {run.at.done + 1}: {name} loss {loss}, gradient norm {norm}, {PATIENCE} times in a row; the "
                f"last checkpoint is kept; try a lower learning rate or --dtype float32"
            )
        return 0.0
    run.at.skipped[name] = 0
    optimiser.step(run.optimizers[name], optimiser.warmed_up(peak, run.job.config.warmup, run.at.done))
    return norm


def _check_weights(run: Run) -> None:
    """Raises NonFiniteError before weights are sampled from or kept that the last update has spoilt. All call it."""
    trained = {"policy": run.models.policy, "rm": run.models.rm}
    for name in run.optimizers:
        runner = trained[name]
        assert runner is not None
        if not optimiser.are_finite(runner.trained):
            raise NonFiniteError(
                f"step {run.at.done}: leaves weights of the {name} that are not finite; the last checkpoint is kept; "
                f"try a lower learning rate or --dtype float32"
            )


def _minibatches(rows: Rows, prompts: int) -> list[list[int]]:
    """Rows of so many prompts at a time (0 = all), the same prompts whatever the number of processes."""
    groups = [row.group for row in rows.rows]
    most = processes.largest(max(groups, default=-1)) + 1
    size = prompts or most
    return [[i for i, g in enumerate(groups) if start <= g < start + size] for start in range(0, most, size)]


def _micros(rows: Rows, budget: int) -> list[Micro]:
    """All rows."""
    return micro_batches(rows, [[i] for i in range(len(rows.rows))], budget)


def _within(run: Run, work: Callable[[int], T]) -> T:
    return within_memory(run.models, run.at, run.job.budget, work)


def _drawn(run: Run, first: bool) -> Draw:
    """From the rollout cache where a run was stopped after drawing, else drawn anew."""
    known = resume.kept(run.job, run.at.done)
    if known is not None:
        return known
    sampler = run.source.link.sampler
    draw = (
        step_rollouts.first(run.job)
        if first
        else drawing(lambda: step_rollouts.draw(run.job, sampler, run.verifier, run.at.cursor))
    )
    resume.keep(run.job, run.at.done, draw)
    return draw


def _start(run: Run, found: Models, rows: Rows, candidates: CandidateSet) -> Tensor:
    """[n] log-probabilities of the tokens drawn, under the policy as training began."""
    targets = candidates.token_ids[:, :1]
    said = _within(run, lambda budget: models.start_logprobs(found, rows, _micros(rows, budget), targets))
    return said[:, 0]


def _kl_start(run: Run, rows: Rows, candidates: CandidateSet) -> float | None:
    """KL to the start of training, whose weights are read again where nothing else keeps them."""
    found = run.models
    if found.start is None and found.policy.adapters is None:
        start = open_runner(run.job.config.model, run.job.revision, "lm", run.job.model_setup_for_reading)
        found = replace(found, start=start)
    return monitors.kl(candidates, _start(run, found, rows, candidates))


def _validates(job: Job, step: int) -> bool:
    """Whether the policy is judged after this step; step 0, of the first rollouts, has been judged before."""
    every = job.config.validate_every
    return bool(job.validation) and step > 0 and (step == job.config.steps or bool(every and step % every == 0))


def _validate(run: Run, step: int) -> None:
    sampler = run.source.link.sampler
    run.log.validation(step, drawing(lambda: validate(run.job, sampler, run.verifier)))


def _save(run: Run) -> None:
    resume.save(run.job, run.models, run.optimizers, run.at)


def _leave(run: Run) -> None:
    """Between drawing and learning: weights are those of the last step, and the completions are kept."""
    if run.at.done:
        _save(run)
    raise KeyboardInterrupt
