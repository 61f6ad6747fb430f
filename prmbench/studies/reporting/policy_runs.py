"""Groups runs of RL training by arm: accuracies and monitors by seed and problem. Draws and tests nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean

from prmbench.core.records import RunManifest
from prmbench.core.result_files import Run
from prmbench.report.training_runs import TrainingRun, read_metrics
from prmbench.studies.reporting.nested_seeds import Runs, Seeds, whole
from prmbench.tasks.distrl import TRUNCATED, validated_at

RL_STUDY = "miniature_rl"
"""The benchmark whose runs form the study of RL arms."""
BASE = "grpo"
"""What every arm is held against."""
ARMS = (
    *("grpo", "grpo_extra", "grpo_ipvrm", "grpo_implicit_prm", "grpo_dpo_rm"),
    *("distrl_ipvrm", "distrl_implicit_prm", "distrl_dpo_rm"),
    *("distrl_frozen", "distrl_ipvrm_frozen", "distrl_naive", "distrl_dlw", "distrl_adb", "distrl_sft"),
    *("distrl_pmin_0.05", "distrl_pmin_0.2", "distrl_alpha_0.01", "distrl_alpha_0.1", "distrl_paper"),
    *("prime", "spro", "reinforce_q_rm", "rm_as_policy_ipvrm", "rm_as_policy_implicit_prm"),
)
"""In table order; others follow."""
PANELS = ("plain", "marker")
QUARTER = 4
"""Early and late: the first and the last quarter of a run's steps."""


class Trained(TrainingRun):
    """A run as one of an arm's: what it shares with others, and by which seeds it is paired with them."""

    __slots__ = ()

    @property
    def arm(self) -> str:
        """The arm's name; a run that has none goes by its model's."""
        return arm_of(self.run.result.manifest)

    @property
    def panel(self) -> str:
        """Empty where there is but one kind of data."""
        return panel_of(self.run.result.manifest)

    @property
    def seeds(self) -> Seeds:
        """SFT seed and RL seed."""
        return seeds_of(self.run.result.manifest)


@dataclass(frozen=True, slots=True)
class RLStudy:
    """All runs of one benchmark."""

    trained: tuple[Trained, ...]

    @property
    def panels(self) -> tuple[str, ...]:
        """Known ones first."""
        return tuple(sorted({t.panel for t in self.trained}, key=_panel_rank))

    @property
    def metric(self) -> str:
        """`avg@8`; the numbers are named apart where runs drew unlike numbers of samples."""
        return ", ".join(sorted({f"avg@{t.run.result.manifest.config['samples']}" for t in self.trained}))

    def arms(self, panel: str) -> tuple[str, ...]:
        """Of a panel, in table order."""
        return tuple(sorted({t.arm for t in self.trained if t.panel == panel}, key=arm_rank))

    def of(self, panel: str, arm: str) -> tuple[Trained, ...]:
        """The runs of an arm."""
        return tuple(t for t in self.trained if (t.panel, t.arm) == (panel, arm))

    def accuracy(self, panel: str, arm: str, at: int, series: str = "") -> Runs:
        """At the first (0) or the last (-1) validation, by run and problem."""
        return {t.seeds: t.problems(lambda v: v[at], series) for t in self.of(panel, arm)}

    def gain(self, panel: str, arm: str) -> Runs:
        """Last minus first, of runs that were validated twice."""
        runs = [t for t in self.of(panel, arm) if len(t.steps) > 1]
        return {t.seeds: t.problems(lambda v: v[-1] - v[0]) for t in runs}

    def monitored(self, panel: str, arm: str, name: str, of: Callable[[Sequence[float]], float]) -> Runs:
        """A number made of a monitor's values, in order of steps, by run."""
        found = {t.seeds: list(t.monitor(name).values()) for t in self.of(panel, arm)}
        return whole({seeds: of(values) for seeds, values in found.items() if values})


def early(values: Sequence[float]) -> float:
    """Mean over the first quarter of the steps, at least one."""
    return fmean(values[: max(1, len(values) // QUARTER)])


def late(values: Sequence[float]) -> float:
    """Mean over the last quarter of the steps, at least one."""
    return fmean(values[-max(1, len(values) // QUARTER) :])


def rl_study(runs: Iterable[Run]) -> RLStudy:
    """Gathers the runs; their order does not matter."""
    found = [
        Trained(run, validated_at(run.result.manifest), read_metrics(run.path, run.result.manifest)) for run in runs
    ]
    order = sorted(found, key=lambda t: (_panel_rank(t.panel), arm_rank(t.arm), t.seeds, t.run.result.manifest.run_id))
    return RLStudy(tuple(order))


def arm_of(manifest: RunManifest) -> str:
    """The arm's name; a run that has none goes by its model's."""
    return str(manifest.config.get("arm") or manifest.model)


def panel_of(manifest: RunManifest) -> str:
    """Empty where there is but one kind of data."""
    return str(manifest.config.get("panel") or "")


def seeds_of(manifest: RunManifest) -> Seeds:
    """A run that does not say what it started from counts as of SFT seed 0."""
    sft, rl = manifest.config.get("sft_seed"), manifest.config.get("rl_seed")
    return sft if isinstance(sft, int) else 0, rl if isinstance(rl, int) else manifest.seed


def truncated(found: RLStudy, panel: str, arm: str, at: int) -> Runs:
    """Share of completions cut by length at a validation."""
    runs = found.accuracy(panel, arm, at, TRUNCATED)
    return {seeds: values for seeds, values in runs.items() if values}


def arm_rank(name: str) -> tuple[int, str]:
    """Place in tables."""
    return (ARMS.index(name), "") if name in ARMS else (len(ARMS), name)


def _panel_rank(name: str) -> tuple[int, str]:
    return (PANELS.index(name), "") if name in PANELS else (len(PANELS), name)
