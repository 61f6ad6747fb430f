"""Figures of the reward model study, in the style of report/figures.py, which draws them."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes

from prmbench.report.figures import MAX_ROWS, PALETTE, FigurePlan, legend_label
from prmbench.report.panels import legend_below, panels_in_a_row
from prmbench.report.stats import Mean
from prmbench.studies.reporting.reward_model_claims import SUBSET_GROUPS, Claim
from prmbench.studies.reporting.reward_model_runs import PROCESS_READOUTS, Study
from prmbench.studies.reporting.reward_model_tables import f1_columns, over_seeds

FOREST = (*SUBSET_GROUPS, "change under shifts", "best of N, mean")
"""Comparisons in the figure; single formats and single N are in the table alone."""
VERDICT_COLORS = {"yes": "#0072B2", "no": "#D55E00", "equivalent": "#009E73", "unclear": "#8a8a8a"}


def plans(study: Study, claims: Sequence[Claim]) -> list[FigurePlan]:
    """Returns figures of F1 by method and subset, of best-of-N against N, and of every comparison with its interval."""
    candidates = (_study_f1(study), _study_best_of_n(study), _forest(claims))
    return [plan for plan in candidates if plan is not None]


def _study_f1(study: Study) -> FigurePlan | None:
    columns = {m: f1_columns(study, m, PROCESS_READOUTS, "calibrated") for m in study.methods}
    columns = {m: cells for m, cells in columns.items() if any(cells.values())}
    names = [n for n in ("onpolicy", "injected", "mean of shifts") if any(cells.get(n) for cells in columns.values())]
    if not names:
        return None
    figure, axes = panels_in_a_row(names, 2.6, 1.0 + 0.24 * len(columns))
    for axis, name in zip(axes, names, strict=True):
        for y, cells in enumerate(columns.values()):
            _bar(axis, cells.get(name), y, PALETTE[0])
        axis.set(xlabel="F1, percent", ylim=(len(columns) - 0.5, -0.5))
        axis.set_yticks(range(len(columns)), list(columns) if axis is axes[0] else [""] * len(columns))
        axis.grid(axis="x", color="#e6e6e6", lw=0.6, zorder=-1)
    caption = f"Process level, threshold tuned on val. Mean over {len(study.seeds)} seeds with its 95% t-interval."
    return "miniature-f1", "First-error F1 by method", caption, figure


def _bar(axis: Axes, cell: Mean | None, y: float, color: str) -> None:
    if cell is None:
        return
    if cell.lo is not None and cell.hi is not None:
        axis.plot([100 * cell.lo, 100 * cell.hi], [y, y], color=color, lw=1.6, solid_capstyle="round")
    axis.plot([100 * cell.value], [y], "o", ms=5, color=color)


def _study_best_of_n(study: Study) -> FigurePlan | None:
    sizes = study.group_sizes()
    if not sizes:
        return None
    figure, (axis,) = panels_in_a_row([""], 5.2, 3.6)
    for i, method in enumerate([m for m in study.methods if study.best_of(m)][: len(PALETTE)]):
        cells = [(n, cell) for n in sizes if (cell := over_seeds(study.best_of(method, sizes=(n,))))]
        points = [100 * cell.value for _, cell in cells]
        axis.plot([n for n, _ in cells], points, "o-", ms=4, color=PALETTE[i], label=legend_label(method))
    axis.set_xscale("log", base=2)
    axis.set_xticks(sizes, [str(n) for n in sizes])
    axis.minorticks_off()
    axis.set(xlabel="N", ylabel="accuracy, percent")
    legend_below(figure, [axis])
    caption = "Accuracy of the completion picked by each method's own prefix value; mean over seeds."
    return "miniature-best-of-n", "Best of N by method", caption, figure


def _forest(claims: Sequence[Claim]) -> FigurePlan | None:
    tested = [c for c in claims if c.lo is not None and c.constants == "tuned"]
    plotted = [c for c in tested if c.where in FOREST][: 2 * MAX_ROWS]
    if not plotted:
        return None
    figure, (axis,) = panels_in_a_row([""], 7.4, 0.9 + 0.2 * len(plotted))
    axis.axvline(0, color="#8a8a8a", lw=0.9)
    for y, claim in enumerate(plotted):
        _bar(axis, Mean(claim.difference, claim.lo, claim.hi, claim.n), y, VERDICT_COLORS[claim.verdict])
    axis.set_yticks(range(len(plotted)), [f"{c.source}  {c.comparison}, {c.where}" for c in plotted], fontsize=7)
    axis.set(ylim=(len(plotted) - 0.5, -0.5), xlabel="difference, percentage points; right of 0 agrees with the paper")
    caption = "Tuned constants. Blue: yes; orange: no; green: equivalent; grey: unclear, each by itself."
    caption += f" {len(plotted)} of {len(tested)} comparisons; the table has all." if len(plotted) < len(tested) else ""
    return "miniature-claims", "The paper's claims, compared", caption, figure
