"""What figures of several panels share: their grids, one legend for all panels, and histograms of two kinds."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from prmbench.metrics.first_error import Floats
from prmbench.report.figures import PALETTE

PANELS_PER_ROW = 4
"""Number of panels side by side."""
RIGHT_COLOR, WRONG_COLOR = PALETTE[0], PALETTE[1]
HISTOGRAM_BINS = 30
TAIL = 0.5
"""Percent of the scores at either end that a panel may leave out, so that a few far ones do not squeeze the others."""


def panels_in_a_row(names: Sequence[str], width: float, height: float) -> tuple[Figure, list[Axes]]:
    """Returns an empty figure with a titled panel per name; width of a panel and height are in inches."""
    figure = Figure(figsize=(width * len(names), height), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.15)  # type: ignore[union-attr, call-arg]
    axes = list(figure.subplots(1, len(names), squeeze=False)[0])
    for axis, name in zip(axes, names, strict=True):
        axis.set_title(name, fontsize=9)
    return figure, axes


def small_multiples(titles: Sequence[str], height: float, width: float = 3.3) -> tuple[Figure, list[Axes]]:
    """Returns an empty figure with a panel per title; width and height of a panel are in inches."""
    columns = min(PANELS_PER_ROW, len(titles))
    rows = -(-len(titles) // columns)
    figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.1, h_pad=0.08)  # type: ignore[union-attr, call-arg]
    axes = [axis for axes_row in figure.subplots(rows, columns, squeeze=False) for axis in axes_row]
    for axis in axes[len(titles) :]:
        axis.set_axis_off()
    for axis, title in zip(axes, titles, strict=False):
        axis.set_title(title, fontsize=8)
        axis.tick_params(labelsize=7)
        axis.set_xlabel("step", fontsize=8)
    return figure, axes[: len(titles)]


def legend_below(figure: Figure, axes: Sequence[Axes], columns: int = 4) -> None:
    """Draws one legend for all panels, with each label once."""
    handles = {label: handle for axis in axes for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    figure.legend(
        list(handles.values()), list(handles), loc="outside lower center", ncols=columns, frameon=False, fontsize=8
    )


def middle(values: Floats) -> tuple[float, float]:
    """Returns the range of values without their tails, a little wider; a range of width 1 around a constant."""
    low, high = (float(v) for v in np.percentile(values, [TAIL, 100 - TAIL]))
    margin = 0.03 * (high - low) or 0.5
    return low - margin, high + margin


def draw_two_histograms(axis: Axes, scores: Floats, is_right: NDArray[np.bool_], labels: tuple[str, str]) -> None:
    """Draws the histograms of right and wrong scores in percent of each."""
    low, high = middle(scores)
    edges = np.linspace(low, high, HISTOGRAM_BINS + 1)
    for chosen, color, label in zip((is_right, ~is_right), (RIGHT_COLOR, WRONG_COLOR), labels, strict=True):
        counts, _ = np.histogram(scores[chosen], edges)
        share = 100 * counts / max(int(chosen.sum()), 1)
        axis.stairs(share, edges, fill=True, color=color, alpha=0.35, lw=0)
        axis.stairs(share, edges, color=color, lw=1.1, label=label)
    axis.set_xlim(low, high)
