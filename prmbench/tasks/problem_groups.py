"""The completions of one problem, as best-of-N and policy rows see them: outcomes, votes, and who is left out."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from prmbench.core.records import RunManifest, ScoredTrace
from prmbench.metrics import best_of_n
from prmbench.metrics.best_of_n import Bools, Ints
from prmbench.metrics.first_error import Floats
from prmbench.tasks.metric_rows import SubsetInfo, resampled, traces_of_subset

MOST_COMPLETIONS = 4_096
"""Of one problem."""


@dataclass(frozen=True, slots=True)
class Group:
    """One problem."""

    name: str
    everyone: tuple[ScoredTrace, ...]
    verified: tuple[ScoredTrace, ...]
    """Those whose outcome is known: the others can neither be picked nor vote."""
    outcomes: Floats
    """[m], of the verified ones."""
    answers: Ints
    """[m], equal numbers for equal answers, -1 for none."""


@dataclass(frozen=True, slots=True)
class Problems:
    """The problems of one subset, by name, with how often each is drawn, [b, c]."""

    part: SubsetInfo
    groups: tuple[Group, ...]
    weights: Floats

    @property
    def accuracy(self) -> Floats:
        """[c]: the share of right ones among each problem's verified completions; nan where there are none."""
        return np.array([g.outcomes.mean() if len(g.outcomes) else np.nan for g in self.groups])

    @property
    def largest(self) -> int:
        """Verified completions of the problem that has most."""
        return max((len(g.verified) for g in self.groups), default=0)

    @property
    def unverified(self) -> int:
        """Completions whose outcome is unknown."""
        return sum(len(g.everyone) - len(g.verified) for g in self.groups)

    @property
    def answered(self) -> bool:
        """Whether there is anything to vote about."""
        return any((g.answers >= 0).any() for g in self.groups)

    def note(self, n: int) -> str:
        """What a number over n-subsets leaves out; empty when nothing."""
        enough = sum(len(g.verified) >= n for g in self.groups)
        told = [f"{enough} of {len(self.groups)} problems, those with {n} verified completions"]
        return "; ".join((told if enough < len(self.groups) else []) + self.left_out())

    def left_out(self) -> list[str]:
        """Completions that no number counts."""
        return [f"unverified completions left out: {self.unverified}"] if self.unverified else []


def problems(manifest: RunManifest, scores: Sequence[ScoredTrace]) -> tuple[Problems, ...]:
    """The problems of every subset of a run."""
    found = []
    for name in manifest.subsets:
        traces = traces_of_subset(scores, name)
        index, weights = resampled(manifest, name, [t.cluster for t in traces])
        members: list[list[ScoredTrace]] = [[] for _ in range(weights.shape[1])]
        for number, trace in zip(index, traces, strict=True):
            members[number].append(trace)
        part = SubsetInfo(name, len(traces), sum(bool(t.unscored) for t in traces), "no verified completion")
        found.append(Problems(part, tuple(map(_group, members)), weights))
    return tuple(found)


def _group(members: Sequence[ScoredTrace]) -> Group:
    verified = tuple(t for t in members if t.outcome is not None)
    numbers = {name: k for k, name in enumerate(sorted({t.answer for t in verified if t.answer}))}
    return Group(
        members[0].cluster,
        tuple(members),
        verified,
        np.array([t.outcome for t in verified], dtype=float),
        np.array([numbers.get(t.answer, -1) for t in verified], dtype=np.int64),
    )


class Subsets:
    """The n-subsets over which votes are averaged; all of them are made once, drawn ones anew for each problem."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.whole: dict[tuple[int, int], Bools] = {}

    def of(self, group: Group, n: int) -> Bools:
        """[s, m] for the group's m verified completions."""
        m = len(group.verified)
        if not best_of_n.is_exact(m, n):
            digest = hashlib.sha256(f"{self.seed}/{group.name}/{n}".encode()).digest()
            return best_of_n.drawn_subsets(m, n, int.from_bytes(digest[:8]))
        if (m, n) not in self.whole:
            self.whole[m, n] = best_of_n.all_subsets(m, n)
        return self.whole[m, n]


def votes(side: Problems, log_weights: Sequence[Floats], n: int, subsets: Subsets) -> tuple[Floats, Floats]:
    """Expected outcome of each problem's vote among n, under p weightings ([p, m] for each group): [p, c].

    Problems with fewer than n verified completions are nan. Also the Monte-Carlo error of the mean over problems,
    [p]; 0 where every subset is visited.
    """
    kinds = len(log_weights[0]) if log_weights else 1
    values = np.full((kinds, len(side.groups)), np.nan)
    variance = np.zeros(kinds)
    for number, (group, weights) in enumerate(zip(side.groups, log_weights, strict=True)):
        if len(group.verified) < n:
            continue
        if not (group.outcomes.any() and (group.answers >= 0).any()):
            values[:, number] = 0.0  # nobody is right, whoever wins
            continue
        values[:, number], spread = best_of_n.vote(group.answers, weights, group.outcomes, subsets.of(group, n))
        if not best_of_n.is_exact(len(group.verified), n):
            variance += spread / best_of_n.DRAWN
    counted = int(np.isfinite(values[0]).sum())
    return values, np.sqrt(variance) / max(counted, 1)


def error_note(error: float) -> str:
    """How far the drawn subsets may be off; empty where nothing was drawn."""
    if not error:
        return ""
    digits = max(1, -math.floor(math.log10(error)))
    return f"{best_of_n.DRAWN} drawn subsets a problem, standard error {error:.{digits}f}"


def group_size_faults(scores: Sequence[ScoredTrace]) -> Iterator[str]:
    """Yields a line when a problem has more completions than can be judged together."""
    groups = Counter((t.subset, t.cluster) for t in scores)
    largest = max(groups.values(), default=0)
    if largest > MOST_COMPLETIONS:
        yield f"have {largest} completions of one problem, more than {MOST_COMPLETIONS}"
