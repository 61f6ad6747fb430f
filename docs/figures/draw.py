"""Draws the pictures of docs/concepts: from the functions that prmbench judges with, and from committed results.

python docs/figures/draw.py
"""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from prmbench.core.records import EvalProtocol, MetricRow
from prmbench.core.result_files import Run
from prmbench.metrics import first_error
from prmbench.metrics.floors import best_flag_rate, outcome_floor, position_floor
from prmbench.report.figures import PALETTE, STYLE
from prmbench.tasks import compare, pairs, read_run

HERE = Path(__file__).parent
ARCHIVE = HERE.parents[1] / "leaderboards" / "results" / "processbench" / "processbench-steps.tar.xz"
SMOLLM2, STEP_LENGTH = "smollm2-135m-instruct.q4-1-454f889a8acf", "step-length-c98b421f0cc2"
BLUE, RED, GREEN = PALETTE[:3]
GREY = "#8a8a8a"
THRESHOLD = 0.4
EXAMPLES = (
    ("found: the wrong step is flagged", (0.9, 0.7, 0.2, 0.6), 2),
    ("missed: a right step is flagged", (0.8, 0.3, 0.1, 0.5), 2),
    ("missed: no step is flagged", (0.9, 0.8, 0.6, 0.7), 2),
    ("passed: a right solution", (0.7, 0.9, 0.6, 0.8), -1),
)
"""A title, four step scores, and the first wrong step (-1: none)."""
REPLICATES = 200
FALLING = 0.8
"""How much rarer a first error is at each later step."""
RIGHT = 0.5
"""Share of right solutions."""
SIZES = (20, 40, 80, 160, 320, 640)


def draw_first_errors(figure: Figure) -> None:
    """Four solutions: what counts as right is the exact place of the first wrong step."""
    axes = figure.subplots(2, 2, sharey=True).flat
    for axis, (title, scores, label) in zip(axes, EXAMPLES, strict=True):
        predicted = first_error.first_below(np.array(scores), THRESHOLD)
        axis.axhline(THRESHOLD, color=GREY, lw=1, ls=(0, (3, 2)))
        for k, score in enumerate(scores):
            axis.plot([k, k], [0, score], color=RED if k == label else BLUE, lw=7, solid_capstyle="butt")
        if predicted >= 0:
            axis.annotate("flagged", (predicted, scores[predicted]), (0, 5), textcoords="offset points", ha="center")
        axis.set(
            title=title, ylim=(0, 1.05), xlim=(-0.6, 3.6), xticks=range(4), xticklabels=[1, 2, 3, 4], xlabel="step"
        )
        axis.set_ylabel("score" if axis.get_subplotspec().is_first_col() else "")


def draw_thresholds(figure: Figure) -> None:
    """F1 and its two accuracies against the threshold, on two subsets of one model's committed scores."""
    run = committed_run(SMOLLM2)
    for axis, subset in zip(figure.subplots(1, 2, sharey=True), ("gsm8k", "olympiadbench"), strict=True):
        traces = [trace for trace in run.scores if trace.subset == subset]
        thresholds, error, correct = first_error.accuracy_curve(traces, EvalProtocol.parse("step_sum/oracle"))
        f1 = first_error.harmonic(error, correct)
        best = int(f1.argmax())
        axis.plot(thresholds, 100 * correct, color=GREEN, lw=1, label="right solutions that pass")
        axis.plot(thresholds, 100 * error, color=RED, lw=1, label="first errors that are found")
        axis.plot(thresholds, 100 * f1, color=BLUE, lw=2, label="F1, their harmonic mean")
        axis.axvline(thresholds[best], color=GREY, lw=1, ls=(0, (3, 2)))
        axis.annotate(
            f"best: {100 * f1[best]:.0f}", (thresholds[best], 100 * f1[best]), (6, 8), textcoords="offset points"
        )
        axis.set(title=subset, xlim=(-320, 0), ylim=(0, 100), xlabel="threshold on step_sum, in nats")
    figure.axes[0].set_ylabel("percent")
    figure.legend(*axis.get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)


def draw_optimism(figure: Figure) -> None:
    """What tuning on the judged traces adds: scores are noise, so that everything above the floor is optimism."""
    rng = np.random.default_rng(0)
    rules: dict[str, list[float]] = {"oracle": [], "cross-validated": []}
    for size in SIZES:
        values = [_noise_f1(rng, size) for _ in range(REPLICATES)]
        for name, column in zip(rules, np.mean(values, axis=0), strict=True):
            rules[name].append(100 * float(column))
    axis: Axes = figure.subplots()
    axis.plot(SIZES, rules["oracle"], color=RED, marker="o", label="tuned on the traces that are judged (oracle)")
    axis.plot(
        SIZES, rules["cross-validated"], color=BLUE, marker="o", label="tuned on other problems (cross_validated)"
    )
    steps, labels = _labels(np.random.default_rng(1), 20_000)
    floor = 100 * best_flag_rate(steps, labels, np.ones(len(labels)))[1]
    axis.axhline(
        floor, color=GREY, lw=1, ls=(0, (3, 2)), label="the most that one threshold can expect (floor/random_flags)"
    )
    axis.set(xscale="log", xlabel="number of traces", ylabel="mean F1 of random scores, percent", ylim=(0, None))
    axis.set_xticks(SIZES, [str(size) for size in SIZES])
    axis.minorticks_off()
    axis.legend(frameon=False, loc="lower right")


def draw_pairing(figure: Figure) -> None:
    """Two runs with overlapping intervals, and the interval of their paired difference."""
    first, second = committed_run(STEP_LENGTH), committed_run(SMOLLM2)
    readouts = ("as_is/cross_validated", "step_sum/cross_validated")
    single = [average_f1(run.result.rows, key) for run, key in zip((first, second), readouts, strict=True)]
    keys = pairs(first.result.manifest, second.result.manifest, (readouts[0],), readouts[1])
    rows = compare((first.result, first.scores), (second.result, second.scores), keys)
    difference = next(r for r in rows if r.metric == "f1_difference" and r.subset.startswith("avg["))
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    _draw_interval(left, 1, single[0])
    _draw_interval(left, 0, single[1])
    left.set(xlabel="F1, percent: average of three subsets", xlim=(24, 37))
    _draw_interval(right, 0.5, difference, "+.1f")
    right.axvline(0, color=GREY, lw=1, ls=(0, (3, 2)))
    right.set(xlabel="second minus first, points", yticks=[], xlim=(-6.5, 6.5))
    for axis in (left, right):
        axis.set_ylim(-0.6, 1.6)
        axis.spines["left"].set_visible(False)
        axis.tick_params(axis="y", length=0)
    left.set_yticks([1, 0], ["step-length", "SmolLM2-135M\n(EndoRM)"])
    left.set_title("each run by itself")
    right.set_title("paired by problem")


def draw_floors(figure: Figure) -> None:
    """The three floors against the length of solutions: half are right, and each later step errs first less often."""
    lengths = np.arange(2, 21)
    curves: dict[str, list[float]] = {"outcome_oracle": [], "position": [], "random_flags": []}
    for length in lengths:
        labels = np.append(np.arange(length), -1)  # every first error once, and a right solution
        weights = np.append(FALLING ** labels[:-1], 0)[None]
        weights[:, -1] = weights.sum()
        curves["random_flags"].append(best_flag_rate(np.full(len(labels), length), labels, weights[0])[1])
        curves["position"].append(position_floor(labels, weights)[0])
        curves["outcome_oracle"].append(outcome_floor(labels, (labels < 0).astype(np.int64), weights)[0])
    axis: Axes = figure.subplots()
    colors = {"outcome_oracle": "#222222", "position": "#6b6b6b", "random_flags": RED}
    words = {
        "outcome_oracle": "knows whether the answer is right",
        "position": "always the commonest position",
        "random_flags": "steps flagged at the best rate",
    }
    for name, values in curves.items():
        axis.plot(lengths, 100 * np.array(values), color=colors[name], label=f"floor/{name}: {words[name]}")
    axis.set(xlabel="steps of a solution", ylabel="F1, percent", ylim=(0, 80), xlim=(2, 20), xticks=range(2, 21, 2))
    axis.legend(frameon=False)


FIGURES: dict[str, tuple[Callable[[Figure], None], tuple[float, float]]] = {
    "first-errors": (draw_first_errors, (5.6, 3.9)),
    "thresholds": (draw_thresholds, (6.2, 3.0)),
    "optimism": (draw_optimism, (5.8, 3.0)),
    "pairing": (draw_pairing, (6.2, 1.9)),
    "floors": (draw_floors, (5.8, 3.0)),
}
"""Name of the file, the function that draws it, its size in inches."""


def committed_run(run_id: str) -> Run:
    """Returns a committed ProcessBench run, by its id in leaderboards/processbench.md."""
    return read_run(ARCHIVE / f"{run_id}.json")


def average_f1(rows: tuple[MetricRow, ...], protocol: str) -> MetricRow:
    """Returns the row of the average over subsets."""
    return next(r for r in rows if r.protocol == protocol and r.metric == "f1" and r.subset.startswith("avg["))


def _draw_interval(axis: Axes, height: float, row: MetricRow, form: str = ".1f") -> None:
    assert row.value is not None
    assert row.lo is not None
    assert row.hi is not None
    axis.plot([100 * row.lo, 100 * row.hi], [height, height], color=BLUE, lw=2)
    axis.plot(100 * row.value, height, "o", color=BLUE)
    axis.annotate(
        f"{100 * row.value:{form}} [{100 * row.lo:{form}}, {100 * row.hi:{form}}]",
        (100 * row.value, height),
        (0, 8),
        textcoords="offset points",
        ha="center",
    )


def _labels(rng: np.random.Generator, size: int) -> tuple[first_error.Ints, first_error.Ints]:
    """Draws numbers of steps, and first errors in half of the traces."""
    steps = rng.integers(4, 11, size)
    return steps, np.where(rng.random(size) < RIGHT, -1, (rng.random(size) * steps).astype(np.int64))


def _noise_f1(rng: np.random.Generator, size: int) -> tuple[float, float]:
    """Returns the F1 of uniform scores on random labels, with an oracle threshold and with a cross-validated one."""
    steps, labels = _labels(rng, size)
    intervals = [first_error.match_interval(rng.random(k), int(label)) for k, label in zip(steps, labels, strict=True)]
    lo, hi = np.array(intervals).T
    data = first_error.Sample(lo, hi, labels >= 0, np.arange(size))
    fold = np.arange(size) % 5
    weights = np.stack([np.ones(size), *((fold != k).astype(float) for k in range(5))])
    oracle, *others = first_error.best_threshold(data, weights)
    honest = np.array(others)[fold]
    return tuple(  # type: ignore[return-value]
        float(first_error.harmonic(*first_error.accuracies(data, ((lo < t) & (t <= hi))[None], weights[:1]))[0])
        for t in (oracle, honest)
    )


def render(name: str) -> bytes:
    """Returns a picture as SVG; its bytes depend on nothing but the code and the committed results."""
    draw, size = FIGURES[name]
    with mpl.rc_context(STYLE | {"svg.hashsalt": name}):  # type: ignore[arg-type]
        figure = Figure(figsize=size, layout="constrained")
        FigureCanvasAgg(figure)
        draw(figure)
        vector = io.BytesIO()
        figure.savefig(vector, format="svg", metadata={"Date": None, "Creator": None})
    return vector.getvalue()


def main() -> None:
    """Writes all pictures beside this file."""
    for name in FIGURES:
        (HERE / f"{name}.svg").write_bytes(render(name))


if __name__ == "__main__":
    main()
