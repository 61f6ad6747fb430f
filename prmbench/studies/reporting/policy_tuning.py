"""How the arms of an RL study were tuned: trials of each arm, and the expected best of k of them.

The table of the trials, tuning_rl.json, lies beside the runs. `python -m prmbench.studies.miniature tune-rl` makes it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from prmbench.core.result_files import Run
from prmbench.studies.reporting.tuning_tables import BEST_OF_K, expected_best, read_beside
from prmbench.tasks.table import DASH, PERCENT, Row, Table, TableCell, Value

FILE = "tuning_rl.json"
TABLE_KS = (1, 2, 4, 8, 12)


@dataclass(frozen=True, slots=True)
class Trial:
    """Options that an arm was trained with on the validation worlds, and what came of it."""

    options: Mapping[str, float]
    accuracy: float
    """avg@8 after training, mean over the worlds."""


@dataclass(frozen=True, slots=True)
class PolicyTuning:
    """All trials of an RL study's tuning."""

    by_arm: Mapping[str, tuple[Trial, ...]]
    worlds: tuple[str, ...]
    """Seeds of the validation worlds."""
    problems: int
    """Validation problems of each world."""

    def best(self, arm: str) -> Trial:
        """Returns the best trial of an arm, whose options the study takes."""
        return max(self.by_arm[arm], key=lambda trial: trial.accuracy)

    def edges(self, arm: str) -> list[str]:
        """Returns the options whose best value is the lowest or highest that was tried."""
        tried = {name: [trial.options[name] for trial in self.by_arm[arm]] for name in self.best(arm).options}
        return [name for name, value in self.best(arm).options.items() if value in (min(tried[name]), max(tried[name]))]


def read_policy_tuning(runs: Sequence[Run]) -> PolicyTuning | None:
    """Returns the tuning whose table lies beside the runs; None when there is none, or it cannot be read."""
    return read_beside(runs, FILE, _parse)


def _parse(table: Mapping[str, Any]) -> PolicyTuning:
    by_arm: dict[str, tuple[Trial, ...]] = {}
    for line in table["settings"]:
        trial = Trial({name: float(value) for name, value in line["options"].items()}, float(line["mean"]))
        by_arm[line["arm"]] = (*by_arm.get(line["arm"], ()), trial)
    return PolicyTuning(by_arm, tuple(map(str, table["seeds"])), int(table["problems"]))


def grids(tuning: PolicyTuning | None) -> tuple[Table, ...]:
    """Returns the table of arms with their trials, the best of them and the expected best of k."""
    if tuning is None or not tuning.by_arm:
        return ()
    counts = {len(trials) for trials in tuning.by_arm.values()}
    ks = [k for k in TABLE_KS if k <= max(counts)]
    edges = [f"{arm} ({', '.join(names)})" for arm in tuning.by_arm if (names := tuning.edges(arm))]
    return (
        Table(
            label="rl-tuning",
            title="Tuning of the arms",
            caption=f"avg@8 after training on {tuning.problems} validation problems of each of the worlds "
            f"{', '.join(tuning.worlds)}, which no study uses; mean over the worlds, percent. Options: of the best "
            f"trial. {BEST_OF_K}All trials: {FILE} beside the runs.",
            header=("Arm", "Trials", "Options", "Best avg@8", *(f"best of {k}" for k in ks)),
            groups=(tuple(_row(tuning, arm, ks) for arm in tuning.by_arm),),
            notes=(
                f"The arms had {'the same number' if len(counts) == 1 else 'different numbers'} of trials.",
                f"Options whose best value lies at the edge of those tried: {'; '.join(edges) or 'none'}.",
            ),
            text_columns=1,
        ),
    )


def _row(tuning: PolicyTuning, arm: str, ks: Sequence[int]) -> Row:
    values = [trial.accuracy for trial in tuning.by_arm[arm]]
    options = ", ".join(f"{name} {value:g}" for name, value in tuning.best(arm).options.items())
    bests: list[TableCell] = [Value(expected_best(values, k), PERCENT) if k <= len(values) else DASH for k in ks]
    return (arm, Value(len(values), "count"), options, Value(max(values), PERCENT), *bests)
