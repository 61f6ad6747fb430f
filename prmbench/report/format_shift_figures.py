"""Figure of format_shift runs: the drop in F1 under each format."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.figure import Figure

from prmbench.core.records import MetricRow
from prmbench.core.result_files import Run
from prmbench.report.figures import MAX_RUNS, PALETTE, FigurePlan, legend_label
from prmbench.report.frame import slug
from prmbench.report.verdicts import headline_protocol
from prmbench.tasks.format_shift import QUESTION, SHIFTED, base_average, base_blocks, find_row, rendered_subset
from prmbench.tasks.wording import run_name


def plans(name: str, runs: Sequence[Run]) -> list[FigurePlan]:
    """Plans one figure: the drop under every format with its interval, a colour per model.

    Each model has its headline protocol. Of several sets of traces the one with most runs is shown.
    """
    candidates = [(b.name, [run for run in b.runs if base_average(run.result) == b.subset]) for b in base_blocks(runs)]
    block_name, block_runs = max(candidates, key=lambda pair: len(pair[1]), default=("", []))
    chosen = [(run, protocol.key) for run in block_runs if (protocol := headline_protocol(run)) is not None]
    plotted = [(run, key) for run, key in chosen if any(_points(run, key))][:MAX_RUNS]
    if not plotted:
        return []
    figure = Figure(figsize=(7.2, 1.3 + 0.5 * len(SHIFTED) + 0.2 * len(plotted)), layout="constrained")
    axis = figure.subplots()
    axis.axvline(0, color="#8a8a8a", lw=0.9)
    for i, (run, key) in enumerate(plotted):
        shift = 0.7 * ((i + 0.5) / len(plotted) - 0.5)
        label = legend_label(f"{run_name(run)}  {key}")
        for y, row in enumerate(_points(run, key)):
            if row is None or row.value is None:
                continue
            if row.lo is not None and row.hi is not None:
                axis.plot([100 * row.lo, 100 * row.hi], [y + shift] * 2, color=PALETTE[i], lw=1.6)
            axis.plot([100 * row.value], [y + shift], "o", ms=4, color=PALETTE[i], label=label)
            label = ""
    axis.set_yticks(range(len(SHIFTED)), SHIFTED)
    axis.set(ylim=(len(SHIFTED) - 0.5, -0.5), xlabel="F1 lost, percentage points")
    figure.legend(loc="outside lower center", frameon=False, fontsize=8)
    caption = f"{block_name[0].upper()}{block_name[1:]}. {QUESTION} Bars: 95% interval, paired, resampled by problem."
    if len(plotted) < len(runs):
        caption += f" {len(plotted)} of {len(runs)} runs."
    return [(f"{slug(name)}-drop", "F1 lost to each format", caption, figure)]


def _points(run: Run, key: str) -> list[MetricRow | None]:
    """The drop under each rendering, averaged over the base subsets."""
    average = base_average(run.result)
    return [find_row(run.result, key, rendered_subset(average, rendering), "f1_drop") for rendering in SHIFTED]
