"""Task steps: first-error F1 under every protocol, its chance floors, and comparisons of two runs.

Pure functions of committed scores, so any table can be recomputed without a model.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from prmbench.core.records import (
    DEFAULT_READOUTS,
    READOUTS,
    READOUTS_ON_REQUEST,
    EvalProtocol,
    MetricRow,
    RunManifest,
    RunResult,
    ScoredTrace,
    UserError,
)
from prmbench.core.validation import Fault
from prmbench.metrics import first_error
from prmbench.metrics.first_error import Floats, Sample
from prmbench.tasks import step_ranking
from prmbench.tasks.metric_rows import (
    OUT_OF_FOLD,
    Cell,
    Judged,
    SubsetInfo,
    absent,
    resampled,
    subset_rows,
    traces_of_subset,
)
from prmbench.tasks.table import DASH, NOTED, PERCENT, Code, Row, Table, Unit, Value
from prmbench.tasks.task import Floor, Leading, Task
from prmbench.tasks.wording import FLOORS as FLOOR_WORDS
from prmbench.tasks.wording import rule_and_readout

FOLDS = 5
FLOORS = ("random", "position", "outcome_oracle")
RECOMMENDED = ("calibrated", "cross_validated", "native", "fixed")
"""Threshold rules that could be used in practice, the recommended one first."""
MAX_SUBSET_COLUMNS = 4
"""With more subsets the terminal table shows only the average."""


@dataclass(frozen=True, slots=True)
class Subset:
    """The traces of one subset with their bootstrap weights [b, n] and fold numbers [n]."""

    name: str
    traces: tuple[ScoredTrace, ...]
    weights: Floats
    fold: first_error.Ints

    @property
    def unscored(self) -> int:
        """Number of traces without a score."""
        return sum(bool(t.unscored) for t in self.traces)


def eval_protocols(manifest: RunManifest) -> tuple[EvalProtocol, ...]:
    """Returns every protocol that the run's kind of score and threshold rules allow, in table order."""
    if manifest.kind == "verdict":
        return (EvalProtocol("vote", "native", boundary=manifest.boundary),)
    candidates = []
    for series in ("", *manifest.series):
        for readout in READOUTS[manifest.kind]:
            base = EvalProtocol(readout, "oracle", series=series, boundary=manifest.boundary)
            if manifest.native is not None:
                candidates.append(replace(base, threshold="native", at=manifest.native))
            if manifest.fixed is not None:
                candidates.append(replace(base, threshold="fixed", at=manifest.fixed))
            candidates += [
                replace(base, threshold="calibrated", on=manifest.calibrate_on),
                replace(base, threshold="calibrated_in_sample", on=manifest.calibrate_on),
                replace(base, threshold="cross_validated"),
                base,
            ]
    return tuple(p for p in candidates if not manifest.rules or p.threshold in manifest.rules)


def judge(manifest: RunManifest, scores: Sequence[ScoredTrace]) -> Judged:
    """Computes all cells of a run by protocol and subset, floors first."""
    extra = map(EvalProtocol.parse, manifest.extra_protocols)
    return _judge(manifest, scores, (*eval_protocols(manifest), *step_ranking.protocols(manifest), *extra))


def judge_one(manifest: RunManifest, scores: Sequence[ScoredTrace], key: str) -> Judged:
    """Computes the floors and the cells of one protocol."""
    return _judge(manifest, scores, [EvalProtocol.parse(key)])


def _judge(manifest: RunManifest, scores: Sequence[ScoredTrace], unresolved: Sequence[EvalProtocol]) -> Judged:
    subsets = _subset_data(manifest, scores)
    cells = {f"floor/{name}": {s.name: [floor(name, s)] for s in subsets} for name in FLOORS}
    samples: dict[tuple[str, str], dict[str, Sample]] = {}  # the threshold rules of a readout share them
    for requested in unresolved:
        protocol = resolve(manifest, requested)
        if protocol.threshold == step_ranking.RULE:
            for key, is_floor in ((step_ranking.FLOOR, True), (protocol.key, False)):
                ranked = {s.name: step_ranking.cells(s.traces, s.weights, protocol, is_floor) for s in subsets}
                cells.setdefault(key, ranked)
            continue
        readout = protocol.series, protocol.readout
        if readout not in samples:
            samples[readout] = _samples(subsets, protocol)
        cells[protocol.key] = _protocol_cells(subsets, protocol, samples[readout])
    return Judged(_parts(subsets), cells)


def protocols(manifest: RunManifest) -> tuple[str, ...]:
    """Returns the keys of `eval_protocols`, and those of the threshold-free numbers."""
    return tuple(protocol.key for protocol in (*eval_protocols(manifest), *step_ranking.protocols(manifest)))


def resolve(manifest: RunManifest, protocol: EvalProtocol) -> EvalProtocol:
    """Returns the protocol with the run's rule for ties, and with its own threshold filled in for `native`.

    Raises:
        UserError: The run's scores cannot be read under the protocol.
    """
    protocol = replace(protocol, tie=manifest.tie)
    if protocol.readout not in (*READOUTS[manifest.kind], *READOUTS_ON_REQUEST.get(manifest.kind, ())):
        readable = ", ".join(READOUTS[manifest.kind])
        raise UserError(f"protocol {protocol.key}: {manifest.model} has {manifest.kind} scores, readouts {readable}")
    if protocol.series not in ("", *manifest.series):
        raise UserError(f"protocol {protocol.key}: no series {protocol.series!r} in this run")
    if protocol.boundary != manifest.boundary:
        raise UserError(f"protocol {protocol.key}: the run was scored with --boundary {manifest.boundary}")
    if (protocol.readout == "vote") != (manifest.kind == "verdict" and protocol.threshold == "native"):
        raise UserError(f"protocol {protocol.key}: verdicts are read as vote/native, and nothing else is")
    if protocol.threshold != "native" or protocol.readout == "vote":
        return protocol
    if manifest.native is None:
        raise UserError(f"protocol {protocol.key}: {manifest.model} gives no label of its own")
    return replace(protocol, at=manifest.native)


def _subset_data(manifest: RunManifest, scores: Sequence[ScoredTrace]) -> list[Subset]:
    subsets = []
    for name in manifest.subsets:
        traces = traces_of_subset(scores, name)
        clusters = [t.cluster for t in traces]
        problem_of_trace, draws = resampled(manifest, name, clusters)
        subsets.append(
            Subset(name, traces, np.ascontiguousarray(draws[:, problem_of_trace]), first_error.folds(clusters, FOLDS))
        )
    return subsets


# --- threshold rules ------------------------------------------------------------------------------------


def _samples(subsets: Sequence[Subset], protocol: EvalProtocol) -> dict[str, Sample]:
    """Samples by subset; they depend only on the protocol's readout and series."""
    return {s.name: first_error.sample(s.traces, protocol) for s in subsets}


def _protocol_cells(
    subsets: Sequence[Subset], protocol: EvalProtocol, samples: Mapping[str, Sample]
) -> dict[str, list[Cell]]:
    """Cells by subset; undefined cells with a reason where the protocol cannot be applied."""
    if protocol.readout == "vote":
        unparsed = [_unparsed(s) for s in subsets] if _any_unparsed(subsets) else [[]] * len(subsets)
        pairs = zip(subsets, unparsed, strict=True)
        return {s.name: [*_subset_cells(s, samples[s.name], protocol, None), *cells] for s, cells in pairs}
    if protocol.on is None:
        return {s.name: _subset_cells(s, samples[s.name], protocol, None) for s in subsets}
    calibration = next((s for s in subsets if s.name == protocol.on), None)
    if calibration is None:
        return {s.name: _absent(f"needs subset {protocol.on}, which this run does not have") for s in subsets}
    if reason := missing(calibration):
        return {s.name: _absent(f"{protocol.on} has {reason} to tune on") for s in subsets}
    thresholds = first_error.best_threshold(samples[calibration.name], calibration.weights)
    return {s.name: _subset_cells(s, samples[s.name], protocol, thresholds) for s in subsets}


def _subset_cells(subset: Subset, data: Sample, protocol: EvalProtocol, tuned: Floats | None) -> list[Cell]:
    """Cells of one subset; `tuned` holds thresholds [b] tuned on the calibration subset, if the protocol has one."""
    out_of_fold = protocol.threshold == "calibrated" and protocol.on == subset.name
    if protocol.threshold == "cross_validated" or out_of_fold:
        if len(set(subset.fold)) == 1:
            return _absent("cross-validation needs two problems")
        is_right, threshold = _cross_validated(subset, data)
    else:
        threshold = _threshold(subset, data, protocol, tuned)
        is_right = data.matches(threshold)
    note = OUT_OF_FOLD if out_of_fold else ""
    error, correct = first_error.accuracies(data, is_right, subset.weights)
    cells = [
        Cell("f1", first_error.harmonic(error, correct), note),
        Cell("error_accuracy", error, note),
        Cell("correct_accuracy", correct, note),
    ]
    if protocol.readout != "vote":
        cells.append(Cell("threshold", threshold, note, averaged=False))
    return cells


def _any_unparsed(subsets: Sequence[Subset]) -> bool:
    return any(None in t.verdicts for s in subsets for t in s.traces)


def _unparsed(subset: Subset) -> list[Cell]:
    """Share of votes that could not be parsed. They take no part in the majority."""
    votes = np.array([len(t.verdicts) for t in subset.traces])
    unparsed = np.array([t.verdicts.count(None) for t in subset.traces])
    total = subset.weights @ votes
    share = np.divide(subset.weights @ unparsed, total, out=np.full(len(total), np.nan), where=total > 0)
    return [Cell("unparsed", share)]


def _threshold(subset: Subset, data: Sample, protocol: EvalProtocol, tuned: Floats | None) -> Floats:
    if protocol.threshold == "oracle":
        return first_error.best_threshold(data, subset.weights)
    if tuned is not None:
        return tuned
    number = 1.0 if protocol.readout == "vote" else protocol.at
    if number is None:
        raise ValueError(f"{protocol.key}: no number for its threshold")
    return np.full(len(subset.weights), number)


def _cross_validated(subset: Subset, data: Sample) -> tuple[NDArray[np.bool_], Floats]:
    """Whether each trace is judged right by the threshold of the other folds, and the median threshold over folds."""
    is_right = np.zeros(subset.weights.shape, dtype=bool)
    fold_thresholds = []
    for fold in sorted(set(subset.fold)):
        held_out = subset.fold == fold
        threshold = first_error.best_threshold(data, subset.weights * ~held_out)
        is_right[:, held_out] = data.matches(threshold)[:, held_out]
        fold_thresholds.append(threshold)
    return is_right, np.median(fold_thresholds, axis=0)


# --- rows ------------------------------------------------------------------------------------------------


def _absent(reason: str) -> list[Cell]:
    cells = absent(("f1", "error_accuracy", "correct_accuracy", "threshold"), reason)
    return [replace(cell, averaged=cell.metric != "threshold") for cell in cells]


def _parts(subsets: Sequence[Subset]) -> tuple[SubsetInfo, ...]:
    return tuple(SubsetInfo(s.name, len(s.traces), s.unscored, missing(s)) for s in subsets)


def missing(subset: Subset) -> str:
    """Returns the reason why F1 is undefined on these labels; empty if it is defined."""
    labels = [t.label for t in subset.traces]
    if all(label == -1 for label in labels):
        return "no trace with an error"
    return "" if -1 in labels else "no trace without an error"


def floor(name: str, subset: Subset) -> Cell:
    """Computes the F1 of one of FLOORS on a subset's labels."""
    label = np.array([t.label for t in subset.traces], dtype=np.int64)
    if name == "random":
        steps = np.array([t.steps for t in subset.traces], dtype=np.int64)
        return Cell("f1", first_error.random_floor(steps, label, subset.weights))
    if name == "position":
        return Cell("f1", first_error.position_floor(label, subset.weights))
    if any(t.outcome is None for t in subset.traces):
        return Cell("f1", np.array([np.nan]), "final answers are not labelled")
    outcome = np.array([t.outcome for t in subset.traces], dtype=np.int64)
    return Cell("f1", first_error.outcome_floor(label, outcome, subset.weights))


# --- run against run ---------------------------------------------------------------------------------------


def compare(
    a: tuple[RunResult, Sequence[ScoredTrace]],
    b: tuple[RunResult, Sequence[ScoredTrace]],
    pairs: Sequence[tuple[EvalProtocol, EvalProtocol]],
) -> tuple[MetricRow, ...]:
    """Computes the paired difference in F1 (b minus a) with its interval and p-value, per subset and averaged.

    Both runs are resampled with the same problems. Metrics: f1_a, f1_b, f1_difference, p_value and mdd, the
    smallest difference that this pairing detects with power 0.80.

    Raises:
        UserError: A pair of protocols has different threshold rules.
    """
    (left, left_scores), (right, right_scores) = a, b
    seeded = replace(right.manifest, seed=left.manifest.seed, replicates=left.manifest.replicates)
    subsets = _subset_data(left.manifest, left_scores), _subset_data(seeded, right_scores)
    rows: list[MetricRow] = []
    for protocol_a, protocol_b in pairs:
        check_alike(protocol_a, protocol_b)
        protocols = resolve(left.manifest, protocol_a), resolve(right.manifest, protocol_b)
        cells = [_protocol_cells(s, p, _samples(s, p)) for s, p in zip(subsets, protocols, strict=True)]
        name = protocol_a.key if protocol_a.key == protocol_b.key else f"{protocol_a.key} vs {protocol_b.key}"
        paired = {s.name: _differences(cells[0][s.name], cells[1][s.name]) for s in subsets[0]}
        rows += subset_rows(_parts(subsets[0]), name, paired)
    return tuple(rows)


def pairs(
    a: RunManifest, b: RunManifest, keys: Sequence[str] = (), against: str | None = None
) -> list[tuple[EvalProtocol, EvalProtocol]]:
    """Returns the protocols to compare: the named ones (`against`: the second run's), or all that both runs have."""
    if keys:
        return [(EvalProtocol.parse(key), EvalProtocol.parse(against or key)) for key in keys]
    other_keys = {p.key for p in eval_protocols(b)}
    shared = [(p, p) for p in eval_protocols(a) if p.key in other_keys and p.threshold != "calibrated_in_sample"]
    if not shared:
        raise UserError(no_shared_protocol(a, b))
    return shared


def no_shared_protocol(a: RunManifest, b: RunManifest) -> str:
    """Returns the error message for two runs without a common protocol."""
    return (
        f"compare: {a.model} ({a.kind}) and {b.model} ({b.kind}) share no protocol; "
        "name one for each with --protocol and --against"
    )


def check_alike(a: EvalProtocol, b: EvalProtocol) -> None:
    """Raises UserError when two protocols have different threshold rules, so that their numbers are not comparable."""
    if step_ranking.RULE in (a.threshold, b.threshold):
        raise UserError(f"compare: {a.key} has no F1; name protocols with a threshold rule")
    differs_in_number = a.readout == b.readout and a.series == b.series and a.at != b.at
    if (a.threshold, a.on, a.boundary) != (b.threshold, b.on, b.boundary) or differs_in_number:
        raise UserError(f"compare: {a.key} and {b.key} are unlike threshold rules; compare the same rule on both sides")


def _differences(a: Sequence[Cell], b: Sequence[Cell]) -> list[Cell]:
    f1_a, f1_b = a[0], b[0]
    note = f1_a.note or f1_b.note
    return [
        Cell("f1_a", f1_a.values, note),
        Cell("f1_b", f1_b.values, note),
        Cell("f1_difference", f1_b.values - f1_a.values, note),
    ]


def leading(result: RunResult) -> tuple[Leading, ...]:
    """Returns F1 under the headline readout, by threshold rule, the recommended rule first."""
    keys = dict.fromkeys(row.protocol for row in result.rows if not row.protocol.startswith("floor/"))
    parsed = [EvalProtocol.parse(key) for key in keys]
    chosen = [p for p in parsed if p.readout == DEFAULT_READOUTS[result.manifest.kind] and not p.series]
    return tuple(
        Leading(p.key, "f1", "F1", rule, floors=tuple(Floor(key, "f1", name) for key, name in FLOOR_WORDS.items()))
        for rule in RECOMMENDED
        for p in chosen
        if p.threshold == rule
    )


# --- summary and checks ---------------------------------------------------------------------------------------


def summary(result: RunResult, keys: Sequence[str]) -> Table:
    """Returns the terminal table: F1 by protocol and subset, interval in the last column; then AUROC, then floors."""
    f1 = {(row.protocol, row.subset): row for row in result.rows if row.metric == "f1"}
    columns = _summary_columns(result)
    floors = [key for key in FLOOR_WORDS if any(protocol == key for protocol, _ in f1)]

    def protocol_row(key: str) -> Row:
        return (Code(key), *(f1_cell(f1.get((key, c)), interval=c == columns[-1]) for c in columns))

    ranked = [key for key in keys if rule_and_readout(key)[0] == step_ranking.RULE]
    keys = [key for key in keys if key not in ranked]
    shown = {*keys, *floors}
    shown_rows = [row for (protocol, subset), row in f1.items() if protocol in shown and subset in columns]
    words = [f"{key.removeprefix('floor/')}: {FLOOR_WORDS[key]}" for key in floors]
    floor_notes = [f"floors: {'; '.join(words)}"] if words else []
    return Table(
        label="steps",
        title="",
        caption="",
        header=("F1, percent", *("average" if name.startswith("avg[") else name for name in columns)),
        groups=(
            tuple(map(protocol_row, keys)),
            step_ranking.summary_rows(result, ranked, columns),
            tuple(map(protocol_row, floors)),
        ),
        notes=(
            *_out_of_fold_note(shown_rows),
            *missing_notes(shown_rows),
            *step_ranking.summary_notes(ranked),
            *floor_notes,
        ),
        text_columns=1,
        ends_with_floors=True,
    )


def _summary_columns(result: RunResult) -> list[str]:
    subsets = list(result.manifest.subsets)
    averages = [row.subset for row in result.rows if row.subset.startswith("avg[")][:1]
    return [*(subsets if len(subsets) <= MAX_SUBSET_COLUMNS or not averages else []), *averages]


def f1_cell(row: MetricRow | None, unit: Unit = PERCENT, interval: bool = True) -> Value:
    """Returns a row as a table value, marked if its threshold was tuned out of fold; a dash without a value."""
    if row is None or row.value is None:
        return Value(None, unit)
    lo, hi = (row.lo, row.hi) if interval else (None, None)
    return Value(row.value, unit, lo, hi, marks=NOTED if row.note.endswith(OUT_OF_FOLD) else "")


def _out_of_fold_note(rows: Sequence[MetricRow]) -> tuple[str, ...]:
    note = f"{NOTED} tuned on this subset, so judged out of fold; or an average with such a cell"
    return (note,) if any(row.note.endswith(OUT_OF_FOLD) for row in rows) else ()


def missing_notes(rows: Sequence[MetricRow]) -> list[str]:
    """Returns the distinct reasons why numbers are missing, as notes."""
    return [f"{DASH} {note}" for note in sorted({row.note for row in rows if row.value is None and row.note})]


def check_trace(manifest: RunManifest, trace: ScoredTrace) -> Iterator[Fault]:
    """Yields an error if the trace has no step or no label."""
    if not trace.steps:
        yield "steps", "is 0, and a first error needs a step"
    if trace.label is None:
        yield "label", f"is missing; benchmark {manifest.benchmark} needs one"


def resolve_key(manifest: RunManifest, key: str) -> str:
    """Returns the key of a protocol as rows spell it. Raises UserError like `resolve`."""
    return resolve(manifest, EvalProtocol.parse(key)).key


TASK = Task(
    name="steps",
    title="finding the first wrong step",
    description="Whether a model finds the first wrong step of a solution. F1 of exact hits and of solutions passed.",
    unscored="unscored, counted as wrong",
    protocols=protocols,
    judge=judge,
    judge_one=judge_one,
    leading=leading,
    summary=summary,
    has_threshold=True,
    has_board=True,
    resolve=resolve_key,
    compare=compare,
    pairs=pairs,
    check_trace=check_trace,
)
