"""Runs of task validity (PRMBench) -> tables, figure and terminal lines. Ranks and lays out; computes no metric.

Groups and the whole are the rows that tasks/validity.py names by their categories; a partial one keeps its note.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from prmbench.core.records import MetricRow, RunResult, ScoredTrace
from prmbench.core.result_files import Run
from prmbench.report.blocks import NOTED, PERCENT, PLAIN, Block, blocks, remarks, rows_of, text, top_value
from prmbench.report.figures import MOST_RUNS, PALETTE, Plan, legend_label
from prmbench.report.frame import model_name, rule_and_readout, slug
from prmbench.report.published import PublishedRow, digits, published
from prmbench.report.tables import Grid
from prmbench.tasks.validity import APART, GROUPS

BENCHMARK = "prmbench_preview"
WORDS = (
    "Is every single step judged rightly? A step is called valid when its score lies above the threshold, one for all "
    "categories. PRMScore is the mean of the F1 on valid and the F1 on invalid steps (multi_solutions: on valid steps "
    "alone). Flagging steps at random reaches 50 on any labels. Steps of unscored traces count as judged wrongly. "
    "Labels of steps that a row does not have are left out, as in PRMBench's own script."
)
RULES = {
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
FIGURE_RULES = ("cross_validated", "native", "fixed", "oracle")
FIGURE_READOUTS = ("step_sum", "as_is")
"""What the figure shows of a run: the first rule, and of it the first readout, that it has."""
FLOOR_MARKS = {"floor/random": "#6b6b6b", "floor/all_valid": "#b0b0b0"}


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
class _Line:
    """A run under a protocol; `cell(column, metric)` is one of its rows."""

    run: Run
    protocol: str
    cell: Callable[[str, str], MetricRow | None]

    @property
    def value(self) -> float:
        row = self.cell(OVERALL, "prmscore")
        return -1.0 if row is None or row.value is None else row.value


def _line(run: Run, protocol: str) -> _Line:
    where = places(run.result)
    rows = {(r.subset, r.metric): r for r in run.result.rows if r.protocol == protocol}
    return _Line(run, protocol, lambda column, metric: rows.get((where.get(column, ""), metric)))


def _lines(block: Block, rule: str) -> list[_Line]:
    """Best first."""
    found = [
        _line(run, protocol)
        for run in block.runs
        for protocol in dict.fromkeys(row.protocol for row in run.result.rows)
        if rule_and_readout(protocol, "validity")[0] == rule
    ]
    return sorted(found, key=lambda x: (-x.value, model_name(x.run.result.manifest), x.protocol))


def _columns(block: Block) -> list[str]:
    there = {column for run in block.runs for column in places(run.result)}
    return [column for column in COLUMNS if column in there]


def _wholes(runs: Sequence[Run]) -> list[Block]:
    return [block for block in blocks(runs, steps_labelled) if block.subset.startswith("micro[")]


# --- tables -------------------------------------------------------------------------------------------------------


def grids(runs: Sequence[Run]) -> tuple[Grid, ...]:
    """For each threshold rule and set of traces the PRMScores, then what lies behind them; published numbers last."""
    found = []
    for rule in RULES:
        for block in _wholes(runs):
            if lines := _lines(block, rule):
                found += [_scores(rule, block, lines), _behind(rule, block, lines)]
    benchmark = {run.result.manifest.benchmark for run in runs}
    return (*found, *(_published() if benchmark == {BENCHMARK} else ()))


def _scores(rule: str, block: Block, lines: Sequence[_Line]) -> Grid:
    title, words = RULES[rule]
    columns = _columns(block)
    best = {c: top_value([line.cell(c, "prmscore") for line in lines]) for c in columns}
    shown = [_line(block.runs[0], name) for name in FLOORS]
    rows = [row for line in (*lines, *shown) for c in columns if (row := line.cell(c, "prmscore"))]
    return Grid(
        label=f"{BENCHMARK}-{rule}-{block.traces}",
        title=title,
        caption=f"{words} PRMScore in percent with its 95% interval over problems, {_traces(block)}. Overall pools the "
        "steps of all categories; a group is the plain mean of the categories after it.",
        header=("Model", "Protocol", *columns),
        groups=(
            tuple(_score_row(model_name(x.run.result.manifest), x, columns, best) for x in lines),
            tuple(_score_row(FLOORS[x.protocol], x, columns, {}) for x in shown),
        ),
        notes=remarks(rows),
    )


def _score_row(name: str, line: _Line, columns: Sequence[str], best: dict[str, float | None]) -> tuple[str, ...]:
    cells = []
    for column in columns:
        row = line.cell(column, "prmscore")
        top = row is not None and row.value is not None and row.value == best.get(column)
        cells.append(text(row, PERCENT, top, interval=column in (OVERALL, *GROUPS)))
    return (name, f"`{line.protocol}`", *cells)


def _traces(block: Block) -> str:
    return f"{block.n} traces" if block.alone else f"{block.n} traces (set {block.traces})"


def _behind(rule: str, block: Block, lines: Sequence[_Line]) -> Grid:
    found = []
    for x in lines:
        cells = [text(x.cell(OVERALL, metric), PERCENT, interval=False) for metric in BEHIND]
        twins = text(x.cell(APART, "step_accuracy"), PERCENT, interval=False)
        threshold = text(x.cell(OVERALL, "threshold"), PLAIN, interval=False)
        least = text(x.cell(OVERALL, "mdd"), PERCENT, interval=False)
        unscored = sum({r.subset: r.unscored for r in x.run.result.rows if "[" not in r.subset}.values())
        name = model_name(x.run.result.manifest)
        tail = (twins, threshold.rstrip(NOTED), least.rstrip(NOTED), str(unscored), x.run.result.manifest.run_id)
        found.append((name, f"`{x.protocol}`", *(cell.rstrip(NOTED) for cell in cells), *tail))
    return Grid(
        label=f"{BENCHMARK}-{rule}-{block.traces}-behind",
        title=f"{RULES[rule][0]}: behind the overall PRMScore",
        caption="Percent, pooled. Steps, valid and invalid ones, first errors: how many of them are judged rightly. "
        "Twins: of the original processes, which are in no total, the steps called valid. Min. difference: the "
        "smallest gap to an equally noisy run that an unpaired test finds with power 0.80.",
        header=(
            *("Model", "Protocol", *BEHIND.values()),
            *("Twins", "Threshold", "Min. difference", "Unscored", "Run"),
        ),
        groups=(tuple(found),),
    )


def _published() -> tuple[Grid, ...]:
    return tuple(
        Grid(
            label=f"{BENCHMARK}-published",
            title="Published",
            caption=f"Measured by others and copied from their table; not recomputed here. {book.title}: PRMScore in "
            "percent. No interval: none was published.",
            header=("Model", "Threshold", *COLUMNS),
            groups=(tuple(_published_row(row) for row in sorted(book.rows, key=lambda r: -r.average)),),
            notes=(f"{book.source}. {book.note}.", *_remarks(book.rows)),
        )
        for book in published(BENCHMARK)
    )


def _published_row(row: PublishedRow) -> tuple[str, ...]:
    cells = (row.average if c == OVERALL else row.cells[c]["prmscore"] for c in COLUMNS)
    return (row.name, row.threshold or "not stated", *map(digits, cells))


def _remarks(rows: Sequence[PublishedRow]) -> list[str]:
    notes = dict.fromkeys(row.note for row in rows if row.note)
    return [f"{', '.join(row.name for row in rows if row.note == note)}: {note}." for note in notes]


# --- figure -------------------------------------------------------------------------------------------------------


def figures(name: str, runs: Sequence[Run]) -> list[Plan]:
    """PRMScore by category, a colour per model, on the set of traces that most runs have."""
    found = _wholes(runs)
    chosen = [x for run in found[0].runs if (x := _headline(run))] if found else []
    shown = sorted(chosen, key=lambda x: -x.value)[:MOST_RUNS]
    if not shown:
        return []
    columns = _columns(found[0])
    figure = Figure(figsize=(7.4, 1.3 + len(columns) * (0.2 + 0.07 * len(shown))), layout="constrained")
    axis = figure.subplots()
    for floor, color in FLOOR_MARKS.items():
        _dots(axis, _line(found[0].runs[0], floor), columns, 0.0, color, "|")
    for i, line in enumerate(shown):
        shift = 0.6 * ((i + 0.5) / len(shown) - 0.5)
        _dots(axis, line, columns, shift, PALETTE[i], "o")
    noted = {c: row.note for c in columns if (row := shown[0].cell(c, "prmscore")) and row.note}
    axis.set_yticks(range(len(columns)), [f"{c} {NOTED}" if c in noted else c for c in columns])
    for label, column in zip(axis.get_yticklabels(), columns, strict=True):
        label.set_fontweight("bold" if column in (OVERALL, *GROUPS) else "normal")
    axis.set(xlabel="PRMScore, percent", ylim=(len(columns) - 0.5, -0.5))
    axis.grid(axis="y", color="#ececec", lw=0.6, zorder=-1)
    handles, labels = axis.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False, fontsize=7)
    caption = "PRMScore with its 95% interval by category; groups are means of categories, overall pools all steps."
    if len(shown) < len(runs):
        caption += f" {len(shown)} of {len(runs)} runs."
    caption += "".join(f" {NOTED} {note}." for note in noted.values())
    return [(f"{slug(name)}-prmscore", "PRMScore by category", caption, figure)]


def _headline(run: Run) -> _Line | None:
    keys = {r.protocol for r in run.result.rows if r.metric == "prmscore" and not r.protocol.startswith("floor/")}
    named = {rule_and_readout(key, "validity"): key for key in sorted(keys)}
    for rule in FIGURE_RULES:
        for readout in FIGURE_READOUTS:
            if (key := named.get((rule, readout))) and (line := _line(run, key)).value >= 0:
                return line
    return None


def _dots(axis: Axes, line: _Line, columns: Sequence[str], shift: float, color: str, marker: str) -> None:
    floor = line.protocol in FLOORS
    name = model_name(line.run.result.manifest)
    label = FLOORS[line.protocol] if floor else legend_label(f"{name}  {line.protocol}")
    for y, column in enumerate(columns):
        row = line.cell(column, "prmscore")
        if row is None or row.value is None:
            continue
        if not floor and row.lo is not None and row.hi is not None:
            axis.plot([100 * row.lo, 100 * row.hi], [y + shift] * 2, color=color, lw=1.3, solid_capstyle="round")
        size = 11 if floor else 4.5
        axis.plot([100 * row.value], [y + shift], marker, ms=size, mew=1.6, color=color, label=label)
        label = "_again"


# --- terminal -----------------------------------------------------------------------------------------------------


def terminal(
    result: RunResult, kept: Sequence[str]
) -> tuple[list[str], list[tuple[str, list[str], bool]], list[MetricRow]]:
    """A line per protocol: overall with its interval, then the groups; categories are in the result file."""
    where = places(result)
    columns = [c for c in (OVERALL, *GROUPS) if c in where] or [c for c in where if c == APART]
    metric = "prmscore" if OVERALL in where else "step_accuracy"
    lines, shown = [], []
    for key in (*kept, *FLOORS):
        rows = [rows_of(result, where[c]).get((key, metric)) for c in columns]
        shown += [row for row in rows if row is not None]
        cells = [text(row, interval=c == OVERALL) for c, row in zip(columns, rows, strict=True)]
        lines.append((key, cells, key in FLOORS))
    return [f"{metric}, percent", *columns], lines, shown
