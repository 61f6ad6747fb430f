"""Figures of best-of-N and calibration runs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from prmbench.core.records import MetricRow
from prmbench.core.result_files import Run
from prmbench.report.figures import MAX_RUNS, PALETTE, FigurePlan, legend_label
from prmbench.report.frame import slug
from prmbench.report.panels import draw_two_histograms, legend_below, panels_in_a_row, small_multiples
from prmbench.tasks.best_of_n import RECOMMENDED, completion_scores, recommended, sizes_of
from prmbench.tasks.blocks import Block, blocks, completion_identity, prefix_identity, rows_of
from prmbench.tasks.wording import rule_and_readout, run_name

MAX_PANELS = 4
FLOOR_LOOKS = {
    "random": ("#9a9a9a", ":", "a random completion, no model"),
    "majority": ("#6b6b6b", "--", "majority vote, no model"),
    "pass": ("#222222", "-.", "ceiling: any of N is right"),
}
LEGEND_COLOR = "#444444"
BINS = 10


# --- best of N ----------------------------------------------------------------------------------------------------


def best_of_n(name: str, runs: Sequence[Run]) -> list[FigurePlan]:
    """Plans one figure: accuracy against N, with a panel per set of completions."""
    sizes = sizes_of(runs)
    trace_blocks = [b for b in blocks(runs, completion_identity) if "[" not in b.subset][:MAX_PANELS]
    if not trace_blocks or not sizes:
        return []
    figure, axes = panels_in_a_row([block.name for block in trace_blocks], 3.6, 3.3)
    labels = run_labels(runs)
    color_index = {path: index for index, path in enumerate(list(labels)[:MAX_RUNS])}
    for axis, block in zip(axes, trace_blocks, strict=True):
        for run in block.runs:
            if run.path in color_index:
                color = PALETTE[color_index[run.path]]
                _draw_model(axis, rows_of(run.result, block.subset), sizes, color, labels[run.path])
        _draw_floors(axis, rows_of(block.runs[0].result, block.subset), sizes)
        axis.set_xscale("log", base=2)
        axis.set_xticks(sizes, [str(n) for n in sizes])
        axis.minorticks_off()
        axis.set(xlabel="N", ylabel="accuracy, percent")
    axes[0].plot([], [], "o-", ms=4, color=LEGEND_COLOR, lw=1.2, label="highest score")
    axes[0].plot([], [], "--", color=LEGEND_COLOR, lw=1.2, label="weighted vote")
    legend_below(figure, axes, columns=2)
    caption = (
        f"A colour per model, by the first protocol of {', '.join(RECOMMENDED)} that it has. Solid with dots: "
        "expected accuracy of the completion with the highest score among N, bars: its 95% interval. Dashed: accuracy "
        "of the answer with the largest sum of scores. Grey: bounds from below that need no model; black: no choice "
        "among N can be better."
    )
    accuracy = (f"{slug(name)}-accuracy", "Accuracy against N", caption, figure)
    return [accuracy, *_completion_scores(name, trace_blocks, labels)]


def _completion_scores(name: str, trace_blocks: Sequence[Block], labels: Mapping[Path, str]) -> list[FigurePlan]:
    """Plans the histograms of right and wrong completions, a panel per run, over all its subsets."""
    shown_runs = {run.path: run for block in trace_blocks for run in block.runs}
    panels = []
    for run in shown_runs.values():
        protocol = recommended(row.protocol for row in run.result.rows)
        verified = [t for t in run.scores if t.outcome is not None]
        scores = completion_scores(run.result.manifest, verified).get(protocol)
        right = np.array([t.outcome == 1 for t in verified], dtype=bool)
        if scores is not None and np.isfinite(scores).sum() > 1:
            scored = np.isfinite(scores)
            panels.append((f"{labels[run.path]}\n{protocol}", scores[scored], right[scored]))
    if not panels:
        return []
    figure, axes = small_multiples([title for title, _, _ in panels[:MAX_RUNS]], 2.9)
    for axis, (_, scores, right) in zip(axes, panels, strict=False):
        draw_two_histograms(axis, scores, right, ("right completions", "wrong completions"))
        axis.set_xlabel("score of a completion", fontsize=8)
    axes[0].set_ylabel("share, percent", fontsize=8)
    legend_below(figure, axes)
    caption = (
        "Scores of right and of wrong completions, over all problems; each histogram adds up to 100 percent, but for "
        "the last scores at either end."
    )
    if len(panels) > MAX_RUNS:
        caption += f" {MAX_RUNS} of {len(panels)} runs."
    return [(f"{slug(name)}-scores", "Scores of right and wrong completions", caption, figure)]


def run_labels(runs: Sequence[Run]) -> dict[Path, str]:
    """Returns a label for each run: its model, with the run's id where the model alone would be ambiguous."""
    names = {run.path: run_name(run) for run in runs}
    counts = Counter([*names.values(), *FLOOR_LOOKS])
    ids = {run.path: run.result.manifest.run_id for run in runs}
    return {path: f"{name} ({ids[path]})" if counts[name] > 1 else name for path, name in names.items()}


def _draw_model(
    axis: Axes, rows: dict[tuple[str, str], MetricRow], sizes: Sequence[int], color: str, model: str
) -> None:
    protocol = recommended(protocol for protocol, _ in rows)
    votes = [(n, row.value) for n in sizes if (row := rows.get((protocol, f"weighted_vote@{n}")))]
    votes = [(n, value) for n, value in votes if value is not None]
    axis.plot(
        [n for n, _ in votes], [100 * value for _, value in votes if value is not None], "--", color=color, lw=1.2
    )
    points = [(n, rows[protocol, f"best_of@{n}"]) for n in sizes if (protocol, f"best_of@{n}") in rows]
    points = [(n, row) for n, row in points if row.value is not None]
    axis.plot(
        [n for n, _ in points],
        [100 * (r.value or 0) for _, r in points],
        "o-",
        ms=4,
        color=color,
        label=legend_label(f"{model}  {protocol}"),
    )
    for n, row in points:
        if row.lo is not None and row.hi is not None:
            axis.plot([n, n], [100 * row.lo, 100 * row.hi], color=color, lw=1.2)


def _draw_floors(axis: Axes, rows: dict[tuple[str, str], MetricRow], sizes: Sequence[int]) -> None:
    for name, (color, dashes, label) in FLOOR_LOOKS.items():
        keys = [(n, (f"floor/{name}", "accuracy" if name == "random" else f"{name}@{n}")) for n in sizes]
        pairs = [(n, rows[key].value) for n, key in keys if key in rows]
        values = [(n, value) for n, value in pairs if value is not None]
        if values:
            axis.plot([n for n, _ in values], [100 * v for _, v in values], dashes, color=color, lw=1.2, label=label)


# --- calibration --------------------------------------------------------------------------------------------------


def calibration(name: str, runs: Sequence[Run]) -> list[FigurePlan]:
    """Plans one figure of reliability diagrams: a row per run, a panel per set of prefixes and readout."""
    trace_blocks = [b for b in blocks(runs, prefix_identity) if "[" not in b.subset]
    rows = [(run, _panels(run, trace_blocks)) for run in runs]
    rows = [(run, panels[:MAX_PANELS]) for run, panels in rows if panels][:MAX_RUNS]
    if not rows:
        return []
    columns = max(len(panels) for _, panels in rows)
    figure = Figure(figsize=(2.9 * columns, 3.1 * len(rows)), layout="constrained")
    figure.get_layout_engine().set(h_pad=0.1)  # type: ignore[union-attr, call-arg]
    axes_grid = figure.subplots(len(rows), columns, squeeze=False)
    for axes_row, (run, panels) in zip(axes_grid, rows, strict=True):
        for axis, panel in zip(axes_row, panels, strict=False):
            _draw_reliability(axis, run, *panel)
        for axis in axes_row[len(panels) :]:
            axis.set_axis_off()
    legend_below(figure, axes_grid[0])
    caption = (
        "Ten bins of equally many prefixes: mean prediction against the share that succeeded; the diagonal is perfect. "
        "The number beneath each title: prefixes in a bin."
    )
    if len(rows) < len(runs):
        caption += f" {len(rows)} of {len(runs)} runs."
    return [(f"{slug(name)}-reliability", "Reliability", caption, figure)]


def _panels(run: Run, trace_blocks: Sequence[Block]) -> list[tuple[Block, str]]:
    """The (block, readout) of each panel; only readouts that value a whole prefix are probabilities of success."""
    panels = []
    for block in trace_blocks:
        if run in block.runs:
            keys = [key for key, metric in rows_of(run.result, block.subset) if metric == "reliability_n_0"]
            readouts = dict.fromkeys(rule_and_readout(key, has_threshold=False)[1] for key in keys)
            panels += [(block, r) for r in readouts if r in ("prefix_sum", "prefix_mean", "as_is")]
    return panels


def _draw_reliability(axis: Axes, run: Run, block: Block, readout: str) -> None:
    rows = rows_of(run.result, block.subset)
    axis.plot([0, 1], [0, 1], color="#bbbbbb", lw=0.8, label="perfect")
    looks = {"sigmoid": ("as read", PALETTE[0]), "identity": ("as read", PALETTE[0]), "platt": ("Platt", PALETTE[1])}
    counts: list[float] = []
    for rule, (label, color) in looks.items():
        bins = [reliability_bin(rows, f"{readout}/{rule}", i) for i in range(BINS)]
        existing = [b for b in bins if b is not None]
        if existing:
            axis.plot([b[0] for b in existing], [b[1] for b in existing], "o-", ms=4, lw=1.1, color=color, label=label)
            counts += [b[2] for b in existing]
    span = (
        ""
        if not counts
        else f"{min(counts):.0f}"
        if min(counts) == max(counts)
        else f"{min(counts):.0f}-{max(counts):.0f}"
    )
    axis.set_title(f"{run_name(run)}, {readout}\n{block.subset}: {span} a bin", fontsize=8)
    axis.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), xlabel="predicted", ylabel="succeeded", aspect="equal")


def reliability_bin(
    rows: dict[tuple[str, str], MetricRow], protocol: str, number: int
) -> tuple[float, float, float] | None:
    """Returns mean prediction, success rate and count of a bin; None if it does not exist."""
    metric_rows = [rows.get((protocol, f"reliability_{field}_{number}")) for field in ("mean", "rate", "n")]
    values = [row.value for row in metric_rows if row is not None and row.value is not None]
    return (values[0], values[1], values[2]) if len(values) == len(metric_rows) else None
