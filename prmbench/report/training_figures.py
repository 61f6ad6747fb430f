"""Figures of `train-distrl` runs: accuracy and monitors over steps. Small multiples, one style.

Bands are t-intervals over the runs of a line; a line of one run has none.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from prmbench.core.result_files import Run
from prmbench.report.figures import MOST_RUNS, PALETTE, Plan, legend_label
from prmbench.report.frame import slug
from prmbench.report.stats import Mean, mean
from prmbench.report.task_figures import legend_below, run_labels
from prmbench.report.training_runs import TrainingRun, read_metrics
from prmbench.tasks.distrl import metric, validated_at

WATCHED: dict[str, tuple[str, float]] = {
    "reward": ("right completions, percent", 100),
    "rm_accuracy": ("RM accuracy on fresh rollouts, percent", 100),
    "entropy": ("entropy, nats per token", 1),
    "length": ("tokens of a completion", 1),
    "gae_outcome_ratio": ("rms(GAE) / rms(outcome)", 1),
    "kl_sft": ("KL to the SFT policy, nats per token", 1),
    "candidates": ("candidates per token", 1),
    "candidate_mass": ("probability of the candidates, percent", 100),
}
"""Monitor -> axis label and scale."""
WIDE = 4
"""Panels side by side."""
Series = Callable[[TrainingRun], Mapping[int, float]]
"""What a line shows of a run: step -> number."""


def plans(name: str, runs: Sequence[Run]) -> list[Plan]:
    """Accuracy at the validations, and what was watched in training; a line per run, of the first MOST_RUNS.

    A figure without a number is left out.
    """
    labels = run_labels(runs)
    trained = {
        labels[run.path]: TrainingRun(run, validated_at(m), read_metrics(run.path, m))
        for run in runs[:MOST_RUNS]
        for m in [run.result.manifest]
    }
    samples = ", ".join(sorted({metric(run.result.manifest) for run in runs}))
    curves: dict[str, tuple[Series, float]] = {f"{samples}, percent": (TrainingRun.validations, 100.0)}
    watched: dict[str, tuple[Series, float]] = {label: (monitor(key), scale) for key, (label, scale) in WATCHED.items()}
    few = f" {len(trained)} of {len(runs)} runs." if len(trained) < len(runs) else ""
    found = [
        ("accuracy", "Accuracy over training", f"Accuracy on the validation problems over training.{few}", curves),
        ("monitors", "Monitors", f"What was recorded at every step of training.{few}", watched),
    ]
    return [
        (f"{slug(name)}-{kind}", title, caption, figure)
        for kind, title, caption, panels in found
        if (figure := _panels(trained, panels)) is not None
    ]


def _panels(trained: Mapping[str, TrainingRun], panels: Mapping[str, tuple[Series, float]]) -> Figure | None:
    """A panel per series that some run has, a line per run that has it; one legend below."""
    shown = {title: what for title, what in panels.items() if any(what[0](run) for run in trained.values())}
    if not shown:
        return None
    figure, axes = small_multiples(list(shown), 2.9)
    for axis, what in zip(axes, shown.values(), strict=True):
        for (label, run), color in zip(trained.items(), PALETTE, strict=False):
            if what[0](run):
                draw_line(axis, label, [run], what, color)
    legend_below(figure, axes)
    return figure


# --- shared with figures of several runs a line --------------------------------------------------------------


def over_runs(runs: Sequence[TrainingRun], series: Series) -> dict[int, Mean]:
    """Step -> mean over the runs that have it, with its t-interval."""
    found: dict[int, list[float]] = {}
    for run in runs:
        for step, value in series(run).items():
            found.setdefault(step, []).append(value)
    return {step: mean(found[step]) for step in sorted(found)}


def monitor(name: str) -> Series:
    """The series of a monitor, for `draw_line`."""
    return lambda run: run.monitor(name)


def small_multiples(titles: Sequence[str], height: float, width: float = 3.3) -> tuple[Figure, list[Axes]]:
    """An empty figure with a panel per title, in rows of at most WIDE; width and height of a panel in inches."""
    columns = min(WIDE, len(titles))
    rows = -(-len(titles) // columns)
    figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.1, h_pad=0.08)  # type: ignore[union-attr, call-arg]
    grid = [axis for line in figure.subplots(rows, columns, squeeze=False) for axis in line]
    for axis in grid[len(titles) :]:
        axis.set_axis_off()
    for axis, title in zip(grid, titles, strict=False):
        axis.set_title(title, fontsize=8)
        axis.tick_params(labelsize=7)
        axis.set_xlabel("step", fontsize=8)
    return figure, grid[: len(titles)]


def draw_line(axis: Axes, label: str, runs: Sequence[TrainingRun], what: tuple[Series, float], color: str) -> None:
    """Draws the mean over runs of a series times its scale, and the band of its interval where there is one."""
    series, scale = what
    found = over_runs(runs, series)
    steps = list(found)
    marker = "o" if len(steps) <= WIDE else ""
    values = [scale * m.value for m in found.values()]
    axis.plot(steps, values, color=color, lw=1.4, marker=marker, ms=3, label=legend_label(label))
    ends = [(step, m.lo, m.hi) for step, m in found.items() if m.lo is not None and m.hi is not None]
    if ends:
        low, high = [scale * (lo or 0) for _, lo, _ in ends], [scale * (hi or 0) for _, _, hi in ends]
        axis.fill_between([step for step, _, _ in ends], low, high, color=color, alpha=0.12, lw=0)


def small_legend(axis: Axes) -> None:
    """Draws a panel's own legend."""
    axis.legend(frameon=False, fontsize=6, handlelength=1.4)
