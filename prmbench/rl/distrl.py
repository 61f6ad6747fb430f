"""`train-distrl`: completions -> old log-probabilities -> reward model -> advantages -> two-branch loss -> policy.

There is one loop for every arm: arms differ in the values of options alone.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

from torch import Tensor

from prmbench import config as options
from prmbench.config.distrl_options import DistRLConfig
from prmbench.core import output_checks, processes
from prmbench.core.records import NonFiniteError
from prmbench.engines.token_logprobs import CandidateSet
from prmbench.rl import advantages, models, monitors, resume, stall, step_rollouts, step_values, updates
from prmbench.rl.alarms import alarms
from prmbench.rl.metrics_log import Log, StepProgress
from prmbench.rl.models import Models
from prmbench.rl.out_of_memory import sampling, within_memory
from prmbench.rl.result import Finished, check_draft, export, known_result
from prmbench.rl.resume import Optimizers, Progress
from prmbench.rl.sampler import Source, importance_weights, later_bytes, open_source, step_mismatch
from prmbench.rl.setup import Job, prepare, resolved
from prmbench.rl.step_rollouts import StepRollouts
from prmbench.rl.token_rows import Micro, Rows, micro_batches
from prmbench.rl.validation import Validation, validate
from prmbench.training import memory, optimiser, run_setup
from prmbench.training.model import Runner, open_runner
from prmbench.training.stopping import stop_requests
from prmbench.training.tracking import tracker
from prmbench.verification.verifiers import Verifier

T = TypeVar("T")
PATIENCE = 3
"""Training stops after this many skipped updates in a row, which were not finite."""


@dataclass(frozen=True, slots=True)
class Run:
    """A run with its models loaded."""

    job: Job
    models: Models
    optimizers: Optimizers
    source: Source
    verifier: Verifier
    progress: Progress
    log: Log
    start: Validation | None = None
    """The start policy's validation, where it is known."""


def train_distrl(
    config: DistRLConfig,
    progress: StepProgress | None = None,
    manifest_fields: Mapping[str, Any] | None = None,
    start: Validation | None = None,
) -> Finished | None:
    """Trains a policy and its reward model; writes both, `metrics.jsonl`, `train.json` and `result/` into `config.out`.

    The same command goes on from the newest checkpoint, and does nothing when the run is finished. Under torchrun all
    processes train one policy; process 0 writes and gets the summary. `manifest_fields` replaces fields of the result's
    manifest. `start` is the validation of the start policy, where a run with the same policy, validation prompts,
    sampling options and seed has made it: it depends on nothing else. Raises UserError, NonFiniteError, RetryError, and
    KeyboardInterrupt after SIGTERM or Ctrl-C, with a checkpoint.
    """
    config = resolved(config)
    processes.start(run_setup.placement(config).device)
    job = prepare(config)
    output_checks.check_training(config.out, config)
    check_draft(job, manifest_fields or {})
    with run_setup.opened(job, may_continue=config.resume != "never") as record:
        if record["finished"]:
            return known_result(job, record.get("result")) if processes.rank() == 0 else None
        with Verifier() as verifier, stop_requests() as stop_requested:
            run = _open(job, verifier, progress, start)
            _loop(run, stop_requested)
        return export(job, run.models, record, manifest_fields or {})


@dataclass(frozen=True, slots=True)
class DryRun:
    """The plan of a run."""

    prompts: int
    validation_prompts: int
    completions_a_step: int
    """Completions of the first round of sampling; there are at most `rounds` of them."""
    trained_on_a_step: int
    """The largest number of completions that are trained on."""
    policy_updates_a_step: int
    rm_updates_a_step: int
    completions: int
    """Completions of all steps, without validations."""
    validation_completions: int
    weights_gib: float
    """Weights, gradients and optimizer state of all models, in one process without shards."""
    peak_gib: Mapping[str, float]
    """Predicted peak of each phase, as training/memory.py describes it; vLLM sleeps in all phases but `draw`."""
    device_gib: float | None
    """Memory of the GPU that would train; None without one."""


def dry_run(config: DistRLConfig) -> DryRun:
    """Returns the plan of a run, without loading weights. Raises UserError."""
    job = prepare(resolved(config))
    config = job.config
    group_size, prompts, sampled = config.group_size, config.prompts, config.draw
    online = config.reward != "verifier" and config.rm_update == "online"
    validations = 1 + (-(-config.steps // (config.validate_every or config.steps)) if config.steps else 0)
    policy, others = job.policy_plan, job.other_plans
    plans = (policy, *others.values())
    longest = max(map(len, job.prompt_ids.values())) + config.max_new_tokens
    return DryRun(
        prompts=len(job.prompts),
        validation_prompts=len(job.validation),
        completions_a_step=sampled * group_size,
        trained_on_a_step=prompts * group_size,
        policy_updates_a_step=-(-prompts // (config.minibatch or prompts)),
        rm_updates_a_step=-(-prompts // (config.rm_minibatch or prompts)) if online else 0,
        completions=sampled * group_size * config.steps,
        validation_completions=validations * len(job.validation) * config.validation_samples,
        weights_gib=round((memory.kept_bytes(plans) + sum(plan.gradients for plan in plans)) / memory.GIB, 2),
        peak_gib=memory.distrl_phases(policy, others, max(job.budget, longest), _sampler_bytes(job, longest)),
        device_gib=processes.device_memory_gib(job.setup.placement.device),
    )


def _sampler_bytes(job: Job, longest: int) -> int:
    """Returns the memory of the sampler on this device while it draws completions of at most `longest` tokens."""
    shape = job.policy_plan.shape
    if job.config.engine == "vllm":
        return memory.vllm_bytes(shape, longest)
    if job.config.engine == "server":
        return 0
    return shape.cache(memory.FLOAT) * (job.config.draw_tokens or memory.SEQUENCES * longest)


def _open(job: Job, verifier: Verifier, on_step: StepProgress | None, start: Validation | None) -> Run:
    """Loads the models, restores the newest checkpoint, and gives its weights to the sampler."""
    opened = models.open_models(job)
    optimizers = {"policy": optimiser.make(opened.policy.trained, job.config)}
    if opened.rm is not None and job.config.rm_update == "online":
        optimizers["rm"] = optimiser.make(opened.rm.trained, job.config)
    progress = resume.resume(job, opened, optimizers)
    source = open_source(job, opened.policy, later_bytes(optimizers.values(), job.config.optimizer))
    source.push(progress.done)
    track = tracker(job.config.tracker, job.config.out, options.to_json(job.config))
    log = Log(job.config.out, job.config.steps, on_step, track)
    return Run(job, opened, optimizers, source, verifier, progress, log, start)


def _loop(run: Run, stop_requested: Callable[[], bool]) -> None:
    """Makes all steps that are not done yet."""
    job, progress = run.job, run.progress
    config, total = job.config, job.config.steps + job.first
    if progress.done == 0 and job.validation:
        _validate(run, 0)
    while progress.done < total:
        if not progress.done:
            logging.getLogger(__name__).info("the first of %d steps", total)
        started, left_out = time.monotonic(), progress.left_out
        first = progress.done < job.first
        # 1. Completions of the current policy; the groups with mixed outcomes.
        rollouts = _step_rollouts(run, first)
        if stop_requested():
            _stop_before_learning(run)
        metrics: dict[str, Any] = {"step": progress.done + 1 - job.first, **monitors.completion_metrics(rollouts)}
        if rollouts.tally["groups"]:
            run.source.sleep()  # until the push after the step
            metrics |= learn(run, rollouts, first)
        metrics["skipped"] = progress.left_out - left_out
        progress.done, progress.cursor = progress.done + 1, rollouts.cursor
        # 6. Metrics, validation, checkpoint.
        _check_weights(run)
        run.source.push(progress.done)
        seconds = time.monotonic() - started
        metrics |= monitors.machine_metrics(rollouts.tally["tokens"], seconds)
        metrics = monitors.finite_or_none(metrics)
        run.log.step({**metrics, "alarms": alarms([*run.log.history, metrics])})
        stall.count_empty_steps(progress, metrics, config)
        step, last = metrics["step"], progress.done == total
        if _validates(job, step):
            _validate(run, step)
        stop = stop_requested()
        due = config.save_every and step % config.save_every == 0
        if stop or last or due or stall.is_stalled(progress, config):
            _save(run)
        if stop and not last:
            raise KeyboardInterrupt
        if stall.is_stalled(progress, config):
            break
    stall.check_not_stalled(progress, run.log.history, config)


def learn(run: Run, rollouts: StepRollouts, first: bool) -> dict[str, Any]:
    """Makes parts 2 to 5 of a step, on groups with mixed outcomes; returns their metrics.

    `first`: whether the rollouts are those of --first-rollouts.
    """
    job, config, opened = run.job, run.job.config, run.models
    rows = Rows(rollouts.rows, opened.policy.device)
    # The start policy's rollouts are as many as those of several steps, and are split like these.
    minibatches = _minibatches(rows, config.prompts if first else config.minibatch)
    # 2. Old log-probabilities and candidates, without gradients; or left to part 5, where a single update reads them.
    metrics: dict[str, Any] = {}
    weight = None
    one_pass = _is_one_pass(run, len(minibatches))
    if one_pass:
        candidates, entropy = updates.unread_candidates(rows)
    else:
        p_min = config.p_min if config.alpha else 0.0
        candidates, entropy = _within(
            run, lambda budget: models.old_candidates(opened, rows, _micros(rows, budget), p_min)
        )
        metrics |= _old_metrics(run, rows, candidates, entropy)
        weight = importance_weights(rows, candidates.old_logprobs[:, 0], run.source)
    # 3. The reward model learns from the same completions first (Eq. 15).
    start: Tensor | None = None
    if "rm" in run.optimizers:
        if config.reference == "sft":
            start = _start_logprobs(run, opened, rows, candidates.token_ids)
        metrics |= _update_rm(run, rows, (candidates.old_logprobs if start is None else start)[:, 0])
    # 4. TD -> scale -> group -> GAE -> plus the outcome's advantage.
    td: Tensor | None = None
    if config.reward != "verifier":
        td = _within(
            run,
            lambda budget: models.temporal_differences(opened, rows, _micros(rows, budget), candidates, config, start),
        )
        metrics |= monitors.reward_model_metrics(rows, td)
        if "rm" not in run.optimizers and not opened.scalar:
            metrics |= monitors.verdict_metrics(rows, td, config.rm_loss)
    step_advantages = advantages.compute(rows, td, config)
    metrics |= step_advantages.metrics
    # 5. The policy, by both branches (Eq. 14).
    unread = entropy if one_pass else None
    targets = updates.policy_targets(rows, candidates, step_advantages, weight, config, unread)
    update_metrics = _update_policy(run, rows, minibatches, targets)
    if one_pass:
        metrics = _old_metrics(run, rows, candidates, entropy) | metrics
    metrics |= update_metrics
    if _validates(job, run.progress.done + 1 - job.first):
        metrics["kl_sft"] = _kl_start(run, rows, candidates)
    return metrics


def _is_one_pass(run: Run, policy_updates: int) -> bool:
    """Returns whether the old log-probabilities of a step are those of its only update's forward pass.

    A reward model takes them as its reference before that update, and so do the weights of another engine's tokens.
    """
    return policy_updates == 1 and run.job.config.reward == "verifier" and not run.source.foreign


def _old_metrics(run: Run, rows: Rows, candidates: CandidateSet, entropy: Tensor) -> dict[str, Any]:
    """Returns the metrics of the policy that sampled, and how far the sampler's log-probabilities are from its own."""
    metrics: dict[str, Any] = monitors.policy_metrics(rows, candidates, entropy)
    mismatch = step_mismatch(rows, candidates.old_logprobs[:, 0], run.source, run.job.setup.placement.dtype)
    if mismatch is not None:
        metrics |= {
            "mismatch_rms": mismatch.rms,
            "tis_mean": mismatch.mean_ratio,
            "tis_max": mismatch.max_ratio,
            "ess": mismatch.ess,
        }
    return metrics


def _update_rm(run: Run, rows: Rows, reference: Tensor) -> dict[str, Any]:
    config, runner = run.job.config, run.models.rm
    assert runner is not None
    all_sums, norms = [], []
    for chosen in _minibatches(rows, config.rm_minibatch):
        sums = _within(run, partial(updates.rm_gradients, runner, rows, chosen, reference, config))
        norms.append(_step(run, "rm", runner, sums["rm_loss"], config.rm_learning_rate))
        all_sums.append(sums)
    return monitors.rm_update_metrics(all_sums, norms)


def _update_policy(
    run: Run, rows: Rows, minibatches: Sequence[Sequence[int]], targets: updates.PolicyTargets
) -> dict[str, Any]:
    config, runner = run.job.config, run.models.policy
    all_sums, norms = [], []
    for chosen in minibatches:
        sums = _within(run, partial(updates.policy_gradients, runner, rows, chosen, targets, config))
        norms.append(_step(run, "policy", runner, sums["loss"], config.learning_rate))
        all_sums.append(sums)
    return {
        **monitors.policy_update_metrics(all_sums, norms),
        "learning_rate": optimiser.warmed_up(config.learning_rate, config.warmup, run.progress.done),
    }


def _step(run: Run, name: str, runner: Runner, loss: float, peak: float) -> float:
    """Makes one optimizer step and returns the gradient's norm; skips it where loss or norm are not finite.

    All processes have the same numbers, so all skip alike.
    """
    norm = optimiser.clip(runner.trained, run.job.config.max_grad_norm)
    if not (math.isfinite(loss) and math.isfinite(norm)):
        runner.module.zero_grad(set_to_none=True)
        run.progress.skipped[name] = run.progress.skipped.get(name, 0) + 1
        run.progress.left_out += 1
        if run.progress.skipped[name] >= PATIENCE:
            raise NonFiniteError(
                f"step {run.progress.done + 1}: {name} loss {loss}, gradient norm {norm}, {PATIENCE} times in a row; "
                f"the last checkpoint is kept; try a lower learning rate or --dtype float32"
            )
        return 0.0
    run.progress.skipped[name] = 0
    optimiser.step(run.optimizers[name], optimiser.warmed_up(peak, run.job.config.warmup, run.progress.done))
    return norm


def _check_weights(run: Run) -> None:
    """Raises NonFiniteError where an update has left weights that are not finite. All processes call it."""
    trained = {"policy": run.models.policy, "rm": run.models.rm}
    for name in run.optimizers:
        runner = trained[name]
        assert runner is not None
        if not optimiser.are_finite(runner.trained):
            raise NonFiniteError(
                f"step {run.progress.done}: leaves weights of the {name} that are not finite; the last checkpoint "
                f"is kept; try a lower learning rate or --dtype float32"
            )


def _minibatches(rows: Rows, prompts: int) -> list[list[int]]:
    """Splits the rows into minibatches of `prompts` prompts (0 = all), the same prompts for any number of processes."""
    groups = [row.group for row in rows.rows]
    count = processes.all_reduce_max(max(groups, default=-1)) + 1
    size = prompts or count
    return [[i for i, g in enumerate(groups) if start <= g < start + size] for start in range(0, count, size)]


def _micros(rows: Rows, budget: int) -> list[Micro]:
    """Returns micro-batches of all rows."""
    return micro_batches(rows, [[i] for i in range(len(rows.rows))], budget)


def _within(run: Run, work: Callable[[int], T]) -> T:
    return within_memory(run.models, run.progress, run.job.budget, work)


def _step_rollouts(run: Run, first: bool) -> StepRollouts:
    """Returns the stored rollouts where a run was stopped after sampling, else samples new ones."""
    stored = resume.stored_rollouts(run.job, run.progress.done)
    if stored is not None:
        return stored
    sampler = run.source.link.sampler
    rollouts = (
        step_rollouts.first_rollouts(run.job)
        if first
        else sampling(lambda: step_rollouts.draw(run.job, sampler, run.verifier, run.progress.cursor))
    )
    if run.job.config.step_values != "none":
        drawn = rollouts
        rollouts = sampling(
            lambda: step_values.add_values(
                run.job, drawn, sampler, run.verifier, run.models.policy, _reading_budget(run)
            )
        )
    resume.store_rollouts(run.job, run.progress.done, rollouts)
    return rollouts


def _reading_budget(run: Run) -> int:
    """Returns the padded tokens of a micro-batch: half of what is asked for once memory has run out."""
    return run.job.budget // 2 if run.progress.halved else run.job.budget


def _start_logprobs(run: Run, opened: Models, rows: Rows, token_ids: Tensor) -> Tensor:
    """Returns the [n, k] log-probabilities of `token_ids` [n, k] under the policy at the start of training."""
    return _within(run, lambda budget: models.start_logprobs(opened, rows, _micros(rows, budget), token_ids))


def _kl_start(run: Run, rows: Rows, candidates: CandidateSet) -> float | None:
    """Returns the KL to the start of training, whose weights are loaded again where they are not in memory."""
    opened = run.models
    if opened.start is None and opened.policy.adapters is None:
        start = open_runner(run.job.config.model, run.job.revision, "lm", run.job.model_setup_for_reading)
        opened = replace(opened, start=start)
    return monitors.kl_metric(candidates, _start_logprobs(run, opened, rows, candidates.token_ids[:, :1])[:, 0])


def _validates(job: Job, step: int) -> bool:
    """Returns whether the policy is validated after this step; it was before step 0, of the first rollouts."""
    every = job.config.validate_every
    return bool(job.validation) and step > 0 and (step == job.config.steps or bool(every and step % every == 0))


def _validate(run: Run, step: int) -> None:
    if step == 0 and run.start is not None:
        run.log.validation(step, run.start)
        return
    logging.getLogger(__name__).info("validating the policy after step %d", step)
    sampler = run.source.link.sampler
    run.log.validation(step, sampling(lambda: validate(run.job, sampler, run.verifier)))


def _save(run: Run) -> None:
    resume.save(run.job, run.models, run.optimizers, run.progress)


def _stop_before_learning(run: Run) -> None:
    """Stops between sampling and learning: the weights are those of the last step, the completions are stored."""
    if run.progress.done:
        _save(run)
    raise KeyboardInterrupt
