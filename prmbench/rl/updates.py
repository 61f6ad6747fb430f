"""Loop parts 3 and 5: gradients of the reward model and of the policy over a minibatch, in micro-batches.

Sums are divided by the size of the whole minibatch, over all processes, and DDP and FSDP average over processes: so
neither micro-batches nor the number of processes move a loss. The formulas are objectives.py's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from prmbench import objectives
from prmbench.config.distrl_options import ResolvedDistRL
from prmbench.core import processes
from prmbench.rl.advantages import Credit
from prmbench.rl.models import Old, asked_of, taken
from prmbench.rl.token_rows import Micro, Rows, micro_batches
from prmbench.training.model import Runner

RM_SUMS = ("rm_loss", "rm_right", "rm_decided", "rm_gap")


# --- the reward model -------------------------------------------------------------------------------------


def rm_gradients(
    runner: Runner, rows: Rows, chosen: Sequence[int], reference: Tensor, config: ResolvedDistRL, budget: int
) -> dict[str, float]:
    """Eq. 15 for one minibatch of rows; `reference` [n] log-probabilities, `budget` padded tokens of a micro-batch.

    Returns `RM_SUMS` over all processes; right and gap are those before the update.
    """
    chosen = [i for i in chosen if not rows.rows[i].masked]
    pairs = config.rm_loss == "dpo_rm"
    micros = micro_batches(rows, _groups(rows, chosen) if pairs else [[i] for i in chosen], budget)
    count = processes.sums([float(len(_pairs(rows, chosen)) if pairs else len(chosen))])[0] or 1.0
    mu = objectives.group_mean(rows.outcome, rows.group) if rows.rows else rows.outcome
    device = runner.device
    total = torch.zeros((), dtype=torch.float64, device=device)
    sums = torch.zeros(3, dtype=torch.float64, device=device)
    for number, micro in enumerate(micros):
        with processes.accumulating(runner.module, last=number == len(micros) - 1):
            found = runner.run(micro.ids, micro.reads, micro.targets)
            ratio = micro.spread(objectives.log_ratios(found, taken(reference, micro)))
            terms = _rm_terms(ratio, rows, micro, mu, config) if micro.real else ratio.sum(-1) * 0.0
            loss = terms.sum() / count
            (loss * processes.world_size()).backward()
        total += loss.detach()
        if micro.real:
            rewards = objectives.token_rewards(ratio.detach(), config.rm_beta)
            sums += verdicts(rewards, micro.mask, rows.outcome[micro.rows], config.rm_loss)
    found_sums = processes.sums([float(total), *map(float, sums)])
    return dict(zip(RM_SUMS, found_sums, strict=True))


def _groups(rows: Rows, chosen: Sequence[int]) -> list[list[int]]:
    """Completions of a prompt together, since pairs are made of them."""
    names = dict.fromkeys(rows.rows[i].group for i in chosen)
    return [[i for i in chosen if rows.rows[i].group == name] for name in names]


def _rm_terms(ratio: Tensor, rows: Rows, micro: Micro, mu: Tensor, config: ResolvedDistRL) -> Tensor:
    """[b] terms of Eq. 15: the loss of train-rm with V(x) as an offset and rare outcomes weighing more."""
    beta, outcome = config.rm_beta, rows.outcome[micro.rows]
    rewards = objectives.token_rewards(ratio, beta)
    if config.rm_loss == "dpo_rm":
        return _pair_terms(objectives.masked_sum(rewards, micro.mask), rows, micro)
    offset = objectives.difficulty_offset(mu)[micro.rows] if config.adb else torch.zeros_like(outcome)
    if config.rm_loss == "implicit_prm":
        terms = objectives.implicit_prm_loss(objectives.masked_sum(rewards, micro.mask) + offset, outcome)
    else:
        v_bar = objectives.length_normalized(objectives.prefix_values(rewards, micro.mask), micro.mask)
        terms = objectives.ipvrm_loss(v_bar, micro.mask, outcome, config.rm_margin, offset)
    if not config.dlw:
        return terms
    weight = objectives.rarity_weight(rows.outcome, mu)
    return terms * (objectives.normalized_weight(weight, rows.group) if config.dlw_normalize else weight)[micro.rows]


def _pair_terms(rewards: Tensor, rows: Rows, micro: Micro) -> Tensor:
    """Eq. 2 of the pairs within the micro-batch, which holds whole groups then."""
    place = {int(row): k for k, row in enumerate(micro.rows)}
    pairs = _pairs(rows, sorted(place))
    right = torch.tensor([place[r] for r, _ in pairs], dtype=torch.long, device=rewards.device)
    wrong = torch.tensor([place[w] for _, w in pairs], dtype=torch.long, device=rewards.device)
    return objectives.bradley_terry_loss(rewards[right], rewards[wrong])


def _pairs(rows: Rows, chosen: Sequence[int]) -> list[tuple[int, int]]:
    """The k-th right with the k-th wrong completion of a prompt, as far as both go."""
    found = []
    for group in _groups(rows, chosen):
        members = [i for i in group if rows.rows[i].size]
        right = [i for i in members if rows.rows[i].outcome]
        wrong = [i for i in members if not rows.rows[i].outcome]
        found += list(zip(right, wrong, strict=False))
    return found


def verdicts(rewards: Tensor, mask: Tensor, outcome: Tensor, loss: str | None) -> Tensor:
    """[3] right decisions, decisions, sum of (sigmoid of the decision's logit - outcome), of [b, T] token rewards."""
    over = objectives.masked_mean if loss == "ipvrm" else objectives.masked_sum
    logit = over(rewards, mask)
    right = ((logit > 0) == outcome.bool()).sum()
    return torch.stack([right.double(), torch.tensor(float(len(logit))).to(right), (logit.sigmoid() - outcome).sum()])


# --- the policy -------------------------------------------------------------------------------------------

SUMS = ("loss", "candidate_loss", "tokens", "clipped", "candidates", "candidates_clipped", "kl_old")


@dataclass(frozen=True, slots=True)
class Target:
    """What the policy's updates are made of: the same for every minibatch of a step. [n] tokens, K candidates each."""

    asked: Tensor
    """[n, 1 + K] the drawn token, and the candidates if they have a branch."""
    known: Tensor
    """[n, 1 + K] their old log-probabilities."""
    kept: Tensor
    """[n, K]."""
    candidate_td: Tensor
    """[n, K]."""
    advantages: Tensor
    """[n]."""
    learning: Tensor
    """[n] whether a token has a part in the losses."""
    weight: Tensor
    """[n] truncated importance weights; 1 where our own engine drew the completions."""


def target(rows: Rows, before: Old, credit: Credit, weight: Tensor | None, config: ResolvedDistRL) -> Target:
    """Everything of a step in the flat order."""
    asked, known = asked_of(rows, before)
    learning = rows.learning
    kept = before.kept & learning[rows.mask][:, None]
    if config.zero_terminal:
        kept = kept & ~objectives.terminal(rows.mask)[rows.mask][:, None]
    width = 1 + before.ids.shape[1] if config.alpha else 1
    return Target(
        asked[:, :width],
        known[:, :width],
        kept[:, : width - 1],
        credit.candidate_td[:, : width - 1],
        credit.advantages[rows.mask],
        learning[rows.mask],
        torch.ones_like(before.logprobs) if weight is None else weight,
    )


def policy_gradients(
    runner: Runner, rows: Rows, chosen: Sequence[int], goal: Target, config: ResolvedDistRL, budget: int
) -> dict[str, float]:
    """Eq. 14 for one minibatch: clipped token branch (Eq. 12) + alpha * candidate branch (Eq. 11).

    Returns `SUMS` over all processes.
    """
    micros = micro_batches(rows, [[i] for i in chosen], budget)
    below = _denominators(rows, chosen, goal, config)
    sums = torch.zeros(len(SUMS), dtype=torch.float64, device=runner.device)
    for number, micro in enumerate(micros):
        with processes.accumulating(runner.module, last=number == len(micros) - 1):
            part = Target(*(micro.spread(taken(getattr(goal, f.name), micro)) for f in fields(Target)))
            new = micro.spread(runner.run(micro.ids, micro.reads, taken(goal.asked, micro)))
            token = _token_terms(new, part, config).sum() / below[0]
            candidate = _candidate_terms(new, part, config).sum() / below[1] if config.alpha else None
            loss = objectives.distrl_loss(token, candidate, config.alpha) * float(micro.real)
            (loss * processes.world_size()).backward()
        if micro.real:
            sums += _sums(loss, candidate, new.detach(), part, config)
    return dict(zip(SUMS, processes.sums(list(map(float, sums))), strict=True))


def _denominators(rows: Rows, chosen: Sequence[int], goal: Target, config: ResolvedDistRL) -> tuple[float, float]:
    """What the sums of the two branches are divided by: sequences, tokens or mass, over all processes."""
    member = torch.zeros(len(rows.rows), dtype=torch.bool, device=rows.device)
    member[list(chosen)] = True
    counted = (rows.mask & member[:, None])[rows.mask] & goal.learning
    mass = objectives.candidate_mass(goal.known[counted][:, 1:], goal.kept[counted]) if config.alpha else counted[:0]
    sequences, tokens, total = processes.sums([float(len(chosen)), float(counted.sum()), float(mass.sum())])
    first = sequences if config.reduction == "sequence" else tokens
    second = sequences if config.candidate_normalize == "length" else total
    return first or 1.0, second or 1.0


def _token_terms(new: Tensor, part: Target, config: ResolvedDistRL) -> Tensor:
    return objectives.token_surrogate(
        new[..., 0],
        part.known[..., 0],
        part.advantages,
        part.learning,
        config.clip_low,
        config.clip_high,
        config.dual_clip or None,
        config.reduction,
        part.weight,
    )


def _candidate_terms(new: Tensor, part: Target, config: ResolvedDistRL) -> Tensor:
    return objectives.candidate_surrogate(
        new[..., 1:],
        part.known[..., 1:],
        part.candidate_td,
        part.kept,
        *_candidate_clip(config),
        config.dual_clip or None,
        config.candidate_normalize,
        part.learning,
    )


def _candidate_clip(config: ResolvedDistRL) -> tuple[float, float]:
    own = config.clip_candidates
    return (own, own) if own else (config.clip_low, config.clip_high)


def _sums(loss: Tensor, candidate: Tensor | None, new: Tensor, part: Target, config: ResolvedDistRL) -> Tensor:
    """`SUMS` of a micro-batch; the KL is the estimator exp(d) - 1 - d of d = log new - log old, whose mean is KL."""
    dual = config.dual_clip or None
    clips = config.clip_low, config.clip_high, dual
    d = (new[..., 0] - part.known[..., 0]).masked_fill(~part.learning, 0.0)
    found = [
        loss.detach(),
        loss.new_zeros(()) if candidate is None else candidate.detach(),
        part.learning.sum(),
        objectives.clipped(new[..., 0], part.known[..., 0], part.advantages, part.learning, *clips).sum(),
        part.kept.sum(),
        objectives.clipped(
            new[..., 1:], part.known[..., 1:], part.candidate_td, part.kept, *_candidate_clip(config), dual
        ).sum(),
        (d.exp() - 1 - d).sum(),
    ]
    return torch.stack([value.double() for value in found])
