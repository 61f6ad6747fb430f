"""Figures of a board: F1 with intervals and floors, accuracy against accuracy, and errors by position.

SVG text stays text (searchable, and half the size of paths) and ids have a fixed salt, so that bytes are stable.
"""

from __future__ import annotations

import io
import textwrap
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from prmbench.core.records import EvalProtocol
from prmbench.core.result_files import Run
from prmbench.metrics import first_error
from prmbench.report.board import OTHER_MARK, Board, LeaderboardRow, RuleTable
from prmbench.report.frame import slug
from prmbench.report.verdicts import headline_protocol, predict, thresholds, verdict_kind
from prmbench.tasks.wording import FLOORS, RANDOM_FLOORS, RULES, members, run_name, subset_rank

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#7A5195", "#5B5B5B")
"""Okabe and Ito's colours that are legible on white, and two more; safe for common colour blindness."""
FLOOR_COLORS = {
    **dict.fromkeys(RANDOM_FLOORS.values(), "#9a9a9a"),
    "floor/position": "#6b6b6b",
    "floor/outcome_oracle": "#222222",
}
KIND_COLORS = {
    "exact": "#0072B2",
    "passed": "#0072B2",
    "early": "#E69F00",
    "false alarm": "#E69F00",
    "late": "#D55E00",
    "missed": "#BDBDBD",
    "unscored": "#333333",
}
MAX_ROWS, MAX_RUNS = 24, 8
LAST_POSITION = 8
"""First errors at this step or later share a bar."""
STYLE: dict[str, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "prmbench",
    "font.family": "sans-serif",  # a family, so that viewers without the first font use another sans-serif one
    "font.sans-serif": ["DejaVu Sans", "Verdana", "Arial", "sans-serif"],
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#8a8a8a",
    "axes.titlesize": 10,
    "path.simplify": False,
    "text.parse_math": False,
}


@dataclass(frozen=True, slots=True)
class RenderedFigure:
    """One figure, rendered to bytes."""

    name: str
    title: str
    caption: str
    svg: bytes
    png: bytes
    """Empty unless asked for."""


FigurePlan = tuple[str, str, str, Figure]
"""Name, title, caption and matplotlib figure."""


def figures(board: Board, png: bool = False) -> tuple[RenderedFigure, ...]:
    """Returns all figures of a board: one per table, in the order of the tables, then the others."""
    return render_figures(lambda: _plans(board), png)


def render_figures(plans: Callable[[], Sequence[FigurePlan]], png: bool = False) -> tuple[RenderedFigure, ...]:
    """Builds figures and renders them in the common style."""
    with mpl.rc_context(STYLE):  # type: ignore[arg-type]
        return tuple(_render(plan, png) for plan in plans())


def _plans(board: Board) -> list[FigurePlan]:
    plans = [_f1(board, table) for table in board.tables]
    return plans + [plan for plan in (_curves(board), _positions(board)) if plan is not None]


def _render(plan: FigurePlan, png: bool) -> RenderedFigure:
    name, title, caption, figure = plan
    FigureCanvasAgg(figure)
    vector, pixels = io.BytesIO(), io.BytesIO()
    figure.savefig(vector, format="svg", metadata={"Date": None, "Creator": None})
    figure.set_layout_engine("none")  # computing the layout again would cost as much as drawing
    if png:
        figure.savefig(pixels, format="png", dpi=150, metadata={"Software": None})
    return RenderedFigure(name, title, caption, vector.getvalue(), pixels.getvalue())


def _panels(names: Sequence[str], width: float, height: float, label_width: float = 0.0) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(label_width + width * len(names), height), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.15)  # type: ignore[union-attr, call-arg]
    axes = list(figure.subplots(1, len(names), squeeze=False, sharey=True)[0])
    for axis, name in zip(axes, names, strict=True):
        axis.set_title(_title(name))
    return figure, axes


def legend_label(name: str) -> str:
    """Returns a legend label; matplotlib leaves out labels that begin with an underscore."""
    return f" {name}" if name.startswith("_") else name


def _title(column: str) -> str:
    """Title of a panel; an average lists its subsets, wrapped to the panel's width."""
    return textwrap.fill(f"average of {', '.join(members(column))}", 24) if column.startswith("avg[") else column


# --- (1) F1 with intervals and floors ----------------------------------------------------------------------


def _f1(board: Board, table: RuleTable) -> FigurePlan:
    ranked = [row for row in table.rows if row.group != "floor"]
    shown_rows = ranked[:MAX_ROWS]
    names = [f"{row.model}  {row.protocol.split('/')[0]}" for row in shown_rows]
    label_width = 0.08 * max(map(len, names), default=0)  # inches for the labels at the left
    figure, axes = _panels(table.columns, 2.0, 1.1 + 0.27 * len(shown_rows), label_width)
    floors = [row for row in table.rows if row.group == "floor"]
    for axis, column in zip(axes, table.columns, strict=True):
        _draw_intervals(axis, shown_rows, column)
        for floor in floors:
            cell = floor.cells.get(column)
            if cell is not None and cell.f1 is not None:
                axis.axvline(100 * cell.f1, color=FLOOR_COLORS[floor.protocol], lw=1.1, ls=(0, (3, 2)), zorder=0)
        axis.set_xlim(0, 100)
        axis.set_xlabel("F1, percent")
        axis.grid(axis="x", color="#e6e6e6", lw=0.6, zorder=-1)
    axes[0].set_yticks(range(len(shown_rows)), names)
    axes[0].set_ylim(len(shown_rows) - 0.5, -0.5)
    handles = _marks(axes[0], shown_rows)
    handles |= {
        FLOORS[f.protocol]: axes[0].plot([], [], color=FLOOR_COLORS[f.protocol], lw=1.1, ls=(0, (3, 2)))[0]
        for f in floors
    }
    figure.legend(list(handles.values()), list(handles), loc="outside lower center", ncols=3, frameon=False)
    title, text = RULES[table.rule]
    caption = f"{text} Dots: F1; bars: its 95% interval; dashed lines: the floors, which need no model."
    if len(ranked) > len(shown_rows):
        caption += f" The first {len(shown_rows)} of {len(ranked)} lines."
    return (f"{slug(board.name)}-f1-{table.rule}", f"F1, {title[0].lower()}{title[1:]}", caption, figure)


def _marks(axis: Axes, rows: Sequence[LeaderboardRow]) -> dict[str, Artist]:
    """Legend entries, by label, for the kinds of dots that the rows have."""
    kinds = {
        "model": (PALETTE[0], PALETTE[0], any(row.group == "model" for row in rows)),
        "baseline": (PALETTE[-1], PALETTE[-1], any(row.group == "baseline" for row in rows)),
        "on other traces, not ranked": (
            PALETTE[0],
            "white",
            any(OTHER_MARK in cell.marks for row in rows for cell in row.cells.values()),
        ),
    }
    return {
        label: axis.plot([], [], "o", ms=5, color=color, markerfacecolor=face)[0]
        for label, (color, face, is_used) in kinds.items()
        if is_used
    }


def _draw_intervals(axis: Axes, rows: Sequence[LeaderboardRow], column: str) -> None:
    for y, row in enumerate(rows):
        cell = row.cells.get(column)
        if cell is None or cell.f1 is None:
            continue
        color = PALETTE[0] if row.group == "model" else PALETTE[-1]
        if cell.lo is not None and cell.hi is not None:
            axis.plot([100 * cell.lo, 100 * cell.hi], [y, y], color=color, lw=1.6, solid_capstyle="round")
        face = "white" if OTHER_MARK in cell.marks else color
        axis.plot([100 * cell.f1], [y], "o", ms=5, color=color, markerfacecolor=face, clip_on=False)


# --- (2) accuracy against accuracy ---------------------------------------------------------------------------


def chosen_runs(board: Board) -> list[tuple[Run, EvalProtocol]]:
    """Returns at most MAX_RUNS runs in the order of the first table, each with its headline protocol."""
    order = list(dict.fromkeys(row.run_id for table in board.tables for row in table.rows if row.run_id))
    ranked = [run for run in board.runs if run.result.manifest.run_id in order]  # a result may have no rows
    runs = sorted(ranked, key=lambda r: order.index(r.result.manifest.run_id))
    pairs = [(run, headline_protocol(run)) for run in runs]
    return [(run, protocol) for run, protocol in pairs if protocol is not None][:MAX_RUNS]


def subsets_of(pairs: Sequence[tuple[Run, EvalProtocol]]) -> list[str]:
    """Returns the subsets that any of the runs has, in table order."""
    return sorted({s for run, _ in pairs for s in run.result.manifest.subsets}, key=subset_rank)


def _curves(board: Board) -> FigurePlan | None:
    pairs = chosen_runs(board)
    if not pairs:
        return None
    names = subsets_of(pairs)
    figure, axes = _panels(names, 2.9, 3.3)
    handles: dict[int, Artist | None] = {}
    for axis, subset in zip(axes, names, strict=True):
        _iso_f1(axis)
        for i, (run, protocol) in enumerate(pairs):
            handles[i] = _curve(axis, run, protocol, subset, PALETTE[i % len(PALETTE)]) or handles.get(i)
        axis.set(xlim=(-2, 102), ylim=(-2, 102), xlabel="accuracy with an error, %", aspect="equal")
    axes[0].set_ylabel("accuracy without an error, %")
    names = [f"{run_name(pairs[i][0])}  {pairs[i][1].key}" for i in handles if handles[i]]
    labels = list(map(legend_label, names))
    figure.legend([h for h in handles.values() if h], labels, loc="outside lower center", frameon=False, ncols=2)
    caption = (
        "Every trade-off that a threshold gives, exact. Dot: the threshold of the protocol named. Grey: equal F1. "
        "A critic has one point and no curve."
    )
    if len(pairs) < len(board.runs):
        caption += f" {len(pairs)} of {len(board.runs)} runs."
    return (f"{slug(board.name)}-accuracies", "Accuracy against accuracy", caption, figure)


def _iso_f1(axis: Axes) -> None:
    """Draws grey lines of equal F1."""
    for f1 in (20, 40, 60, 80):
        x = np.linspace(f1 / 2 + 0.01, 100, 200)
        axis.plot(x, f1 * x / (2 * x - f1), color="#dddddd", lw=0.7, zorder=0)
        axis.text(100, f1 * 100 / (200 - f1) + 1, str(f1), color="#9a9a9a", fontsize=7, ha="right")


def _curve(axis: Axes, run: Run, protocol: EvalProtocol, subset: str, color: str) -> Artist | None:
    traces = [t for t in run.scores if t.subset == subset and t.label is not None]
    if len({t.label < 0 for t in traces if t.label is not None}) < 2:  # noqa: PLR2004 - both kinds, or no curve
        return None
    handle: Artist | None = None
    if protocol.readout != "vote":
        _, error, correct = first_error.accuracy_curve(traces, protocol)
        (handle,) = axis.plot(100 * error, 100 * correct, color=color, lw=1.3)
    rows = {r.metric: r.value for r in run.result.rows if (r.subset, r.protocol) == (subset, protocol.key)}
    error_point, correct_point = rows.get("error_accuracy"), rows.get("correct_accuracy")
    if error_point is not None and correct_point is not None:
        (dot,) = axis.plot(
            [100 * error_point], [100 * correct_point], "o", color=color, ms=6, mec="white", clip_on=False
        )
        handle = handle or dot
    return handle


# --- (3) error by position ------------------------------------------------------------------------------------


def position_shares(run: Run, protocol: EvalProtocol, subset: str) -> dict[str, Counter[str]]:
    """Counts traces by position of the first error (`1`, ..., `9+`, `none`) and kind of verdict."""
    threshold_by_id = thresholds(run, protocol)
    shares: dict[str, Counter[str]] = {}
    for trace in run.scores:
        if trace.subset != subset or trace.label is None:
            continue
        position = "none" if trace.label < 0 else _position(trace.label)
        shares.setdefault(position, Counter())[
            verdict_kind(predict(trace, protocol, threshold_by_id[trace.id]), trace.label)
        ] += 1
    return shares


def _position(label: int) -> str:
    return f"{LAST_POSITION + 1}+" if label >= LAST_POSITION else str(label + 1)


def _positions(board: Board) -> FigurePlan | None:
    pairs = chosen_runs(board)
    if not pairs:
        return None
    names = subsets_of(pairs)
    figure = Figure(figsize=(3.1 * len(names), 2.05 * len(pairs) + 0.5), layout="constrained")
    handles: dict[str, Artist] = {}
    for block, (run, protocol) in zip(figure.subfigures(len(pairs), 1, squeeze=False)[:, 0], pairs, strict=True):
        block.suptitle(f"{run_name(run)}   {protocol.key}", x=0.01, ha="left", fontsize=9)
        axes = block.subplots(1, len(names), squeeze=False, sharey=True)[0]
        for axis, subset in zip(axes, names, strict=True):
            _draw_position_bars(axis, position_shares(run, protocol, subset), handles)
            axis.set_title(subset, fontsize=8, color="#6b6b6b", pad=10)
            axis.set_xlabel("true first error, step", fontsize=8)
        axes[0].set_ylabel("% of traces", fontsize=8)
    order = [k for k in ("exact", "early", "late", "missed", "unscored") if k in handles]
    label_of_kind = {"exact": "exact, or passed", "early": "too early, or false alarm", "late": "too late"}
    labels = [label_of_kind.get(k, k) for k in order]
    figure.legend([handles[k] for k in order], labels, loc="outside lower center", ncols=5, frameon=False)
    caption = (
        "Where the true first error is, and what was predicted. Last bar: traces without an error. "
        "Numbers above the bars: traces."
    )
    return (f"{slug(board.name)}-positions", "Error by position", caption, figure)


def _draw_position_bars(axis: Axes, shares: dict[str, Counter[str]], handles: dict[str, Artist]) -> None:
    ticks = [*(str(i + 1) for i in range(LAST_POSITION)), f"{LAST_POSITION + 1}+", "none"]
    tick_positions = [*range(len(ticks) - 1), len(ticks) - 0.5]
    for x, tick in zip(tick_positions, ticks, strict=True):
        counts = shares.get(tick, Counter())
        total, base = counts.total(), 0.0
        for name, color in KIND_COLORS.items():
            if counts[name]:
                share = 100 * counts[name] / total
                bar = axis.bar(x, share, bottom=base, width=0.8, color=color, linewidth=0)
                handles.setdefault({"passed": "exact", "false alarm": "early"}.get(name, name), bar[0])
                base += share
        if total:
            axis.text(x, 101, str(total), ha="center", va="bottom", fontsize=6, color="#6b6b6b")
    axis.set_xticks(tick_positions, ticks, fontsize=7)
    axis.set(xlim=(-0.7, tick_positions[-1] + 0.7), ylim=(0, 100))
    if not shares:
        axis.text(0.5, 0.5, "not scored", transform=axis.transAxes, ha="center", color="#9a9a9a")
