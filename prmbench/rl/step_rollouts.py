"""Loop part 1: prompts of a step -> n completions each -> verdicts -> the groups that teach something, as rows.

A prompt's completions stay in one process. Which groups are kept is the same for any number of processes.
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
from prmbench.engines.completion_encoding import Exchange, encode_completions
from prmbench.engines.decoding import Drawn
from prmbench.engines.generation import Sampler
from prmbench.rl.token_rows import Row
from prmbench.sampling import completions
from prmbench.verification.verifiers import Verifier

if TYPE_CHECKING:
    from prmbench.rl.setup import Job

REASONS = ("unverified", "cut", "all_right", "all_wrong")
"""Why nothing can be learnt from a prompt's completions, the first that holds."""
Group = Sequence[tuple[Rollout, Drawn | None]]
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
"""What is counted of all that is drawn."""


@dataclass(frozen=True, slots=True)
class Draw:
    """What a step trains on, in this process, and the tally of all that was drawn, over all processes."""

    rows: tuple[Row, ...]
    tally: Mapping[str, float]
    cursor: int
    """Where the next step's prompts begin."""


def draw(job: Job, sampler: Sampler, verifier: Verifier, cursor: int) -> Draw:
    """Draws prompts until enough groups have mixed outcomes, at most `rounds` times. All processes call it."""
    wanted, size, most = job.config.prompts or 0, job.config.draw or 0, job.config.rounds or 0
    found, mine = list[int](), dict[int, Group]()
    tally: Counter[str] = Counter()
    rounds = 0
    while rounds < most and len(found) < wanted:
        positions = range(cursor, cursor + size)
        drawn = _groups(job, sampler, verifier, positions[processes.rank() :: processes.world_size()])
        for group in drawn.values():
            tally.update(_tally(group, job.config.truncated))
        kept = {at: group for at, group in drawn.items() if not useless(group, job.config.truncated)}
        mine |= kept
        found = sorted([*found, *(at for process in processes.gathered(list(kept)) for at in process)])
        cursor, rounds = positions.stop, rounds + 1
    places = {at: place for place, at in enumerate(found[:wanted])}
    rows = [_row(r, d, places[at], job) for at, group in sorted(mine.items()) if at in places for r, d in group]
    totals = dict(zip(TALLY, processes.sums([float(tally[name]) for name in TALLY]), strict=True))
    return Draw(tuple(rows), {**totals, "rounds": rounds, "groups": len(places)}, cursor)


def _groups(job: Job, sampler: Sampler, verifier: Verifier, positions: Sequence[int]) -> dict[int, Group]:
    asked = named(job.prompts, positions, job.config.seed)
    work = completions.prepare(sampler, asked, job.drawing)
    found: dict[int, tuple[Rollout, Drawn | None]] = {}
    for batch in work.batches:
        found |= dict(zip(batch, completions.draw_tokens(sampler, work, batch, job.drawing, verifier), strict=True))
    n = work.n
    return {at: [found[k * n + i] for i in range(n)] for k, at in enumerate(positions)}


def named(prompts: Sequence[Prompt], positions: Sequence[int], seed: int) -> list[Prompt]:
    """Prompts at positions of the endless stream of shuffled passes; their ids, and so seeds, are unique there."""
    turns = {at // len(prompts) for at in positions}
    orders = {turn: np.random.default_rng([seed, turn]).permutation(len(prompts)) for turn in turns}
    found = [prompts[int(orders[at // len(prompts)][at % len(prompts)])] for at in positions]
    return [replace(prompt, id=f"{at}/{prompt.id}") for at, prompt in zip(positions, found, strict=True)]


def useless(group: Group, truncated: str | None) -> str:
    """Which of REASONS keeps a prompt's completions from training; empty where their outcomes are known and mixed.

    `truncated`: with `drop` every completion has to be whole, with `mask` one of them, or no token is left.
    """
    outcomes = {r.outcome for r, _ in group}
    if None in outcomes or not outcomes:
        return "unverified"
    cut = [r.finish == "length" for r, _ in group]
    if (truncated == "drop" and any(cut)) or (truncated == "mask" and all(cut)):
        return "cut"
    if len(outcomes) > 1:
        return ""
    return "all_right" if outcomes == {1} else "all_wrong"


def _tally(group: Group, truncated: str | None) -> Counter[str]:
    reason = useless(group, truncated)
    rows = [r for r, _ in group]
    known = [r.outcome for r in rows if r.outcome is not None]
    return Counter(
        prompts=1,
        mixed=int(set(known) == {0, 1}),
        completions=len(rows),
        verified=len(known),
        right=sum(known),
        unverified=len(rows) - len(known),
        truncated=sum(r.finish == "length" for r in rows),
        empty=sum(not r.completion.strip() for r in rows),
        tokens=sum(r.tokens or 0 for r in rows),
        steps=sum(len(r.steps) for r in rows),
        **({f"prompts_{reason}": 1} if reason else {}),
    )


def _row(rollout: Rollout, drawn: Drawn | None, place: int, job: Job) -> Row:
    assert drawn is not None  # a refused prompt has no outcome, so its group is not kept
    prompt = job.prompt_ids[rollout.group.partition("/")[2]]
    return Row(rollout, (*prompt, *drawn.ids), len(prompt), place, drawn.logprobs, _masked(rollout, job))


def _masked(rollout: Rollout, job: Job) -> bool:
    return job.config.truncated == "mask" and rollout.finish == "length"


def first(job: Job) -> Draw:
    """The rollouts of `--first-rollouts` with mixed outcomes, tokenised, this process's share of the groups."""
    assert job.config.first_rollouts is not None
    found = rollouts.read(job.config.first_rollouts)
    groups: dict[str, list[tuple[Rollout, Drawn | None]]] = {}
    for rollout in found:
        groups.setdefault(rollout.group, []).append((rollout, None))
    drawn: list[Group] = list(groups.values())
    kept = [[r for r, _ in group] for group in drawn if not useless(group, job.config.truncated)]
    if not kept:
        raise UserError(f"--first-rollouts {job.config.first_rollouts}: no prompt has right and wrong completions")
    mine = list(enumerate(kept))[processes.rank() :: processes.world_size()]
    rows = tuple(row for place, group in mine for row in _encoded(group, place, job))
    tally: Counter[str] = Counter()
    for group in drawn:
        tally.update(_tally(group, job.config.truncated))
    return Draw(rows, {**{name: float(tally[name]) for name in TALLY}, "rounds": 0, "groups": len(kept)}, 0)


def _encoded(group: Sequence[Rollout], place: int, job: Job) -> Iterator[Row]:
    exchanges = [Exchange(r.prompt, r.completion, r.finish != "length") for r in group]
    found = encode_completions(job.tokenizer, exchanges, job.template, job.max_tokens)
    for rollout, encoded in zip(group, found, strict=True):
        if not encoded.unscored:
            yield Row(rollout, encoded.ids, encoded.start, place, masked=_masked(rollout, job))
