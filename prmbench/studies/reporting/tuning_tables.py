"""How the reward models of the study were tuned: trials of each loss, and the expected best of k of them.

The table of the trials, tuning.json, lies beside the runs. It is made by `python -m prmbench.studies.miniature tune`.
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from matplotlib.figure import Figure

from prmbench.core import archives
from prmbench.core.records import Notice
from prmbench.core.result_files import Run
from prmbench.report.figures import PALETTE, FigurePlan
from prmbench.studies.reporting.reward_model_runs import METHODS
from prmbench.tasks.table import DASH, PERCENT, Row, Table, TableCell, Value

T = TypeVar("T")
FILE = "tuning.json"
LARGEST_K = 16
TABLE_KS = (1, 2, 4, 8, 16)
COMPARED_LOSSES = ("T1", "T2")
"""Tables of the paper whose claims compare one loss with another."""
BEST_OF_K = "Best of k: the expected best of k trials that are drawn at random from all of them. "
CONSTANTS = ("learning_rate", "beta", "margin")


@dataclass(frozen=True, slots=True)
class Trial:
    """A setting that was trained and scored."""

    loss: str
    constants: Mapping[str, float | None]
    f1: Mapping[str, float | None]
    """Seed of a validation world -> F1; None where training diverged, which counts as 0."""
    mean_f1: float


@dataclass(frozen=True, slots=True)
class Tuning:
    """All trials of a study's tuning."""

    trials: tuple[Trial, ...]
    """In the order in which they were drawn, by loss."""
    earlier: tuple[Trial, ...]
    """Settings that were looked at before the search."""
    rule: str
    """How the search was to end, declared before it was run."""
    stopped: str
    """Why it ended; empty for a search that is still running."""

    @property
    def losses(self) -> tuple[str, ...]:
        """The losses in table order."""
        names = {trial.loss for trial in self.trials}
        return tuple(sorted(names, key=lambda n: (METHODS.index(n) if n in METHODS else len(METHODS), n)))

    def of(self, loss: str) -> tuple[Trial, ...]:
        """Returns the trials of a loss."""
        return tuple(trial for trial in self.trials if trial.loss == loss)

    @property
    def counts(self) -> dict[str, int]:
        """Number of trials of each loss."""
        return {loss: len(self.of(loss)) for loss in self.losses}

    @property
    def is_equal(self) -> bool:
        """Whether every loss had the same number of trials."""
        return len(set(self.counts.values())) <= 1

    def count_words(self) -> str:
        """Returns `trials per loss: 12 ipvrm, 4 dpo_rm`."""
        return f"trials per loss: {', '.join(f'{count} {loss}' for loss, count in self.counts.items())}"


def read_tuning(runs: Sequence[Run]) -> Tuning | None:
    """Returns the tuning whose table lies beside the runs; None when there is none, or it cannot be read."""
    return read_beside(runs, FILE, _parse)


def read_beside(runs: Sequence[Run], name: str, parse: Callable[[Any], T]) -> T | None:
    """Returns what `parse` makes of the JSON file `name` that lies beside the runs; None where no such file is read.

    A file that `parse` cannot read is named in a Notice.
    """
    paths = {(archives.archive_of(run.path) or run.path).parent / name for run in runs}
    for path in sorted(path for path in paths if path.is_file()):
        try:
            return parse(json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            warnings.warn(f"{path}: is no table of tuning ({error!r}), so the report has none", Notice, stacklevel=2)
    return None


def _parse(table: Mapping[str, Any]) -> Tuning:
    earlier = [*table["earlier"].get("settings", ()), *table["earlier"].get("also_seen", ())]
    return Tuning(
        trials=tuple(map(_trial, table["trials"])),
        earlier=tuple(map(_trial, earlier)),
        rule=str(table["rule"]),
        stopped=str(table["stopped"]),
    )


def _trial(line: Mapping[str, Any]) -> Trial:
    return Trial(line["loss"], {name: line[name] for name in CONSTANTS}, dict(line["f1"]), float(line["mean_f1"]))


def withdrawn(tuning: Tuning | None) -> str:
    """Returns one sentence that withdraws the claims which rest on unequal tuning; empty when it was equal."""
    if tuning is None or tuning.is_equal:
        return ""
    return (
        f"Withdrawn until the study is run again: answers of {' and '.join(COMPARED_LOSSES)} with tuned constants, "
        f"since tuning was not equal ({tuning.count_words()})."
    )


def expected_best(values: Sequence[float], k: int) -> float:
    """Returns the expected maximum of k of the values, drawn at random without replacement.

    The i-th smallest of n values is the largest of k with probability C(i - 1, k - 1) / C(n, k).

    Raises:
        ValueError: k is not from 1 to the number of values.
    """
    n = len(values)
    if not 1 <= k <= n:
        raise ValueError(f"k must be from 1 to {n}")
    return math.fsum(value * math.comb(i, k - 1) for i, value in enumerate(sorted(values))) / math.comb(n, k)


def expected_curve(tuning: Tuning, loss: str) -> list[float]:
    """Returns the expected best of k trials of a loss for k from 1 to LARGEST_K, or to their number."""
    values = [trial.mean_f1 for trial in tuning.of(loss)]
    return [expected_best(values, k) for k in range(1, min(LARGEST_K, len(values)) + 1)]


# --- tables and figure ----------------------------------------------------------------------------------------


def grids(tuning: Tuning | None) -> tuple[Table, ...]:
    """Returns the table of losses with their trials, the best of them and the expected best of k."""
    if tuning is None:
        return ()
    curves = {loss: expected_curve(tuning, loss) for loss in tuning.losses}
    ks = [k for k in TABLE_KS if any(len(curve) >= k for curve in curves.values())]
    rows = tuple(_row(tuning, loss, [_at(curves[loss], k) for k in ks]) for loss in tuning.losses)
    worlds = sorted({seed for trial in tuning.trials for seed in trial.f1})
    diverged = sum(value is None for trial in tuning.trials for value in trial.f1.values())
    notes = [f"{tuning.count_words()[0].upper()}{tuning.count_words()[1:]}.", withdrawn(tuning)]
    notes += [f"It ended at {tuning.stopped}."] if tuning.stopped.startswith("the limit") else []
    notes += [f"Trainings that diverged, which count as F1 0: {diverged}."] if diverged else []
    notes += [f"Besides, {len(tuning.earlier)} settings from before the search."] if tuning.earlier else []
    return (
        Table(
            label="study-tuning",
            title="Tuning",
            caption=f"{tuning.rule} Trials are compared by their mean F1 over {len(worlds)} validation worlds "
            f"({', '.join(worlds)}), which no study uses: process level, threshold tuned on the same traces, percent. "
            f"Constants: of the best trial. {BEST_OF_K * bool(ks)}All trials: tuning.json beside the runs.",
            header=(
                *("Loss", "Trials", "Best F1", "Learning rate", "Beta", "Margin"),
                *(f"best of {k}" for k in ks),
            ),
            groups=(rows,) if rows else (),
            notes=tuple(note for note in notes if note),
            text_columns=1,
        ),
    )


def _at(curve: Sequence[float], k: int) -> float | None:
    return curve[k - 1] if k <= len(curve) else None


def _row(tuning: Tuning, loss: str, bests: Sequence[float | None]) -> Row:
    trials = tuning.of(loss)
    best = max(trials, key=lambda trial: trial.mean_f1)
    constants: list[TableCell] = []
    for name in CONSTANTS:
        value = best.constants[name]
        constants.append(DASH if value is None else f"{value:g}")
    cells = (Value(value, PERCENT) for value in bests)
    return (loss, Value(len(trials), "count"), Value(best.mean_f1, PERCENT), *constants, *cells)


def plans(tuning: Tuning | None) -> list[FigurePlan]:
    """Returns the figure of the expected best of k trials."""
    if tuning is None or not tuning.trials:
        return []
    figure = Figure(figsize=(5.6, 3.8), layout="constrained")
    axis = figure.subplots()
    for i, loss in enumerate(tuning.losses):
        curve = expected_curve(tuning, loss)
        points = [100 * value for value in curve]
        axis.plot(range(1, len(curve) + 1), points, "o-", ms=3, color=PALETTE[i % len(PALETTE)], label=loss)
    axis.set(xlabel="trials", ylabel="expected best F1, percent")
    axis.grid(axis="y", color="#e6e6e6", lw=0.6, zorder=-1)
    figure.legend(*axis.get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=8, frameon=False)
    caption = f"Expected best mean F1 on the validation worlds of k trials; {tuning.count_words()}."
    return [("miniature-tuning", "Expected best of k trials, by loss", caption, figure)]


def numbers(tuning: Tuning | None) -> dict[str, object]:
    """Returns the counts of trials and the expected best of k by loss, for JSON."""
    if tuning is None:
        return {}
    curves = {loss: expected_curve(tuning, loss) for loss in tuning.losses}
    rounded = {loss: [round(value, 6) for value in curve] for loss, curve in curves.items()}
    return {"trials": tuning.counts, "earlier": len(tuning.earlier), "expected_best": rounded}
