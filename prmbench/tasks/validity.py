"""Task validity: is every single step judged rightly? PRMScore by category, by group of them and pooled; its floors.

One threshold holds for all categories. The twins that are all right (subset `correct`) stand apart and are in no total.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from prmbench.core.records import EvalProtocol, RunManifest, ScoredTrace, UserError
from prmbench.metrics import first_error, step_validity
from prmbench.metrics.first_error import Floats, Ints
from prmbench.metrics.step_validity import INVALID, VALID, Steps
from prmbench.tasks import steps as step_f1
from prmbench.tasks.metric_rows import Cell, Judged, Part, absent, average_name, of_subset, resampled

RULES = ("native", "fixed", "cross_validated", "oracle")
GROUPS: dict[str, tuple[str, ...]] = {
    "simplicity": ("redundency", "circular"),
    "soundness": ("counterfactual", "step_contradiction", "domain_inconsistency", "confidence"),
    "sensitivity": ("missing_condition", "deception", "multi_solutions"),
}
APART = "correct"
F1_ONLY = "multi_solutions"
"""Every step of it is valid, so PRMBench takes F1 for its PRMScore."""
NO_INVALID, NO_VALID = "no invalid step", "no valid step"
NAMES = (
    *("prmscore", "valid_f1", "invalid_f1", "step_accuracy"),
    *("valid_accuracy", "invalid_accuracy", "first_error_accuracy"),
)


@dataclass(frozen=True, slots=True)
class _Whole:
    """Several categories together."""

    part: Part
    members: tuple[int, ...]
    """Their places."""
    pooled: bool
    """By their counts; otherwise by the mean of their scores."""
    note: str
    """What it lacks."""


@dataclass(frozen=True, slots=True)
class _Side:
    """The labelled steps of a run without their scores, and how they are resampled."""

    traces: tuple[ScoredTrace, ...]
    parts: tuple[Part, ...]
    """Of the categories, in the order of `Steps.category`."""
    wholes: tuple[_Whole, ...]
    steps: Steps
    weights: Floats
    """[b, problems], the same draws for all categories: most problems are in most of them."""
    fold: Ints
    """[problems]"""
    total: Floats
    """[b, categories, KINDS]"""

    @property
    def pooled(self) -> list[int]:
        """Places of the categories that count towards the whole."""
        return [k for k, part in enumerate(self.parts) if part.name != APART]


def protocols(manifest: RunManifest) -> tuple[EvalProtocol, ...]:
    """Every protocol that the run's kind of score admits; a verdict names one step, and says nothing of the others."""
    known = () if manifest.kind == "verdict" else step_f1.protocols(manifest)
    return tuple(p for p in known if p.threshold in RULES)


def keys(manifest: RunManifest) -> tuple[str, ...]:
    """`[series.]readout/threshold`, as in step F1."""
    return tuple(p.key for p in protocols(manifest))


def checked(manifest: RunManifest, wanted: Sequence[str]) -> tuple[str, ...]:
    """Protocols as a user spelled them -> as rows spell them; any fixed threshold will do. Raises UserError."""
    found = []
    for key in wanted:
        protocol = step_f1.resolve(manifest, EvalProtocol.parse(key))
        if manifest.kind == "verdict" or protocol.threshold not in RULES:
            readable = ", ".join(keys(manifest)) or "none: it needs a score for every step"
            raise UserError(f"protocol {key!r}: {manifest.benchmark} has {readable}")
        found.append(protocol.key)
    return tuple(found)


def judged(manifest: RunManifest, scores: Sequence[ScoredTrace]) -> Judged:
    """The floors, then every protocol: categories, groups (named as averages of theirs) and the pooled whole."""
    side = _side(manifest, scores)
    rate = np.nan_to_num(
        step_validity.best_rate(side.total[:, side.pooled].sum(axis=1))
    )  # of twins alone: flag nothing
    every = np.zeros_like(side.total)
    every[..., VALID] = side.total[..., VALID]
    cells = {
        "floor/random": _cells(side, step_validity.flagged_at_random(side.total, rate)),
        "floor/all_valid": _cells(side, every),
    }
    asked = map(EvalProtocol.parse, checked(manifest, manifest.extra_protocols))
    for protocol in (*protocols(manifest), *asked):
        cells[protocol.key] = _protocol_cells(side, step_f1.resolve(manifest, protocol))
    return Judged((*side.parts, *(whole.part for whole in side.wholes)), cells, averages=())


# --- from scores to counts --------------------------------------------------------------------------------------


def _side(manifest: RunManifest, scores: Sequence[ScoredTrace]) -> _Side:
    names = sorted(manifest.subsets, key=_rank)
    by_name = {name: of_subset(scores, name) for name in names}
    traces = tuple(t for found in by_name.values() for t in found)
    for trace in traces:
        if len(trace.step_labels) != trace.steps or not set(trace.step_labels) <= {0.0, 1.0}:
            raise UserError(f"{trace.id}: task validity needs a label 0 or 1 for each of its {trace.steps} steps")
    parts = tuple(Part(n, len(found), sum(bool(t.unscored) for t in found)) for n, found in by_name.items())
    problem, weights = resampled(manifest, manifest.task, [t.cluster for t in traces])
    steps = _steps(traces, problem, names)
    total = weights @ step_validity.totals(steps).reshape(steps.problems, -1)
    return _Side(
        traces,
        parts,
        _wholes(parts),
        steps,
        weights,
        np.arange(steps.problems) % step_f1.FOLDS,  # problems are numbered by name: as metrics.folds deals them
        total.reshape(len(weights), len(names), step_validity.KINDS),
    )


def _rank(name: str) -> tuple[int, str]:
    """PRMBench's order; categories that it does not know follow, the twins are last."""
    known = [name for names in GROUPS.values() for name in names]
    return (known.index(name) if name in known else len(known) + (name == APART), name)


def _steps(traces: Sequence[ScoredTrace], problem: Ints, names: Sequence[str]) -> Steps:
    lengths = [t.steps for t in traces]
    valid = np.array([label == 1.0 for t in traces for label in t.step_labels], dtype=bool)
    category = np.repeat([names.index(t.subset) for t in traces], lengths).astype(np.int64)
    first = [t.step_labels.index(0.0) if 0.0 in t.step_labels else -1 for t in traces]
    return Steps(
        np.full(len(valid), np.nan),
        valid,
        np.array([k == f for f, n in zip(first, lengths, strict=True) for k in range(n)], dtype=bool),
        np.repeat(problem, lengths),
        category,
        category != (names.index(APART) if APART in names else -1),
        int(problem.max()) + 1,
        len(names),
    )


def _scored(side: _Side, protocol: EvalProtocol) -> Steps:
    """The steps with the protocol's readout; an unscored trace has nan on all of its steps."""
    read = [first_error.readout(t, protocol) for t in side.traces]
    values = [np.full(t.steps, np.nan) if r is None else r for t, r in zip(side.traces, read, strict=True)]
    return replace(side.steps, score=np.concatenate(values))


# --- from counts to cells ---------------------------------------------------------------------------------------


def _protocol_cells(side: _Side, protocol: EvalProtocol) -> dict[str, list[Cell]]:
    steps = _scored(side, protocol)
    tuned = protocol.threshold in ("cross_validated", "oracle")
    reason = _untunable(side, protocol) if tuned else ""
    if reason:
        return _absent(side, reason)
    fold = side.fold if protocol.threshold == "cross_validated" else np.zeros_like(side.fold)
    if tuned:
        at = step_validity.cuts(steps.score[steps.pooled])
        chosen = step_validity.best_cuts(step_validity.curves(steps, at), side.weights, fold)
    elif protocol.at is None:
        raise ValueError(f"{protocol.key}: no number for its threshold")
    else:
        at, chosen = np.array([protocol.at]), np.zeros((len(side.weights), 1), dtype=np.int64)
    cells = _cells(side, step_validity.tally(steps, at, chosen, side.weights, fold))
    for whole in side.wholes:
        if whole.pooled:
            cells[whole.part.name].append(Cell("threshold", np.median(at[chosen], axis=1)))
    return cells


def _untunable(side: _Side, protocol: EvalProtocol) -> str:
    counts = side.total[0, side.pooled].sum(axis=0)
    if not counts[INVALID] or not counts[VALID]:
        return f"{NO_INVALID if counts[VALID] else NO_VALID} to tune on"
    alone = protocol.threshold == "cross_validated" and len(np.unique(side.fold)) == 1
    return "cross-validation needs two problems" if alone else ""


def _absent(side: _Side, reason: str) -> dict[str, list[Cell]]:
    cells = {part.name: absent(NAMES, reason) for part in side.parts}
    for whole in side.wholes:
        cells[whole.part.name] = absent(NAMES if whole.pooled else NAMES[:1], reason)
    return cells


def _cells(side: _Side, right: Floats) -> dict[str, list[Cell]]:
    """[b, categories, KINDS] right judgements -> cells of every category, group and the whole."""
    cells = {p.name: _metric_cells(right[:, k], side.total[:, k], p.name) for k, p in enumerate(side.parts)}
    for whole in side.wholes:
        name, members = whole.part.name, list(whole.members)
        if whole.pooled:
            pooled, total = (counts[:, members].sum(axis=1) for counts in (right, side.total))
            cells[name] = _metric_cells(pooled, total, name, whole.note)
        else:
            alike = [cells[side.parts[k].name][0] for k in members]
            reasons = [f"{side.parts[k].name}: {c.note}" for k, c in zip(members, alike, strict=True) if c.note]
            note = "; ".join(filter(None, (whole.note, *reasons)))
            cells[name] = [Cell("prmscore", np.mean([c.values for c in alike], axis=0), note)]
    return cells


def _metric_cells(right: Floats, total: Floats, name: str, note: str = "") -> list[Cell]:
    found = step_validity.metrics(right, total, only_valid=name == F1_ONLY)
    lacking = NO_VALID if not total[0, VALID] else NO_INVALID
    return [Cell(m, v, lacking if np.isnan(v[0]) else note) for m, v in found.items()]


def _wholes(parts: Sequence[Part]) -> tuple[_Whole, ...]:
    """Groups, then all categories pooled, of what is there; what is missing is not in the name, and is noted."""
    there = {part.name: k for k, part in enumerate(parts) if part.name != APART}
    every = tuple(name for names in GROUPS.values() for name in names)
    found = []
    for group, members in (*GROUPS.items(), ("overall", every)):
        pooled = group == "overall"
        present = [name for name in there if pooled or name in members]
        if present:
            places = tuple(there[name] for name in present)
            n, unscored = (sum(getattr(parts[k], what) for k in places) for what in ("n", "unscored"))
            name = f"micro[{','.join(present)}]" if pooled else average_name(present)
            lacking = [name for name in members if name not in there]
            note = f"{group} without {', '.join(lacking)}" if lacking else ""
            found.append(_Whole(Part(name, n, unscored), places, pooled, note))
    return tuple(found)
