"""Figure of validity runs: PRMScore by category. Same style and bytes as figures.py, which draws it."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from prmbench.core.result_files import Run
from prmbench.report.figures import MOST_RUNS, PALETTE, Plan, legend_label
from prmbench.report.frame import slug
from prmbench.tasks.table import NOTED
from prmbench.tasks.validity import FLOORS, GROUPS, OVERALL, ProtocolRow, columns_of, pooled_blocks, protocol_row
from prmbench.tasks.wording import model_name, rule_and_readout

FIGURE_RULES = ("cross_validated", "native", "fixed", "oracle")
FIGURE_READOUTS = ("step_sum", "as_is")
"""What the figure shows of a run: the first rule, and of it the first readout, that it has."""
FLOOR_MARKS = {"floor/random": "#6b6b6b", "floor/all_valid": "#b0b0b0"}


def plans(name: str, runs: Sequence[Run]) -> list[Plan]:
    """PRMScore by category, a colour per model, on the set of traces that most runs have."""
    found = pooled_blocks(runs)
    chosen = [x for run in found[0].runs if (x := _headline(run))] if found else []
    shown = sorted(chosen, key=lambda x: -x.value)[:MOST_RUNS]
    if not shown:
        return []
    columns = columns_of(found[0])
    figure = Figure(figsize=(7.4, 1.3 + len(columns) * (0.2 + 0.07 * len(shown))), layout="constrained")
    axis = figure.subplots()
    for floor, color in FLOOR_MARKS.items():
        _dots(axis, protocol_row(found[0].runs[0], floor), columns, 0.0, color, "|")
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


def _headline(run: Run) -> ProtocolRow | None:
    keys = {r.protocol for r in run.result.rows if r.metric == "prmscore" and not r.protocol.startswith("floor/")}
    named = {rule_and_readout(key): key for key in sorted(keys)}
    for rule in FIGURE_RULES:
        for readout in FIGURE_READOUTS:
            if (key := named.get((rule, readout))) and (line := protocol_row(run, key)).value >= 0:
                return line
    return None


def _dots(axis: Axes, line: ProtocolRow, columns: Sequence[str], shift: float, color: str, marker: str) -> None:
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
