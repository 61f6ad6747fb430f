"""Task validity: is every single step judged rightly? PRMScore by category, by group of them and pooled; its floors.

One threshold holds for all categories. The twins that are all right (subset `correct`) stand apart and are in no total.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from prmbench.core.records import EvalProtocol, MetricRow, RunManifest, RunResult, ScoredTrace, UserError
from prmbench.core.result_files import Run
from prmbench.core.validation import Fault
from prmbench.metrics import first_error, step_validity
from prmbench.metrics.first_error import Floats, Ints
from prmbench.metrics.step_validity import INVALID, VALID, Steps
from prmbench.tasks import steps as step_f1
from prmbench.tasks.blocks import Block, blocks, rows_of
from prmbench.tasks.metric_rows import Cell, Judged, SubsetInfo, absent, average_name, resampled, traces_of_subset
from prmbench.tasks.published import PublishedRow, published, published_value
from prmbench.tasks.table import (
    FRACTION,
    PERCENT,
    Code,
    Row,
    Table,
    Value,
    best_value,
    cell_of,
    notes_of,
    rank_value,
    without_marks,
)
from prmbench.tasks.task import Task
from prmbench.tasks.wording import model_name, rule_and_readout

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

BENCHMARK = "prmbench_preview"
WORDS = (
    "Is every single step judged rightly? A step is called valid when its score lies above the threshold, one for all "
    "categories. PRMScore is the mean of the F1 on valid and the F1 on invalid steps (multi_solutions: on valid steps "
    "alone). Flagging steps at random reaches 50 on any labels. Steps of unscored traces count as judged wrongly. "
    "Labels of steps that a row does not have are left out, as in PRMBench's own script."
)
RULE_WORDS = {
    "native": ("Native", "The model's own label; nothing is tuned."),
    "fixed": ("Fixed", "A threshold given beforehand and named in the protocol; nothing is tuned."),
    "cross_validated": (
        "Cross-validated",
        "Five folds by problem: the threshold of highest pooled PRMScore on four is used on the fifth.",
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
BEHIND = {
    "valid_f1": "F1, valid steps",
    "invalid_f1": "F1, invalid steps",
    "step_accuracy": "Steps",
    "valid_accuracy": "Valid steps",
    "invalid_accuracy": "Invalid steps",
    "first_error_accuracy": "First errors",
}


@dataclass(frozen=True, slots=True)
class _Whole:
    """Several categories together."""

    part: SubsetInfo
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
    parts: tuple[SubsetInfo, ...]
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


def eval_protocols(manifest: RunManifest) -> tuple[EvalProtocol, ...]:
    """Every protocol that the run's kind of score admits; a verdict names one step, and says nothing of the others."""
    known = () if manifest.kind == "verdict" else step_f1.eval_protocols(manifest)
    return tuple(p for p in known if p.threshold in RULES)


def protocols(manifest: RunManifest) -> tuple[str, ...]:
    """`[series.]readout/threshold`, as in step F1."""
    return tuple(p.key for p in eval_protocols(manifest))


def resolve(manifest: RunManifest, key: str) -> str:
    """Spells a protocol as rows do; any fixed threshold will do. Raises UserError on one that the run cannot have."""
    protocol = step_f1.resolve(manifest, EvalProtocol.parse(key))
    if manifest.kind == "verdict" or protocol.threshold not in RULES:
        readable = ", ".join(protocols(manifest)) or "none: it needs a score for every step"
        raise UserError(f"protocol {key!r}: {manifest.benchmark} has {readable}")
    return protocol.key


def judge(manifest: RunManifest, scores: Sequence[ScoredTrace]) -> Judged:
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
    asked = (EvalProtocol.parse(resolve(manifest, key)) for key in manifest.extra_protocols)
    for protocol in (*eval_protocols(manifest), *asked):
        cells[protocol.key] = _protocol_cells(side, step_f1.resolve(manifest, protocol))
    return Judged((*side.parts, *(whole.part for whole in side.wholes)), cells, averages=())


# --- from scores to counts --------------------------------------------------------------------------------------


def _side(manifest: RunManifest, scores: Sequence[ScoredTrace]) -> _Side:
    names = sorted(manifest.subsets, key=_rank)
    by_name = {name: traces_of_subset(scores, name) for name in names}
    traces = tuple(t for found in by_name.values() for t in found)
    for trace in traces:
        if len(trace.step_labels) != trace.steps or not set(trace.step_labels) <= {0.0, 1.0}:
            raise UserError(f"{trace.id}: task validity needs a label 0 or 1 for each of its {trace.steps} steps")
    parts = tuple(SubsetInfo(n, len(found), sum(bool(t.unscored) for t in found)) for n, found in by_name.items())
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


def _wholes(parts: Sequence[SubsetInfo]) -> tuple[_Whole, ...]:
    """Groups, then all categories pooled, of what is there; what is missing is not in the name, and is noted."""
    there = {part.name: k for k, part in enumerate(parts) if part.name != APART}
    every = tuple(name for names in GROUPS.values() for name in names)
    found = []
    for group, members in (*GROUPS.items(), (OVERALL, every)):
        pooled = group == OVERALL
        present = [name for name in there if pooled or name in members]
        if present:
            places = tuple(there[name] for name in present)
            n, unscored = (sum(getattr(parts[k], what) for k in places) for what in ("n", "unscored"))
            name = f"micro[{','.join(present)}]" if pooled else average_name(present)
            lacking = [name for name in members if name not in there]
            note = f"{group} without {', '.join(lacking)}" if lacking else ""
            found.append(_Whole(SubsetInfo(name, n, unscored), places, pooled, note))
    return tuple(found)


# --- tables -------------------------------------------------------------------------------------------------------


def steps_labelled(trace: ScoredTrace) -> object:
    """What makes two runs judge the same steps."""
    return trace.id, trace.steps, trace.step_labels


def places(result: RunResult) -> dict[str, str]:
    """Column -> the run's subset of that meaning: a category itself, a group's average, the pooled whole."""
    found = {}
    for subset in dict.fromkeys(row.subset for row in result.rows):
        kind, _, inside = subset.rstrip("]").partition("[")
        members = inside.split(",")
        if kind == "micro":
            found[OVERALL] = subset
        elif kind == "avg":
            found |= {group: subset for group, names in GROUPS.items() if set(members) <= set(names)}
        else:
            found[subset] = subset
    return found


def short(subset: str) -> str:
    """What a narrow table calls `micro[...]` or the average of a group's categories; empty for other subsets."""
    kind, _, inside = subset.rstrip("]").partition("[")
    members = inside.split(",")
    if kind == "micro":
        return "pooled"
    for group, names in GROUPS.items() if kind == "avg" else ():
        if set(members) <= set(names):
            return group if len(members) == len(names) else f"{group} ({len(members)} of {len(names)})"
    return ""


@dataclass(frozen=True, slots=True)
class Line:
    """A run under a protocol; `cell(column, metric)` is one of its rows."""

    run: Run
    protocol: str
    cell: Callable[[str, str], MetricRow | None]

    @property
    def value(self) -> float:
        """The overall PRMScore, to sort by; below every score where there is none."""
        return rank_value(self.cell(OVERALL, "prmscore"))


def line_of(run: Run, protocol: str) -> Line:
    """Returns a run's rows under a protocol, by the column that they belong in."""
    where = places(run.result)
    rows = {(r.subset, r.metric): r for r in run.result.rows if r.protocol == protocol}
    return Line(run, protocol, lambda column, metric: rows.get((where.get(column, ""), metric)))


def _lines(block: Block, rule: str) -> list[Line]:
    """Best first."""
    found = [
        line_of(run, protocol)
        for run in block.runs
        for protocol in dict.fromkeys(row.protocol for row in run.result.rows)
        if rule_and_readout(protocol)[0] == rule
    ]
    return sorted(found, key=lambda x: (-x.value, model_name(x.run.result.manifest), x.protocol))


def columns_of(block: Block) -> list[str]:
    """Returns the columns that some run of the block has, in table order."""
    there = {column for run in block.runs for column in places(run.result)}
    return [column for column in COLUMNS if column in there]


def pooled_blocks(runs: Sequence[Run]) -> list[Block]:
    """Returns runs on the same traces together, over all categories pooled."""
    return [block for block in blocks(runs, steps_labelled) if block.subset.startswith("micro[")]


# --- tables -------------------------------------------------------------------------------------------------------


def tables(runs: Sequence[Run]) -> tuple[Table, ...]:
    """For each threshold rule and set of traces the PRMScores, then what lies behind them; published numbers last."""
    found = []
    for rule in RULE_WORDS:
        for block in pooled_blocks(runs):
            if lines := _lines(block, rule):
                found += [_scores(rule, block, lines), _behind(rule, block, lines)]
    benchmark = {run.result.manifest.benchmark for run in runs}
    return (*found, *(_published() if benchmark == {BENCHMARK} else ()))


def _scores(rule: str, block: Block, lines: Sequence[Line]) -> Table:
    title, words = RULE_WORDS[rule]
    columns = columns_of(block)
    best = {c: best_value([line.cell(c, "prmscore") for line in lines]) for c in columns}
    shown = [line_of(block.runs[0], name) for name in FLOORS]
    rows = [row for line in (*lines, *shown) for c in columns if (row := line.cell(c, "prmscore"))]
    return Table(
        label=f"{BENCHMARK}-{rule}-{block.traces}",
        title=title,
        caption=f"{words} PRMScore in percent with its 95% interval over problems, {_traces(block)}. Overall pools the "
        "steps of all categories; a group is the plain mean of the categories after it.",
        header=("Model", "Protocol", *columns),
        groups=(
            tuple(_score_row(model_name(x.run.result.manifest), x, columns, best) for x in lines),
            tuple(_score_row(FLOORS[x.protocol], x, columns, {}) for x in shown),
        ),
        notes=notes_of(rows),
        lead=OVERALL,
    )


def _score_row(name: str, line: Line, columns: Sequence[str], best: dict[str, float | None]) -> Row:
    cells = []
    for column in columns:
        row = line.cell(column, "prmscore")
        top = row is not None and row.value is not None and row.value == best.get(column)
        cells.append(cell_of(row, PERCENT, top, interval=column in (OVERALL, *GROUPS)))
    return (name, Code(line.protocol), *cells)


def _traces(block: Block) -> str:
    return f"{block.n} traces" if block.is_only else f"{block.n} traces (set {block.traces})"


def _behind(rule: str, block: Block, lines: Sequence[Line]) -> Table:
    found = []
    for x in lines:
        cells = [cell_of(x.cell(OVERALL, metric), PERCENT, interval=False) for metric in BEHIND]
        twins = cell_of(x.cell(APART, "step_accuracy"), PERCENT, interval=False)
        threshold = cell_of(x.cell(OVERALL, "threshold"), FRACTION, interval=False)
        least = cell_of(x.cell(OVERALL, "mdd"), PERCENT, interval=False)
        unscored = sum({r.subset: r.unscored for r in x.run.result.rows if "[" not in r.subset}.values())
        name = model_name(x.run.result.manifest)
        tail = (twins, *map(without_marks, (threshold, least)), Value(unscored, "count"), x.run.result.manifest.run_id)
        found.append((name, Code(x.protocol), *map(without_marks, cells), *tail))
    return Table(
        label=f"{BENCHMARK}-{rule}-{block.traces}-behind",
        title=f"{RULE_WORDS[rule][0]}: behind the overall PRMScore",
        caption="Percent, pooled. Steps, valid and invalid ones, first errors: how many of them are judged rightly. "
        "Twins: of the original processes, which are in no total, the steps called valid. Min. difference: the "
        "smallest gap to an equally noisy run that an unpaired test finds with power 0.80.",
        header=(
            *("Model", "Protocol", *BEHIND.values()),
            *("Twins", "Threshold", "Min. difference", "Unscored", "Run"),
        ),
        groups=(tuple(found),),
    )


def _published() -> tuple[Table, ...]:
    return tuple(
        Table(
            label=f"{BENCHMARK}-published",
            title="Published",
            caption=f"Measured by others and copied from their table; not recomputed here. {book.title}: PRMScore in "
            "percent. No interval: none was published.",
            header=("Model", "Threshold", *COLUMNS),
            groups=(tuple(_published_row(row) for row in sorted(book.rows, key=lambda r: -r.average)),),
            notes=(f"{book.source}. {book.note}.", *_published_notes(book.rows)),
        )
        for book in published(BENCHMARK)
    )


def _published_row(row: PublishedRow) -> Row:
    cells = (row.average if c == OVERALL else row.cells[c]["prmscore"] for c in COLUMNS)
    return (row.name, row.threshold or "not stated", *map(published_value, cells))


def _published_notes(rows: Sequence[PublishedRow]) -> list[str]:
    notes = dict.fromkeys(row.note for row in rows if row.note)
    return [f"{', '.join(row.name for row in rows if row.note == note)}: {note}." for note in notes]


def summary(result: RunResult, keys: Sequence[str]) -> Table:
    """A line per protocol: overall with its interval, then the groups; categories are in the result file."""
    where = places(result)
    columns = [c for c in (OVERALL, *GROUPS) if c in where] or [c for c in where if c == APART]
    metric = "prmscore" if OVERALL in where else "step_accuracy"
    shown: list[MetricRow | None] = []
    lines: dict[bool, list[Row]] = {False: [], True: []}
    for key in (*keys, *FLOORS):
        rows = [rows_of(result, where[c]).get((key, metric)) for c in columns]
        shown += rows
        cells = (cell_of(row, interval=c == OVERALL) for c, row in zip(columns, rows, strict=True))
        lines[key in FLOORS].append((Code(key), *cells))
    return Table(
        label="validity",
        title="",
        caption="",
        header=(f"{metric}, percent", *columns),
        groups=tuple(map(tuple, lines.values())),
        notes=notes_of(row for row in shown if row is not None),
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
    description=WORDS,
    unscored="unscored, every step counted as wrong",
    protocols=protocols,
    judge=judge,
    tables=tables,
    summary=summary,
    has_threshold=True,
    resolve=resolve,
    check_trace=check_trace,
)
