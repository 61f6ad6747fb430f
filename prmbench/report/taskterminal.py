"""Rows of best-of-N, policy, calibration and training runs as tables for the terminal, 80 columns wide.

Several subsets are shown by their average; each has its own rows in the result file.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from rich import box
from rich.table import Table
from rich.text import Text

from prmbench.core.records import MetricRow, RunResult
from prmbench.report import shift, validity
from prmbench.report.blocks import PERCENT, PLAIN, SIGNED, group_size, remarks, rows_of, text
from prmbench.report.taskgrids import BON_FLOORS, CALIBRATION, metric_rank
from prmbench.tasks import distrl, format_shift

MOST_SIZES, MOST_SUBSETS = 3, 2
"""What fits beside a protocol's name."""
Lines = list[tuple[str, list[str], bool]]
"""Name, cells, and whether it is a floor."""


def task_table(result: RunResult, rows: Sequence[MetricRow]) -> Table:
    """`rows` name the protocols to show; floors are always there."""
    kept = [key for key in dict.fromkeys(r.protocol for r in rows) if not key.startswith("floor/")]
    heads, lines, shown = BUILDERS[result.manifest.task](result, kept)
    m = result.manifest
    heading = Text(f"{m.model} on {m.benchmark}", overflow="ellipsis", no_wrap=True)
    look = {"padding": (0, 1, 0, 0), "pad_edge": False, "width": 80}
    table = Table(title=heading, title_justify="left", caption_justify="left", box=box.SIMPLE_HEAD, **look)  # type: ignore[arg-type]
    table.add_column(heads[0], overflow="fold", ratio=1)
    for name in heads[1:]:
        table.add_column(name, justify="right", no_wrap=True, overflow="ellipsis")
    for i, (name, cells, floor) in enumerate(lines):
        ends = i + 1 < len(lines) and lines[i + 1][2] and not floor
        table.add_row(Text(name), *cells, end_section=ends, style="dim" if floor else "")
    unscored = sum({r.subset: r.unscored for r in result.rows if "[" not in r.subset}.values())
    subsets = dict.fromkeys(format_shift.base_and_rendering(name)[0] for name in m.subsets)
    words = [f"n = {m.n}; [95% interval]; subsets: {', '.join(subsets)}", *remarks(shown)]
    words += [f"unscored: {unscored} of {m.n}"] * bool(unscored)
    table.caption = Text("\n".join(words))
    return table


def _whole(result: RunResult) -> str:
    """The average, or the only subset."""
    return next((r.subset for r in result.rows if r.subset.startswith("avg[")), result.manifest.subsets[0])


Built = tuple[list[str], Lines, list[MetricRow]]


def _best_of_n(result: RunResult, kept: Sequence[str]) -> Built:
    """Best-of-N for the largest N; the vote and the gain for the very largest."""
    found = rows_of(result, _whole(result))
    sizes = sorted({n for _, metric in found if metric.startswith("best_of@") and (n := group_size(metric))})
    sizes, top = sizes[-MOST_SIZES:], sizes[-1] if sizes else 0
    lines: Lines = []
    shown: list[MetricRow] = []
    for key in kept:
        asked = [(f"best_of@{n}", PERCENT) for n in sizes]
        asked += [(f"weighted_vote@{top}", PERCENT), (f"gain@{top}", SIGNED)]
        rows = [found.get((key, metric)) for metric, _ in asked]
        cells = [text(row, style, interval=style == SIGNED) for row, (_, style) in zip(rows, asked, strict=True)]
        shown += [row for row in rows if row is not None]
        lines.append((key, cells, False))
    for metric, (key, _) in BON_FLOORS.items():
        floor = [found.get((key, metric if metric == "accuracy" else f"{metric}@{n}")) for n in sizes]
        shown += [row for row in floor if row is not None]
        lines.append((key, [*(text(row, interval=False) for row in floor), "", ""], True))
    heads = ["picked right, percent", *(f"of {n}" for n in sizes), f"vote@{top}", f"gain@{top}"]
    return heads, lines, shown


def _policy(result: RunResult, kept: Sequence[str]) -> Built:
    """A line per metric; the pooled numbers last."""
    m = result.manifest
    subsets = list(dict.fromkeys(r.subset for r in result.rows))
    single = [s for s in subsets if "[" not in s]
    columns = (single if len(single) <= MOST_SUBSETS else []) + [s for s in subsets if "[" in s]
    heads = [{"a": "average", "m": "pooled"}[s[0]] if "[" in s else s for s in columns]
    lines: Lines = []
    shown: list[MetricRow] = []
    for key in kept:
        metrics = {r.metric for r in result.rows if r.protocol == key}
        for metric in sorted(metrics, key=metric_rank):
            rows = [rows_of(result, subset).get((key, metric)) for subset in columns]
            cells = [text(row, interval=row is rows[-1]) for row in rows]
            shown += [row for row in rows if row is not None]
            lines.append((metric, cells, False))
    return [f"{', '.join(kept) or m.task}, percent", *heads], lines, shown


def _calibration(result: RunResult, kept: Sequence[str]) -> Built:
    found = rows_of(result, _whole(result))
    names = ("ece", "brier", "td_outcome_correlation", "auc")
    lines: Lines = []
    shown: list[MetricRow] = []
    for key in (*kept, "floor/constant"):
        rows = [found.get((key, name)) for name in names]
        if any(rows):
            shown += [row for row in rows if row is not None]
            cells = [text(row, PLAIN, interval=name == "auc") for row, name in zip(rows, names, strict=True)]
            lines.append((key, cells, key.startswith("floor/")))
    return ["value as a probability", *(CALIBRATION[name].split()[0] for name in names)], lines, shown


def _distrl(result: RunResult, kept: Sequence[str]) -> Built:
    """A line per validation, then the gain; completions cut by length beside it."""
    found, accuracy = rows_of(result, _whole(result)), distrl.metric(result.manifest)
    lines: Lines = []
    shown: list[MetricRow] = []
    for key in kept:
        rows = [found.get((key, accuracy)), found.get((key, distrl.TRUNCATED))]
        shown += [row for row in rows if row is not None]
        name = "after minus before" if key == distrl.GAIN else key.removeprefix("policy/").replace(":", " ")
        style = SIGNED if key == distrl.GAIN else PERCENT
        lines.append((name, [text(rows[0], style), text(rows[1], interval=False)], False))
    return ["policy in training, percent", accuracy, "cut"], lines, shown


BUILDERS: dict[str, Callable[[RunResult, Sequence[str]], Built]] = {
    "best_of_n": _best_of_n,
    "policy": _policy,
    "calibration": _calibration,
    "distrl": _distrl,
    "format_shift": shift.terminal,
    "validity": validity.terminal,
}
