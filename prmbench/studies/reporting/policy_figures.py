"""Figures of RL training as small multiples: accuracy and monitors over steps, and arms against GRPO.

Bands are t-intervals over all runs of an arm. Only the tables account for nested seeds and shared problems.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from prmbench.report.figures import PALETTE, FigurePlan
from prmbench.report.frame import slug
from prmbench.report.panels import PANELS_PER_ROW, legend_below, small_multiples
from prmbench.report.training_figures import (
    MONITORS,
    Series,
    draw_line,
    monitor,
    small_legend,
)
from prmbench.report.training_runs import TrainingRun
from prmbench.studies.reporting.policy_claims import compare_with_grpo
from prmbench.studies.reporting.policy_runs import BASE_ARM, RLStudy

UPDATE = "update and reference"
FAMILIES: dict[str, tuple[str, ...]] = {
    "other methods": (BASE_ARM, "distrl_ipvrm", "grpo_ipvrm", "grpo_extra", "prime", "spro", "reinforce_q_rm"),
    "reward models": (BASE_ARM, "distrl_ipvrm", "distrl_implicit_prm", "distrl_dpo_rm"),
    UPDATE: (BASE_ARM, "distrl_ipvrm", "distrl_frozen", "distrl_naive", "distrl_dlw", "distrl_adb", "distrl_sft"),
    "candidates": (
        BASE_ARM,
        "distrl_ipvrm",
        "distrl_pmin_0.05",
        "distrl_pmin_0.2",
        "distrl_alpha_0.01",
        "distrl_paper",
    ),
}
"""Arms drawn in one plot; arms of no family share a further one."""
COMMON = {BASE_ARM, "distrl_ipvrm"}
"""Arms in every family."""
MAIN_ARMS = (BASE_ARM, "distrl_ipvrm", "grpo_ipvrm", "distrl_implicit_prm", "distrl_dpo_rm")
"""Arms in the figure of monitors."""
BASE_COLOR = "#5B5B5B"
COLORS = tuple(color for color in PALETTE if color != BASE_COLOR)
MAX_ARMS = 8


def plans(name: str, study: RLStudy) -> list[FigurePlan]:
    """Returns the figures of a study that have data."""
    candidates = [_accuracy(name, study)]
    candidates += [_monitors(name, study, panel) for panel in study.panels]
    candidates += [_rm_accuracy(name, study), _arms(name, study)]
    return [plan for plan in candidates if plan is not None]


def families(study: RLStudy, panel: str) -> dict[str, list[str]]:
    """Returns the trained arms of a panel by family; families without an arm of their own are left out."""
    trained = [arm for arm in study.arms(panel) if any(len(t.steps) > 1 for t in study.of(panel, arm))]
    members = {name: [arm for arm in arms if arm in trained] for name, arms in FAMILIES.items()}
    by_family = {name: arms for name, arms in members.items() if set(arms) - COMMON}
    family_arms = {arm for arms in by_family.values() for arm in arms}
    rest = [arm for arm in trained if arm not in family_arms][:MAX_ARMS]
    if not by_family:
        return {"arms": rest} if rest else {}
    if not rest:
        return by_family
    return {**by_family, "further arms": [*(arm for arm in trained if arm == BASE_ARM), *rest]}


def _accuracy(name: str, study: RLStudy) -> FigurePlan | None:
    plotted = [(panel, family, arms) for panel in study.panels for family, arms in families(study, panel).items()]
    if not plotted:
        return None
    figure, axes = small_multiples([_heading(panel, family) for panel, family, _ in plotted], 2.9)
    for axis, (panel, _, arms) in zip(axes, plotted, strict=True):
        _lines(axis, study, panel, arms, (TrainingRun.validations, 100))
        small_legend(axis)
    for axis in axes[::PANELS_PER_ROW]:
        axis.set_ylabel(f"{study.metric}, percent", fontsize=8)
    caption = (
        f"{study.metric} on the validation problems over training; mean over runs, and its 95% t-interval where there "
        "are at least two. Grey: GRPO."
    )
    return f"{slug(name)}-accuracy", "Accuracy over training", caption, figure


def _monitors(study_name: str, study: RLStudy, panel: str) -> FigurePlan | None:
    arms = [arm for arm in MAIN_ARMS if arm in study.arms(panel)] or list(study.arms(panel)[:MAX_ARMS])
    arms_by_monitor = {
        name: [arm for arm in arms if any(t.monitor(name) for t in study.of(panel, arm))] for name in MONITORS
    }
    plotted = [name for name, with_values in arms_by_monitor.items() if with_values]
    if not plotted:
        return None
    figure, axes = small_multiples([MONITORS[name][0] for name in plotted], 2.5)
    colors = {arm: color for arm, color in zip([a for a in arms if a != BASE_ARM], COLORS, strict=False)}
    for axis, name in zip(axes, plotted, strict=True):
        _lines(axis, study, panel, arms_by_monitor[name], (monitor(name), MONITORS[name][1]), colors)
    legend_below(figure, axes, columns=5)
    title_suffix = f", panel {panel}" if panel else ""
    caption = (
        "Mean over runs, and its 95% t-interval where there are at least two. An arm without a number has no line."
    )
    return (
        f"{slug(study_name)}-monitors{'-' * bool(panel)}{slug(panel) if panel else ''}",
        f"Monitors{title_suffix}",
        caption,
        figure,
    )


def _rm_accuracy(name: str, study: RLStudy) -> FigurePlan | None:
    candidates = [arm for arm in FAMILIES[UPDATE] if arm != BASE_ARM]
    plotted = [
        (panel, arms)
        for panel in study.panels
        if len(arms := [a for a in candidates if any(t.monitor("rm_accuracy") for t in study.of(panel, a))]) > 1
    ]
    if not plotted:
        return None
    figure, axes = small_multiples([panel for panel, _ in plotted], 3.2, width=4.2)
    for axis, (panel, arms) in zip(axes, plotted, strict=True):
        _lines(axis, study, panel, arms, (monitor("rm_accuracy"), 100))
        axis.set_ylabel("accuracy, percent", fontsize=8)
        small_legend(axis)
    caption = (
        "Reward model's verdict on completions drawn in the step, before it is trained on them (the paper's Fig. 6); "
        "mean over runs, and its 95% t-interval where there are at least two."
    )
    return f"{slug(name)}-rm-accuracy", "Reward model on fresh rollouts", caption, figure


def _arms(name: str, study: RLStudy) -> FigurePlan | None:
    estimates = [(p, arm, e) for p in study.panels for arm, (e, *_) in compare_with_grpo(study, p).items()]
    plotted = [(panel, arm, e) for panel, arm, e in estimates if e.lo is not None]
    if not plotted:
        return None
    figure = Figure(figsize=(7.2, 0.9 + 0.22 * len(plotted)), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.15)  # type: ignore[union-attr, call-arg]
    axis = figure.subplots()
    axis.axvline(0, color="#8a8a8a", lw=0.9)
    for y, (_, _, e) in enumerate(plotted):
        if e.lo is not None and e.hi is not None:
            color = COLORS[0] if e.lo > 0 else COLORS[1] if e.hi < 0 else "#8a8a8a"
            axis.plot([100 * e.lo, 100 * e.hi], [y, y], color=color, lw=1.6, solid_capstyle="round")
            axis.plot([100 * e.value], [y], "o", ms=5, color=color)
    axis.set_yticks(
        range(len(plotted)), [f"{arm}{f', {panel}' if panel else ''}" for panel, arm, _ in plotted], fontsize=7
    )
    axis.set(
        ylim=(len(plotted) - 0.5, -0.5), xlabel=f"{study.metric} after training, minus {BASE_ARM}: percentage points"
    )
    caption = (
        "Paired by SFT seed, RL seed and problem; the intervals of the table. Blue: above zero; orange: below; grey: "
        "neither."
    )
    return f"{slug(name)}-arms", f"Arms against {BASE_ARM}", caption, figure


# --- drawing --------------------------------------------------------------------------------------------------


def _heading(panel: str, family: str) -> str:
    return f"{panel}: {family}" if panel else family


def _lines(
    axis: Axes,
    study: RLStudy,
    panel: str,
    arms: Sequence[str],
    scaled_series: tuple[Series, float],
    colors: Mapping[str, str] | None = None,
) -> None:
    """Draws a line and a band per arm: GRPO in grey, the others in `colors`, or in the order of the palette."""
    color_of = colors or dict(zip([arm for arm in arms if arm != BASE_ARM], COLORS, strict=False))
    for arm in arms:
        color = BASE_COLOR if arm == BASE_ARM else color_of.get(arm, COLORS[-1])
        draw_line(axis, arm, study.of(panel, arm), scaled_series, color)
