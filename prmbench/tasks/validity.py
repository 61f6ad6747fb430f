"""Task validity: is every single step judged right? PRMScore by category, by group of categories, and pooled; floors.

One threshold is used for all categories. The twins (subset `correct`, all steps valid) are reported separately and are
in no total.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from prmbench.core.records import (
    DEFAULT_READOUTS,
    EvalProtocol,
    MetricRow,
    RunManifest,
    RunResult,
    ScoredTrace,
    UserError,
)
from prmbench.core.result_files import Run
from prmbench.core.validation import Fault
from prmbench.metrics import first_error, step_validity
from prmbench.metrics.first_error import Floats, Ints
from prmbench.metrics.intervals import Kind
from prmbench.metrics.step_validity import INVALID, VALID, Steps
from prmbench.tasks import steps as step_f1
from prmbench.tasks.blocks import Block, blocks, rows_of
from prmbench.tasks.metric_rows import Cell, Judged, SubsetInfo, absent, average_name, resampled, traces_of_subset
from prmbench.tasks.published import PublishedRow, published, published_value, reading_notes
from prmbench.tasks.table import (
    FRACTION,
    PERCENT,
    Code,
    Row,
    Table,
    Value,
    cell_of,
    notes_of,
    rank_value,
    without_marks,
)
from prmbench.tasks.task import Floor, Leading, Task
from prmbench.tasks.ties import PairedTests, Place, place_of
from prmbench.tasks.wording import rule_and_readout, run_name

RULES = ("native", "fixed", "cross_validated", "oracle")
GROUPS: dict[str, tuple[str, ...]] = {
    "simplicity": ("redundency", "circular"),
    "soundness": ("counterfactual", "step_contradiction", "domain_inconsistency", "confidence"),
    "sensitivity": ("missing_condition", "deception", "multi_solutions"),
}
TWINS = "correct"
F1_ONLY = "multi_solutions"
"""All of its steps are valid, so PRMBench uses F1 as its PRMScore."""
NO_INVALID, NO_VALID = "no invalid step", "no valid step"
METRICS = (
    *("prmscore", "valid_f1", "invalid_f1", "step_accuracy"),
    *("valid_accuracy", "invalid_accuracy", "first_error_accuracy"),
)

BENCHMARK = "prmbench_preview"
DESCRIPTION = (
    "Is every single step judged rightly? A step is called valid when its score lies above the threshold, one for all "
    "categories; at the threshold the model's own rule decides, as in step F1. PRMScore is the mean of the F1 on valid "
    "and the F1 on invalid steps (multi_solutions: on valid steps alone). Flagging steps at random reaches 50 on any "
    "labels. Steps of unscored traces count as judged wrongly. Labels of steps that a row does not have are left out, "
    "as in PRMBench's own script."
)
RULE_TEXTS = {
    "native": ("Native", "The model's own label; nothing is tuned."),
    "fixed": ("Fixed", "A threshold given beforehand and named in the protocol; nothing is tuned."),
    "cross_validated": (
        "Cross-validated",
        "Five folds by problem: the threshold of highest pooled PRMScore on four is used on the fifth; the mean over "
        "ten splits into folds.",
    ),
    "oracle": (
        "Oracle (upper bound)",
        "The threshold is tuned on the very steps that are scored; never compare it with a number from another table.",
    ),
}
"""Threshold rules in table order."""
FLOORS = {
    "floor/random": "chance: steps flagged at the best rate",
    "floor/all_valid": "every step called valid",
}
OVERALL = "overall"
COLUMNS = (OVERALL, *(name for group, members in GROUPS.items() for name in (group, *members)))
DETAIL_METRICS = {
    "valid_f1": "F1, valid steps",
    "invalid_f1": "F1, invalid steps",
    "step_accuracy": "Steps",
    "valid_accuracy": "Valid steps",
    "invalid_accuracy": "Invalid steps",
    "first_error_accuracy": "First errors",
}


@dataclass(frozen=True, slots=True)
class _CategoryGroup:
    """Several categories whose numbers are combined."""

    part: SubsetInfo
    members: tuple[int, ...]
    """Indices of the categories."""
    pooled: bool
    """Whether counts are summed; otherwise the mean of the categories' scores is taken."""
    note: str
    """Which categories are missing."""


@dataclass(frozen=True, slots=True)
class _LabelledSteps:
    """The labelled steps of a run without their scores, and how they are resampled."""

    traces: tuple[ScoredTrace, ...]
    parts: tuple[SubsetInfo, ...]
    """The categories, in the order of `Steps.category`."""
    category_groups: tuple[_CategoryGroup, ...]
    steps: Steps
    weights: Floats
    """[b, problems], shared by all categories, since most problems occur in most categories."""
    fold: Ints
    """Fold of each problem in every split, [splits, problems]."""
    total: Floats
    """Numbers of judgements, [b, categories, KINDS]."""

    @property
    def pooled(self) -> list[int]:
        """Indices of the categories that count towards the pooled numbers."""
        return [k for k, part in enumerate(self.parts) if part.name != TWINS]


def eval_protocols(manifest: RunManifest) -> tuple[EvalProtocol, ...]:
    """Returns every protocol that the run's kind of score allows: none for verdicts, which judge only one step."""
    candidates = () if manifest.kind == "verdict" else step_f1.eval_protocols(manifest)
    return tuple(p for p in candidates if p.threshold in RULES)


def protocols(manifest: RunManifest) -> tuple[str, ...]:
    """Returns the protocol keys: `[series.]readout/threshold`, as in step F1."""
    return tuple(p.key for p in eval_protocols(manifest))


def resolve(manifest: RunManifest, key: str) -> str:
    """Normalises a protocol key; any fixed threshold is allowed. Raises UserError on one that the run cannot have."""
    protocol = step_f1.resolve(manifest, EvalProtocol.parse(key))
    if manifest.kind == "verdict" or protocol.threshold not in RULES:
        readable = ", ".join(protocols(manifest)) or "none: it needs a score for every step"
        raise UserError(f"protocol {key!r}: {manifest.benchmark} has {readable}")
    return protocol.key


def judge(manifest: RunManifest, scores: Sequence[ScoredTrace]) -> Judged:
    """Computes the floors, then every protocol, each for categories, groups of categories, and all pooled."""
    extra = (EvalProtocol.parse(resolve(manifest, key)) for key in manifest.extra_protocols)
    return _judge(manifest, scores, (*eval_protocols(manifest), *extra))


def judge_one(manifest: RunManifest, scores: Sequence[ScoredTrace], key: str) -> Judged:
    """Computes the floors and the cells of one protocol."""
    return _judge(manifest, scores, [EvalProtocol.parse(key)])


def _judge(manifest: RunManifest, scores: Sequence[ScoredTrace], wanted: Sequence[EvalProtocol]) -> Judged:
    data = _labelled_steps(manifest, scores)
    rate = np.nan_to_num(
        step_validity.best_rate(data.total[:, data.pooled].sum(axis=1))
    )  # with twins only, flag nothing
    all_valid = np.zeros_like(data.total)
    all_valid[..., VALID] = data.total[..., VALID]
    cells = {
        "floor/random": _cells(data, step_validity.flagged_at_random(data.total, rate), "percentile"),
        "floor/all_valid": _cells(data, all_valid),
    }
    for protocol in wanted:
        cells[protocol.key] = _protocol_cells(data, step_f1.resolve(manifest, protocol))
    return Judged((*data.parts, *(group.part for group in data.category_groups)), cells, averages=())


def leading(result: RunResult) -> tuple[Leading, ...]:
    """Returns PRMScore under the headline readout, by threshold rule; tuning inside folds goes before fixed numbers."""
    keys = dict.fromkeys(row.protocol for row in result.rows if not row.protocol.startswith("floor/"))
    parsed = [EvalProtocol.parse(key) for key in keys]
    chosen = [p for p in parsed if p.readout == DEFAULT_READOUTS[result.manifest.kind] and not p.series]
    floors = tuple(Floor(key, "prmscore", name) for key, name in FLOORS.items())
    return tuple(
        Leading(p.key, "prmscore", "PRMScore", rule, floors=floors)
        for rule in step_f1.RECOMMENDED
        for p in chosen
        if p.threshold == rule
    )


# --- from scores to counts --------------------------------------------------------------------------------------


def _labelled_steps(manifest: RunManifest, scores: Sequence[ScoredTrace]) -> _LabelledSteps:
    names = sorted(manifest.subsets, key=_rank)
    by_name = {name: traces_of_subset(scores, name) for name in names}
    traces = tuple(t for category_traces in by_name.values() for t in category_traces)
    for trace in traces:
        if len(trace.step_labels) != trace.steps or not set(trace.step_labels) <= {0.0, 1.0}:
            raise UserError(f"{trace.id}: task validity needs a label 0 or 1 for each of its {trace.steps} steps")
    parts = tuple(
        SubsetInfo(
            n,
            len(category_traces),
            sum(bool(t.unscored) for t in category_traces),
            problems=len({t.cluster for t in category_traces}),
        )
        for n, category_traces in by_name.items()
    )
    problem, weights = resampled(manifest, manifest.task, [t.cluster for t in traces])
    steps = _steps(traces, problem, names)
    total = weights @ step_validity.totals(steps).reshape(steps.problems, -1)
    return _LabelledSteps(
        traces,
        parts,
        _category_groups(parts, tuple(by_name.values())),
        steps,
        weights,
        first_error.fold_splits(sorted({t.cluster for t in traces})),  # steps number problems in this order
        total.reshape(len(weights), len(names), step_validity.KINDS),
    )


def _rank(name: str) -> tuple[int, str]:
    """Sort key: PRMBench's order of categories, then unknown ones, then the twins."""
    order = [name for names in GROUPS.values() for name in names]
    return (order.index(name) if name in order else len(order) + (name == TWINS), name)


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
        category != (names.index(TWINS) if TWINS in names else -1),
        int(problem.max()) + 1,
        len(names),
    )


def _scored(data: _LabelledSteps, protocol: EvalProtocol) -> Steps:
    """The steps with the protocol's readout as scores; nan for the steps of unscored traces."""
    readouts = [first_error.readout(t, protocol) for t in data.traces]
    values = [np.full(t.steps, np.nan) if r is None else r for t, r in zip(data.traces, readouts, strict=True)]
    # Counting calls a step valid when it scores above the threshold.
    return replace(data.steps, score=first_error.break_ties(np.concatenate(values), protocol.tie, is_strict=False))


# --- from counts to cells ---------------------------------------------------------------------------------------


def _protocol_cells(data: _LabelledSteps, protocol: EvalProtocol) -> dict[str, list[Cell]]:
    steps = _scored(data, protocol)
    is_tuned = protocol.threshold in ("cross_validated", "oracle")
    if is_tuned and (reason := _untunable(data, protocol)):
        return _absent(data, reason)
    if protocol.threshold == "cross_validated":
        correct, tuned = _tuned(data, steps, data.fold)
        cells = _cells(data, correct)
    elif protocol.threshold == "oracle":
        correct, tuned = _tuned(data, steps, np.zeros((1, steps.problems), dtype=np.int64))
        cells = _cells(data, correct)
        if steps.problems > 1:
            held_out = _cells(data, _tuned(data, steps, data.fold)[0])
            cells = {name: _centred(cells[name], held_out[name]) for name in cells}
    elif protocol.at is None:
        raise ValueError(f"{protocol.key}: no number for its threshold")
    else:
        tuned = np.array([protocol.at])
        correct_steps = step_validity.correct_at(steps, protocol.at).reshape(steps.problems, -1)
        cells = _cells(data, (data.weights @ correct_steps).reshape(data.total.shape))
    for group in data.category_groups:
        if group.pooled:
            cells[group.part.name].append(Cell("threshold", np.array([np.median(tuned)])))
    return cells


def _tuned(data: _LabelledSteps, steps: Steps, fold: Ints) -> tuple[Floats, Floats]:
    """Correct judgements, [b, categories, KINDS], with thresholds tuned on the other folds, and these thresholds.

    Judgements are averaged over splits. Replicates keep the thresholds: tuning them again would count their uncertainty
    twice. A single fold is tuned on itself.
    """
    thresholds = step_validity.candidate_thresholds(steps.score[steps.pooled])
    curve = step_validity.threshold_counts(steps, thresholds)
    chosen = [step_validity.best_thresholds(curve, np.ones((1, steps.problems)), split) for split in fold]
    counts = [
        step_validity.count_correct(steps, thresholds, np.repeat(index, len(data.weights), axis=0), data.weights, split)
        for index, split in zip(chosen, fold, strict=True)
    ]
    return np.mean(counts, axis=0), thresholds[np.concatenate(chosen, axis=1)[0]]


def _centred(oracle: Sequence[Cell], held_out: Sequence[Cell]) -> list[Cell]:
    """Oracle cells whose PRMScore has an interval for the population's best one; see `steps` for the reason."""
    cells = []
    for cell, other in zip(oracle, held_out, strict=True):
        if cell.metric == METRICS[0]:
            middle = (cell.values + other.values) / 2
            values = np.concatenate([cell.values[:1], middle[1:]])
            cell = replace(cell, values=values, centre=float(middle[0]))  # noqa: PLW2901
        cells.append(cell)
    return cells


def _untunable(data: _LabelledSteps, protocol: EvalProtocol) -> str:
    counts = data.total[0, data.pooled].sum(axis=0)
    if not counts[INVALID] or not counts[VALID]:
        return f"{NO_INVALID if counts[VALID] else NO_VALID} to tune on"
    has_one_fold = protocol.threshold == "cross_validated" and data.steps.problems == 1
    return "cross-validation needs two problems" if has_one_fold else ""


def _absent(data: _LabelledSteps, reason: str) -> dict[str, list[Cell]]:
    cells = {part.name: absent(METRICS, reason) for part in data.parts}
    for group in data.category_groups:
        cells[group.part.name] = absent(METRICS if group.pooled else METRICS[:1], reason)
    return cells


def _cells(data: _LabelledSteps, correct: Floats, kind: Kind = "share") -> dict[str, list[Cell]]:
    """Cells of categories, groups and the pooled whole, from correct judgements [b, categories, KINDS]."""
    cells = {
        p.name: _metric_cells(correct[:, k], data.total[:, k], p.name, kind=kind) for k, p in enumerate(data.parts)
    }
    for group in data.category_groups:
        name, members = group.part.name, list(group.members)
        if group.pooled:
            pooled_correct, total = (counts[:, members].sum(axis=1) for counts in (correct, data.total))
            cells[name] = _metric_cells(pooled_correct, total, name, group.note, kind)
        else:
            member_cells = [cells[data.parts[k].name][0] for k in members]
            reasons = [f"{data.parts[k].name}: {c.note}" for k, c in zip(members, member_cells, strict=True) if c.note]
            note = "; ".join(filter(None, (group.note, *reasons)))
            cells[name] = [Cell("prmscore", np.mean([c.values for c in member_cells], axis=0), note, kind=kind)]
    return cells


def _metric_cells(correct: Floats, total: Floats, name: str, note: str = "", kind: Kind = "share") -> list[Cell]:
    values = step_validity.metrics(correct, total, only_valid=name == F1_ONLY)
    reason = NO_VALID if not total[0, VALID] else NO_INVALID
    return [Cell(m, v, reason if np.isnan(v[0]) else note, kind=kind) for m, v in values.items()]


def _category_groups(
    parts: Sequence[SubsetInfo], traces_by_part: Sequence[Sequence[ScoredTrace]]
) -> tuple[_CategoryGroup, ...]:
    """The groups, then all categories pooled. Missing categories are left out of the name and listed in the note."""
    index_by_name = {part.name: k for k, part in enumerate(parts) if part.name != TWINS}
    all_names = tuple(name for names in GROUPS.values() for name in names)
    category_groups = []
    for group, members in (*GROUPS.items(), (OVERALL, all_names)):
        pooled = group == OVERALL
        present = [name for name in index_by_name if pooled or name in members]
        if present:
            indices = tuple(index_by_name[name] for name in present)
            n, unscored = (sum(getattr(parts[k], field) for k in indices) for field in ("n", "unscored"))
            name = f"micro[{','.join(present)}]" if pooled else average_name(present)
            missing = [name for name in members if name not in index_by_name]
            note = f"{group} without {', '.join(missing)}" if missing else ""
            problems = len({trace.cluster for k in indices for trace in traces_by_part[k]})
            info = SubsetInfo(name, n, unscored, problems=problems)
            category_groups.append(_CategoryGroup(info, indices, pooled, note))
    return tuple(category_groups)


# --- tables -------------------------------------------------------------------------------------------------------


def step_label_identity(trace: ScoredTrace) -> object:
    """Fields in which two runs on the same labelled steps agree."""
    return trace.id, trace.steps, trace.step_labels


def subset_by_column(result: RunResult) -> dict[str, str]:
    """Returns the run's subset for each column: a category itself, the average of a group, or the pooled whole."""
    by_column = {}
    for subset in dict.fromkeys(row.subset for row in result.rows):
        kind, _, listed = subset.rstrip("]").partition("[")
        members = listed.split(",")
        if kind == "micro":
            by_column[OVERALL] = subset
        elif kind == "avg":
            by_column |= {group: subset for group, names in GROUPS.items() if set(members) <= set(names)}
        else:
            by_column[subset] = subset
    return by_column


def short_subset_name(subset: str) -> str:
    """Returns a short name for `micro[...]` or for the average of a group's categories; empty for other subsets."""
    kind, _, listed = subset.rstrip("]").partition("[")
    members = listed.split(",")
    if kind == "micro":
        return "pooled"
    for group, names in GROUPS.items() if kind == "avg" else ():
        if set(members) <= set(names):
            return group if len(members) == len(names) else f"{group} ({len(members)} of {len(names)})"
    return ""


@dataclass(frozen=True, slots=True)
class ProtocolRow:
    """The rows of a run under one protocol; `cell(column, metric)` returns one of them."""

    run: Run
    protocol: str
    cell: Callable[[str, str], MetricRow | None]

    @property
    def value(self) -> float:
        """The overall PRMScore as a sort key; -1 where there is none."""
        return rank_value(self.cell(OVERALL, "prmscore"))


def protocol_row(run: Run, protocol: str) -> ProtocolRow:
    """Returns the rows of a run under a protocol, by table column."""
    subset_of = subset_by_column(run.result)
    rows = {(r.subset, r.metric): r for r in run.result.rows if r.protocol == protocol}
    return ProtocolRow(run, protocol, lambda column, metric: rows.get((subset_of.get(column, ""), metric)))


def _rows_of_rule(block: Block, rule: str) -> list[ProtocolRow]:
    """The rows of a block under a threshold rule, best first."""
    rows = [
        protocol_row(run, protocol)
        for run in block.runs
        for protocol in dict.fromkeys(row.protocol for row in run.result.rows)
        if rule_and_readout(protocol)[0] == rule
    ]
    return sorted(rows, key=lambda row: (-row.value, run_name(row.run), row.protocol))


def columns_of(block: Block) -> list[str]:
    """Returns the columns that any run of the block has, in table order."""
    present = {column for run in block.runs for column in subset_by_column(run.result)}
    return [column for column in COLUMNS if column in present]


def pooled_blocks(runs: Sequence[Run]) -> list[Block]:
    """Returns runs grouped by their traces, over all categories pooled."""
    return [block for block in blocks(runs, step_label_identity) if block.subset.startswith("micro[")]


# --- tables -------------------------------------------------------------------------------------------------------


def tables(runs: Sequence[Run]) -> tuple[Table, ...]:
    """Returns, per threshold rule and set of traces, the PRMScores and their details; published numbers come last."""
    result_tables, tests = [], PairedTests(TASK)
    for rule in RULE_TEXTS:
        for block in pooled_blocks(runs):
            if protocol_rows := _rows_of_rule(block, rule):
                result_tables += [
                    _score_table(rule, block, protocol_rows, tests),
                    _details_table(rule, block, protocol_rows),
                ]
    benchmark = {run.result.manifest.benchmark for run in runs}
    return (*result_tables, *(_published() if benchmark == {BENCHMARK} else ()))


def _score_table(rule: str, block: Block, protocol_rows: Sequence[ProtocolRow], tests: PairedTests) -> Table:
    title, text = RULE_TEXTS[rule]
    columns = columns_of(block)
    tied = {c: tests.tied_in_column((line.run, line.cell(c, "prmscore")) for line in protocol_rows) for c in columns}
    floors = [protocol_row(block.runs[0], name) for name in FLOORS]
    rows = [row for line in (*protocol_rows, *floors) for c in columns if (row := line.cell(c, "prmscore"))]
    return Table(
        label=f"{BENCHMARK}-{rule}-{block.traces}",
        title=title,
        caption=f"{text} PRMScore in percent with its 95% interval over problems, {_traces(block)}. Overall pools the "
        f"steps of all categories; a group is the plain mean of the categories after it. {tests.text}",
        header=("Model", "Protocol", *columns),
        groups=(
            tuple(_score_row(run_name(line.run), line, columns, tied) for line in protocol_rows),
            tuple(_score_row(FLOORS[line.protocol], line, columns, {}) for line in floors),
        ),
        notes=notes_of(rows),
        lead=OVERALL,
    )


def _score_row(name: str, line: ProtocolRow, columns: Sequence[str], tied: Mapping[str, frozenset[Place]]) -> Row:
    cells = []
    for column in columns:
        row = line.cell(column, "prmscore")
        is_tied = place_of(line.run, line.protocol) in tied.get(column, ())
        cells.append(cell_of(row, PERCENT, is_tied, interval=column in (OVERALL, *GROUPS)))
    return (name, Code(line.protocol), *cells)


def _traces(block: Block) -> str:
    return f"{block.n} traces" if block.is_only else f"{block.n} traces (set {block.traces})"


def _details_table(rule: str, block: Block, protocol_rows: Sequence[ProtocolRow]) -> Table:
    table_rows = []
    for row in protocol_rows:
        cells = [cell_of(row.cell(OVERALL, metric), PERCENT, interval=False) for metric in DETAIL_METRICS]
        twins = cell_of(row.cell(TWINS, "step_accuracy"), PERCENT, interval=False)
        threshold = cell_of(row.cell(OVERALL, "threshold"), FRACTION, interval=False)
        mdd = cell_of(row.cell(OVERALL, "mdd"), PERCENT, interval=False)
        unscored = sum({r.subset: r.unscored for r in row.run.result.rows if "[" not in r.subset}.values())
        name = run_name(row.run)
        last_cells = (
            twins,
            *map(without_marks, (threshold, mdd)),
            Value(unscored, "count"),
            row.run.result.manifest.run_id,
        )
        table_rows.append((name, Code(row.protocol), *map(without_marks, cells), *last_cells))
    return Table(
        label=f"{BENCHMARK}-{rule}-{block.traces}-behind",
        title=f"{RULE_TEXTS[rule][0]}: behind the overall PRMScore",
        caption="Percent, pooled: the share of all steps, valid steps, invalid steps and first errors that are judged "
        "right. Twins: the share of steps called valid in the original solutions, which are in no total. Min. "
        "difference: the smallest gap to an equally noisy run that an unpaired test finds with power 0.80.",
        header=(
            *("Model", "Protocol", *DETAIL_METRICS.values()),
            *("Twins", "Threshold", "Min. difference", "Unscored", "Run"),
        ),
        groups=(tuple(table_rows),),
    )


def _published() -> tuple[Table, ...]:
    return tuple(
        Table(
            label=f"{BENCHMARK}-published",
            title="Published",
            caption=f"Measured by others and copied from their table; not recomputed here. {table.title}: PRMScore in "
            "percent. No interval: none was published.",
            header=("Model", "Threshold", *COLUMNS),
            groups=(tuple(_published_row(row) for row in sorted(table.rows, key=lambda r: -r.average)),),
            notes=(f"{table.source}. {table.note}.", *_published_notes(table.rows), *reading_notes(table.rows)),
        )
        for table in published(BENCHMARK)
    )


def _published_row(row: PublishedRow) -> Row:
    cells = (row.average if c == OVERALL else row.cells[c]["prmscore"] for c in COLUMNS)
    return (row.name, row.threshold or "not stated", *map(published_value, cells))


def _published_notes(rows: Sequence[PublishedRow]) -> list[str]:
    notes = dict.fromkeys(row.note for row in rows if row.note)
    return [f"{', '.join(row.name for row in rows if row.note == note)}: {note}." for note in notes]


def summary(result: RunResult, keys: Sequence[str]) -> Table:
    """Returns the terminal table: a row per protocol with the overall score and the groups, without categories."""
    subset_of = subset_by_column(result)
    columns = [c for c in (OVERALL, *GROUPS) if c in subset_of] or [c for c in subset_of if c == TWINS]
    metric = "prmscore" if OVERALL in subset_of else "step_accuracy"
    shown_rows: list[MetricRow | None] = []
    table_rows: dict[bool, list[Row]] = {False: [], True: []}
    for key in (*keys, *FLOORS):
        rows = [rows_of(result, subset_of[c]).get((key, metric)) for c in columns]
        shown_rows += rows
        cells = (cell_of(row, interval=c == OVERALL) for c, row in zip(columns, rows, strict=True))
        table_rows[key in FLOORS].append((Code(key), *cells))
    return Table(
        label="validity",
        title="",
        caption="",
        header=(f"{metric}, percent", *columns),
        groups=tuple(map(tuple, table_rows.values())),
        notes=notes_of(row for row in shown_rows if row is not None),
        text_columns=1,
        ends_with_floors=True,
    )


def check_trace(_: RunManifest, trace: ScoredTrace) -> Iterator[Fault]:
    """Yields step labels that are missing or are not 0 or 1."""
    labels = trace.step_labels
    if not labels or not set(labels) <= {0, 1}:
        yield "step_labels", f"must be 0 or 1 for each of {trace.steps} steps"


TASK = Task(
    name="validity",
    title="validity of every step",
    description=DESCRIPTION,
    unscored="unscored, every step counted as wrong",
    protocols=protocols,
    judge=judge,
    judge_one=judge_one,
    leading=leading,
    tables=tables,
    summary=summary,
    has_threshold=True,
    resolve=resolve,
    check_trace=check_trace,
)
