"""The models of a run, and their forward passes over a step's rows without gradients.

They are the policy, the reward model and, where something is measured against it, the policy at the start of training.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from prmbench import objectives
from prmbench.config.distrl_options import SELF, ResolvedDistRL
from prmbench.core import processes
from prmbench.engines.token_logprobs import CandidateSet
from prmbench.rl.setup import Job
from prmbench.rl.token_rows import Micro, Rows
from prmbench.training.losses import LOSSES, Head
from prmbench.training.model import Runner, open_runner, with_shared_base


@dataclass(frozen=True, slots=True)
class Models:
    """The models that a run has in memory."""

    policy: Runner
    rm: Runner | None
    """None without a process reward, or where the policy is its own reward model."""
    scalar: bool
    """Whether the reward model has a scalar head, which is read at the token itself."""
    start: Runner | None
    """The policy at the start of training, where log-ratios are to it; None with adapters, which are switched off."""


def open_models(job: Job) -> Models:
    """Loads the models of a run. Raises UserError."""
    config = job.config
    policy = open_runner(config.model, job.revision, "lm", job.setup)
    has_process_reward = config.reward != "verifier"
    is_own_rm = config.rm_model == SELF
    head = LOSSES[config.rm_loss].head if has_process_reward and config.rm_loss else "lm"
    rm = _open_reward_model(job, policy, head) if has_process_reward and not is_own_rm else None
    start = None
    if has_process_reward and config.reference == "sft" and policy.adapters is None:
        start = open_runner(config.model, job.revision, "lm", job.model_setup_for_reading)
    return Models(policy, rm, head != "lm", start)


def _open_reward_model(job: Job, policy: Runner, head: Head) -> Runner:
    """Loads the reward model, or puts its adapters on the policy's base."""
    if job.shares_base:
        return with_shared_base(policy, job.rm_setup)
    return open_runner(job.config.rm_model or job.config.model, job.other_revision, head, job.rm_setup)


def old_candidates(models: Models, rows: Rows, micros: Sequence[Micro], p_min: float) -> tuple[CandidateSet, Tensor]:
    """Loop part 2: the candidate sets of all n tokens under the policy that sampled them, and its entropies [n].

    `p_min`: least probability of a candidate; 0 = sets without candidates.
    """
    parts = _passes(models.policy, micros, lambda m: (m.score_positions, m.targets, p_min))
    columns = zip(*(candidates for candidates, _ in parts), strict=True)
    candidates = CandidateSet(*(_gathered(rows, micros, column) for column in columns))
    return candidates, _gathered(rows, micros, [entropy for _, entropy in parts])


def start_logprobs(models: Models, rows: Rows, micros: Sequence[Micro], ids: Tensor) -> Tensor:
    """Returns the [n, k] log-probabilities of `ids` [n, k] under the policy at the start of training."""
    runner = models.start or models.policy
    without_adapters = runner.adapters.disable_adapter() if models.start is None else nullcontext()
    with without_adapters:
        return logprobs(runner, rows, micros, ids)


def logprobs(runner: Runner, rows: Rows, micros: Sequence[Micro], ids: Tensor) -> Tensor:
    """Returns the [n, k] log-probabilities of `ids` [n, k] under a model."""
    return _gathered(rows, micros, _passes(runner, micros, lambda m: (m.score_positions, part_of(ids, m), None)))


def temporal_differences(
    models: Models,
    rows: Rows,
    micros: Sequence[Micro],
    candidates: CandidateSet,
    config: ResolvedDistRL,
    start: Tensor | None = None,
) -> Tensor:
    """Loop part 4, the reward model's pass: Eq. 10 of sampled tokens and candidates alike.

    Returns [n, 1 + K]: TDs of the tokens of `candidates`, 0 where their mask is off. Of a scalar head the scores of the
    sampled tokens, [n, 1]. `start`: `start_logprobs` of all tokens of `candidates`, where they are known.
    """
    if models.scalar:
        assert models.rm is not None
        scores = _gathered(rows, micros, _passes(models.rm, micros, lambda m: (m.score_positions + 1, m.targets, None)))
        return config.rm_beta * scores[:, None]
    token_ids, old_logprobs, mask = candidates
    rm_logprobs = old_logprobs if models.rm is None else logprobs(models.rm, rows, micros, token_ids)
    if config.reference == "behaviour":
        reference = old_logprobs
    else:
        reference = start_logprobs(models, rows, micros, token_ids) if start is None else start
    return objectives.td_advantages(rm_logprobs, reference, config.rm_beta).masked_fill(~mask, 0.0)


def part_of(flat: Tensor, micro: Micro) -> Tensor:
    """Returns a micro-batch's part of a flat tensor; a row of zeros for a stand-in."""
    return flat[micro.places] if micro.real else flat.new_zeros(1, *flat.shape[1:])


Inputs = Callable[[Micro], tuple[Tensor, Tensor, float | None]]
"""Micro-batch -> (positions, tokens, p_min) of `Runner.run`."""


@torch.no_grad()
def _passes(runner: Runner, micros: Sequence[Micro], inputs: Inputs) -> list[Any]:
    outputs = [runner.run(micro.ids, *inputs(micro)) for micro in micros]
    processes.reshard(runner.module)
    return outputs


def _gathered(rows: Rows, micros: Sequence[Micro], parts: Sequence[Tensor]) -> Tensor:
    """Puts the parts of micro-batches into the flat order."""
    flat = parts[0].new_zeros(sum(rows.sizes), *parts[0].shape[1:])
    for micro, part in zip(micros, parts, strict=True):
        if micro.real:
            flat[micro.places] = part
    return flat
