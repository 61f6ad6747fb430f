"""Figure of validity runs: PRMScore by category."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from prmbench.core.result_files import Run
from prmbench.report.figures import MAX_RUNS, PALETTE, FigurePlan, legend_label
from prmbench.report.frame import slug
from prmbench.tasks.table import NOTED
from prmbench.tasks.validity import FLOORS, GROUPS, OVERALL, ProtocolRow, columns_of, pooled_blocks, protocol_row
from prmbench.tasks.wording import rule_and_readout, run_name

FIGURE_RULES = ("cross_validated", "native", "fixed", "oracle")
FIGURE_READOUTS = ("step_sum", "as_is")
"""A run is shown under the first of these rules that it has, and there under the first of these readouts."""
FLOOR_MARKS = {"floor/random": "#6b6b6b", "floor/all_valid": "#b0b0b0"}


def plans(name: str, runs: Sequence[Run]) -> list[FigurePlan]:
    """Plans one figure: PRMScore by category, a colour per model, on the set of traces with most runs."""
    trace_blocks = pooled_blocks(runs)
    headline_rows = [candidate for run in trace_blocks[0].runs if (candidate := _headline(run))] if trace_blocks else []
    shown_rows = sorted(headline_rows, key=lambda candidate: -candidate.value)[:MAX_RUNS]
    if not shown_rows:
        return []
    columns = columns_of(trace_blocks[0])
    figure = Figure(figsize=(7.4, 1.3 + len(columns) * (0.2 + 0.07 * len(shown_rows))), layout="constrained")
    axis = figure.subplots()
    for floor, color in FLOOR_MARKS.items():
        _draw_row(axis, protocol_row(trace_blocks[0].runs[0], floor), columns, 0.0, color, "|")
    for i, line in enumerate(shown_rows):
        shift = 0.6 * ((i + 0.5) / len(shown_rows) - 0.5)
        _draw_row(axis, line, columns, shift, PALETTE[i], "o")
    note_of_column = {c: row.note for c in columns if (row := shown_rows[0].cell(c, "prmscore")) and row.note}
    axis.set_yticks(range(len(columns)), [f"{c} {NOTED}" if c in note_of_column else c for c in columns])
    for label, column in zip(axis.get_yticklabels(), columns, strict=True):
        label.set_fontweight("bold" if column in (OVERALL, *GROUPS) else "normal")
    axis.set(xlabel="PRMScore, percent", ylim=(len(columns) - 0.5, -0.5))
    axis.grid(axis="y", color="#ececec", lw=0.6, zorder=-1)
    handles, labels = axis.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False, fontsize=7)
    caption = "PRMScore with its 95% interval by category; groups are means of categories, overall pools all steps."
    if len(shown_rows) < len(runs):
        caption += f" {len(shown_rows)} of {len(runs)} runs."
    caption += "".join(f" {NOTED} {note}." for note in note_of_column.values())
    return [(f"{slug(name)}-prmscore", "PRMScore by category", caption, figure)]


def _headline(run: Run) -> ProtocolRow | None:
    keys = {r.protocol for r in run.result.rows if r.metric == "prmscore" and not r.protocol.startswith("floor/")}
    key_by_rule = {rule_and_readout(key): key for key in sorted(keys)}
    for rule in FIGURE_RULES:
        for readout in FIGURE_READOUTS:
            if (key := key_by_rule.get((rule, readout))) and (line := protocol_row(run, key)).value >= 0:
                return line
    return None


def _draw_row(axis: Axes, line: ProtocolRow, columns: Sequence[str], shift: float, color: str, marker: str) -> None:
    floor = line.protocol in FLOORS
    name = run_name(line.run)
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
