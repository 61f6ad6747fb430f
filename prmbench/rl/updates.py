"""Loop parts 3 and 5: gradients of the reward model and of the policy over a minibatch, in micro-batches.

Sums are divided by the size of the whole minibatch, over all processes, and DDP and FSDP average over processes: so a
loss depends neither on micro-batches nor on the number of processes. The formulas are in objectives.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from prmbench import objectives
from prmbench.config.distrl_options import ResolvedDistRL
from prmbench.core import processes
from prmbench.engines.token_logprobs import CandidateSet
from prmbench.rl.advantages import Advantages
from prmbench.rl.models import part_of
from prmbench.rl.token_rows import Micro, Rows, micro_batches
from prmbench.training.model import Runner

RM_SUMS = ("rm_loss", "rm_right", "rm_decided", "rm_gap")


# --- the reward model -------------------------------------------------------------------------------------


def rm_gradients(
    runner: Runner, rows: Rows, chosen: Sequence[int], reference: Tensor, config: ResolvedDistRL, budget: int
) -> dict[str, float]:
    """Leaves the gradients of Eq. 15 for one minibatch in the reward model.

    Args:
        runner: The reward model.
        rows: The step's completions in this process.
        chosen: Indices of the minibatch's rows.
        reference: [n] log-probabilities of the reference.
        config: The resolved options.
        budget: Padded tokens of a micro-batch.

    Returns:
        `RM_SUMS` over all processes; right decisions and gap are those before the update.
    """
    chosen = [i for i in chosen if not rows.rows[i].masked]
    pairs = config.rm_loss == "dpo_rm"
    micros = micro_batches(rows, _groups(rows, chosen) if pairs else [[i] for i in chosen], budget)
    count = processes.all_reduce_sum([float(len(_pairs(rows, chosen)) if pairs else len(chosen))])[0] or 1.0
    targets = _rm_targets(rows, config)
    device = runner.device
    total = torch.zeros((), dtype=torch.float64, device=device)
    sums = torch.zeros(3, dtype=torch.float64, device=device)
    for number, micro in enumerate(micros):
        with processes.gradient_accumulation(runner.module, last=number == len(micros) - 1):
            logprobs = runner.run(micro.ids, micro.score_positions, micro.targets)
            ratio = micro.spread(objectives.log_ratios(logprobs, part_of(reference, micro)))
            terms = _rm_terms(ratio, rows, micro, targets, config) if micro.real else ratio.sum(-1) * 0.0
            loss = terms.sum() / count
            (loss * processes.world_size()).backward()
        total += loss.detach()
        if micro.real:
            rewards = objectives.token_rewards(ratio.detach(), config.rm_beta)
            sums += verdicts(rewards, micro.mask, targets.outcome[micro.rows], config.rm_loss)
    return dict(zip(RM_SUMS, processes.all_reduce_sum([float(total), *sums.tolist()]), strict=True))


class _RMTargets(NamedTuple):
    """What Eq. 15 says of each row; made once, since a tensor made from a list waits for a GPU."""

    outcome: Tensor
    """[b] 1 = right, 0 = wrong."""
    offset: Tensor
    """[b] V(x); 0 without --adb."""
    weight: Tensor | None
    """[b] of the terms; None without --dlw."""


def _rm_targets(rows: Rows, config: ResolvedDistRL) -> _RMTargets:
    outcome, group = rows.outcome, rows.group
    mu = objectives.group_mean(outcome, group) if rows.rows else outcome
    offset = objectives.difficulty_offset(mu) if config.adb else torch.zeros_like(outcome)
    weight = objectives.rarity_weight(outcome, mu) if config.dlw else None
    if weight is not None and config.dlw_normalize:
        weight = objectives.normalized_weight(weight, group)
    return _RMTargets(outcome, offset, weight)


def _groups(rows: Rows, chosen: Sequence[int]) -> list[list[int]]:
    """Returns the chosen rows by prompt, since pairs are formed within a prompt."""
    groups = dict.fromkeys(rows.rows[i].group for i in chosen)
    return [[i for i in chosen if rows.rows[i].group == group] for group in groups]


def _rm_terms(ratio: Tensor, rows: Rows, micro: Micro, targets: _RMTargets, config: ResolvedDistRL) -> Tensor:
    """Returns the [b] terms of Eq. 15: the loss of train-rm with offset V(x) and larger weights of rare outcomes."""
    rewards = objectives.token_rewards(ratio, config.rm_beta)
    if config.rm_loss == "dpo_rm":
        return _pair_terms(objectives.masked_sum(rewards, micro.mask), rows, micro)
    outcome, offset = targets.outcome[micro.rows], targets.offset[micro.rows]
    if config.rm_loss == "implicit_prm":
        terms = objectives.implicit_prm_loss(objectives.masked_sum(rewards, micro.mask) + offset, outcome)
    else:
        v_bar = objectives.length_normalized(objectives.prefix_values(rewards, micro.mask), micro.mask)
        terms = objectives.ipvrm_loss(v_bar, micro.mask, outcome, config.rm_margin, offset)
    return terms if targets.weight is None else terms * targets.weight[micro.rows]


def _pair_terms(rewards: Tensor, rows: Rows, micro: Micro) -> Tensor:
    """Returns the terms of Eq. 2 of the pairs in a micro-batch, which holds complete groups."""
    place = {row: k for k, row in enumerate(micro.rows.tolist())}
    pairs = _pairs(rows, sorted(place))
    right = torch.tensor([place[r] for r, _ in pairs], dtype=torch.long, device=rewards.device)
    wrong = torch.tensor([place[w] for _, w in pairs], dtype=torch.long, device=rewards.device)
    return objectives.bradley_terry_loss(rewards[right], rewards[wrong])


def _pairs(rows: Rows, chosen: Sequence[int]) -> list[tuple[int, int]]:
    """Pairs the k-th right with the k-th wrong completion of each prompt, while there are both."""
    pairs = []
    for group in _groups(rows, chosen):
        members = [i for i in group if rows.rows[i].size]
        right = [i for i in members if rows.rows[i].outcome]
        wrong = [i for i in members if not rows.rows[i].outcome]
        pairs += list(zip(right, wrong, strict=False))
    return pairs


def verdicts(rewards: Tensor, mask: Tensor, outcome: Tensor, loss: str | None) -> Tensor:
    """Returns [3]: right decisions, decisions, and the sum of (predicted probability - outcome).

    `rewards`: [b, T] of the tokens; their mean (ipvrm) or sum is the logit of a decision.
    """
    reduce = objectives.masked_mean if loss == "ipvrm" else objectives.masked_sum
    logit = reduce(rewards, mask)
    right = ((logit > 0) == outcome.bool()).sum()
    return torch.stack([right.double(), torch.tensor(float(len(logit))).to(right), (logit.sigmoid() - outcome).sum()])


# --- the policy -------------------------------------------------------------------------------------------

SUMS = ("loss", "candidate_loss", "tokens", "clipped", "candidates", "candidates_clipped", "kl_old")


@dataclass(frozen=True, slots=True)
class PolicyTargets:
    """The candidates, advantages and weights that the policy's updates of a step use.

    Flat over the n tokens of the step, or spread over a micro-batch: [b, T, ...].
    """

    candidates: CandidateSet
    """[n, 1 + K]; the mask is on where a token or a candidate has a part in the loss."""
    advantages: Tensor
    """[n, 1 + K] of the sampled token and of the candidates."""
    weight: Tensor
    """[n] truncated importance weights; 1 where our own engine drew the completions."""
    entropy: Tensor | None = None
    """[n] nats, under the policy that sampled. None = known, as the old log-probabilities are; else `policy_gradients`
    writes both, since it is that policy's first pass over the tokens."""

    def spread(self, micro: Micro) -> PolicyTargets:
        """The part of a micro-batch, padded."""
        parts = (micro.spread(part_of(flat, micro)) for flat in (*self.candidates, self.advantages, self.weight))
        token_ids, old_logprobs, mask, advantages, weight = parts
        return PolicyTargets(CandidateSet(token_ids, old_logprobs, mask), advantages, weight)


def unread_candidates(rows: Rows) -> tuple[CandidateSet, Tensor]:
    """Returns sets of the sampled tokens alone, and entropies, whose numbers the step's only update writes."""
    token_ids = rows.tokens[:, None]
    zeros = torch.zeros(token_ids.shape, device=rows.device)
    return CandidateSet(token_ids, zeros, torch.ones_like(token_ids, dtype=torch.bool)), torch.zeros_like(zeros[:, 0])


def policy_targets(
    rows: Rows,
    candidates: CandidateSet,
    advantages: Advantages,
    weight: Tensor | None,
    config: ResolvedDistRL,
    entropy: Tensor | None = None,
) -> PolicyTargets:
    """Collects what the policy's updates use, in the flat order; `weight` None = 1 for every token."""
    learning = rows.learning[rows.mask]
    mask = candidates.mask & learning[:, None]
    if config.zero_terminal:
        mask[:, 1:] &= ~objectives.terminal(rows.mask)[rows.mask][:, None]
    return PolicyTargets(
        candidates._replace(mask=mask),
        torch.cat([advantages.tokens[rows.mask][:, None], advantages.candidates], dim=1),
        torch.ones_like(candidates.old_logprobs[:, 0]) if weight is None else weight,
        entropy,
    )


def policy_gradients(
    runner: Runner, rows: Rows, chosen: Sequence[int], targets: PolicyTargets, config: ResolvedDistRL, budget: int
) -> dict[str, float]:
    """Leaves the gradients of Eq. 14 for one minibatch in the policy.

    The loss is the clipped token branch (Eq. 12) + alpha * the candidate branch (Eq. 11). Returns `SUMS` over all
    processes; `chosen` are the indices of the minibatch's rows, `budget` the padded tokens of a micro-batch.
    """
    micros = micro_batches(rows, [[i] for i in chosen], budget)
    token_count, candidate_count = _denominators(rows, chosen, targets, config)
    sums = torch.zeros(len(SUMS), dtype=torch.float64, device=runner.device)
    for number, micro in enumerate(micros):
        with processes.gradient_accumulation(runner.module, last=number == len(micros) - 1):
            flat = _logprobs(runner, micro, targets)
            part, new = targets.spread(micro), micro.spread(flat)
            token_loss = _token_terms(new, part, config).sum() / token_count
            candidate_loss = _candidate_terms(new, part, config).sum() / candidate_count
            loss = objectives.distrl_loss(token_loss, candidate_loss, config.alpha) * float(micro.real)
            (loss * processes.world_size()).backward()
        if micro.real:
            sums += _sums(loss, candidate_loss, new.detach(), part, config)
    return dict(zip(SUMS, processes.all_reduce_sum(sums.tolist()), strict=True))


def _logprobs(runner: Runner, micro: Micro, targets: PolicyTargets) -> Tensor:
    """Returns the log-probabilities of a micro-batch's tokens and candidates under the policy, with gradients.

    In the policy's first pass over the tokens these are the old ones, too: they are stored, and every ratio is 1.
    """
    if targets.entropy is None:
        return runner.run(micro.ids, micro.score_positions, part_of(targets.candidates.token_ids, micro))
    candidates, entropy = runner.run(micro.ids, micro.score_positions, micro.targets, 0.0)
    if micro.real:
        targets.candidates.old_logprobs[micro.places] = candidates.old_logprobs.detach()
        targets.entropy[micro.places] = entropy
    return candidates.old_logprobs


def _denominators(
    rows: Rows, chosen: Sequence[int], targets: PolicyTargets, config: ResolvedDistRL
) -> tuple[float, float]:
    """Returns what the sums of the two branches are divided by: sequences, tokens or mass, over all processes."""
    member = torch.zeros(len(rows.rows), dtype=torch.bool, device=rows.device)
    member[list(chosen)] = True
    _, old_logprobs, mask = targets.candidates
    counted = (rows.mask & member[:, None])[rows.mask] & mask[:, 0]
    mass = objectives.candidate_mass(old_logprobs[counted][:, 1:], mask[counted][:, 1:])
    sequences, tokens, total = processes.all_reduce_sum([float(len(chosen)), float(counted.sum()), float(mass.sum())])
    token_count = sequences if config.reduction == "sequence" else tokens
    candidate_count = sequences if config.candidate_normalize == "length" else total
    return token_count or 1.0, candidate_count or 1.0


def _token_terms(new: Tensor, part: PolicyTargets, config: ResolvedDistRL) -> Tensor:
    return objectives.token_surrogate(
        new[..., 0],
        part.candidates.old_logprobs[..., 0],
        part.advantages[..., 0],
        part.candidates.mask[..., 0],
        config.clip_low,
        config.clip_high,
        config.dual_clip or None,
        config.reduction,
        part.weight,
    )


def _candidate_terms(new: Tensor, part: PolicyTargets, config: ResolvedDistRL) -> Tensor:
    return objectives.candidate_surrogate(
        new[..., 1:],
        part.candidates.old_logprobs[..., 1:],
        part.advantages[..., 1:],
        part.candidates.mask[..., 1:],
        *_candidate_clip(config),
        config.dual_clip or None,
        config.candidate_normalize,
        part.candidates.mask[..., 0],
    )


def _candidate_clip(config: ResolvedDistRL) -> tuple[float, float]:
    clip = config.clip_candidates
    return (clip, clip) if clip else (config.clip_low, config.clip_high)


def _sums(loss: Tensor, candidate_loss: Tensor, new: Tensor, part: PolicyTargets, config: ResolvedDistRL) -> Tensor:
    """Returns `SUMS` of a micro-batch; the KL is estimated by exp(d) - 1 - d with d = log new - log old."""
    dual_clip = config.dual_clip or None
    _, old, mask = part.candidates
    clip = config.clip_low, config.clip_high, dual_clip
    candidate_clip = *_candidate_clip(config), dual_clip
    d = (new[..., 0] - old[..., 0]).masked_fill(~mask[..., 0], 0.0)
    sums = [
        loss.detach(),
        candidate_loss.detach(),
        mask[..., 0].sum(),
        objectives.clipped(new[..., 0], old[..., 0], part.advantages[..., 0], mask[..., 0], *clip).sum(),
        mask[..., 1:].sum(),
        objectives.clipped(new[..., 1:], old[..., 1:], part.advantages[..., 1:], mask[..., 1:], *candidate_clip).sum(),
        (d.exp() - 1 - d).sum(),
    ]
    return torch.stack([value.double() for value in sums])
