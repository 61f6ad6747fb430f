"""Loop part 1: prompts of a step -> n completions each -> verdicts -> the groups with mixed outcomes, as rows.

A prompt's completions stay in one process. Which groups are trained on is the same for any number of processes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from prmbench.core import processes
from prmbench.core.records import UserError
from prmbench.data import rollouts
from prmbench.data.prompts import Prompt
from prmbench.data.rollouts import Rollout
from prmbench.engines.completion_encoding import PromptCompletion, encode_completions
from prmbench.engines.generation import SampledTokens, Sampler
from prmbench.rl.token_rows import Row
from prmbench.sampling import completions
from prmbench.verification.verifiers import Verifier

if TYPE_CHECKING:
    from prmbench.rl.setup import Job

REASONS = ("unverified", "cut", "all_right", "all_wrong")
"""Why a prompt's completions are not trained on; the first reason that holds counts."""
Group = Sequence[tuple[Rollout, SampledTokens | None]]
"""The completions of a prompt, with their tokens; None where the prompt was refused."""
TALLY = (
    "prompts",
    "mixed",
    "completions",
    "verified",
    "right",
    "unverified",
    "truncated",
    "empty",
    "tokens",
    "steps",
    *(f"prompts_{reason}" for reason in REASONS),
)
"""What is counted over all sampled completions."""


@dataclass(frozen=True, slots=True)
class StepRollouts:
    """The rollouts that a step trains on in this process."""

    rows: tuple[Row, ...]
    tally: Mapping[str, float]
    """Counts over all sampled completions of all processes, by the names of TALLY, and `rounds` and `groups`."""
    cursor: int
    """Position in the stream of prompts at which the next step begins."""


def draw(job: Job, sampler: Sampler, verifier: Verifier, cursor: int) -> StepRollouts:
    """Samples completions until enough groups have mixed outcomes, in at most `rounds` rounds. All processes call it.

    `cursor`: position in the stream of prompts at which the step begins.
    """
    config = job.config
    usable_positions, local_groups = list[int](), dict[int, Group]()
    tally: Counter[str] = Counter()
    rounds = 0
    while rounds < config.rounds and len(usable_positions) < config.prompts:
        positions = range(cursor, cursor + config.draw)
        groups = _sample_groups(job, sampler, verifier, positions[processes.rank() :: processes.world_size()])
        for group in groups.values():
            tally.update(_tally(group, config.truncated))
        usable = {position: group for position, group in groups.items() if not skip_reason(group, config.truncated)}
        local_groups |= usable
        everywhere = [position for process in processes.all_gather(list(usable)) for position in process]
        usable_positions = sorted([*usable_positions, *everywhere])
        cursor, rounds = positions.stop, rounds + 1
    places = {position: place for place, position in enumerate(usable_positions[: config.prompts])}
    rows = [
        _row(rollout, sampled, places[position], job)
        for position, group in sorted(local_groups.items())
        if position in places
        for rollout, sampled in group
    ]
    totals = dict(zip(TALLY, processes.all_reduce_sum([float(tally[name]) for name in TALLY]), strict=True))
    return StepRollouts(tuple(rows), {**totals, "rounds": rounds, "groups": len(places)}, cursor)


def _sample_groups(job: Job, sampler: Sampler, verifier: Verifier, positions: Sequence[int]) -> dict[int, Group]:
    """Samples and verifies the completions of the prompts at some positions; returns them by position."""
    prompts = prompts_at(job.prompts, positions, job.config.seed)
    work = completions.prepare(sampler, prompts, job.drawing)
    rows, n = completions.sample_plan(sampler, work, job.drawing, verifier), work.n
    return {position: rows[k * n : (k + 1) * n] for k, position in enumerate(positions)}


def prompts_at(prompts: Sequence[Prompt], positions: Sequence[int], seed: int) -> list[Prompt]:
    """Returns the prompts at some positions of the endless stream of shuffled passes.

    The position is part of their ids, so that no two prompts of the stream are sampled with the same seed.
    """
    count = len(prompts)
    passes = {position // count for position in positions}
    orders = {n: np.random.default_rng([seed, n]).permutation(count) for n in passes}
    chosen = [prompts[int(orders[position // count][position % count])] for position in positions]
    return [replace(prompt, id=f"{position}/{prompt.id}") for position, prompt in zip(positions, chosen, strict=True)]


def skip_reason(group: Group, truncated: str | None) -> str:
    """Returns which of REASONS excludes a prompt's completions; empty where their outcomes are known and mixed.

    `truncated`: with `drop` no completion may be truncated; with `mask` one must be complete, or no token is left.
    """
    outcomes = {r.outcome for r, _ in group}
    if None in outcomes or not outcomes:
        return "unverified"
    is_truncated = [r.finish == "length" for r, _ in group]
    if (truncated == "drop" and any(is_truncated)) or (truncated == "mask" and all(is_truncated)):
        return "cut"
    if len(outcomes) > 1:
        return ""
    return "all_right" if outcomes == {1} else "all_wrong"


def _tally(group: Group, truncated: str | None) -> Counter[str]:
    reason = skip_reason(group, truncated)
    rows = [r for r, _ in group]
    outcomes = [r.outcome for r in rows if r.outcome is not None]
    return Counter(
        prompts=1,
        mixed=int(set(outcomes) == {0, 1}),
        completions=len(rows),
        verified=len(outcomes),
        right=sum(outcomes),
        unverified=len(rows) - len(outcomes),
        truncated=sum(r.finish == "length" for r in rows),
        empty=sum(not r.completion.strip() for r in rows),
        tokens=sum(r.tokens or 0 for r in rows),
        steps=sum(len(r.steps) for r in rows),
        **({f"prompts_{reason}": 1} if reason else {}),
    )


def _row(rollout: Rollout, sampled: SampledTokens | None, place: int, job: Job) -> Row:
    assert sampled is not None  # a refused prompt has no outcome, so its group is not trained on
    prompt = job.prompt_ids[rollout.group.partition("/")[2]]
    return Row(rollout, (*prompt, *sampled.ids), len(prompt), place, sampled.logprobs, _masked(rollout, job))


def _masked(rollout: Rollout, job: Job) -> bool:
    return job.config.truncated == "mask" and rollout.finish == "length"


def first_rollouts(job: Job) -> StepRollouts:
    """Returns this process's share of the groups of `--first-rollouts` with mixed outcomes, tokenised."""
    path, truncated = job.config.first_rollouts, job.config.truncated
    assert path is not None
    by_prompt: dict[str, list[tuple[Rollout, SampledTokens | None]]] = {}
    for rollout in rollouts.read(path):
        by_prompt.setdefault(rollout.group, []).append((rollout, None))
    groups: list[Group] = list(by_prompt.values())
    usable = [[rollout for rollout, _ in group] for group in groups if not skip_reason(group, truncated)]
    if not usable:
        raise UserError(f"--first-rollouts {path}: no prompt has right and wrong completions")
    share = list(enumerate(usable))[processes.rank() :: processes.world_size()]
    rows = tuple(row for place, group in share for row in _encoded(group, place, job))
    tally: Counter[str] = Counter()
    for group in groups:
        tally.update(_tally(group, truncated))
    counts = {name: float(tally[name]) for name in TALLY}
    return StepRollouts(rows, {**counts, "rounds": 0, "groups": len(usable)}, 0)


def _encoded(group: Sequence[Rollout], place: int, job: Job) -> Iterator[Row]:
    exchanges = [PromptCompletion(r.prompt, r.completion, r.finish != "length") for r in group]
    encodings = encode_completions(job.tokenizer, exchanges, job.template, job.max_tokens)
    for rollout, encoded in zip(group, encodings, strict=True):
        if not encoded.unscored:
            yield Row(rollout, encoded.ids, encoded.start, place, masked=_masked(rollout, job))
