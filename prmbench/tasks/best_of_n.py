"""Task best_of_n: how right the completion is that a reward model picks among N, beside chance, majority and ceiling.

Every number is an expectation over all N-subsets of a problem's verified completions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np

from prmbench.core.records import READOUTS, EvalProtocol, RunManifest, ScoredTrace
from prmbench.metrics import best_of_n, first_error
from prmbench.metrics.first_error import Floats, Ints
from prmbench.tasks.metric_rows import Cell, Judged, absent, weighted_mean
from prmbench.tasks.problem_groups import Group, Problems, Subsets, error_note, problems, votes

HOW = ("last", "min", "mean", "prod", "sum")
"""Step scores -> the completion's."""
NO_ANSWERS = "the completions name no answers"


@dataclass(frozen=True, slots=True)
class _Rule:
    """How a completion gets its score."""

    protocol: EvalProtocol
    """Names the readout and the series; its threshold plays no part."""
    how: str
    beta: float
    probability: bool
    """The step scores are probabilities already."""

    @property
    def key(self) -> str:
        readout = self.protocol.key.partition("/")[0]
        return f"{readout}/{self.how}{'@release' if self.protocol.boundary == 'release' else ''}"

    def log_weight(self, scores: Floats) -> Floats:
        weights = best_of_n.log_weight(scores, self.how, self.beta, self.probability)
        return np.where(np.isneginf(scores), -np.inf, weights)


def _scores(traces: Sequence[ScoredTrace], rules: Sequence[_Rule]) -> Floats:
    """What each completion is ranked by under each rule, [rules, n]; -inf without step scores."""
    found = np.full((len(rules), len(traces)), -np.inf)
    for protocol, alike in groupby(enumerate(rules), lambda pair: pair[1].protocol):  # those of a readout are together
        numbered = list(alike)
        for places, steps in _step_scores(traces, protocol):
            for number, rule in numbered:
                if steps.shape[1]:  # what says nothing has no step
                    found[number, places] = best_of_n.aggregate(steps, rule.how, rule.beta, rule.probability)
    return found


def _step_scores(traces: Sequence[ScoredTrace], protocol: EvalProtocol) -> Iterator[tuple[Ints, Floats]]:
    """Places [m] of completions with equally many step scores, and these, [m, k]; a critic gives one score in all."""
    if protocol.readout != "vote":
        yield from first_error.readouts(traces, protocol)
        return
    passes = [_share_of_passes(trace) if trace.steps else None for trace in traces]
    places = np.array([place for place, share in enumerate(passes) if share is not None], dtype=np.int64)
    yield places, np.array([share for share in passes if share is not None], dtype=float).reshape(-1, 1)


def _share_of_passes(trace: ScoredTrace) -> float | None:
    """A critic's score: in how many of its critiques no step is wrong; one that cannot be read finds fault."""
    return None if trace.unscored or not trace.verdicts else float(np.mean([v == -1 for v in trace.verdicts]))


def _rules(manifest: RunManifest) -> list[_Rule]:
    probability = manifest.kind in ("prob", "verdict")
    hows = ("mean",) if manifest.kind == "verdict" else HOW
    reads = [
        EvalProtocol(readout, "oracle", series=series, boundary=manifest.boundary)
        for series in ("", *manifest.series)
        for readout in READOUTS[manifest.kind]
    ]
    return [_Rule(protocol, how, manifest.beta or 1.0, probability) for protocol in reads for how in hows]


def keys(manifest: RunManifest) -> tuple[str, ...]:
    """`[series.]readout/aggregation`, with `@release` where the run was scored so."""
    return tuple(rule.key for rule in _rules(manifest))


def judged(manifest: RunManifest, scores: Sequence[ScoredTrace]) -> Judged:
    """Floors, then best_of@N, weighted_vote@N and gain@N under each rule."""
    sides = problems(manifest, scores)
    rules = _rules(manifest)
    subsets = Subsets(manifest.seed)
    found = {side.part.name: _cells(side, rules, subsets) for side in sides}
    names = ("floor/random", "floor/majority", "floor/pass", *(rule.key for rule in rules))
    return Judged(tuple(s.part for s in sides), {key: {name: found[name][key] for name in found} for key in names})


def _cells(side: Problems, rules: Sequence[_Rule], subsets: Subsets) -> dict[str, list[Cell]]:
    """By protocol: a random completion, the commonest answer, the ceiling of any choice, and each rule's picks."""
    everyone = _scores([t for g in side.groups for t in g.verified], rules)
    ends = np.cumsum([len(g.verified) for g in side.groups])[:-1]
    picks = np.split(everyone, ends, axis=1)
    heard = np.split(_log_weights(rules, everyone), ends, axis=1)
    sizes, accuracy = best_of_n.sizes(side.largest), side.accuracy
    best = np.stack([_best_of_each(g, p, sizes) for g, p in zip(side.groups, picks, strict=True)], axis=-1)
    found: dict[str, list[Cell]] = {key: [] for key in ("floor/majority", "floor/pass", *(r.key for r in rules))}
    for at, n in enumerate(sizes):
        values, error = votes(side, heard, n, subsets)
        note = side.note(n)
        found["floor/majority"].append(_vote_cell(side, f"majority@{n}", values[0], error[0], note))
        reached = [best_of_n.pass_at(g.outcomes, n) if len(g.verified) >= n else np.nan for g in side.groups]
        found["floor/pass"].append(_cell(side, f"pass@{n}", np.array(reached), note))
        for k, rule in enumerate(rules):
            found[rule.key] += [
                _cell(side, f"best_of@{n}", best[k, at], note),
                _vote_cell(side, f"weighted_vote@{n}", values[1 + k], error[1 + k], note),
                _cell(side, f"gain@{n}", best[k, at] - accuracy, note),
            ]
    note = "; ".join(side.left_out())
    return {"floor/random": [Cell("accuracy", weighted_mean(accuracy, side.weights), note)], **found}


def _log_weights(rules: Sequence[_Rule], scores: Floats) -> Floats:
    """[1 + rules, m]: first everybody's vote alike, then by each rule's [rules, m] scores."""
    weighted = [rule.log_weight(row) for rule, row in zip(rules, scores, strict=True)]
    return np.stack([np.zeros(scores.shape[1]), *weighted])


def _best_of_each(group: Group, scores: Floats, sizes: Sequence[int]) -> Floats:
    """Expected outcome of each rule's pick among N, [rules, sizes]; nan where the problem has too few completions."""
    found = np.full((len(scores), len(sizes)), np.nan)
    enough = [n for n in sizes if len(group.verified) >= n]
    if enough:
        found[:, : len(enough)] = best_of_n.best_of_each(scores, group.outcomes, enough)
    return found


def _cell(side: Problems, metric: str, values: Floats, note: str) -> Cell:
    return Cell(metric, weighted_mean(values, side.weights), note)


def _vote_cell(side: Problems, metric: str, values: Floats, error: float, note: str) -> Cell:
    if not side.answered:
        return absent([metric], NO_ANSWERS)[0]
    return Cell(metric, weighted_mean(values, side.weights), "; ".join(filter(None, (note, error_note(error)))))
