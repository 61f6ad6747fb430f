"""Runs of RL training -> what a table or figure asks of them: accuracies by seed and problem, monitors by step.

Reads the metrics that lie beside a run; draws and tests nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import fmean
from typing import Any

from prmbench import sound
from prmbench.judge.distrl import TRUNCATED, validated_at
from prmbench.report.nested import Runs, Seeds, whole
from prmbench.schema import RunManifest, UserError
from prmbench.store import MOST_UNPACKED_BYTES, Run, metrics_path, read_file, sha256, unpacked_lines

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
MOST_METRIC_LINES = 1_000_000
QUARTER = 4
"""Early and late: the first and the last quarter of a run's steps."""


@dataclass(frozen=True, slots=True)
class Trained:
    """One run of an arm."""

    run: Run
    arm: str
    panel: str
    seeds: Seeds
    steps: tuple[int, ...]
    """When it was validated."""
    lines: tuple[Mapping[str, Any], ...]
    """Of metrics.jsonl, in order of steps; empty where the run has none."""

    def problems(self, of: Callable[[Sequence[float]], float], series: str = "") -> dict[str, float]:
        """Problem -> a number made of its accuracies at the validations, or of another series of them."""
        found: dict[str, list[float]] = {}
        for trace in self.run.scores:
            values = trace.also.get(series, ()) if series else trace.values
            if len(values) == len(self.steps):
                found.setdefault(trace.cluster, []).append(of(values))
        return {problem: fmean(values) for problem, values in found.items()}

    def monitor(self, name: str) -> dict[int, float]:
        """Step -> the number; steps without it are left out. What only validations have is found there."""
        found = {}
        for line in self.lines:
            value = line.get("validation", {}).get(name) if name not in line else line[name]
            if isinstance(value, int | float) and math.isfinite(value):
                found[int(line["step"])] = float(value)
        return found


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
        Trained(run, arm_of(m), panel_of(m), seeds_of(m), validated_at(m), read_metrics(run.path, m))
        for run in runs
        for m in [run.result.manifest]
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


def read_metrics(path: Path, manifest: RunManifest) -> tuple[dict[str, Any], ...]:
    """The lines of the run's metrics in order of steps; none where the manifest names none.

    Raises UserError when the file is missing, altered or not what it should be.
    """
    wanted = manifest.config.get("metrics_sha256")
    if not wanted:
        return ()
    source = metrics_path(path)
    raw = read_file(source, MOST_UNPACKED_BYTES, "restore it or train again")
    if sha256(raw) != wanted:
        raise UserError(f"{source}: its SHA-256 is not the one in {path.name}; restore the file or train again")
    return _steps(raw, source)


@cache  # checks ask for them first, then tables and figures
def _steps(raw: bytes, source: Path) -> tuple[dict[str, Any], ...]:
    lines = []
    for number, line in enumerate(unpacked_lines(raw, f"{source}: not a record of training steps"), 1):
        if number > MOST_METRIC_LINES:
            raise UserError(f"{source}: not a record of training steps (more than {MOST_METRIC_LINES:,} lines)")
        lines.append(sound.read_step(line, f"{source}, line {number}"))
    return tuple(sorted(lines, key=lambda line: int(line["step"])))


def truncated(found: RLStudy, panel: str, arm: str, at: int) -> Runs:
    """Share of completions cut by length at a validation."""
    runs = found.accuracy(panel, arm, at, TRUNCATED)
    return {seeds: values for seeds, values in runs.items() if values}


def arm_rank(name: str) -> tuple[int, str]:
    """Place in tables."""
    return (ARMS.index(name), "") if name in ARMS else (len(ARMS), name)


def _panel_rank(name: str) -> tuple[int, str]:
    return (PANELS.index(name), "") if name in PANELS else (len(PANELS), name)
