"""The metrics of a step, over all processes: the numbers of a line of metrics.jsonl.

Names and units are documented in docs/scaling.md; alarms.py has thresholds on them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from prmbench import objectives
from prmbench.core import processes
from prmbench.engines.token_logprobs import CandidateSet
from prmbench.rl.step_rollouts import REASONS, StepRollouts
from prmbench.rl.token_rows import Rows
from prmbench.rl.updates import RM_SUMS, SUMS, verdicts

TIMING = ("seconds", "tokens_per_second", "memory_gib")
"""Metrics that differ from machine to machine; all others are equal when a run is repeated."""


def completion_metrics(step: StepRollouts) -> dict[str, float | None]:
    """Returns metrics of all sampled completions of a step, trained on or not."""
    tally = step.tally
    return {
        "reward": _ratio(tally, "right", "completions"),
        "accuracy": _ratio(tally, "right", "verified"),
        "mixed": _ratio(tally, "mixed", "prompts"),
        "unverified": _ratio(tally, "unverified", "completions"),
        "truncated": _ratio(tally, "truncated", "completions"),
        "empty": _ratio(tally, "empty", "completions"),
        "length": _ratio(tally, "tokens", "completions"),
        "step_count": _ratio(tally, "steps", "completions"),
        "completions": tally["completions"],
        "tokens": tally["tokens"],
        "prompts_drawn": tally["prompts"],
        "groups": tally["groups"],
        "rounds": tally["rounds"],
        **{name: tally[name] for name in ("value_prefixes", "value_tokens") if name in tally},
        **{name: tally[name] for name in map("prompts_{}".format, REASONS) if name in tally},  # not in older files
    }


def policy_metrics(rows: Rows, candidates: CandidateSet, entropy: Tensor) -> dict[str, float | None]:
    """Returns metrics of the policy that sampled the completions, on those trained on; candidates as in Table 11.

    `entropy`: [n] of the next token's distribution, nats.
    """
    logprobs, mask = candidates.old_logprobs[:, 1:], candidates.mask[:, 1:]
    mass = objectives.candidate_mass(logprobs, mask)
    local = [float(entropy.double().sum()), float(mask.sum()), float(mass)]
    tokens, sequences, entropies, count, total = processes.all_reduce_sum(
        [float(len(entropy)), float(len(rows.rows)), *local]
    )
    metrics = {"kept": sequences, "entropy": _over(entropies, tokens)}
    if mask.shape[1]:
        metrics |= {"candidates": _over(count, tokens), "candidate_mass": _over(total, tokens)}
    return metrics


def reward_model_metrics(rows: Rows, td: Tensor) -> dict[str, float | None]:
    """Returns metrics of the TDs [n, 1 + K] after the reward model's update.

    They are the mean score of a step (Table 7), and the correlation of a completion's mean TD with its outcome.
    """
    token_td = rows.padded(td[:, 0])
    mask = rows.mask
    sums = objectives.masked_sum(token_td, mask).double()
    per_step = sums / torch.tensor([max(len(r.rollout.steps), 1) for r in rows.rows], device=sums.device)
    x, y = objectives.masked_mean(token_td, mask).double(), rows.outcome.double()
    n, sx, sy, sxx, syy, sxy, score = processes.all_reduce_sum(
        [float(len(x)), *(float(v.sum()) for v in (x, y, x * x, y * y, x * y, per_step))]
    )
    return {"rm_score": _over(score, n), "td_outcome_correlation": _correlation(n, sx, sy, sxx, syy, sxy)}


def verdict_metrics(rows: Rows, td: Tensor, loss: str | None) -> dict[str, float | None]:
    """Returns the accuracy and calibration gap of a reward model that is not updated."""
    has_tokens = rows.mask.any(-1)
    sums = verdicts(rows.padded(td[:, 0])[has_tokens], rows.mask[has_tokens], rows.outcome[has_tokens], loss)
    right, decided, gap = processes.all_reduce_sum(sums.tolist())
    return {"rm_accuracy": _over(right, decided), "rm_gap": _over(gap, decided)}


def _correlation(n: float, sx: float, sy: float, sxx: float, syy: float, sxy: float) -> float | None:
    spread = (n * sxx - sx * sx) * (n * syy - sy * sy)
    return (n * sxy - sx * sy) / spread**0.5 if spread > 0 else None


def rm_update_metrics(sums: Sequence[Mapping[str, float]], norms: Sequence[float]) -> dict[str, float | None]:
    """Returns metrics of the reward model's updates in a step: mean losses and norms, verdicts before each update."""
    total = {name: sum(one[name] for one in sums) for name in RM_SUMS}
    return {
        "rm_loss": _over(total["rm_loss"], len(sums)),
        "rm_accuracy": _over(total["rm_right"], total["rm_decided"]),
        "rm_gap": _over(total["rm_gap"], total["rm_decided"]),
        "rm_grad_norm": _over(sum(norms), len(norms)),
    }


def policy_update_metrics(sums: Sequence[Mapping[str, float]], norms: Sequence[float]) -> dict[str, float | None]:
    """Returns metrics of the policy's updates in a step; kl_old is KL(pi_old || pi) before the last, nats a token."""
    total = {name: sum(one[name] for one in sums) for name in SUMS}
    last = sums[-1] if sums else dict.fromkeys(SUMS, 0.0)
    return {
        "loss": _over(total["loss"], len(sums)),
        "candidate_loss": _over(total["candidate_loss"], len(sums)),
        "clip_fraction": _over(total["clipped"], total["tokens"]),
        "candidate_clip_fraction": _over(total["candidates_clipped"], total["candidates"]),
        "kl_old": _over(last["kl_old"], last["tokens"]),
        "grad_norm": _over(sum(norms), len(norms)),
    }


def kl_metric(candidates: CandidateSet, other: Tensor) -> float | None:
    """Returns the KL of the sampling policy to another, nats a token, estimated on its tokens as exp(d) - 1 - d.

    `other`: [n] log-probabilities of the sampled tokens under the other policy.
    """
    d = (other - candidates.old_logprobs[:, 0]).double()
    total, count = processes.all_reduce_sum([float((d.exp() - 1 - d).sum()), float(len(d))])
    return _over(total, count)


def machine_metrics(tokens: float, seconds: float) -> dict[str, float]:
    """Returns time and memory of a step, the memory of the process with the most."""
    return {
        "seconds": round(seconds, 3),
        "tokens_per_second": round(tokens / max(seconds, 1e-9), 1),
        "memory_gib": round(max(processes.all_gather(processes.peak_memory_gib())), 3),
    }


def _ratio(tally: Mapping[str, float], part: str, whole: str) -> float | None:
    return _over(tally[part], tally[whole])


def _over(part: float, whole: float) -> float | None:
    return part / whole if whole else None


def finite_or_none(values: Mapping[str, Any]) -> dict[str, Any]:
    """Replaces floats that are not finite, which JSON does not have, by None."""
    return {k: None if isinstance(v, float) and not abs(v) < float("inf") else v for k, v in values.items()}
