"""Selects training data from rollouts: demonstrations, verified completions, right-wrong pairs, labelled steps.

Every function also returns how many rollouts or prompts it leaves out, by reason. The encoder, which knows lengths in
tokens, leaves out those that are too long.
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

LeftOut = Mapping[str, int]
"""Reason -> how many rollouts or prompts were left out for it."""
PairSelection = Literal["one", "all", "random"]


@dataclass(frozen=True, slots=True)
class Pair:
    """A right and a wrong completion of one prompt."""

    right: Rollout
    wrong: Rollout

    @property
    def id(self) -> str:
        """Id of the pair, made of both ids."""
        return f"{self.right.id} > {self.wrong.id}"


@dataclass(frozen=True, slots=True)
class StepRow:
    """A rollout with one training label per step."""

    rollout: Rollout
    labels: tuple[float, ...]
    """In [0, 1]; NaN = unlabelled, to be masked in the loss."""


def demonstrations(rollouts: Iterable[Rollout]) -> tuple[list[Rollout], LeftOut]:
    """Return the completions for imitation: all that are not known to be wrong."""
    nonempty, left_out = _nonempty(rollouts)
    return _filter(nonempty, left_out, "rollouts with a wrong answer", lambda r: r.outcome != 0)


def verified_completions(rollouts: Iterable[Rollout]) -> tuple[list[Rollout], LeftOut]:
    """Return the completions with an outcome."""
    nonempty, left_out = _nonempty(rollouts)
    return _filter(nonempty, left_out, "rollouts not verified", lambda r: r.outcome is not None)


def preference_pairs(
    rollouts: Iterable[Rollout], how: PairSelection = "one", seed: int = 0
) -> tuple[list[Pair], LeftOut]:
    """Return right-wrong pairs of the groups that have both, in the order in which groups first occur.

    Args:
        rollouts: The rollouts.
        how: `one` pairs the first right with the first wrong completion (IPVRM paper, section 4.1: one pair per
            prompt); `all` pairs every right with every wrong one; `random` draws one of each.
        seed: Seed of `random`. The draw depends on the seed and the group alone, not on other groups.
    """
    verified, left_out = verified_completions(rollouts)
    groups: dict[str, list[Rollout]] = {}
    for rollout in verified:
        groups.setdefault(rollout.group or text_hash(rollout.prompt), []).append(rollout)
    counts = Counter(left_out)
    matched: list[Pair] = []
    for name, members in groups.items():
        right, wrong = ([r for r in members if r.outcome == outcome] for outcome in (1, 0))
        if not right or not wrong:
            counts["prompts with wrong answers only" if wrong else "prompts with right answers only"] += 1
            continue
        matched += _match(right, wrong, how, f"{seed} {name}")
    return matched, counts


def completions_of_pairs(matched: Iterable[Pair]) -> list[Rollout]:
    """Return the completions of pairs, each once; for pairs of `one`, the pointwise data of the paper's protocol."""
    return list({half.id: half for pair in matched for half in (pair.right, pair.wrong)}.values())


def labelled_steps(rollouts: Iterable[Rollout]) -> tuple[list[StepRow], LeftOut]:
    """Return the rollouts with step labels: their own or, without those, 1 before the first error and 0 at it.

    Steps after the first error are unlabelled, since the first error does not say whether they are right.
    """
    left_out: Counter[str] = Counter()
    rows = []
    for rollout in rollouts:
        labels = rollout.step_labels or _labels_from_first_error(rollout)
        if labels:
            rows.append(StepRow(rollout, labels))
        else:
            left_out["rollouts without step labels"] += 1
    return rows, left_out


def split_by_prompt(rollouts: Sequence[Rollout], fraction: float, seed: int) -> tuple[list[Rollout], list[Rollout]]:
    """Split rollouts into training and held-out ones, by prompt.

    Args:
        rollouts: The rollouts; their order does not affect which prompts are held out.
        fraction: Share of the prompts to hold out, in [0, 1); above 0, at least one prompt is on each side.
        seed: Seed of the choice.

    Returns:
        Training rollouts and held-out rollouts.

    Raises:
        UserError: The fraction is out of range, or there is only one prompt to split.
    """
    ranked = sorted({r.prompt for r in rollouts}, key=lambda prompt: _draw(f"{seed} {text_hash(prompt)}"))
    if fraction and len(ranked) < 2:  # noqa: PLR2004 (one for each part)
        raise UserError(f"--validation {fraction}: the data has one prompt only; take more, or hold nothing out")
    count = min(max(round(fraction * len(ranked)), 1), len(ranked) - 1) if fraction else 0
    held_out = set(ranked[:count])
    return [r for r in rollouts if r.prompt not in held_out], [r for r in rollouts if r.prompt in held_out]


def _nonempty(rollouts: Iterable[Rollout]) -> tuple[list[Rollout], LeftOut]:
    return _filter(rollouts, {}, "empty completions", lambda r: bool(r.steps or r.completion.strip()))


def _filter(
    rollouts: Iterable[Rollout], left_out: LeftOut, reason: str, condition: Callable[[Rollout], bool]
) -> tuple[list[Rollout], LeftOut]:
    """Return the rollouts that meet the condition, and `left_out` with the number of the others under `reason`."""
    candidates = list(rollouts)
    selected = [r for r in candidates if condition(r)]
    removed = len(candidates) - len(selected)
    return selected, {**left_out, reason: removed} if removed else left_out


def _match(right: Sequence[Rollout], wrong: Sequence[Rollout], how: PairSelection, key: str) -> list[Pair]:
    if how == "all":
        return [Pair(*both) for both in product(right, wrong)]
    if how == "one":
        return [Pair(right[0], wrong[0])]
    return [Pair(right[_draw(f"{key} right") % len(right)], wrong[_draw(f"{key} wrong") % len(wrong)])]


def _labels_from_first_error(rollout: Rollout) -> tuple[float, ...]:
    first, count = rollout.first_error, len(rollout.steps)
    if first is None or first < 0:
        return () if first is None else (1.0,) * count
    return (1.0,) * first + (0.0,) + (math.nan,) * (count - first - 1)


def _draw(key: str) -> int:
    """Return a 64-bit number that depends on the key alone, on every machine."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big")
