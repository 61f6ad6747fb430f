"""Figure of the joined table: F1 against each gain, with colours by method and markers by seed."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from prmbench.report.figures import PALETTE, FigurePlan, legend_label
from prmbench.report.stats import mean
from prmbench.studies.reporting.checkpoint_rows import BEST_OF_N_GAIN, F1_COLUMNS, RL_GAIN_COLUMNS, Checkpoint
from prmbench.studies.reporting.probe_models import PROBE
from prmbench.studies.reporting.reward_model_runs import METHODS, PAPER_SUFFIX

MARKERS = ("o", "s", "^", "v", "D", "P", "X", "<", ">", "*")
"""Markers of seeds, repeated when there are more seeds."""
PREDICTOR = F1_COLUMNS[0]
LEGEND_HEIGHT = 1.4
"""Inches beneath the plots."""
Pair = tuple[float, float]


def plans(rows: Sequence[Checkpoint], outcomes: Sequence[str]) -> list[FigurePlan]:
    """Returns one figure with a column per outcome; none where no checkpoint has both numbers."""
    columns = [
        c
        for c in (_first_starting_with(outcomes, BEST_OF_N_GAIN), _first_starting_with(outcomes, RL_GAIN_COLUMNS[1]))
        if c and _pairs(rows, c)
    ]
    if not columns:
        return []
    figure = Figure(figsize=(4.0 * len(columns), 6.4 + LEGEND_HEIGHT), layout="constrained")
    axes = figure.subplots(2, len(columns), squeeze=False)
    methods = sorted({row.model for c in columns for row, _ in _pairs(rows, c)}, key=_rank)
    for column, (above, below) in zip(columns, axes.T, strict=True):
        pairs = _pairs(rows, column)
        _scatter(above, pairs, methods)
        _scatter(below, _relative(pairs), methods)
        above.set(xlabel=f"{PREDICTOR}, percent", ylabel=f"{column}, points")
        below.set(xlabel=f"{PREDICTOR} minus its world's mean, points", ylabel=f"{column}, minus its world's mean")
        for axis in (above, below):
            axis.locator_params(axis="x", nbins=6)
        below.axhline(0, color="#cccccc", lw=0.8, zorder=0)
        below.axvline(0, color="#cccccc", lw=0.8, zorder=0)
    handles = [axes[0, 0].plot([], [], **_style(m), ls="")[0] for m in methods]
    figure.legend(
        handles, list(map(legend_label, methods)), loc="outside lower center", ncols=4, frameon=False, fontsize=8
    )
    caption = (
        "A small mark per checkpoint, its shape by seed; a large dot per method, the mean over its seeds with 95% "
        "t-intervals both ways. Colour: method; hollow: the paper's constants; square: other training data. Beneath: "
        "each checkpoint relative to the mean of its world, which leaves the differences between methods. Numbers are "
        "over all problems, which the two may share; the correlations in the tables are over disjoint ones."
    )
    return [("joined-f1-gain", "Step F1 against downstream gain", caption, figure)]


def _first_starting_with(outcomes: Sequence[str], prefix: str) -> str:
    """Returns the first outcome with the prefix; of best-of-N gains that is the one of the largest N."""
    return next((c for c in outcomes if c.startswith(prefix)), "")


def _pairs(rows: Sequence[Checkpoint], column: str) -> list[tuple[Checkpoint, Pair]]:
    """Returns the miniature's checkpoints that have both numbers, with these in percent."""
    return [
        (row, (100 * row.numbers[PREDICTOR], 100 * row.numbers[column]))
        for row in rows
        if row.seed is not None and PREDICTOR in row.numbers and column in row.numbers
    ]


def _relative(pairs: Sequence[tuple[Checkpoint, Pair]]) -> list[tuple[Checkpoint, Pair]]:
    """Subtracts the means of each checkpoint's world."""
    centres = {
        world: tuple(fmean(pair[i] for row, pair in pairs if row.world == world) for i in (0, 1))
        for world in {row.world for row, _ in pairs}
    }
    return [(row, (x - centres[row.world][0], y - centres[row.world][1])) for row, (x, y) in pairs]


def _scatter(axis: Axes, pairs: Sequence[tuple[Checkpoint, Pair]], methods: Sequence[str]) -> None:
    for row, pair in pairs:
        marker = MARKERS[(row.seed or 0) % len(MARKERS)]
        axis.plot(*pair, marker, ms=3.6, alpha=0.55, color=_style(row.model)["color"], mew=0)
    for method in methods:
        of_method = [pair for row, pair in pairs if row.model == method]
        if of_method:
            x, y = (mean([pair[i] for pair in of_method]) for i in (0, 1))
            style = _style(method)
            if x.lo is not None and x.hi is not None and y.lo is not None and y.hi is not None:
                axis.plot([x.lo, x.hi], [y.value, y.value], color=style["color"], lw=1.1)
                axis.plot([x.value, x.value], [y.lo, y.hi], color=style["color"], lw=1.1)
            axis.plot([x.value], [y.value], **style, zorder=3)


def _style(method: str) -> dict[str, Any]:
    """Returns a colour per loss; hollow marks for the paper's constants, hollow squares for other training data."""
    base, probe = _base(method), PROBE.fullmatch(method)
    color = PALETTE[METHODS.index(base) % len(PALETTE)] if base in METHODS else PALETTE[-1]
    return {"marker": "s" if probe else "o", "ms": 6.5, "color": color, "mfc": color if base == method else "white"}


def _base(method: str) -> str:
    """Returns the method without the suffix of the paper's constants or of other training data."""
    probe = PROBE.fullmatch(method)
    return probe["method"] if probe else method.removesuffix(PAPER_SUFFIX)


def _rank(method: str) -> tuple[int, str]:
    base = _base(method)
    return METHODS.index(base) if base in METHODS else len(METHODS), method
