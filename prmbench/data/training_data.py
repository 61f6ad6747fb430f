"""What training takes from rollouts: single completions, right-wrong pairs, labelled steps, a held-out part.

What a view leaves out is counted by reason, never dropped unseen. Lengths are the encoder's business, not known here.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Literal

from prmbench.core.records import UserError, text_hash
from prmbench.data.rollouts import Rollout

Left = Mapping[str, int]
"""Why rows or prompts were left out -> how many; the reason says of what."""
How = Literal["one", "all", "random"]


@dataclass(frozen=True, slots=True)
class Pair:
    """A right and a wrong completion of one prompt."""

    right: Rollout
    wrong: Rollout

    @property
    def id(self) -> str:
        """Names both."""
        return f"{self.right.id} > {self.wrong.id}"


@dataclass(frozen=True, slots=True)
class StepRow:
    """A rollout with one training label a step."""

    rollout: Rollout
    labels: tuple[float, ...]
    """In [0, 1]; NaN = unlabelled, to be masked."""


def demonstrations(rollouts: Iterable[Rollout]) -> tuple[list[Rollout], Left]:
    """What a policy imitates: every completion that is not known to be wrong."""
    kept, left = _spoken(rollouts)
    return _keep(kept, left, "rollouts with a wrong answer", lambda r: r.outcome != 0)


def points(rollouts: Iterable[Rollout]) -> tuple[list[Rollout], Left]:
    """Completions with an outcome."""
    kept, left = _spoken(rollouts)
    return _keep(kept, left, "rollouts not verified", lambda r: r.outcome is not None)


def pairs(rollouts: Iterable[Rollout], how: How = "one", seed: int = 0) -> tuple[list[Pair], Left]:
    """Right-wrong pairs of the groups that have both, in the order in which groups first occur.

    `one`: the first right with the first wrong completion (IPVRM paper, 4.1: one pair a prompt); `all`: every right
    with every wrong; `random`: one of each, drawn from (seed, group) alone, so other groups do not move the draw.
    """
    kept, left = points(rollouts)
    groups: dict[str, list[Rollout]] = {}
    for rollout in kept:
        groups.setdefault(rollout.group or text_hash(rollout.prompt), []).append(rollout)
    counts = Counter(left)
    found: list[Pair] = []
    for name, members in groups.items():
        right, wrong = ([r for r in members if r.outcome == outcome] for outcome in (1, 0))
        if not right or not wrong:
            counts["prompts with wrong answers only" if wrong else "prompts with right answers only"] += 1
            continue
        found += _matched(right, wrong, how, f"{seed} {name}")
    return found, counts


def halves(found: Iterable[Pair]) -> list[Rollout]:
    """The completions of pairs, each once: the pointwise data of the paper's protocol, when the pairs are `one`."""
    return list({half.id: half for pair in found for half in (pair.right, pair.wrong)}.values())


def step_rows(rollouts: Iterable[Rollout]) -> tuple[list[StepRow], Left]:
    """Rollouts with labelled steps. `step_labels` as they are; else from the first error: 1 before it, 0 at it.

    What follows an error is unlabelled: whether a step is right on a wrong basis is nobody's word.
    """
    left: Counter[str] = Counter()
    rows = []
    for rollout in rollouts:
        labels = rollout.step_labels or _hard(rollout)
        if labels:
            rows.append(StepRow(rollout, labels))
        else:
            left["rollouts without step labels"] += 1
    return rows, left


def split(rollouts: Sequence[Rollout], fraction: float, seed: int) -> tuple[list[Rollout], list[Rollout]]:
    """(training, held out): whole prompts, chosen by their text and the seed, whatever the order of the rows.

    The share of the prompts is rounded, but neither part is left empty. Raises UserError when that cannot be.
    """
    if not 0 <= fraction < 1:
        raise UserError(f"--validation is {fraction}; expected a share of the prompts, from 0 to below 1")
    ranked = sorted({r.prompt for r in rollouts}, key=lambda prompt: _draw(f"{seed} {text_hash(prompt)}"))
    if fraction and len(ranked) < 2:  # noqa: PLR2004 (one for each part)
        raise UserError(f"--validation {fraction}: the data has one prompt only; take more, or hold nothing out")
    count = min(max(round(fraction * len(ranked)), 1), len(ranked) - 1) if fraction else 0
    held = set(ranked[:count])
    return [r for r in rollouts if r.prompt not in held], [r for r in rollouts if r.prompt in held]


def _spoken(rollouts: Iterable[Rollout]) -> tuple[list[Rollout], Left]:
    return _keep(rollouts, {}, "empty completions", lambda r: bool(r.steps or r.completion.strip()))


def _keep(
    rollouts: Iterable[Rollout], left: Left, reason: str, wanted: Callable[[Rollout], bool]
) -> tuple[list[Rollout], Left]:
    """The wanted ones, and `left` with the others added under `reason`."""
    given = list(rollouts)
    kept = [r for r in given if wanted(r)]
    lost = len(given) - len(kept)
    return kept, {**left, reason: lost} if lost else left


def _matched(right: Sequence[Rollout], wrong: Sequence[Rollout], how: How, key: str) -> list[Pair]:
    if how == "all":
        return [Pair(*both) for both in product(right, wrong)]
    at = (0, 0) if how == "one" else (_draw(f"{key} right") % len(right), _draw(f"{key} wrong") % len(wrong))
    return [Pair(right[at[0]], wrong[at[1]])]


def _hard(rollout: Rollout) -> tuple[float, ...]:
    first, count = rollout.first_error, len(rollout.steps)
    if first is None or first < 0:
        return () if first is None else (1.0,) * count
    return (1.0,) * first + (0.0,) + (math.nan,) * (count - first - 1)


def _draw(key: str) -> int:
    """A 64-bit number that is the same on every machine."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big")
