"""Tables for the terminal, 80 columns wide: one run, or a comparison of two runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from rich import box
from rich.table import Table as RichTable
from rich.text import Text

from prmbench.core.records import MetricRow, RunResult
from prmbench.tasks import OUT_OF_FOLD, find_task, format_shift, validity
from prmbench.tasks.comparison_verdicts import ComparisonVerdict
from prmbench.tasks.plain_tables import summary_of
from prmbench.tasks.published import unofficial_note
from prmbench.tasks.steps import f1_cell, missing_notes
from prmbench.tasks.table import NOTED, PERCENT, POINTS, Code, Row, Table, TableCell, Value
from prmbench.tasks.wording import code_badge

WIDTH, MIN_COLUMN, EDGES = 80, 6, 4
"""Characters of a table, the narrowest column to which a heading is cut, and what lies around the columns."""


def run_table(result: RunResult, rows: Sequence[MetricRow] | None = None) -> RichTable:
    """Returns the table that `eval` prints: a row per protocol, the floors beneath.

    Args:
        result: The run.
        rows: Rows of the protocols to show (default: all of the run's); floors are always shown.
    """
    protocols = dict.fromkeys(row.protocol for row in (result.rows if rows is None else rows))
    keys = [key for key in protocols if not key.startswith("floor/")]
    manifest, task = result.manifest, find_task(result.manifest.task)
    table, left_out = _without_empty_rows(summary_of(task, result, keys))
    subsets = dict.fromkeys(format_shift.base_and_rendering(name)[0] for name in manifest.subsets)
    notes = [f"n = {manifest.n}; [95% interval]; subsets: {', '.join(subsets)}"]
    notes += [f"left out, since empty in every subset: {', '.join(left_out)}"] * bool(left_out)
    notes += table.notes
    unscored = sum({row.subset: row.unscored for row in result.rows if "[" not in row.subset}.values())
    if badge := code_badge(manifest):
        notes.append(f"{badge}: your own report lists this run, the official leaderboard does not")
    notes += filter(None, [unofficial_note(manifest)])
    notes += [f"{task.unscored}: {unscored} of {manifest.n}"] * bool(unscored)
    return terminal_table(table, f"{manifest.name or manifest.model} on {manifest.benchmark}", notes)


def _without_empty_rows(table: Table) -> tuple[Table, list[str]]:
    """Return a table without the rows that have no number, and the names of those; floors and tables of dashes stay."""
    floors = table.groups[-1:] if table.ends_with_floors else ()
    models = table.groups[: len(table.groups) - len(floors)]
    groups = tuple(tuple(row for row in group if not _is_empty(row)) for group in models)
    if not any(groups):
        return table, []
    return replace(table, groups=groups + floors), [
        _text(row[0]) for group in models for row in group if _is_empty(row)
    ]


def _is_empty(row: Row) -> bool:
    """Return whether a row has cells for numbers, and no number in any of them."""
    values = [value for cell in row[1:] for value in (cell if isinstance(cell, tuple) else (cell,))]
    return bool(values) and all(isinstance(value, Value) and value.value is None for value in values)


def compare_table(rows: Sequence[MetricRow], verdicts: Sequence[ComparisonVerdict] = ()) -> RichTable:
    """Returns the table that `compare` prints: both numbers, their difference, p, detectable difference and verdict.

    For tasks other than step F1, the protocol's name ends with the metric that is compared.
    """
    metrics = {row.protocol: row.metric.removesuffix("_a") for row in rows if row.metric.endswith("_a")}
    by_key = {(row.protocol, row.subset, row.metric): row for row in rows}
    verdict_by_key = {(v.protocol, v.subset): v.verdict for v in verdicts}
    groups: list[tuple[Row, ...]] = []
    for protocol in dict.fromkeys(row.protocol for row in rows):
        metric = metrics.get(protocol, "f1")
        table_rows: list[Row] = [(Code(protocol), *[""] * 6)]
        subsets = format_shift.comparison_subsets(
            dict.fromkeys(r.subset for r in rows if r.protocol == protocol), metric
        )
        for subset, name in subsets.items():
            metric_rows = [
                by_key.get((protocol, subset, wanted))
                for wanted in (f"{metric}_a", f"{metric}_b", f"{metric}_difference", "mdd")
            ]
            first, second, difference, mdd = (
                f1_cell(row, POINTS if index == 2 else PERCENT, interval=index == 2)  # noqa: PLR2004
                for index, row in enumerate(metric_rows)
            )
            p = by_key.get((protocol, subset, "p_value"))
            p_value = Value(None if p is None else p.value, "fraction")
            table_rows.append(
                (
                    *(f"  {validity.short_subset_name(subset) or name}", first, second, difference),
                    *(p_value, mdd, verdict_by_key.get((protocol, subset), "")),
                )
            )
        groups.append(tuple(table_rows))
    table = Table(
        label="compare",
        title="",
        caption="",
        header=("", "first", "second", "difference", "p", "mdd", "better?"),
        groups=tuple(groups),
        text_columns=1,
    )
    return terminal_table(
        table,
        f"second minus first, {'F1 in ' * (set(metrics.values()) == {'f1'})}percent",
        [*_comparison_notes(rows), *_verdict_notes(verdicts)],
    )


def _verdict_notes(verdicts: Sequence[ComparisonVerdict]) -> list[str]:
    if not verdicts:
        return []
    margins = {v.metric.partition("@")[0]: v.margin.text for v in verdicts if v.margin is not None}
    notes = ["better?: is the second run better? yes, no (the first is), equivalent, unclear"]
    if margins:
        stated = ", ".join(f"{text} of {metric}" for metric, text in margins.items())
        notes.append(f"equivalent: two one-sided tests at 5% (TOST) with a margin of {stated}")
    protocols = len({v.protocol for v in verdicts})
    return notes + [f"verdicts are adjusted for the {protocols} comparisons of each row"] * (protocols > 1)


def _comparison_notes(rows: Sequence[MetricRow]) -> list[str]:
    notes = [
        "[95% interval], paired over problems, which excludes 0 where p < 0.05",
        "mdd: the smallest difference that this test finds with power 0.80",
    ]
    if any(row.metric == "p_adjusted" for row in rows):
        notes.append("p of each row by itself; --json has p_adjusted, for all protocols at once")
    display_names = format_shift.comparison_subsets(dict.fromkeys(r.subset for r in rows), "")
    averages = [s for s, name in display_names.items() if name == "average" and not validity.short_subset_name(s)]
    notes += [f"average over {name[4:-1].replace(',', ', ')}" for name in averages]
    if any(row.note.endswith(OUT_OF_FOLD) for row in rows):
        notes.append(f"{NOTED} judged out of fold, and in no average")
    return [*notes, *missing_notes(rows)]


def terminal_table(table: Table, title: str, notes: Sequence[str]) -> RichTable:
    """Returns a table for rich, with the notes beneath; long names and headings may be cut, numbers never."""
    heading = Text(title, overflow="ellipsis", no_wrap=True)
    layout = {"padding": (0, 1, 0, 0), "pad_edge": False, "width": WIDTH}
    rich_table = RichTable(title=heading, title_justify="left", caption_justify="left", box=box.SIMPLE_HEAD, **layout)  # type: ignore[arg-type]
    rows = [[_text(cell) for cell in row] for group in table.groups for row in group]
    widths = [max((len(row[at]) for row in rows), default=0) for at in range(len(table.header))]
    needed = EDGES + widths[0] + sum(1 + max(len(h), w) for h, w in zip(table.header[1:], widths[1:], strict=True))
    is_crowded = needed > WIDTH
    rich_table.add_column(table.header[0], overflow="fold", ratio=1)
    for name, width in zip(table.header[1:], widths[1:], strict=True):
        max_width = max(width, MIN_COLUMN) if is_crowded else None
        rich_table.add_column(name, justify="right", no_wrap=True, overflow="ellipsis", max_width=max_width)
    groups = [group for group in table.groups if group]
    for group in groups:
        is_floor = table.ends_with_floors and group is table.groups[-1]
        for row in group:
            name, *cells = map(_text, row)
            style = "dim" if is_floor else "bold" if table.label == "compare" and isinstance(row[0], Code) else ""
            rich_table.add_row(Text(name), *map(Text, cells), end_section=row is group[-1], style=style)
    rich_table.caption = Text("\n".join(notes))
    return rich_table


def _text(cell: TableCell) -> str:
    if isinstance(cell, tuple):
        return " / ".join(map(_text, cell))
    if isinstance(cell, Code):
        return cell.key
    if isinstance(cell, Value):
        return f"{cell.number} {cell.interval}".rstrip() + cell.marks
    return cell
