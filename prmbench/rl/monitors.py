"""What is written down of a step: sums over all processes -> the numbers of a line of metrics.jsonl.

Names and units are documented in docs/scaling.md; thresholds on them are alarms.py's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from prmbench import objectives
from prmbench.core import processes
from prmbench.engines.token_logprobs import CandidateSet
from prmbench.rl.step_rollouts import REASONS, Draw
from prmbench.rl.token_rows import Rows
from prmbench.rl.updates import RM_SUMS, SUMS, verdicts

TIMING = ("seconds", "tokens_per_second", "memory_gib")
"""Numbers that differ from machine to machine; all others are the same when a run is done again."""


def drawn(draw: Draw) -> dict[str, float | None]:
    """Of all completions of a step, kept or not."""
    tally = draw.tally
    return {
        "reward": _share(tally, "right", "completions"),
        "accuracy": _share(tally, "right", "verified"),
        "mixed": _share(tally, "mixed", "prompts"),
        "unverified": _share(tally, "unverified", "completions"),
        "truncated": _share(tally, "truncated", "completions"),
        "empty": _share(tally, "empty", "completions"),
        "length": _share(tally, "tokens", "completions"),
        "step_count": _share(tally, "steps", "completions"),
        "completions": tally["completions"],
        "tokens": tally["tokens"],
        "prompts_drawn": tally["prompts"],
        "groups": tally["groups"],
        "rounds": tally["rounds"],
        **{name: tally[name] for name in map("prompts_{}".format, REASONS) if name in tally},  # older code had none
    }


def behaviour(rows: Rows, candidates: CandidateSet, entropy: Tensor) -> dict[str, float | None]:
    """Metrics of the policy that sampled the completions, on those that are trained on; candidates as in Table 11.

    `entropy`: [n] of the next token's distribution, nats.
    """
    logprobs, mask = candidates.old_logprobs[:, 1:], candidates.mask[:, 1:]
    mass = objectives.candidate_mass(logprobs, mask)
    local = [float(entropy.double().sum()), float(mask.sum()), float(mass)]
    tokens, sequences, entropies, count, total = processes.sums([float(len(entropy)), float(len(rows.rows)), *local])
    metrics = {"kept": sequences, "entropy": _over(entropies, tokens)}
    if mask.shape[1]:
        metrics |= {"candidates": _over(count, tokens), "candidate_mass": _over(total, tokens)}
    return metrics


def reward_model(rows: Rows, td: Tensor) -> dict[str, float | None]:
    """Of its TDs, after its update: the mean score of a step (Table 7), and how a mean TD goes with the outcome."""
    token_td = rows.padded(td[:, 0])
    mask = rows.mask
    sums = objectives.masked_sum(token_td, mask).double()
    per_step = sums / torch.tensor([max(len(r.rollout.steps), 1) for r in rows.rows], device=sums.device)
    x, y = objectives.masked_mean(token_td, mask).double(), rows.outcome.double()
    n, sx, sy, sxx, syy, sxy, score = processes.sums(
        [float(len(x)), *(float(v.sum()) for v in (x, y, x * x, y * y, x * y, per_step))]
    )
    return {"rm_score": _over(score, n), "td_outcome_correlation": _correlation(n, sx, sy, sxx, syy, sxy)}


def rm_verdicts(rows: Rows, td: Tensor, loss: str | None) -> dict[str, float | None]:
    """What `rm_update` says of verdicts, for a reward model that is not updated."""
    some = rows.mask.any(-1)
    found = verdicts(rows.padded(td[:, 0])[some], rows.mask[some], rows.outcome[some], loss)
    right, decided, gap = processes.sums(found.tolist())
    return {"rm_accuracy": _over(right, decided), "rm_gap": _over(gap, decided)}


def _correlation(n: float, sx: float, sy: float, sxx: float, syy: float, sxy: float) -> float | None:
    spread = (n * sxx - sx * sx) * (n * syy - sy * sy)
    return (n * sxy - sx * sy) / spread**0.5 if spread > 0 else None


def rm_update(sums: Sequence[Mapping[str, float]], norms: Sequence[float]) -> dict[str, float | None]:
    """Of the reward model's updates in a step: losses and norms are means, verdicts are those before each update."""
    total = {name: sum(one[name] for one in sums) for name in RM_SUMS}
    return {
        "rm_loss": _over(total["rm_loss"], len(sums)),
        "rm_accuracy": _over(total["rm_right"], total["rm_decided"]),
        "rm_gap": _over(total["rm_gap"], total["rm_decided"]),
        "rm_grad_norm": _over(sum(norms), len(norms)),
    }


def policy_update(sums: Sequence[Mapping[str, float]], norms: Sequence[float]) -> dict[str, float | None]:
    """Of the policy's updates in a step; kl_old is KL(pi_old || pi) before the last of them, in nats a token."""
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


def kl(candidates: CandidateSet, other: Tensor) -> float | None:
    """KL of the drawing policy to another one, nats a token, estimated on the tokens drawn (exp(d) - 1 - d)."""
    d = (other - candidates.old_logprobs[:, 0]).double()
    total, count = processes.sums([float((d.exp() - 1 - d).sum()), float(len(d))])
    return _over(total, count)


def machine(tokens: float, seconds: float) -> dict[str, float]:
    """Time and memory, the latter of the process that has most."""
    return {
        "seconds": round(seconds, 3),
        "tokens_per_second": round(tokens / max(seconds, 1e-9), 1),
        "memory_gib": round(max(processes.gathered(processes.peak_memory_gib())), 3),
    }


def _share(tally: Mapping[str, float], part: str, whole: str) -> float | None:
    return _over(tally[part], tally[whole])


def _over(part: float, whole: float) -> float | None:
    return part / whole if whole else None


def told(values: Mapping[str, Any]) -> dict[str, Any]:
    """Nothing that JSON cannot say: a number that is not finite is none."""
    return {k: None if isinstance(v, float) and not abs(v) < float("inf") else v for k, v in values.items()}
