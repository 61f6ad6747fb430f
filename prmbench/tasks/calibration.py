"""Task calibration: is the value of a prefix the chance that it ends well? Against Monte-Carlo success, or the outcome.

Values are taken as log-odds (sigmoid), as they are (identity), or after Platt scaling cross-fitted by problem.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

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
from prmbench.metrics import first_error
from prmbench.metrics.calibration import Bools, Resampled
from prmbench.metrics.first_error import Floats, Ints
from prmbench.tasks.blocks import Block, average_or_only_subset, blocks, prefix_identity, rows_of
from prmbench.tasks.metric_rows import Cell, Judged, SubsetInfo, absent, resampled, traces_of_subset
from prmbench.tasks.table import (
    FRACTION,
    Code,
    Row,
    Table,
    best_value,
    cell_of,
    is_best,
    notes_of,
    rank_value,
)
from prmbench.tasks.task import Task
from prmbench.tasks.wording import model_name, rule_and_readout

VALUES: dict[ScoreKind, tuple[Readout, ...]] = {
    "logratio": ("prefix_sum", "prefix_mean"),
    "value": ("as_is",),
    "prob": ("as_is",),
}
"""The readouts that value a whole prefix; those of a single step are no chance of success."""
QUARTERS = 4
FOLDS = 2
SCALARS = ("ece", "brier", "auc", *(f"auc_q{q}" for q in range(1, QUARTERS + 1)), "td_outcome_correlation")
EVEN = 0.5
COLUMNS = {
    "ece": "ECE",
    "brier": "Brier",
    "auc": "AUC",
    **{f"auc_q{i}": f"AUC, quarter {i}" for i in (1, 2, 3, 4)},
    "td_outcome_correlation": "TD against outcome",
}
LOWER_IS_BETTER = ("ece", "brier")
RULES = {
    "sigmoid": ("As read", "Probabilities are the sigmoid of beta times the value, or the model's own (identity)."),
    "platt": ("Platt-scaled", "Slope and offset are fitted on one half of the problems and judged on the other."),
}
SUMMARY = ("ece", "brier", "td_outcome_correlation", "auc")
"""What fits on a terminal."""


@dataclass(frozen=True, slots=True)
class _Prefixes:
    """The labelled prefixes of one subset, trace after trace; arrays are [n]."""

    part: SubsetInfo
    traces: tuple[ScoredTrace, ...]
    """Those that are scored and labelled."""
    of: Resampled
    target: Floats
    """Monte-Carlo success, or the trace's outcome."""
    quarter: Ints
    """By relative position, 1..4; a whole solution is in the last."""
    change: Floats
    """Of the target since the step before, nan at the first step; without Monte-Carlo labels the outcome itself."""
    fold: Ints
    note: str
    """What is left out."""

    def __len__(self) -> int:
        return len(self.target)


def protocols(manifest: RunManifest) -> tuple[str, ...]:
    """`[series.]readout/sigmoid` (of probabilities: `/identity`) and `[series.]readout/platt`."""
    return tuple(key for key, _, _ in _rules(manifest))


def _rules(manifest: RunManifest) -> list[tuple[str, EvalProtocol, str]]:
    """(key, readout and series, sigmoid | identity | platt)."""
    plain = "identity" if manifest.kind == "prob" else "sigmoid"
    suffix = "@release" if manifest.boundary == "release" else ""
    found = []
    for series in ("", *manifest.series):
        for readout in VALUES.get(manifest.kind, ()):
            protocol = EvalProtocol(readout, "oracle", series=series, boundary=manifest.boundary)
            name = protocol.key.partition("/")[0]
            found += [(f"{name}/{scale}{suffix}", protocol, scale) for scale in (plain, "platt")]
    return found


def judge(manifest: RunManifest, scores: Sequence[ScoredTrace]) -> Judged:
    """The floor of a constant, then every protocol's numbers and reliability bins."""
    sides = [_prefixes(manifest, scores, name) for name in manifest.subsets]
    cells = {"floor/constant": {s.part.name: _floor(s) for s in sides}}
    for key, protocol, scale in _rules(manifest):
        cells[key] = {s.part.name: _cells(s, manifest, protocol, scale) for s in sides}
    return Judged(tuple(s.part for s in sides), cells)


# --- what is predicted ------------------------------------------------------------------------------------


def _prefixes(manifest: RunManifest, scores: Sequence[ScoredTrace], name: str) -> _Prefixes:
    everyone = traces_of_subset(scores, name)
    sampled = any(t.step_labels for t in everyone)  # then outcomes, another kind of target, do not mix in
    traces = tuple(
        t for t in everyone if not t.unscored and t.steps and (t.step_labels if sampled else t.outcome is not None)
    )
    problem, draws = resampled(manifest, name, [t.cluster for t in everyone])
    index = {t.id: k for t, k in zip(everyone, problem, strict=True)}
    folds = dict(zip((t.id for t in everyone), first_error.folds([t.cluster for t in everyone], FOLDS), strict=True))
    lengths = [t.steps for t in traces]
    targets = [np.array(t.step_labels or [t.outcome] * t.steps, dtype=float) for t in traces]
    changes = [np.diff(y, prepend=np.nan) if sampled else np.where(np.arange(len(y)) > 0, y, np.nan) for y in targets]
    unscored = sum(bool(t.unscored) for t in everyone)
    bare = len(everyone) - len(traces) - unscored
    lost = [f"unscored traces left out: {unscored}"] if unscored else []
    lost += [f"traces without {'Monte-Carlo labels' if sampled else 'an outcome'} left out: {bare}"] if bare else []
    return _Prefixes(
        SubsetInfo(name, len(everyone), unscored, "no labelled prefix"),
        traces,
        Resampled(np.repeat([index[t.id] for t in traces], lengths).astype(np.int64), draws),
        _joined(targets),
        _joined([np.ceil(QUARTERS * np.arange(1, k + 1) / k) for k in lengths]).astype(np.int64),
        _joined(changes),
        np.repeat([folds[t.id] for t in traces], lengths).astype(np.int64),
        "; ".join(lost),
    )


def _joined(parts: Sequence[Floats]) -> Floats:
    return np.concatenate([np.zeros(0), *parts])


# --- numbers ------------------------------------------------------------------------------------------------


def _floor(side: _Prefixes) -> list[Cell]:
    """What the mean target of the other fold reaches, whatever the prefix."""
    if reason := _too_few(side):
        return absent(("brier", "ece"), reason)
    constant = stats.cross_fitted_mean(side.target, side.fold)
    return [
        Cell("brier", stats.brier(constant, side.target, side.of), side.note),
        Cell("ece", stats.reliability(constant, side.target, side.of).ece, side.note),
    ]


def _cells(side: _Prefixes, manifest: RunManifest, protocol: EvalProtocol, scale: str) -> list[Cell]:
    reason = _too_few(side) if scale == "platt" else "" if len(side) else side.part.missing
    if reason:
        return absent(SCALARS, reason)
    values = _joined(_read(side, protocol))
    logits = stats.log_odds(values) if manifest.kind == "prob" else (manifest.beta or 1.0) * values
    if scale == "platt":
        logits = stats.cross_fitted(logits, side.target, side.fold)
    p, rank = (values, values) if scale == "identity" else (stats.sigmoid(logits), logits)
    bins = stats.reliability(p, side.target, side.of)
    return [
        Cell("ece", bins.ece, side.note),
        Cell("brier", stats.brier(p, side.target, side.of), side.note),
        *_aucs(side, rank),
        Cell("td_outcome_correlation", _td_correlation(side, protocol, manifest.kind), side.note),
        *_bin_cells(bins),
    ]


def _read(side: _Prefixes, protocol: EvalProtocol) -> list[Floats]:
    """The readout of every trace, [steps] each; none of them is unscored."""
    return [found for t in side.traces if (found := first_error.readout(t, protocol)) is not None]


def _too_few(side: _Prefixes) -> str:
    if not len(side):
        return side.part.missing
    return "" if len(np.unique(side.fold)) == FOLDS else "cross-fitting needs two problems"


def _aucs(side: _Prefixes, rank: Floats) -> list[Cell]:
    """Over all prefixes and by quarter; a target of exactly one half is neither good nor bad."""
    found = []
    for name, chosen in (
        ("auc", side.quarter > 0),
        *((f"auc_q{q}", side.quarter == q) for q in range(1, QUARTERS + 1)),
    ):
        clear = chosen & (side.target != EVEN)
        even = int(chosen.sum() - clear.sum())
        told = [f"prefixes with a target of exactly one half left out: {even}"] if even else []
        values = stats.auc(rank[clear], side.target[clear] > EVEN, side.of.keep(clear))
        sorts = len(np.unique(side.target[clear] > EVEN))
        note = "; ".join(filter(None, (side.note, *told)))
        found.append(Cell(name, values, note if sorts == 2 else "needs good and bad prefixes"))  # noqa: PLR2004
    return found


def _td_correlation(side: _Prefixes, protocol: EvalProtocol, kind: ScoreKind) -> Floats:
    """Of what a step adds to the value with what it adds to the target; the first step adds to nothing known.

    The TD of IPVRM's mean is the step's sum (METHOD: a difference of means is none), so both log-ratio values share it.
    """
    if kind == "logratio":
        added = _joined(_read(side, replace(protocol, readout="step_sum")))
    else:
        added = _joined([np.diff(values, prepend=np.nan) for values in _read(side, protocol)])
    later: Bools = np.isfinite(side.change)
    return stats.pearson(added[later], side.change[later], side.of.keep(later))


def _bin_cells(bins: stats.Reliability) -> list[Cell]:
    found = []
    for i in range(stats.BINS):
        found += [
            Cell(f"reliability_mean_{i}", bins.predicted[:, i], "empty bin" * (not bins.count[i]), averaged=False),
            Cell(f"reliability_rate_{i}", bins.observed[:, i], "empty bin" * (not bins.count[i]), averaged=False),
            Cell(f"reliability_n_{i}", np.array([float(bins.count[i])]), averaged=False),
        ]
    return found


# --- tables -------------------------------------------------------------------------------------------------


def tables(runs: Sequence[Run]) -> tuple[Table, ...]:
    """A table for probabilities as read, one after Platt scaling; the constant prediction beneath."""
    found = blocks(runs, prefix_identity)
    grids = []
    for rule, (title, words) in RULES.items():
        groups = tuple(group for block in found if (group := _group(rule, block)))
        if groups:
            grids.append(
                Table(
                    label=f"calibration-{rule}",
                    title=title,
                    caption=f"{words} Against the success of continuations from each prefix, or the final outcome. "
                    "95% interval over problems. Quarter: relative position of the prefix.",
                    header=("Prefixes of", "Model", "Protocol", *COLUMNS.values()),
                    groups=groups,
                    notes=notes_of(row for run in runs for row in run.result.rows if row.metric in COLUMNS),
                    text_columns=3,
                    lead=COLUMNS["auc"],
                )
            )
    return tuple(grids)


def _group(rule: str, block: Block) -> tuple[Row, ...]:
    lines = []
    for run in block.runs:
        rows = rows_of(run.result, block.subset)
        for protocol in dict.fromkeys(protocol for protocol, _ in rows if not protocol.startswith("floor/")):
            found = rule_and_readout(protocol, has_threshold=False)[0].partition("@")[0]
            if found == rule or (rule == "sigmoid" and found == "identity"):
                cells = {name: rows.get((protocol, name)) for name in COLUMNS}
                lines.append((model_name(run.result.manifest), protocol, cells))
    if not lines:
        return ()
    best = {name: best_value([cells[name] for *_, cells in lines], name in LOWER_IS_BETTER) for name in COLUMNS}
    lines.sort(key=lambda line: (-rank_value(line[2]["auc"]), line[0], line[1]))
    shown: list[Row] = [(block.name, model, Code(key), *_table_cells(cells, best)) for model, key, cells in lines]
    rows = rows_of(block.runs[0].result, block.subset)
    floor = {name: rows.get(("floor/constant", name)) for name in COLUMNS}
    if any(floor.values()):
        shown.append((block.name, "the mean, whatever the prefix", Code("floor/constant"), *_table_cells(floor, {})))
    return tuple(shown)


def _table_cells(cells: dict[str, MetricRow | None], best: dict[str, float | None]) -> Row:
    return tuple(cell_of(row, FRACTION, is_best(row, best.get(name)), "_q" not in name) for name, row in cells.items())


def summary(result: RunResult, keys: Sequence[str]) -> Table:
    """A line per protocol, then the constant prediction."""
    rows = rows_of(result, average_or_only_subset(result))
    shown: list[MetricRow] = []
    lines: dict[bool, list[Row]] = {False: [], True: []}
    for key in (*keys, "floor/constant"):
        found = [rows.get((key, name)) for name in SUMMARY]
        if any(found):
            shown += [row for row in found if row is not None]
            cells = (cell_of(row, FRACTION, interval=name == "auc") for row, name in zip(found, SUMMARY, strict=True))
            lines[key.startswith("floor/")].append((Code(key), *cells))
    return Table(
        label="calibration",
        title="",
        caption="",
        header=("value as a probability", *(COLUMNS[name].split()[0] for name in SUMMARY)),
        groups=tuple(map(tuple, lines.values())),
        notes=notes_of(shown),
        text_columns=1,
        ends_with_floors=True,
    )


def check_data(traces: Sequence[Trace], source: str) -> None:
    """Raises UserError unless some trace has step labels or an outcome."""
    if not any(t.step_labels or t.outcome is not None for t in traces):
        raise UserError(f"{source}: no trace has step_labels or an outcome; there is nothing to hold values against")


TASK = Task(
    name="calibration",
    title="step values as probabilities of success",
    description="Whether the value of a prefix is the probability that its continuation ends right.",
    unscored="unscored, left out",
    protocols=protocols,
    judge=judge,
    tables=tables,
    summary=summary,
    not_compared=("reliability",),
    check_data=check_data,
)
