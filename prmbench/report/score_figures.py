"""Figures of a board that only the page has: what every step's score says, beyond the F1 of one threshold.

All of them are computed from stored scores. Steps count up to the first error, because no label says what follows it.
A critic has no step scores, so it is in none of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from prmbench.core.records import EvalProtocol, ScoredTrace
from prmbench.core.result_files import Run
from prmbench.metrics import calibration, first_error, platt
from prmbench.metrics.calibration import Resampled
from prmbench.metrics.first_error import Floats
from prmbench.report.board import Board
from prmbench.report.figures import (
    PALETTE,
    FigurePlan,
    chosen_runs,
    legend_label,
    subsets_of,
)
from prmbench.report.frame import slug
from prmbench.report.panels import PANELS_PER_ROW, draw_two_histograms, legend_below, middle, small_multiples
from prmbench.report.verdicts import thresholds
from prmbench.tasks import step_ranking
from prmbench.tasks.table import PERCENT, number
from prmbench.tasks.wording import run_name

MARK_COLOR = "#444444"
MAX_SUBSETS = 4
"""With more subsets, curves of steps pool all of them."""
MAX_POINTS = 400
"""Points of a curve that are drawn, evenly chosen: more than a panel has pixels."""
MIN_STEPS = 2
Pair = tuple[Run, EvalProtocol]


def plans(board: Board) -> list[FigurePlan]:
    """Plans the figures for the first runs of a board; a figure without anything to draw is left out."""
    pairs = [(run, protocol) for run, protocol in chosen_runs(board) if protocol.readout != "vote"]
    if not pairs:
        return []
    drawn = [draw(pairs) for draw in (_f1_against_threshold, _roc_and_precision_recall, _histograms, _reliability)]
    note = f" {len(pairs)} of {len(board.runs)} runs: those with step scores, in the tables' order."
    left_out = note if len(pairs) < len(board.runs) else ""
    return [
        (f"{slug(board.name)}-{name}", title, caption + left_out, figure)
        for name, title, caption, figure in filter(None, drawn)
    ]


def _label(pair: Pair) -> str:
    run, protocol = pair
    return f"{run_name(run)}  {protocol.key}"


def _panels(pairs: Sequence[Pair], xlabel: str, ylabel: str) -> tuple[Figure, list[Axes]]:
    """A panel per run, each with its own horizontal scale: scores of two models have different units."""
    titles = [f"{run_name(run)}\n{protocol.key}" for run, protocol in pairs]
    figure, axes = small_multiples(titles, 2.9)
    for axis in axes:
        axis.set_xlabel(xlabel, fontsize=8)
    for axis in axes[::PANELS_PER_ROW]:
        axis.set_ylabel(ylabel, fontsize=8)
    return figure, axes


def _labelled(run: Run, subset: str) -> list[ScoredTrace]:
    """Labelled traces of a subset; of all subsets for an empty name."""
    return [t for t in run.scores if t.label is not None and (not subset or t.subset == subset)]


def _thinned(*curve: Any) -> list[Floats]:
    """At most MAX_POINTS points of a curve, its ends among them."""
    keep = np.unique(np.linspace(0, len(curve[0]) - 1, min(MAX_POINTS, len(curve[0]))).astype(int))
    return [np.asarray(axis, dtype=float)[keep] for axis in curve]


# --- F1 against the threshold ----------------------------------------------------------------------------------


def _f1_against_threshold(pairs: Sequence[Pair]) -> FigurePlan | None:
    names = subsets_of(pairs)[: len(PALETTE)]
    usable = [pair for pair in pairs if any(_has_both_kinds(_labelled(pair[0], name)) for name in names)]
    if not usable:
        return None
    figure, axes = _panels(usable, "threshold, in the unit of the score", "F1, percent")
    for axis, (run, protocol) in zip(axes, usable, strict=True):
        _draw_f1_curves(axis, run, protocol, names)
    for axis in axes:  # one scale of F1, so that panels can be compared
        axis.set_ylim(0, min(102, max(1.0, *(1.08 * axis.dataLim.y1 for axis in axes))))
    legend_below(figure, axes)
    caption = (
        "First-error F1 under every threshold. Dot and dashed line: the threshold that the protocol chose on the "
        "subset of that colour (the median over folds where it is judged out of fold). The scale is the model's own."
    )
    return "threshold", "F1 against threshold", caption, figure


def _has_both_kinds(traces: Sequence[ScoredTrace]) -> bool:
    return len({t.label is not None and t.label < 0 for t in traces}) == 2  # noqa: PLR2004 - else there is no F1


def _draw_f1_curves(axis: Axes, run: Run, protocol: EvalProtocol, names: Sequence[str]) -> None:
    chosen = {
        row.subset: row.value
        for row in run.result.rows
        if (row.protocol, row.metric) == (protocol.key, "threshold") and row.value is not None
    }
    ends: list[float] = []
    for name, color in zip(names, PALETTE, strict=False):
        traces = _labelled(run, name)
        if not _has_both_kinds(traces):
            continue
        data = first_error.sample(traces, protocol)
        edges, f1 = _f1_by_threshold(data)
        axis.plot(*_thinned(edges, f1), color=color, lw=1.2, drawstyle="steps-pre", label=legend_label(name))
        ends += middle(edges)
        if name in chosen:
            at = np.array([chosen[name]])
            parts = first_error.accuracies(data, data.matches(at), np.ones((1, len(data))))
            axis.axvline(at[0], color=color, lw=0.8, ls=(0, (3, 2)), zorder=0)
            axis.plot(at, 100 * first_error.harmonic(*parts), "o", ms=5, color=color, mec="white")
            ends.append(at[0])
    axis.plot([], [], "o", ls=(0, (3, 2)), lw=0.8, ms=5, color=MARK_COLOR, mec="white", label="chosen threshold")
    axis.set_xlim(min(ends, default=0), max(ends, default=1))


def _f1_by_threshold(data: first_error.Sample) -> tuple[Floats, Floats]:
    """Upper ends of the intervals of thresholds in which F1 is constant, and F1 there in percent; [p] each."""
    edges, error, correct = first_error.sweep(data, np.ones((1, len(data))))
    n_error = int(data.has_error.sum())
    f1 = 100 * first_error.harmonic(error[0] / n_error, correct[0] / (len(data) - n_error))
    return (edges[1:-1], f1[:-1]) if len(edges) > 2 else (np.zeros(1), f1)  # noqa: PLR2004 - without the infinite one


# --- steps as right or wrong ---------------------------------------------------------------------------------------


def _roc_and_precision_recall(pairs: Sequence[Pair]) -> FigurePlan | None:
    from sklearn.metrics import precision_recall_curve, roc_curve  # takes a second

    subsets = subsets_of(pairs)
    names = subsets if len(subsets) <= MAX_SUBSETS else [""]
    figure, grid = _curve_grid([name or "all subsets" for name in names])
    for name, (roc_axis, recall_axis) in zip(names, grid, strict=True):
        rates: list[float] = []
        for pair, color in zip(pairs, PALETTE, strict=False):
            traces = _labelled(pair[0], name)
            scores, wrong, _ = first_error.steps_to_first_error(traces, pair[1])
            if len(np.unique(wrong)) < 2:  # noqa: PLR2004 - a curve needs right steps and wrong ones
                continue
            false_alarms, found, _ = roc_curve(wrong, -scores)
            precision, recall, _ = precision_recall_curve(wrong, -scores)
            label = legend_label(_label(pair))
            roc_axis.plot(*_thinned(100 * false_alarms, 100 * found), color=color, lw=1.2, label=label)
            recall_axis.plot(*_thinned(100 * recall, 100 * precision), color=color, lw=1.2)
            auroc, auprc = step_ranking.areas(traces, pair[1])
            _write_area(roc_axis, len(pairs) - 1 - len(rates), f"AUROC {number(auroc, PERCENT)}", color, top=False)
            _write_area(recall_axis, len(rates), f"AUPRC {number(auprc, PERCENT)}", color, top=True)
            rates.append(100 * float(wrong.mean()))
        roc_axis.plot([0, 100], [0, 100], color="#9a9a9a", lw=0.9, ls=(0, (3, 2)), label="chance")
        if rates:
            recall_axis.axhline(float(np.mean(rates)), color="#9a9a9a", lw=0.9, ls=(0, (3, 2)))
    if not any(roc_axis.lines[:-1] for roc_axis, _ in grid):
        return None
    legend_below(figure, [roc_axis for roc_axis, _ in grid], columns=2)
    caption = (
        "A step is flagged when its score lies below a threshold; a curve goes through all thresholds. Wrong steps are "
        "the first errors, right ones all steps before them and those of solutions without an error. Upper row: ROC "
        "with its area (AUROC). Lower row: precision against recall with average precision (AUPRC). Both areas are "
        "those of the table that ranks steps, in percent. Dashed: random scores."
    )
    return "step-curves", "Step ROC and precision-recall", caption, figure


def _curve_grid(names: Sequence[str]) -> tuple[Figure, list[tuple[Axes, Axes]]]:
    figure = Figure(figsize=(3.0 * len(names) + 0.4, 6.6), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.1, h_pad=0.08)  # type: ignore[union-attr, call-arg]
    upper, lower = figure.subplots(2, len(names), squeeze=False)
    for axis, name in zip(upper, names, strict=True):
        axis.set_title(name, fontsize=9)
        axis.set_xlabel("right steps flagged, %", fontsize=8)
    for axis in lower:
        axis.set_xlabel("wrong steps flagged (recall), %", fontsize=8)
    upper[0].set_ylabel("wrong steps flagged, %", fontsize=8)
    lower[0].set_ylabel("flagged steps that are wrong (precision), %", fontsize=8)
    for axis in (*upper, *lower):
        axis.set(xlim=(-2, 102), ylim=(-2, 102))
        axis.tick_params(labelsize=7)
    return figure, list(zip(upper, lower, strict=True))


def _write_area(axis: Axes, line: int, text: str, color: str, *, top: bool) -> None:
    """Writes a curve's area in its colour, in a right corner: the top one, or the bottom one; `line` counts from it."""
    y = 0.97 - 0.065 * line if top else 0.03 + 0.065 * line
    axis.text(0.98, y, text, transform=axis.transAxes, ha="right", va="top" if top else "bottom", color=color, size=7)


def _histograms(pairs: Sequence[Pair]) -> FigurePlan | None:
    data = {pair[0].path: first_error.steps_to_first_error(_labelled(pair[0], ""), pair[1]) for pair in pairs}
    usable = [pair for pair in pairs if len(data[pair[0].path][0]) >= MIN_STEPS]
    if not usable:
        return None
    figure, axes = _panels(usable, "score of a step", "share of the steps, percent")
    for axis, pair in zip(axes, usable, strict=True):
        scores, wrong, _ = data[pair[0].path]
        draw_two_histograms(axis, scores, ~wrong, ("right steps", "first wrong steps"))
        used = {v for v in thresholds(*pair).values() if np.isfinite(v)}
        for at in sorted(used):
            axis.axvline(at, color=MARK_COLOR, lw=0.9, ls=(0, (3, 2)), label="chosen threshold")
    legend_below(figure, axes)
    caption = (
        "Scores of right steps and of first wrong steps, over all subsets; each histogram adds up to 100 percent. "
        "Dashed: the chosen thresholds, of which there are several where subsets or folds have their own. "
        "The last half percent of the scores at either end may lie outside."
    )
    return "step-scores", "Scores of right and wrong steps", caption, figure


# --- steps as probabilities ------------------------------------------------------------------------------------------


def _reliability(pairs: Sequence[Pair]) -> FigurePlan | None:
    data = {pair[0].path: _step_probabilities(pair) for pair in pairs}
    usable = [pair for pair in pairs if data[pair[0].path]]
    if not usable:
        return None
    figure, axes = _panels(usable, "predicted: the step is right", "share of right steps")
    for axis, pair in zip(axes, usable, strict=True):
        axis.plot([0, 1], [0, 1], color="#9a9a9a", lw=0.9, ls=(0, (3, 2)), label="perfect")
        for (label, (p, target)), color in zip(data[pair[0].path].items(), PALETTE, strict=False):
            everything = Resampled(np.zeros(len(p), dtype=np.int64), np.ones((1, 1)))
            bins = calibration.reliability(p, target, everything)
            axis.plot(bins.predicted[0], bins.observed[0], "o-", ms=3.5, lw=1.1, color=color, label=label)
            axis.text(1, 0.08 * (color == PALETTE[0]), f"ECE {bins.ece[0]:.3f}", color=color, size=7, ha="right")
        axis.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    legend_below(figure, axes)
    caption = (
        "Ten bins of equally many steps, over all subsets: mean prediction against the share of right steps. As "
        "read: the model's own probability, or the sigmoid of beta times its score. Platt: slope and offset fitted on "
        "one half of the problems and judged on the other. ECE: expected calibration error, lower is better."
    )
    return "step-reliability", "Reliability of steps", caption, figure


def _step_probabilities(pair: Pair) -> dict[str, tuple[Floats, Floats]]:
    """Predicted probability and truth of every step, [s] each: as read, and after Platt scaling where it can be."""
    run, protocol = pair
    manifest, traces = run.result.manifest, _labelled(run, "")
    scores, wrong, index = first_error.steps_to_first_error(traces, protocol)
    if len(np.unique(wrong)) < 2:  # noqa: PLR2004 - probabilities of steps that are all alike show nothing
        return {}
    right = (~wrong).astype(float)
    is_probability = manifest.kind == "prob" and protocol.readout == "as_is"
    logits = calibration.log_odds(scores) if is_probability else (manifest.beta or 1.0) * scores
    fold = first_error.folds([t.cluster for t in traces], 2)[index]
    probabilities = {"as read": (scores if is_probability else calibration.sigmoid(logits), right)}
    if all(len(np.unique(wrong[fold == f])) == 2 for f in (0, 1)):  # noqa: PLR2004 - a fit needs both kinds of steps
        scaled = platt.cross_fitted(logits, right, fold, np.ones((1, len(right))))[0]
        probabilities["Platt"] = (calibration.sigmoid(scaled), right)
    return probabilities
