"""Task steps: first-error F1 under every protocol, its chance floors, and comparisons of two runs.

Pure functions of committed scores, so any table can be recomputed without a model.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

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
from prmbench.metrics import first_error, floors, paired_tests
from prmbench.metrics.first_error import Floats, Sample
from prmbench.metrics.paired_tests import Swapped, SwapTest
from prmbench.tasks import step_ranking
from prmbench.tasks.metric_rows import (
    OUT_OF_FOLD,
    Cell,
    Groups,
    Judged,
    SubsetInfo,
    absent,
    compared_rows,
    difference,
    resampled,
    share,
    subset_seed,
    traces_of_subset,
)
from prmbench.tasks.table import DASH, NOTED, PERCENT, Code, Row, Table, Unit, Value
from prmbench.tasks.task import Floor, Leading, Task
from prmbench.tasks.wording import FLOORS as FLOOR_WORDS
from prmbench.tasks.wording import RANDOM_FLOORS, floors_under, hidden_floors, rule_and_readout

FLOORS = ("position", "outcome_oracle")
"""Floors that need no threshold; those of random scores depend on the threshold rule: see RANDOM_FLOORS."""
RECOMMENDED = ("calibrated", "cross_validated", "native", "fixed")
"""Threshold rules that could be used in practice, the recommended one first."""
MAX_SUBSET_COLUMNS = 4
"""With more subsets the terminal table shows only the average."""


@dataclass(frozen=True, slots=True)
class Subset:
    """The traces of one subset with their bootstrap weights [b, n] and fold numbers [splits, n]."""

    name: str
    traces: tuple[ScoredTrace, ...]
    weights: Floats
    fold: first_error.Ints

    @property
    def unscored(self) -> int:
        """Number of traces without a score."""
        return sum(bool(t.unscored) for t in self.traces)

    @property
    def problems(self) -> int:
        """Number of different problems."""
        return len({t.cluster for t in self.traces})

    @property
    def labels(self) -> first_error.Ints:
        """Index of the first error of each trace, -1 for none, [n]."""
        return np.array([t.label for t in self.traces], dtype=np.int64)

    @property
    def steps(self) -> first_error.Ints:
        """Number of steps of each trace, [n]."""
        return np.array([t.steps for t in self.traces], dtype=np.int64)


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
    resolved = [resolve(manifest, protocol) for protocol in unresolved]
    cells = floor_cells(subsets, [p.threshold for p in resolved], manifest.calibrate_on)
    samples: dict[tuple[str, str], dict[str, Sample]] = {}  # the threshold rules of a readout share them
    for protocol in resolved:
        if protocol.threshold == step_ranking.RULE:
            for key, is_floor in ((step_ranking.FLOOR, True), (protocol.key, False)):
                ranked = {s.name: step_ranking.cells(s.traces, s.weights, protocol, is_floor) for s in subsets}
                cells.setdefault(key, ranked)
            continue
        readout = protocol.series, protocol.readout
        if readout not in samples:
            samples[readout] = _samples(subsets, protocol)
        cells[protocol.key] = _protocol_cells(subsets, protocol, samples[readout])
    calibrated = [p.key for p in resolved if p.threshold == "calibrated"]
    also = [key for key in cells if key in FLOOR_WORDS] if calibrated else []
    groups = tuple(dict.fromkeys((manifest.subsets, _transferred(manifest))))
    return Judged(_parts(subsets), cells, other_averages=dict.fromkeys([*also, *calibrated], groups))


def _transferred(manifest: RunManifest) -> tuple[str, ...]:
    """The subsets that calibrated thresholds are applied to and not tuned on, over which they are averaged."""
    return tuple(name for name in manifest.subsets if name != manifest.calibrate_on)


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
            Subset(name, traces, np.ascontiguousarray(draws[:, problem_of_trace]), first_error.fold_splits(clusters))
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
        return {s.name: [*_subset_cells(s, protocol, samples, None), *cells] for s, cells in pairs}
    if protocol.on is None:
        return {s.name: _subset_cells(s, protocol, samples, None) for s in subsets}
    calibration = next((s for s in subsets if s.name == protocol.on), None)
    if calibration is None:
        return {s.name: _absent(f"needs subset {protocol.on}, which this run does not have") for s in subsets}
    if reason := missing(calibration):
        return {s.name: _absent(f"{protocol.on} has {reason} to tune on") for s in subsets}
    thresholds = first_error.best_threshold(samples[calibration.name], calibration.weights)
    return {s.name: _subset_cells(s, protocol, samples, thresholds) for s in subsets}


def _subset_cells(
    subset: Subset, protocol: EvalProtocol, samples: Mapping[str, Sample], tuned: Floats | None
) -> list[Cell]:
    """Cells of one subset; `tuned` holds thresholds [b] tuned on the calibration subset, if the protocol has one."""
    data, out_of_fold = samples[subset.name], _is_judged_out_of_fold(subset, protocol)
    if out_of_fold and subset.problems == 1:
        return _absent("cross-validation needs two problems")
    if tuned is not None and protocol.on != subset.name:
        error, correct = first_error.accuracies(data, data.matches(tuned), subset.weights)
        return [
            share("f1", first_error.harmonic(error, correct)),
            share("error_accuracy", error),
            share("correct_accuracy", correct),
            Cell("threshold", tuned, averaged=False),
        ]
    note = OUT_OF_FOLD if out_of_fold and protocol.threshold == "calibrated" else ""
    cells = _rate_cells(subset, data, *_rate(subset, protocol, samples), note)
    if protocol.readout == "vote":
        return cells[:-1]
    return centred(subset, data, cells) if protocol.is_tuned and not out_of_fold else cells


def _is_judged_out_of_fold(subset: Subset, protocol: EvalProtocol) -> bool:
    return protocol.threshold == "cross_validated" or (
        protocol.threshold == "calibrated" and protocol.on == subset.name
    )


def _rate(subset: Subset, protocol: EvalProtocol, samples: Mapping[str, Sample]) -> tuple[Floats, Floats]:
    """Whether, or in which share of splits, each trace is judged right, [n]; and the thresholds."""
    data = samples[subset.name]
    if _is_judged_out_of_fold(subset, protocol):
        return first_error.out_of_fold_rates(data, subset.fold)
    if protocol.is_tuned:
        tuned_on = samples[subset.name if protocol.on is None else protocol.on]
        threshold = first_error.best_threshold(tuned_on, np.ones((1, len(tuned_on))))
    else:
        threshold = np.array([_untuned_threshold(protocol)])
    return data.matches(threshold)[0].astype(float), threshold


def _rate_cells(subset: Subset, data: Sample, rate: Floats, thresholds: Floats, note: str = "") -> list[Cell]:
    """Cells of traces that are judged right at a rate, [n]; of several thresholds the median is shown.

    Replicates keep the thresholds: tuning them again would count their uncertainty twice.
    """
    f1, error, correct = first_error.f1_at_rates(data, rate, subset.weights)
    return [
        share("f1", f1, note),
        share("error_accuracy", error, note),
        share("correct_accuracy", correct, note),
        Cell("threshold", np.array([np.median(thresholds)]), note, averaged=False),
    ]


def centred(subset: Subset, data: Sample, cells: Sequence[Cell]) -> list[Cell]:
    """Gives the F1 under the threshold that is best on these traces, the first of the cells, an interval that covers.

    The F1 is higher than the best F1 on all traces of the kind, by the luck of the choice; the cross-validated F1 is
    about as much lower. The interval is one for that population's best F1, so it surrounds the mean of the two.
    """
    if subset.problems == 1:
        return list(cells)
    rate, _ = first_error.out_of_fold_rates(data, subset.fold)
    f1, held_out = cells[0].values, first_error.f1_at_rates(data, rate, subset.weights)[0]
    middle = (f1 + held_out) / 2
    values = np.concatenate([f1[:1], middle[1:]])
    return [replace(cells[0], values=values, centre=float(middle[0])), *cells[1:]]


def _any_unparsed(subsets: Sequence[Subset]) -> bool:
    return any(None in t.verdicts for s in subsets for t in s.traces)


def _unparsed(subset: Subset) -> list[Cell]:
    """Share of votes that could not be parsed. They take no part in the majority."""
    votes = np.array([len(t.verdicts) for t in subset.traces])
    unparsed = np.array([t.verdicts.count(None) for t in subset.traces])
    total = subset.weights @ votes
    shares = np.divide(subset.weights @ unparsed, total, out=np.full(len(total), np.nan), where=total > 0)
    return [share("unparsed", shares)]


def _untuned_threshold(protocol: EvalProtocol) -> float:
    """The threshold of a rule that tunes none."""
    number = 1.0 if protocol.readout == "vote" else protocol.at
    if number is None:
        raise ValueError(f"{protocol.key}: no number for its threshold")
    return number


# --- rows ------------------------------------------------------------------------------------------------


def _absent(reason: str) -> list[Cell]:
    cells = absent(("f1", "error_accuracy", "correct_accuracy", "threshold"), reason)
    return [replace(cell, averaged=cell.metric != "threshold") for cell in cells]


def _parts(subsets: Sequence[Subset]) -> tuple[SubsetInfo, ...]:
    return tuple(SubsetInfo(s.name, len(s.traces), s.unscored, missing(s), s.problems) for s in subsets)


def missing(subset: Subset) -> str:
    """Returns the reason why F1 is undefined on these labels; empty if it is defined."""
    labels = [t.label for t in subset.traces]
    if all(label == -1 for label in labels):
        return "no trace with an error"
    return "" if -1 in labels else "no trace without an error"


def floor_cells(subsets: Sequence[Subset], rules: Sequence[str], calibrate_on: str) -> dict[str, dict[str, list[Cell]]]:
    """Returns the F1 of every floor on the labels of each subset.

    Args:
        subsets: The subsets.
        rules: The threshold rules of the run's protocols, which decide which random scores are a floor.
        calibrate_on: The subset on which `calibrated` rules tune.
    """
    calibration = next((s for s in subsets if s.name == calibrate_on), None)
    keys = {RANDOM_FLOORS[rule]: rule for rule in reversed(RANDOM_FLOORS) if rule in ("oracle", *rules)}
    cells = {
        key: {s.name: [_random_floor(rule, s, calibration)] for s in subsets} for key, rule in reversed(keys.items())
    }
    return cells | {f"floor/{name}": {s.name: [_label_floor(name, s)] for s in subsets} for name in FLOORS}


def _random_floor(rule: str, subset: Subset, calibration: Subset | None) -> Cell:
    """The mean F1 of random scorers under a threshold rule; the interval holds 95% of them."""
    steps, labels = subset.steps, subset.labels
    note = OUT_OF_FOLD if rule == "calibrated" and calibration is subset else ""
    if reason := _no_floor(rule, subset, calibration):
        return Cell("f1", np.array([np.nan]), reason)
    if rule == "oracle":
        f1 = floors.random_oracle(steps, labels)
    elif rule == "cross_validated" or note:
        f1 = floors.random_cross_validated(steps, labels, subset.fold)
    elif rule == "calibrated" and calibration is not None:
        f1 = floors.random_calibrated(steps, labels, calibration.steps, calibration.labels)
    else:
        f1 = floors.random_flags(steps, labels)
    # Without replicates there are no intervals, of floors neither.
    scorers = f1 if len(subset.weights) > 1 else f1[:0]
    return Cell("f1", np.concatenate([[f1.mean()], scorers]), note, kind="range")


def _no_floor(rule: str, subset: Subset, calibration: Subset | None) -> str:
    """Why random scores have no F1 under a rule; empty if they have one."""
    if reason := missing(subset):
        return reason
    if rule == "calibrated":
        if calibration is None:
            return "the run has no subset to tune on"
        if reason := missing(calibration):
            return f"{calibration.name} has {reason} to tune on"
    tunes_here = rule == "cross_validated" or (rule == "calibrated" and calibration is subset)
    return "cross-validation needs two problems" if tunes_here and subset.problems == 1 else ""


def _label_floor(name: str, subset: Subset) -> Cell:
    """The F1 of one of FLOORS on a subset's labels."""
    if name == "position":
        return share("f1", floors.position_floor(subset.labels, subset.weights))
    if any(t.outcome is None for t in subset.traces):
        return Cell("f1", np.array([np.nan]), "final answers are not labelled")
    outcome = np.array([t.outcome for t in subset.traces], dtype=np.int64)
    return share("f1", floors.outcome_floor(subset.labels, outcome, subset.weights))


# --- run against run ---------------------------------------------------------------------------------------


def compare(
    a: tuple[RunResult, Sequence[ScoredTrace]],
    b: tuple[RunResult, Sequence[ScoredTrace]],
    pairs: Sequence[tuple[EvalProtocol, EvalProtocol]],
) -> tuple[MetricRow, ...]:
    """Tests the difference in F1 (b minus a), per subset and averaged, by swaps of problems that tune again.

    Metrics: f1_a, f1_b, f1_difference, p_value, p_adjusted (for all protocols compared at once, if there are several)
    and mdd, the smallest difference that this test detects with power 0.80. See `prmbench.metrics.paired_tests`.

    Raises:
        UserError: A pair of protocols has different threshold rules.
    """
    (left, left_scores), (right, right_scores) = a, b
    seeded = replace(right.manifest, seed=left.manifest.seed, replicates=left.manifest.replicates)
    subsets = _subset_data(left.manifest, left_scores), _subset_data(seeded, right_scores)
    paired: dict[str, dict[str, list[Cell]]] = {}
    averages: dict[str, Groups | None] = {}
    for protocol_a, protocol_b in pairs:
        check_alike(protocol_a, protocol_b)
        protocols = resolve(left.manifest, protocol_a), resolve(right.manifest, protocol_b)
        samples = [_samples(s, p) for s, p in zip(subsets, protocols, strict=True)]
        cells = [_protocol_cells(s, p, x) for s, p, x in zip(subsets, protocols, samples, strict=True)]
        name = protocol_a.key if protocol_a.key == protocol_b.key else f"{protocol_a.key} vs {protocol_b.key}"
        tests = _swap_tests(left.manifest, subsets, protocols, samples)
        paired[name] = {s.name: _differences(cells[0][s.name], cells[1][s.name], tests.get(s.name)) for s in subsets[0]}
        averages[name] = [_transferred(left.manifest)] if protocol_a.threshold == "calibrated" else None
    return tuple(compared_rows(_parts(subsets[0]), paired, averages))


def _swap_tests(
    manifest: RunManifest,
    subsets: tuple[Sequence[Subset], Sequence[Subset]],
    protocols: tuple[EvalProtocol, EvalProtocol],
    samples: Sequence[Mapping[str, Sample]],
) -> dict[str, SwapTest]:
    """The test of each subset on which both runs have an F1 under their protocol."""
    protocol = protocols[0]  # the rules of both are alike
    one, other = samples
    if protocol.is_tuned:
        one, other = (_one_scale(s, p, x) for s, p, x in zip(subsets, protocols, samples, strict=True))
    swapped = {
        s.name: Swapped(
            one[s.name],
            other[s.name],
            paired_tests.swaps(s.problems, len(s.weights) - 1, subset_seed(manifest, s.name)),
        )
        for s in subsets[0]
        if not missing(s) and (s.problems > 1 or not _is_judged_out_of_fold(s, protocol))
    }
    tuned = None
    if protocol.on is not None:
        if protocol.on not in swapped:
            return {}
        tuned = swapped[protocol.on].best_thresholds()
    tests = {}
    for subset, compared in zip(*subsets, strict=True):
        if (both := swapped.get(subset.name)) is None:
            continue
        if _is_judged_out_of_fold(subset, protocol):
            judged = both.out_of_fold(subset.fold)
        elif protocol.is_tuned:
            judged = both.judged(both.best_thresholds() if tuned is None else tuned)
        else:
            judged = both.judged_by_own(*map(_untuned_threshold, protocols))
        first, second = (_rate(subset, p, data)[0] for p, data in zip(protocols, samples, strict=True))
        test = paired_tests.f1_test(samples[0][subset.name], (first, second), judged)
        is_itself = protocols[0] == protocols[1] and subset.traces == compared.traces
        tests[subset.name] = replace(test, error=np.zeros_like(test.error)) if is_itself else test
    return tests


def _one_scale(subsets: Sequence[Subset], protocol: EvalProtocol, samples: Mapping[str, Sample]) -> dict[str, Sample]:
    """A run's samples on the scale of its own steps, so that another run may share its thresholds."""
    readouts = [values.ravel() for s in subsets for _, values in first_error.readouts(s.traces, protocol)]
    in_order = np.sort(np.concatenate(readouts)) if readouts else np.zeros(0)
    return {name: paired_tests.on_one_scale(data, in_order) for name, data in samples.items()}


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


def _differences(a: Sequence[Cell], b: Sequence[Cell], test: SwapTest | None) -> list[Cell]:
    cells = difference("f1", a[0], b[0])
    return [*cells[:2], replace(cells[2], test=test)]


def leading(result: RunResult) -> tuple[Leading, ...]:
    """Returns F1 under the headline readout, by threshold rule, the recommended rule first."""
    keys = dict.fromkeys(row.protocol for row in result.rows if not row.protocol.startswith("floor/"))
    parsed = [EvalProtocol.parse(key) for key in keys]
    chosen = [p for p in parsed if p.readout == DEFAULT_READOUTS[result.manifest.kind] and not p.series]
    return tuple(
        Leading(
            p.key, "f1", "F1", rule, floors=tuple(Floor(key, "f1", name) for key, name in floors_under(rule).items())
        )
        for rule in RECOMMENDED
        for p in chosen
        if p.threshold == rule
    )


# --- summary and checks ---------------------------------------------------------------------------------------


def summary(result: RunResult, keys: Sequence[str]) -> Table:
    """Returns the terminal table: F1 by protocol and subset, interval in the last column; then AUROC, then floors."""
    f1 = {(row.protocol, row.subset): row for row in result.rows if row.metric == "f1"}
    columns = _summary_columns(result)
    hidden = hidden_floors((protocol for protocol, _ in f1), keys)
    with_values = {protocol for (protocol, _), row in f1.items() if row.value is not None}
    hidden |= set(RANDOM_FLOORS.values()) - with_values  # such as that of a rule without its subset
    floors = [key for key in FLOOR_WORDS if key not in hidden and any(protocol == key for protocol, _ in f1)]

    def protocol_row(key: str) -> Row:
        cells = [f1_cell(f1.get((key, c)), interval=c == columns[-1]) for c in columns]
        transferred = next((row for (p, c), row in f1.items() if p == key and c.startswith("avg[")), None)
        if cells[-1].value is None and transferred is not None:
            cells[-1] = replace(f1_cell(transferred), marks=NOTED)
        return (Code(key), *cells)

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
    note = f"{NOTED} tuned on this subset, so judged out of fold; or an average that leaves it out"
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
