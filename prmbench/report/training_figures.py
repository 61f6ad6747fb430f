"""Figures of `train-distrl` runs: accuracy and monitors over training steps.

Bands are t-intervals over the runs of a line; a line of a single run has none.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from prmbench.core.result_files import Run
from prmbench.report.figures import MAX_RUNS, PALETTE, FigurePlan, legend_label
from prmbench.report.frame import slug
from prmbench.report.panels import PANELS_PER_ROW, legend_below, small_multiples
from prmbench.report.stats import Mean, mean
from prmbench.report.task_figures import run_labels
from prmbench.report.training_runs import TrainingRun, read_metrics
from prmbench.tasks.distrl import metric, validated_at

MONITORS: dict[str, tuple[str, float]] = {
    "reward": ("right completions, percent", 100),
    "rm_accuracy": ("RM accuracy on fresh rollouts, percent", 100),
    "entropy": ("entropy, nats per token", 1),
    "length": ("tokens of a completion", 1),
    "gae_outcome_ratio": ("rms(GAE) / rms(outcome)", 1),
    "kl_sft": ("KL to the SFT policy, nats per token", 1),
    "candidates": ("candidates per token", 1),
    "candidate_mass": ("probability of the candidates, percent", 100),
}
"""Axis label and scale of each monitor."""
Series = Callable[[TrainingRun], Mapping[int, float]]
"""Returns the numbers of a run that a line shows, by step."""


def plans(name: str, runs: Sequence[Run]) -> list[FigurePlan]:
    """Plans figures of accuracy at validations and of the monitors, with a line for each of the first MAX_RUNS runs.

    A figure without any number is left out.
    """
    labels = run_labels(runs)
    trained = {
        labels[run.path]: TrainingRun(run, validated_at(m), read_metrics(run.path, m))
        for run in runs[:MAX_RUNS]
        for m in [run.result.manifest]
    }
    samples = ", ".join(sorted({metric(run.result.manifest) for run in runs}))
    curves: dict[str, tuple[Series, float]] = {f"{samples}, percent": (TrainingRun.validations, 100.0)}
    monitors: dict[str, tuple[Series, float]] = {
        label: (monitor(key), scale) for key, (label, scale) in MONITORS.items()
    }
    run_note = f" {len(trained)} of {len(runs)} runs." if len(trained) < len(runs) else ""
    figure_specs = [
        ("accuracy", "Accuracy over training", f"Accuracy on the validation problems over training.{run_note}", curves),
        ("monitors", "Monitors", f"What was recorded at every step of training.{run_note}", monitors),
    ]
    return [
        (f"{slug(name)}-{kind}", title, caption, figure)
        for kind, title, caption, panels in figure_specs
        if (figure := _panels(trained, panels)) is not None
    ]


def _panels(trained: Mapping[str, TrainingRun], panels: Mapping[str, tuple[Series, float]]) -> Figure | None:
    """A figure with a panel per series that any run has and a line per run; None without any panel."""
    shown_panels = {
        title: series_and_scale
        for title, series_and_scale in panels.items()
        if any(series_and_scale[0](run) for run in trained.values())
    }
    if not shown_panels:
        return None
    figure, axes = small_multiples(list(shown_panels), 2.9)
    for axis, series_and_scale in zip(axes, shown_panels.values(), strict=True):
        for (label, run), color in zip(trained.items(), PALETTE, strict=False):
            if series_and_scale[0](run):
                draw_line(axis, label, [run], series_and_scale, color)
    legend_below(figure, axes)
    return figure


# --- shared with figures of several runs per line --------------------------------------------------------------


def over_runs(runs: Sequence[TrainingRun], series: Series) -> dict[int, Mean]:
    """Returns, by step, the mean over the runs that have it, with its t-interval."""
    values_by_step: dict[int, list[float]] = {}
    for run in runs:
        for step, value in series(run).items():
            values_by_step.setdefault(step, []).append(value)
    return {step: mean(values_by_step[step]) for step in sorted(values_by_step)}


def monitor(name: str) -> Series:
    """Returns the series of a monitor, for `draw_line`."""
    return lambda run: run.monitor(name)


def draw_line(
    axis: Axes, label: str, runs: Sequence[TrainingRun], series_and_scale: tuple[Series, float], color: str
) -> None:
    """Draws the mean over runs of a series times its scale, and the band of its interval where there is one."""
    series, scale = series_and_scale
    means = over_runs(runs, series)
    steps = list(means)
    marker = "o" if len(steps) <= PANELS_PER_ROW else ""
    values = [scale * m.value for m in means.values()]
    axis.plot(steps, values, color=color, lw=1.4, marker=marker, ms=3, label=legend_label(label))
    ends = [(step, m.lo, m.hi) for step, m in means.items() if m.lo is not None and m.hi is not None]
    if ends:
        low, high = [scale * (lo or 0) for _, lo, _ in ends], [scale * (hi or 0) for _, _, hi in ends]
        axis.fill_between([step for step, _, _ in ends], low, high, color=color, alpha=0.12, lw=0)


def small_legend(axis: Axes) -> None:
    """Draws a panel's own legend."""
    axis.legend(frameon=False, fontsize=6, handlelength=1.4)
