"""Task calibration: is the value of a prefix the probability that its continuation is correct?

The target is the Monte-Carlo success rate, or the outcome of the trace. Values are read as log-odds (sigmoid), as
probabilities (identity), or after Platt scaling cross-fitted by problem.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from prmbench.core.records import (
    EvalProtocol,
    MetricRow,
    Readout,
    RunManifest,
    RunResult,
    ScoredTrace,
    ScoreKind,
    Trace,
    UserError,
)
from prmbench.core.result_files import Run
from prmbench.metrics import calibration as stats
from prmbench.metrics import first_error, platt
from prmbench.metrics.calibration import Bools, Resampled
from prmbench.metrics.first_error import Floats, Ints
from prmbench.tasks.blocks import Block, average_or_only_subset, blocks, prefix_identity, rows_of
from prmbench.tasks.metric_rows import Cell, Judged, SubsetInfo, absent, resampled, traces_of_subset
from prmbench.tasks.problem_groups import advice_without_outcomes
from prmbench.tasks.table import (
    FRACTION,
    Code,
    Row,
    Table,
    cell_of,
    notes_of,
    rank_value,
)
from prmbench.tasks.task import Leading, Task
from prmbench.tasks.ties import PairedTests, place_of
from prmbench.tasks.wording import rule_and_readout, run_name

VALUE_READOUTS: dict[ScoreKind, tuple[Readout, ...]] = {
    "logratio": ("prefix_sum", "prefix_mean"),
    "value": ("as_is",),
    "prob": ("as_is",),
}
"""Readouts that value a whole prefix; a readout of a single step is not a probability of success."""
QUARTERS = 4
FOLDS = 2
METRICS = (
    *("ece", "calibration_rms", "ece_if_calibrated", "brier", "auc"),
    *(f"auc_q{q}" for q in range(1, QUARTERS + 1)),
    "td_outcome_correlation",
)
UNDECIDED = 0.5
COLUMNS = {
    "ece": "ECE",
    "ece_if_calibrated": "ECE if calibrated",
    "calibration_rms": "Debiased RMS",
    "brier": "Brier",
    "auc": "AUC",
    **{f"auc_q{i}": f"AUC, quarter {i}" for i in (1, 2, 3, 4)},
    "td_outcome_correlation": "TD against outcome",
}
LOWER_IS_BETTER = ("ece", "brier")
UNRANKED = ("ece_if_calibrated", "calibration_rms")
"""Columns without a best number: noise makes debiased errors negative, and the lowest of these is not the best."""
RULES = {
    "sigmoid": ("As read", "Probabilities are the sigmoid of beta times the value, or the model's own (identity)."),
    "platt": (
        "Platt-scaled",
        "Slope and offset are fitted on one half of the problems and judged on the other; intervals fit them again.",
    ),
}
SUMMARY = {
    "ece": "ECE",
    "ece_if_calibrated": "floor",
    "calibration_rms": "RMS",
    "brier": "Brier",
    "td_outcome_correlation": "TD",
    "auc": "AUC",
}
"""Metrics that fit on a terminal, with their headings."""
SUMMARY_NOTE = (
    "floor: the ECE that a calibrated model with the same predictions would show; RMS: debiased root-mean-square "
    "calibration error, which noise may make negative; TD: against the outcome"
)


@dataclass(frozen=True, slots=True)
class _Prefixes:
    """The labelled prefixes of one subset, trace after trace; arrays are [n]."""

    part: SubsetInfo
    traces: tuple[ScoredTrace, ...]
    """The traces that are scored and labelled."""
    resampling: Resampled
    target: Floats
    """Monte-Carlo success rate of the prefix, or the trace's outcome; in [0, 1]."""
    quarter: Ints
    """Relative position of the prefix, 1..4; a complete solution is in quarter 4."""
    change: Floats
    """Change of the target since the previous step, nan at the first; without Monte-Carlo labels the outcome itself."""
    fold: Ints
    trace: Ints
    """Which trace each prefix is of, 0..m-1."""
    is_sampled: bool
    """Whether targets are Monte-Carlo success rates."""
    note: str
    """How many traces are left out, and why."""

    def __len__(self) -> int:
        return len(self.target)


def protocols(manifest: RunManifest) -> tuple[str, ...]:
    """Returns the keys `[series.]readout/sigmoid` (`/identity` for probabilities) and `[series.]readout/platt`."""
    return tuple(key for key, _, _ in _rules(manifest))


def _rules(manifest: RunManifest) -> list[tuple[str, EvalProtocol, str]]:
    """Every (protocol key, readout and series, scale), where scale is sigmoid, identity or platt."""
    default_scale = "identity" if manifest.kind == "prob" else "sigmoid"
    suffix = "@release" if manifest.boundary == "release" else ""
    rules = []
    for series in ("", *manifest.series):
        for readout in VALUE_READOUTS.get(manifest.kind, ()):
            protocol = EvalProtocol(readout, "oracle", series=series, boundary=manifest.boundary)
            name = protocol.key.partition("/")[0]
            rules += [(f"{name}/{scale}{suffix}", protocol, scale) for scale in (default_scale, "platt")]
    return rules


def judge(manifest: RunManifest, scores: Sequence[ScoredTrace]) -> Judged:
    """Computes the floor of a constant prediction, then every protocol's metrics and reliability bins."""
    subsets = [_prefixes(manifest, scores, name) for name in manifest.subsets]
    cells = {"floor/constant": {subset.part.name: _floor(subset) for subset in subsets}}
    for key, protocol, scale in _rules(manifest):
        cells[key] = {subset.part.name: _cells(subset, manifest, protocol, scale) for subset in subsets}
    return Judged(tuple(subset.part for subset in subsets), cells)


# --- what is predicted ------------------------------------------------------------------------------------


def _prefixes(manifest: RunManifest, scores: Sequence[ScoredTrace], name: str) -> _Prefixes:
    subset_traces = traces_of_subset(scores, name)
    # Outcomes are another kind of target: they are used only where no trace has Monte-Carlo labels.
    is_sampled = any(t.step_labels for t in subset_traces)
    traces = tuple(
        t
        for t in subset_traces
        if not t.unscored and t.steps and (t.step_labels if is_sampled else t.outcome is not None)
    )
    problem, draws = resampled(manifest, name, [t.cluster for t in subset_traces])
    index = {t.id: problem_index for t, problem_index in zip(subset_traces, problem, strict=True)}
    folds = dict(
        zip((t.id for t in subset_traces), first_error.folds([t.cluster for t in subset_traces], FOLDS), strict=True)
    )
    lengths = [t.steps for t in traces]
    targets = [np.array(t.step_labels or [t.outcome] * t.steps, dtype=float) for t in traces]
    changes = [
        np.diff(y, prepend=np.nan) if is_sampled else np.where(np.arange(len(y)) > 0, y, np.nan) for y in targets
    ]
    unscored = sum(bool(t.unscored) for t in subset_traces)
    unlabelled = len(subset_traces) - len(traces) - unscored
    notes = [f"unscored traces left out: {unscored}"] if unscored else []
    notes += (
        [f"traces without {'Monte-Carlo labels' if is_sampled else 'an outcome'} left out: {unlabelled}"]
        if unlabelled
        else []
    )
    return _Prefixes(
        SubsetInfo(name, len(subset_traces), unscored, "no labelled prefix", draws.shape[1]),
        traces,
        Resampled(np.repeat([index[t.id] for t in traces], lengths).astype(np.int64), draws),
        _joined(targets),
        _joined([np.ceil(QUARTERS * np.arange(1, length + 1) / length) for length in lengths]).astype(np.int64),
        _joined(changes),
        np.repeat([folds[t.id] for t in traces], lengths).astype(np.int64),
        np.repeat(np.arange(len(traces)), lengths),
        is_sampled,
        "; ".join(notes),
    )


def _joined(parts: Sequence[Floats]) -> Floats:
    return np.concatenate([np.zeros(0), *parts])


# --- numbers ------------------------------------------------------------------------------------------------


def _floor(prefixes: _Prefixes) -> list[Cell]:
    """Metrics of a constant prediction: the mean target of the other fold."""
    if reason := _too_few(prefixes):
        return absent(("brier", "ece"), reason)
    parts: list[dict[str, Floats]] = []
    bins = np.zeros(0, dtype=np.int64)
    for resampling in prefixes.resampling.chunks():
        constant = platt.cross_fitted_mean(prefixes.target, prefixes.fold, resampling.weights)
        if not parts:
            bins = stats.equal_mass_bins(constant[0])
        table = stats.reliability(constant, prefixes.target, resampling, bins)
        parts.append({"brier": stats.brier(constant, prefixes.target, resampling), "ece": table.ece})
    return [Cell(name, np.concatenate([part[name] for part in parts]), prefixes.note) for name in parts[0]]


@dataclass(frozen=True, slots=True)
class _Selection:
    """The prefixes that an AUC is about."""

    metric: str
    selected: Bools
    note: str


def _cells(prefixes: _Prefixes, manifest: RunManifest, protocol: EvalProtocol, scale: str) -> list[Cell]:
    reason = _too_few(prefixes) if scale == "platt" else "" if len(prefixes) else prefixes.part.missing
    if reason:
        return absent(METRICS, reason)
    values = _joined(_readout_values(prefixes, protocol))
    logits = stats.log_odds(values) if manifest.kind == "prob" else (manifest.beta or 1.0) * values
    selections = _selections(prefixes)
    parts: list[_Part] = []
    bins = np.zeros(0, dtype=np.int64)
    in_sample = np.zeros(0)
    # After Platt scaling each replicate has predictions of its own, which need memory; so some at a time.
    for resampling in prefixes.resampling.chunks() if scale == "platt" else [prefixes.resampling]:
        if scale == "platt":
            rank = platt.cross_fitted(logits, prefixes.target, prefixes.fold, resampling.weights)
            p = stats.sigmoid(rank)
        else:
            p, rank = (values, values) if scale == "identity" else (stats.sigmoid(logits), logits)
        if not parts:
            in_sample = np.atleast_2d(p)[0]
            bins = stats.equal_mass_bins(in_sample)
        parts.append(_part(prefixes, resampling, p, rank, bins, selections))
    numbers = {name: np.concatenate([part.numbers[name] for part in parts]) for name in parts[0].numbers}
    notes = {selection.metric: selection.note for selection in selections}
    cells = {name: Cell(name, number, notes.get(name, prefixes.note)) for name, number in numbers.items()}
    if np.isnan(numbers["calibration_rms"][0]):
        cells["calibration_rms"] = absent(("calibration_rms",), "needs two problems in a bin")[0]
    cells["ece_if_calibrated"] = _if_calibrated(prefixes, in_sample, manifest)
    correlation = _td_correlation(prefixes, protocol, manifest.kind)
    cells["td_outcome_correlation"] = Cell("td_outcome_correlation", correlation, prefixes.note)
    return [*(cells[name] for name in METRICS), *_bin_cells([part.reliability for part in parts])]


class _Part(NamedTuple):
    """The numbers of some replicates, [b] by metric, and their reliability diagram."""

    numbers: dict[str, Floats]
    reliability: stats.Reliability


def _part(
    prefixes: _Prefixes, resampling: Resampled, p: Floats, rank: Floats, bins: Ints, selections: Sequence[_Selection]
) -> _Part:
    table = stats.reliability(p, prefixes.target, resampling, bins)
    numbers = {
        "ece": table.ece,
        "calibration_rms": table.rms,
        "brier": stats.brier(p, prefixes.target, resampling),
    }
    for selection in selections:
        chosen = selection.selected
        is_good = prefixes.target[chosen] > UNDECIDED
        numbers[selection.metric] = stats.auc(rank[..., chosen], is_good, resampling.select(chosen))
    return _Part(numbers, table)


def _if_calibrated(prefixes: _Prefixes, p: Floats, manifest: RunManifest) -> Cell:
    """The mean of the ECE that a calibrated model with these predictions would show, and its draws as replicates."""
    continuations = 1 if not prefixes.is_sampled else stats.continuations(prefixes.target)
    if continuations is None:
        reason = f"targets are no shares of at most {stats.MOST_CONTINUATIONS} continuations"
        return absent(("ece_if_calibrated",), reason)[0]
    # Continuations are drawn anew from every prefix; the final answer of a trace is that of all its prefixes.
    shared = np.arange(len(p)) if prefixes.is_sampled else prefixes.trace
    draws = stats.ece_if_calibrated(p, shared, continuations, max(1, manifest.replicates), manifest.seed)
    return Cell("ece_if_calibrated", np.concatenate([[draws.mean()], draws]), prefixes.note)


def _readout_values(prefixes: _Prefixes, protocol: EvalProtocol) -> list[Floats]:
    """The readout of every trace, [steps] each."""
    return [values for t in prefixes.traces if (values := first_error.readout(t, protocol)) is not None]


def _too_few(prefixes: _Prefixes) -> str:
    if not len(prefixes):
        return prefixes.part.missing
    return "" if len(np.unique(prefixes.fold)) == FOLDS else "cross-fitting needs two problems"


def _selections(prefixes: _Prefixes) -> list[_Selection]:
    """All prefixes, and those of each quarter; prefixes with a target of exactly one half are left out."""
    selections = []
    for name, selected in (
        ("auc", prefixes.quarter > 0),
        *((f"auc_q{q}", prefixes.quarter == q) for q in range(1, QUARTERS + 1)),
    ):
        decided = selected & (prefixes.target != UNDECIDED)
        undecided = int(selected.sum() - decided.sum())
        notes = [f"prefixes with a target of exactly one half left out: {undecided}"] if undecided else []
        classes = len(np.unique(prefixes.target[decided] > UNDECIDED))
        note = "; ".join(filter(None, (prefixes.note, *notes)))
        is_defined = classes == 2  # noqa: PLR2004
        selections.append(_Selection(name, decided, note if is_defined else "needs good and bad prefixes"))
    return selections


def _td_correlation(prefixes: _Prefixes, protocol: EvalProtocol, kind: ScoreKind) -> Floats:
    """Correlation of a step's change in value with its change in target; first steps are left out.

    For log-ratio scores the change in value is the step's sum: the difference of two prefix means is not a TD.
    """
    if kind == "logratio":
        value_change = _joined(_readout_values(prefixes, replace(protocol, readout="step_sum")))
    else:
        value_change = _joined([np.diff(values, prepend=np.nan) for values in _readout_values(prefixes, protocol)])
    has_change: Bools = np.isfinite(prefixes.change)
    return stats.pearson(value_change[has_change], prefixes.change[has_change], prefixes.resampling.select(has_change))


def _bin_cells(parts: Sequence[stats.Reliability]) -> list[Cell]:
    predicted, observed = (np.concatenate([getattr(p, name) for p in parts]) for name in ("predicted", "observed"))
    cells = []
    for i, count in enumerate(parts[0].count.tolist()):
        note = "empty bin" * (not count)
        cells += [
            Cell(f"reliability_mean_{i}", predicted[:, i], note, averaged=False),
            Cell(f"reliability_rate_{i}", observed[:, i], note, averaged=False),
            Cell(f"reliability_n_{i}", np.array([float(count)]), averaged=False),
        ]
    return cells


def leading(result: RunResult) -> tuple[Leading, ...]:
    """Returns the AUC of values as read; it has no floor but chance, 0.5."""
    keys = dict.fromkeys(row.protocol for row in result.rows if row.metric == "auc" and "." not in row.protocol)
    as_read = [key for key in keys if rule_and_readout(key, has_threshold=False)[0].partition("@")[0] != "platt"]
    return tuple(Leading(key, "auc", "AUC of prefixes", "as read", FRACTION) for key in as_read)


# --- tables -------------------------------------------------------------------------------------------------


def tables(runs: Sequence[Run]) -> tuple[Table, ...]:
    """Returns a table for values as read and one after Platt scaling, with the constant prediction beneath."""
    trace_blocks, tests = blocks(runs, prefix_identity), PairedTests(TASK)
    rule_tables = []
    for rule, (title, text) in RULES.items():
        groups = tuple(group for block in trace_blocks if (group := _group(rule, block, tests)))
        if groups:
            rule_tables.append(
                Table(
                    label=f"calibration-{rule}",
                    title=title,
                    caption=f"{text} Against the success of continuations from each prefix, or the final outcome. "
                    "95% interval over problems. ECE if calibrated: mean and 95% range of the ECE that the same "
                    "predictions would show if outcomes were drawn from them; sampling noise alone makes it positive. "
                    "Debiased RMS: the root-mean-square calibration error without that noise (Kumar et al. 2019, with "
                    "the variance between problems); where noise outweighs it, the root of its square is negative. "
                    f"Quarter: relative position of the prefix. {tests.text}",
                    header=("Prefixes of", "Model", "Protocol", *COLUMNS.values()),
                    groups=groups,
                    notes=notes_of(row for run in runs for row in run.result.rows if row.metric in COLUMNS),
                    text_columns=3,
                    lead=COLUMNS["auc"],
                )
            )
    return tuple(rule_tables)


def _group(rule: str, block: Block, tests: PairedTests) -> tuple[Row, ...]:
    model_rows = []
    for run in block.runs:
        rows = rows_of(run.result, block.subset)
        for protocol in dict.fromkeys(protocol for protocol, _ in rows if not protocol.startswith("floor/")):
            scale = rule_and_readout(protocol, has_threshold=False)[0].partition("@")[0]
            if scale == rule or (rule == "sigmoid" and scale == "identity"):
                cells = {name: rows.get((protocol, name)) for name in COLUMNS}
                model_rows.append((run, protocol, cells))
    if not model_rows:
        return ()
    tied = {
        name: tests.tied_in_column(((run, cells[name]) for run, _, cells in model_rows), name in LOWER_IS_BETTER)
        for name in COLUMNS
        if name not in UNRANKED
    }
    model_rows.sort(key=lambda row: (-rank_value(row[2]["auc"]), run_name(row[0]), row[1]))
    table_rows: list[Row] = [
        (
            *(block.name, run_name(run), Code(key)),
            *_table_cells(cells, [name for name in tied if place_of(run, key) in tied[name]]),
        )
        for run, key, cells in model_rows
    ]
    rows = rows_of(block.runs[0].result, block.subset)
    floor = {name: rows.get(("floor/constant", name)) for name in COLUMNS}
    if any(floor.values()):
        table_rows.append((block.name, "the mean, whatever the prefix", Code("floor/constant"), *_table_cells(floor)))
    return tuple(table_rows)


def _table_cells(cells: dict[str, MetricRow | None], bold: Sequence[str] = ()) -> Row:
    return tuple(cell_of(row, FRACTION, name in bold, "_q" not in name) for name, row in cells.items())


def summary(result: RunResult, keys: Sequence[str]) -> Table:
    """Returns the terminal table: a row per protocol, then the constant prediction."""
    rows = rows_of(result, average_or_only_subset(result))
    shown_rows: list[MetricRow] = []
    protocol_rows: dict[bool, list[Row]] = {False: [], True: []}
    for key in (*keys, "floor/constant"):
        metric_rows = [rows.get((key, name)) for name in SUMMARY]
        if any(metric_rows):
            shown_rows += [row for row in metric_rows if row is not None]
            cells = (
                cell_of(row, FRACTION, interval=name == "auc") for row, name in zip(metric_rows, SUMMARY, strict=True)
            )
            protocol_rows[key.startswith("floor/")].append((Code(key), *cells))
    return Table(
        label="calibration",
        title="",
        caption="",
        header=("value as a probability", *SUMMARY.values()),
        groups=tuple(map(tuple, protocol_rows.values())),
        notes=(*notes_of(shown_rows), SUMMARY_NOTE),
        text_columns=1,
        ends_with_floors=True,
    )


def check_data(traces: Sequence[Trace], source: str) -> None:
    """Raises UserError unless some trace has step labels or an outcome."""
    if not any(t.step_labels or t.outcome is not None for t in traces):
        raise UserError(
            f"{source}: no trace has step_labels or an outcome to hold values against; "
            f"{advice_without_outcomes(traces, source)}"
        )


TASK = Task(
    name="calibration",
    title="step values as probabilities of success",
    description="Whether the value of a prefix is the probability that its continuation ends right.",
    unscored="unscored, left out",
    protocols=protocols,
    judge=judge,
    leading=leading,
    tables=tables,
    summary=summary,
    lower_is_better=("brier", "ece"),
    not_compared=("reliability", "ece_if_calibrated"),
    check_data=check_data,
)
