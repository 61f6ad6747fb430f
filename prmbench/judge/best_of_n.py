"""Task best_of_n: how right the completion is that a reward model picks among N, beside chance, majority and ceiling.

Every number is an expectation over all N-subsets of a problem's verified completions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from prmbench import metrics, sequence
from prmbench.judge.groups import Group, Problems, Subsets, error_note, problems, votes
from prmbench.judge.rows import Cell, Judged, absent, weighted_mean
from prmbench.metrics import Floats
from prmbench.schema import READOUTS, EvalProtocol, RunManifest, ScoredTrace

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

    def score(self, trace: ScoredTrace) -> float:
        """What completions are ranked by; -inf without step scores."""
        steps = _share_of_passes(trace) if self.protocol.readout == "vote" else metrics.readout(trace, self.protocol)
        if steps is None or not trace.steps:  # what says nothing has no step
            return -np.inf
        return sequence.aggregate(steps, self.how, self.beta, self.probability)

    def log_weight(self, scores: Floats) -> Floats:
        weights = sequence.log_weight(scores, self.how, self.beta, self.probability)
        return np.where(np.isneginf(scores), -np.inf, weights)


def _share_of_passes(trace: ScoredTrace) -> Floats | None:
    """A critic's score: in how many of its critiques no step is wrong; one that cannot be read finds fault."""
    return None if trace.unscored or not trace.verdicts else np.array([float(v == -1) for v in trace.verdicts])


def _rules(manifest: RunManifest) -> list[_Rule]:
    probability = manifest.kind in ("prob", "verdict")
    hows = ("mean",) if manifest.kind == "verdict" else HOW
    return [
        _Rule(EvalProtocol(r, "oracle", series=s, boundary=manifest.boundary), how, manifest.beta or 1.0, probability)
        for s in ("", *manifest.series)
        for r in READOUTS[manifest.kind]
        for how in hows
    ]


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
    picks = [np.array([[rule.score(t) for t in g.verified] for rule in rules]) for g in side.groups]
    heard = [_log_weights(rules, p) for p in picks]
    found: dict[str, list[Cell]] = {key: [] for key in ("floor/majority", "floor/pass", *(r.key for r in rules))}
    for n in sequence.sizes(side.largest):
        values, error = votes(side, heard, n, subsets)
        found["floor/majority"].append(_vote_cell(side, f"majority@{n}", values[0], error[0], n))
        reached = [sequence.pass_at(g.outcomes, n) if len(g.verified) >= n else np.nan for g in side.groups]
        found["floor/pass"].append(_cell(side, f"pass@{n}", np.array(reached), n))
        for k, rule in enumerate(rules):
            best = np.array([_best_of(g, p[k], n) for g, p in zip(side.groups, picks, strict=True)])
            found[rule.key] += [
                _cell(side, f"best_of@{n}", best, n),
                _vote_cell(side, f"weighted_vote@{n}", values[1 + k], error[1 + k], n),
                _cell(side, f"gain@{n}", best - side.accuracy, n),
            ]
    note = "; ".join(side.left_out())
    return {"floor/random": [Cell("accuracy", weighted_mean(side.accuracy, side.weights), note)], **found}


def _log_weights(rules: Sequence[_Rule], scores: Floats) -> Floats:
    """[1 + rules, m]: first everybody's vote alike, then by each rule's [rules, m] scores."""
    weighted = [rule.log_weight(row) for rule, row in zip(rules, scores, strict=True)]
    return np.stack([np.zeros(scores.shape[1]), *weighted])


def _best_of(group: Group, scores: Floats, n: int) -> float:
    return sequence.best_of(scores, group.outcomes, n) if len(group.verified) >= n else np.nan


def _cell(side: Problems, metric: str, values: Floats, n: int) -> Cell:
    return Cell(metric, weighted_mean(values, side.weights), side.note(n))


def _vote_cell(side: Problems, metric: str, values: Floats, error: float, n: int) -> Cell:
    if not side.answered:
        return absent([metric], NO_ANSWERS)[0]
    note = "; ".join(filter(None, (side.note(n), error_note(error))))
    return Cell(metric, weighted_mean(values, side.weights), note)
