"""Gathers runs of RL training by arm: accuracies and monitors by seed and problem."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean

from prmbench.core.records import RunManifest
from prmbench.core.result_files import Run
from prmbench.report.training_runs import TrainingRun, read_metrics
from prmbench.studies.reporting.nested_seeds import RunValues, Seeds, whole_run_values
from prmbench.tasks.distrl import TRUNCATED, validated_at

RL_BENCHMARK = "miniature_rl"
"""The benchmark whose runs form the study of RL arms."""
BASE_ARM = "grpo"
"""The arm that every other arm is compared with."""
ARMS = (
    *("grpo", "grpo_extra", "grpo_ipvrm", "grpo_implicit_prm", "grpo_dpo_rm"),
    *("distrl_ipvrm", "distrl_implicit_prm", "distrl_dpo_rm"),
    *("distrl_frozen", "distrl_ipvrm_frozen", "distrl_naive", "distrl_dlw", "distrl_adb", "distrl_sft"),
    *("distrl_pmin_0.05", "distrl_pmin_0.2", "distrl_alpha_0.01", "distrl_alpha_0.1", "distrl_paper"),
    *("prime", "spro", "reinforce_q_rm", "vineppo", "grpo_vps", "rm_as_policy_ipvrm", "rm_as_policy_implicit_prm"),
)
"""Arms in table order; other arms follow."""
PANELS = ("plain", "marker")
QUARTER = 4
"""The first and the last 1 / QUARTER of a run's steps are called early and late."""


class ArmRun(TrainingRun):
    """A run with its arm, its panel and the seeds by which it is paired with runs of other arms."""

    __slots__ = ()

    @property
    def arm(self) -> str:
        """The arm's name; the model's for a run without an arm."""
        return arm_of(self.run.result.manifest)

    @property
    def panel(self) -> str:
        """The panel; empty for studies with a single one."""
        return panel_of(self.run.result.manifest)

    @property
    def seeds(self) -> Seeds:
        """(SFT seed, RL seed)."""
        return seeds_of(self.run.result.manifest)


@dataclass(frozen=True, slots=True)
class RLStudy:
    """The RL runs of one benchmark."""

    trained: tuple[ArmRun, ...]

    @property
    def panels(self) -> tuple[str, ...]:
        """The panels in table order."""
        return tuple(sorted({t.panel for t in self.trained}, key=_panel_rank))

    @property
    def metric(self) -> str:
        """Name of the accuracy, such as `avg@8`; several names where runs took different numbers of samples."""
        return ", ".join(sorted({f"avg@{t.run.result.manifest.config['samples']}" for t in self.trained}))

    def arms(self, panel: str) -> tuple[str, ...]:
        """Returns the arms of a panel in table order."""
        return tuple(sorted({t.arm for t in self.trained if t.panel == panel}, key=arm_rank))

    def of(self, panel: str, arm: str) -> tuple[ArmRun, ...]:
        """Returns the runs of an arm."""
        return tuple(t for t in self.trained if (t.panel, t.arm) == (panel, arm))

    def accuracy(self, panel: str, arm: str, at: int, series: str = "") -> RunValues:
        """Returns accuracies at the first (`at` 0) or last (`at` -1) validation, by run and problem."""
        return {t.seeds: t.problems(lambda v: v[at], series) for t in self.of(panel, arm)}

    def gain(self, panel: str, arm: str) -> RunValues:
        """Returns last minus first accuracy of runs that were validated at least twice."""
        runs = [t for t in self.of(panel, arm) if len(t.steps) > 1]
        return {t.seeds: t.problems(lambda v: v[-1] - v[0]) for t in runs}

    def monitor_summaries(self, panel: str, arm: str, name: str, of: Callable[[Sequence[float]], float]) -> RunValues:
        """Returns, by run, `of` applied to a monitor's values in order of steps; runs without any are left out."""
        series = {t.seeds: list(t.monitor(name).values()) for t in self.of(panel, arm)}
        return whole_run_values({seeds: of(values) for seeds, values in series.items() if values})


def first_quarter_mean(values: Sequence[float]) -> float:
    """Returns the mean over the first quarter of the steps, at least one."""
    return fmean(values[: max(1, len(values) // QUARTER)])


def last_quarter_mean(values: Sequence[float]) -> float:
    """Returns the mean over the last quarter of the steps, at least one."""
    return fmean(values[-max(1, len(values) // QUARTER) :])


def gather_rl_study(runs: Iterable[Run]) -> RLStudy:
    """Gathers runs of RL training, in any order."""
    trained = [
        ArmRun(run, validated_at(run.result.manifest), read_metrics(run.path, run.result.manifest)) for run in runs
    ]
    trained.sort(key=lambda t: (_panel_rank(t.panel), arm_rank(t.arm), t.seeds, t.run.result.manifest.run_id))
    return RLStudy(tuple(trained))


def arm_of(manifest: RunManifest) -> str:
    """Returns the arm's name; the model's for a run without an arm."""
    return str(manifest.config.get("arm") or manifest.model)


def panel_of(manifest: RunManifest) -> str:
    """Returns the panel; empty for studies with a single one."""
    return str(manifest.config.get("panel") or "")


def seeds_of(manifest: RunManifest) -> Seeds:
    """Returns (SFT seed, RL seed); the SFT seed is 0 where the run did not record one."""
    sft, rl = manifest.config.get("sft_seed"), manifest.config.get("rl_seed")
    return sft if isinstance(sft, int) else 0, rl if isinstance(rl, int) else manifest.seed


def truncated_shares(study: RLStudy, panel: str, arm: str, at: int) -> RunValues:
    """Returns the share of completions that were cut at the length limit in a validation."""
    runs = study.accuracy(panel, arm, at, TRUNCATED)
    return {seeds: values for seeds, values in runs.items() if values}


def arm_rank(name: str) -> tuple[int, str]:
    """Returns a sort key that puts arms in table order."""
    return (ARMS.index(name), "") if name in ARMS else (len(ARMS), name)


def _panel_rank(name: str) -> tuple[int, str]:
    return (PANELS.index(name), "") if name in PANELS else (len(PANELS), name)
