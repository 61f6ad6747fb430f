"""Completions grouped by problem, with outcomes and votes, for the best-of-N and policy tasks."""

from __future__ import annotations

import hashlib
import math
import shlex
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from prmbench.core.records import RunManifest, ScoredTrace, Trace
from prmbench.metrics import best_of_n
from prmbench.metrics.best_of_n import Bools, Ints
from prmbench.metrics.first_error import Floats
from prmbench.tasks.metric_rows import SubsetInfo, resampled, traces_of_subset

MOST_COMPLETIONS = 4_096
"""Largest number of completions of one problem that can be judged together."""


@dataclass(frozen=True, slots=True)
class Group:
    """One problem with its completions."""

    name: str
    completions: tuple[ScoredTrace, ...]
    verified: tuple[ScoredTrace, ...]
    """Completions with a known outcome; the others can neither be picked nor vote."""
    outcomes: Floats
    """[m], of the verified completions."""
    answers: Ints
    """[m], equal numbers for equal answers, -1 for a completion without an answer."""


@dataclass(frozen=True, slots=True)
class SubsetProblems:
    """The problems of one subset, sorted by name. `weights` [b, c] says how often each is drawn in each replicate."""

    part: SubsetInfo
    groups: tuple[Group, ...]
    weights: Floats

    @property
    def accuracy(self) -> Floats:
        """Share of correct completions among the verified ones of each problem, [c]; nan where there are none."""
        return np.array([g.outcomes.mean() if len(g.outcomes) else np.nan for g in self.groups])

    @property
    def largest(self) -> int:
        """Largest number of verified completions of a problem."""
        return max((len(g.verified) for g in self.groups), default=0)

    @property
    def unverified(self) -> int:
        """Number of completions with an unknown outcome."""
        return sum(len(g.completions) - len(g.verified) for g in self.groups)

    @property
    def answered(self) -> bool:
        """Whether any completion has an answer to vote for."""
        return any((g.answers >= 0).any() for g in self.groups)

    def note(self, n: int) -> str:
        """Returns what a number over n-subsets leaves out; empty when it leaves out nothing."""
        enough = sum(len(g.verified) >= n for g in self.groups)
        notes = [f"{enough} of {len(self.groups)} problems, those with {n} verified completions"]
        return "; ".join((notes if enough < len(self.groups) else []) + self.exclusions())

    def exclusions(self) -> list[str]:
        """Returns a note on completions that no number counts, if there are any."""
        return [f"unverified completions left out: {self.unverified}"] if self.unverified else []


def group_problems(manifest: RunManifest, scores: Sequence[ScoredTrace]) -> tuple[SubsetProblems, ...]:
    """Groups a run's completions by problem, one record per subset."""
    grouped = []
    for name in manifest.subsets:
        traces = traces_of_subset(scores, name)
        problem, weights = resampled(manifest, name, [t.cluster for t in traces])
        members: list[list[ScoredTrace]] = [[] for _ in range(weights.shape[1])]
        for index, trace in zip(problem, traces, strict=True):
            members[index].append(trace)
        part = SubsetInfo(
            name, len(traces), sum(bool(t.unscored) for t in traces), "no verified completion", weights.shape[1]
        )
        grouped.append(SubsetProblems(part, tuple(map(_group, members)), weights))
    return tuple(grouped)


def _group(members: Sequence[ScoredTrace]) -> Group:
    verified = tuple(t for t in members if t.outcome is not None)
    answer_number = {answer: index for index, answer in enumerate(sorted({t.answer for t in verified if t.answer}))}
    return Group(
        members[0].cluster,
        tuple(members),
        verified,
        np.array([t.outcome for t in verified], dtype=float),
        np.array([answer_number.get(t.answer, -1) for t in verified], dtype=np.int64),
    )


class SubsetCache:
    """Provides the n-subsets over which votes are averaged.

    Complete sets of subsets are cached; sampled ones are drawn separately for each problem.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.all_subsets: dict[tuple[int, int], Bools] = {}

    def masks(self, group: Group, n: int) -> Bools:
        """Returns n-subsets of the group's m verified completions as boolean masks, [s, m]."""
        m = len(group.verified)
        if not best_of_n.is_exact(m, n):
            digest = hashlib.sha256(f"{self.seed}/{group.name}/{n}".encode()).digest()
            return best_of_n.sampled_subsets(m, n, int.from_bytes(digest[:8]))
        if (m, n) not in self.all_subsets:
            self.all_subsets[m, n] = best_of_n.all_subsets(m, n)
        return self.all_subsets[m, n]


def vote_accuracies(
    problems: SubsetProblems, log_weights: Sequence[Floats], n: int, subsets: SubsetCache
) -> tuple[Floats, Floats]:
    """Computes the expected accuracy of a vote among n completions.

    Args:
        problems: The problems of one subset.
        log_weights: Log of each completion's voting weight, [p, m] for each problem, where p counts the weightings.
        n: Number of completions that vote.
        subsets: Provides the n-subsets to average over.

    Returns:
        The expected outcome of each problem's vote, [p, c], nan where a problem has fewer than n verified completions;
        and the Monte-Carlo standard error of the mean over problems, [p], 0 where every subset is visited.
    """
    weightings = len(log_weights[0]) if log_weights else 1
    values = np.full((weightings, len(problems.groups)), np.nan)
    variance = np.zeros(weightings)
    for index, (group, weights) in enumerate(zip(problems.groups, log_weights, strict=True)):
        if len(group.verified) < n:
            continue
        if not (group.outcomes.any() and (group.answers >= 0).any()):
            values[:, index] = 0.0  # no winner can be correct
            continue
        values[:, index], spread = best_of_n.vote(group.answers, weights, group.outcomes, subsets.masks(group, n))
        if not best_of_n.is_exact(len(group.verified), n):
            variance += spread / best_of_n.SAMPLED_SUBSETS
    judged_problems = int(np.isfinite(values[0]).sum())
    return values, np.sqrt(variance) / max(judged_problems, 1)


def error_note(error: float) -> str:
    """Returns a note on the Monte-Carlo error; empty where every subset was visited."""
    if not error:
        return ""
    digits = max(1, -math.floor(math.log10(error)))
    return f"{best_of_n.SAMPLED_SUBSETS} drawn subsets a problem, standard error {error:.{digits}f}"


def group_size_faults(scores: Sequence[ScoredTrace]) -> Iterator[str]:
    """Yields a message when a problem has more completions than can be judged together."""
    groups = Counter((t.subset, t.cluster) for t in scores)
    largest = max(groups.values(), default=0)
    if largest > MOST_COMPLETIONS:
        yield f"have {largest} completions of one problem, more than {MOST_COMPLETIONS}"


def verify_advice(path: str) -> str:
    """Returns the command, to paste, that puts outcomes on the completions in a file, as the user wrote its path."""
    out = f"{Path(path).stem}-verified.jsonl"
    return f"`prmbench verify {shlex.quote(path)} --out {shlex.quote(out)}` puts outcomes on them"


def advice_without_outcomes(traces: Sequence[Trace], source: str) -> str:
    """Returns what to do with traces that have no outcome; `source` is their path, or their place on the hub."""
    if any(t.first_error is not None for t in traces):
        return "solutions with step labels are judged without --benchmark"
    return verify_advice(source)
