"""Metric rows as tables for the terminal, 80 columns wide: one run, or two runs side by side."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.table import Table
from rich.text import Text

from prmbench.core.records import MetricRow, RunResult
from prmbench.report import shift, validity
from prmbench.report.board import OUT
from prmbench.report.frame import FLOORS
from prmbench.report.taskterminal import task_table
from prmbench.tasks import OUT_OF_FOLD

MOST_SUBSETS = 4
"""More do not fit beside a protocol's name; then only the average is shown."""
DASH = "–"


def run_table(result: RunResult, rows: Sequence[MetricRow] | None = None) -> Table:
    """A line per protocol: F1 per subset in percent, the last column with its 95% interval; floors beneath.

    `rows` are those to show (default all of the run's); the floors are always there. Other tasks: see taskterminal.py.
    """
    if result.manifest.task != "steps":
        return task_table(result, result.rows if rows is None else rows)
    wanted = dict.fromkeys(r.protocol for r in (result.rows if rows is None else rows) if r.metric == "f1")
    f1 = {(r.protocol, r.subset): r for r in result.rows if r.metric == "f1"}
    kept = [key for key in wanted if key not in FLOORS]
    floors = [key for key in FLOORS if any(protocol == key for protocol, _ in f1)]
    columns = _columns(result)
    table = _table(f"{result.manifest.model} on {result.manifest.benchmark}", "F1, percent")
    for name in columns:
        last = name == columns[-1]
        heading = "average" if name.startswith("avg[") else name
        table.add_column(heading, justify="right", overflow="ellipsis", no_wrap=True, max_width=None if last else 6)
    for key in (*kept, *floors):
        cells = [_cell(f1.get((key, name)), name == columns[-1]) for name in columns]
        table.add_row(Text(key), *cells, end_section=[key] == kept[-1:], style="dim" if key in FLOORS else "")
    shown = [r for (protocol, subset), r in f1.items() if protocol in kept and subset in columns]
    table.caption = Text("\n".join(_legend(result, shown, columns)))
    return table


def compare_table(rows: Sequence[MetricRow]) -> Table:
    """Two runs: per protocol and subset both F1, their difference with its interval, p and what could be found.

    Of other tasks the protocol's name ends with the metric that stands for F1.
    """
    names = {r.protocol: r.metric.removesuffix("_a") for r in rows if r.metric.endswith("_a")}
    table = _table(f"second minus first, {'F1 in ' * (set(names.values()) == {'f1'})}percent", "")
    for heading in ("first", "second", "difference", "p", "mdd"):
        table.add_column(heading, justify="right", no_wrap=True)
    by = {(r.protocol, r.subset, r.metric): r for r in rows}
    for protocol in dict.fromkeys(r.protocol for r in rows):
        table.add_row(Text(protocol, style="bold"))
        metric = names.get(protocol, "f1")
        subsets = shift.places(dict.fromkeys(r.subset for r in rows if r.protocol == protocol), metric)
        for subset, name in subsets.items():
            wanted = (f"{metric}_a", f"{metric}_b", f"{metric}_difference", "p_value", "mdd")
            first, second, difference, p, mdd = (by.get((protocol, subset, name)) for name in wanted)
            table.add_row(
                Text(f"  {validity.short(subset) or name}"),
                _cell(first, False),
                _cell(second, False),
                _cell(difference, True, "+"),
                DASH if p is None or p.value is None else f"{p.value:.3f}",
                _cell(mdd, False),
                end_section=subset == next(reversed(subsets)),
            )
    lines = [
        "[95% interval]; p: two-sided paired bootstrap over problems",
        "mdd: the smallest difference that this pairing finds with power 0.80",
    ]
    places = shift.places(dict.fromkeys(r.subset for r in rows), "")
    averages = [s for s, name in places.items() if name == "average" and not validity.short(s)]
    lines += [f"average over {name[4:-1].replace(',', ', ')}" for name in averages]
    if any(r.note.endswith(OUT_OF_FOLD) for r in rows):
        lines.append(f"{OUT} judged out of fold; or an average with such a cell")
    lines += [f"{DASH} {note}" for note in sorted({r.note for r in rows if r.value is None and r.note})]
    table.caption = Text("\n".join(lines))
    return table


def _table(title: str, first: str) -> Table:
    heading = Text(title, overflow="ellipsis", no_wrap=True)
    look = {"padding": (0, 1, 0, 0), "pad_edge": False, "width": 80}
    table = Table(title=heading, title_justify="left", caption_justify="left", box=box.SIMPLE_HEAD, **look)  # type: ignore[arg-type]
    table.add_column(first, overflow="fold", ratio=1)
    return table


def _columns(result: RunResult) -> list[str]:
    subsets = list(result.manifest.subsets)
    averages = [r.subset for r in result.rows if r.subset.startswith("avg[")][:1]
    return [*(subsets if len(subsets) <= MOST_SUBSETS or not averages else []), *averages]


def _cell(row: MetricRow | None, interval: bool, sign: str = "") -> str:
    """`56.8† [55.1, 58.2]`, in percent."""
    if row is None or row.value is None:
        return DASH
    mark = OUT if row.note.endswith(OUT_OF_FOLD) else ""
    ends = (
        ""
        if not interval or row.lo is None or row.hi is None
        else f" [{_percent(row.lo, sign)}, {_percent(row.hi, sign)}]"
    )
    return f"{_percent(row.value, sign)}{mark}{ends}"


def _percent(value: float, sign: str) -> str:
    return f"{100 * value:{sign}.1f}"


def _legend(result: RunResult, shown: Sequence[MetricRow], columns: Sequence[str]) -> list[str]:
    lines = [f"n = {result.manifest.n}; [95% interval]"]
    if columns[-1].startswith("avg["):
        lines.append(f"average over {columns[-1][4:-1].replace(',', ', ')}")
    if any(r.note.endswith(OUT_OF_FOLD) for r in shown):
        lines.append(f"{OUT} tuned on this subset, so judged out of fold; or an average with such a cell")
    lines += [f"{DASH} {note}" for note in sorted({r.note for r in shown if r.value is None and r.note})]
    unscored = {r.subset: r.unscored for r in result.rows if not r.subset.startswith("avg[") and r.unscored}
    if unscored:
        lines.append(f"unscored, counted as wrong: {', '.join(f'{n} of {s}' for s, n in unscored.items())}")
    return lines
