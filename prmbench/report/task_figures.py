"""Figures of best-of-N and calibration runs. Same style and bytes as figures.py, which draws them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from prmbench.core.records import MetricRow
from prmbench.core.result_files import Run
from prmbench.report.figures import MOST_RUNS, PALETTE, Plan, legend_label
from prmbench.report.frame import slug
from prmbench.tasks.best_of_n import sizes_of
from prmbench.tasks.blocks import Block, blocks, completion_identity, prefix_identity, rows_of
from prmbench.tasks.wording import model_name, rule_and_readout

MOST_PANELS = 4
BON_HEADLINE = ("prefix_sum/last", "as_is/last", "vote/mean")
"""What the curve of a model shows: the first that it has."""
FLOOR_LOOKS = {"random": ("#9a9a9a", ":"), "majority": ("#6b6b6b", "--"), "pass": ("#222222", "-.")}
BINS = 10


def panels_in_a_row(names: Sequence[str], width: float, height: float) -> tuple[Figure, list[Axes]]:
    """An empty figure with a titled panel per name; width of a panel and height in inches."""
    figure = Figure(figsize=(width * len(names), height), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.15)  # type: ignore[union-attr, call-arg]
    axes = list(figure.subplots(1, len(names), squeeze=False)[0])
    for axis, name in zip(axes, names, strict=True):
        axis.set_title(name, fontsize=9)
    return figure, axes


# --- best of N ----------------------------------------------------------------------------------------------------


def best_of_n(name: str, runs: Sequence[Run]) -> list[Plan]:
    """Accuracy against N, a panel per set of completions."""
    sizes = sizes_of(runs)
    found = [b for b in blocks(runs, completion_identity) if "[" not in b.subset][:MOST_PANELS]
    if not found or not sizes:
        return []
    figure, axes = panels_in_a_row([block.name for block in found], 3.6, 3.3)
    labels = run_labels(runs)
    places = {path: place for place, path in enumerate(list(labels)[:MOST_RUNS])}
    for axis, block in zip(axes, found, strict=True):
        for run in block.runs:
            if run.path in places:
                color = PALETTE[places[run.path]]
                _picked(axis, rows_of(run.result, block.subset), sizes, color, labels[run.path])
        _floors(axis, rows_of(block.runs[0].result, block.subset), sizes)
        axis.set_xscale("log", base=2)
        axis.set_xticks(sizes, [str(n) for n in sizes])
        axis.minorticks_off()
        axis.set(xlabel="N", ylabel="accuracy, percent")
    legend_below(figure, axes)
    caption = (
        f"Expected accuracy of the completion picked among N, with its 95% interval, by the first of "
        f"{', '.join(BON_HEADLINE)} that a model has. Grey and black: no model at all, and the ceiling."
    )
    return [(f"{slug(name)}-accuracy", "Accuracy against N", caption, figure)]


def run_labels(runs: Sequence[Run]) -> dict[Path, str]:
    """Run -> its model, with the run's id where several runs are of one model or a floor has its name."""
    names = {run.path: model_name(run.result.manifest) for run in runs}
    times = Counter([*names.values(), *FLOOR_LOOKS])
    ids = {run.path: run.result.manifest.run_id for run in runs}
    return {path: f"{name} ({ids[path]})" if times[name] > 1 else name for path, name in names.items()}


def _picked(axis: Axes, rows: dict[tuple[str, str], MetricRow], sizes: Sequence[int], color: str, model: str) -> None:
    protocol = next((key for key in BON_HEADLINE if any(protocol == key for protocol, _ in rows)), "")
    shown = [(n, rows[protocol, f"best_of@{n}"]) for n in sizes if (protocol, f"best_of@{n}") in rows]
    shown = [(n, row) for n, row in shown if row.value is not None]
    axis.plot(
        [n for n, _ in shown],
        [100 * (r.value or 0) for _, r in shown],
        "o-",
        ms=4,
        color=color,
        label=legend_label(model),
    )
    for n, row in shown:
        if row.lo is not None and row.hi is not None:
            axis.plot([n, n], [100 * row.lo, 100 * row.hi], color=color, lw=1.2)


def _floors(axis: Axes, rows: dict[tuple[str, str], MetricRow], sizes: Sequence[int]) -> None:
    for name, (color, dashes) in FLOOR_LOOKS.items():
        keys = [(n, (f"floor/{name}", "accuracy" if name == "random" else f"{name}@{n}")) for n in sizes]
        found = [(n, rows[key].value) for n, key in keys if key in rows]
        values = [(n, value) for n, value in found if value is not None]
        if values:
            axis.plot([n for n, _ in values], [100 * v for _, v in values], dashes, color=color, lw=1.2, label=name)


def legend_below(figure: Figure, axes: Sequence[Axes], columns: int = 4) -> None:
    """Draws one legend for all panels, each label once."""
    handles = {label: handle for axis in axes for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    figure.legend(
        list(handles.values()), list(handles), loc="outside lower center", ncols=columns, frameon=False, fontsize=8
    )


# --- calibration --------------------------------------------------------------------------------------------------


def calibration(name: str, runs: Sequence[Run]) -> list[Plan]:
    """Reliability: a row per run, a panel per set of prefixes and kind of value."""
    found = [b for b in blocks(runs, prefix_identity) if "[" not in b.subset]
    rows = [(run, _panels(run, found)) for run in runs]
    rows = [(run, panels[:MOST_PANELS]) for run, panels in rows if panels][:MOST_RUNS]
    if not rows:
        return []
    wide = max(len(panels) for _, panels in rows)
    figure = Figure(figsize=(2.9 * wide, 3.1 * len(rows)), layout="constrained")
    figure.get_layout_engine().set(h_pad=0.1)  # type: ignore[union-attr, call-arg]
    grid = figure.subplots(len(rows), wide, squeeze=False)
    for line, (run, panels) in zip(grid, rows, strict=True):
        for axis, panel in zip(line, panels, strict=False):
            _reliability(axis, run, *panel)
        for axis in line[len(panels) :]:
            axis.set_axis_off()
    legend_below(figure, grid[0])
    caption = (
        "Ten bins of equally many prefixes: mean prediction against the share that succeeded; the diagonal is perfect. "
        "The number beneath each title: prefixes in a bin."
    )
    if len(rows) < len(runs):
        caption += f" {len(rows)} of {len(runs)} runs."
    return [(f"{slug(name)}-reliability", "Reliability", caption, figure)]


def _panels(run: Run, found: Sequence[Block]) -> list[tuple[Block, str]]:
    """(prefixes, readout) of the running values; changes from step to step are no probabilities of success."""
    panels = []
    for block in found:
        if run in block.runs:
            keys = [key for key, metric in rows_of(run.result, block.subset) if metric == "reliability_n_0"]
            readouts = dict.fromkeys(rule_and_readout(key, has_threshold=False)[1] for key in keys)
            panels += [(block, r) for r in readouts if r in ("prefix_sum", "prefix_mean", "as_is")]
    return panels


def _reliability(axis: Axes, run: Run, block: Block, readout: str) -> None:
    rows = rows_of(run.result, block.subset)
    axis.plot([0, 1], [0, 1], color="#bbbbbb", lw=0.8)
    looks = {"sigmoid": ("as read", PALETTE[0]), "identity": ("as read", PALETTE[0]), "platt": ("Platt", PALETTE[1])}
    counts: list[float] = []
    for rule, (label, color) in looks.items():
        bins = [reliability_bin(rows, f"{readout}/{rule}", i) for i in range(BINS)]
        known = [b for b in bins if b is not None]
        if known:
            axis.plot([b[0] for b in known], [b[1] for b in known], "o-", ms=4, lw=1.1, color=color, label=label)
            counts += [b[2] for b in known]
    span = (
        ""
        if not counts
        else f"{min(counts):.0f}"
        if min(counts) == max(counts)
        else f"{min(counts):.0f}-{max(counts):.0f}"
    )
    axis.set_title(f"{model_name(run.result.manifest)}, {readout}\n{block.subset}: {span} a bin", fontsize=8)
    axis.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), xlabel="predicted", ylabel="succeeded", aspect="equal")


def reliability_bin(
    rows: dict[tuple[str, str], MetricRow], protocol: str, number: int
) -> tuple[float, float, float] | None:
    """Mean prediction, success rate and count of a bin; None when it does not exist."""
    found = [rows.get((protocol, f"reliability_{what}_{number}")) for what in ("mean", "rate", "n")]
    values = [row.value for row in found if row is not None and row.value is not None]
    return (values[0], values[1], values[2]) if len(values) == len(found) else None
