"""Figure of format_shift runs: what each format takes from F1. Same style and bytes as figures.py, which draws it."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.figure import Figure

from prmbench.core.records import MetricRow
from prmbench.core.result_files import Run
from prmbench.report.figures import MOST_RUNS, PALETTE, Plan, legend_label
from prmbench.report.frame import slug
from prmbench.report.verdicts import headline
from prmbench.tasks.format_shift import QUESTION, SHIFTED, base_average, base_blocks, find_row, rendered_subset
from prmbench.tasks.wording import model_name


def plans(name: str, runs: Sequence[Run]) -> list[Plan]:
    """The drop of every format with its interval, one colour a model, each under its headline protocol.

    Runs on the same traces: those of which there are most.
    """
    alike = [(b.name, [run for run in b.runs if base_average(run.result) == b.subset]) for b in base_blocks(runs)]
    where, found = max(alike, key=lambda pair: len(pair[1]), default=("", []))
    chosen = [(run, protocol.key) for run in found if (protocol := headline(run)) is not None]
    drawn = [(run, key) for run, key in chosen if any(_points(run, key))][:MOST_RUNS]
    if not drawn:
        return []
    figure = Figure(figsize=(7.2, 1.3 + 0.5 * len(SHIFTED) + 0.2 * len(drawn)), layout="constrained")
    axis = figure.subplots()
    axis.axvline(0, color="#8a8a8a", lw=0.9)
    for i, (run, key) in enumerate(drawn):
        shift = 0.7 * ((i + 0.5) / len(drawn) - 0.5)
        label = legend_label(f"{model_name(run.result.manifest)}  {key}")
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
    caption = f"{where[0].upper()}{where[1:]}. {QUESTION} Bars: 95% interval, paired, resampled by problem."
    if len(drawn) < len(runs):
        caption += f" {len(drawn)} of {len(runs)} runs."
    return [(f"{slug(name)}-drop", "F1 lost to each format", caption, figure)]


def _points(run: Run, key: str) -> list[MetricRow | None]:
    """The drop under each rendering, over all base subsets."""
    whole = base_average(run.result)
    return [find_row(run.result, key, rendered_subset(whole, rendering), "f1_drop") for rendering in SHIFTED]
