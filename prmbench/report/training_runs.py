"""One run of `train-distrl` for tables and figures: its validations, and the metrics recorded at every step."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import fmean
from typing import Any

from prmbench.core import result_files, validation
from prmbench.core.records import RunManifest, UserError
from prmbench.core.result_files import Run, metrics_path, unpacked_lines

MAX_METRIC_LINES = 1_000_000


@dataclass(frozen=True, slots=True)
class TrainingRun:
    """A run with its validations and its step metrics."""

    run: Run
    steps: tuple[int, ...]
    """Training steps after which it was validated."""
    lines: tuple[Mapping[str, Any], ...]
    """Lines of metrics.jsonl in order of steps; empty if the run has none."""

    def problems(self, reduce: Callable[[Sequence[float]], float], series: str = "") -> dict[str, float]:
        """Returns, by problem, a number computed from its accuracies at the validations, or from another series."""
        values_by_problem: dict[str, list[float]] = {}
        for trace in self.run.scores:
            values = trace.also.get(series, ()) if series else trace.values
            if len(values) == len(self.steps):
                values_by_problem.setdefault(trace.cluster, []).append(reduce(values))
        return {problem: fmean(values) for problem, values in values_by_problem.items()}

    def monitor(self, name: str) -> dict[int, float]:
        """Returns a metric by step, also one recorded only at validations; steps without it are left out."""
        values = {}
        for line in self.lines:
            value = line.get("validation", {}).get(name) if name not in line else line[name]
            if isinstance(value, int | float) and math.isfinite(value):
                values[int(line["step"])] = float(value)
        return values

    def validations(self) -> dict[int, float]:
        """Returns the accuracy at each validation, a fraction, as the mean over problems."""
        accuracies = [t.values for t in self.run.scores if len(t.values) == len(self.steps)]
        return {
            step: sum(v[i] for v in accuracies) / len(accuracies) for i, step in enumerate(self.steps) if accuracies
        }


def read_metrics(path: Path, manifest: RunManifest) -> tuple[dict[str, Any], ...]:
    """Returns the lines of the run's metrics file in order of steps; empty if the manifest names no such file.

    Raises:
        UserError: The file is missing, altered or malformed.
    """
    raw = result_files.read_metrics(path, manifest)
    return _parse_steps(raw, metrics_path(path)) if raw else ()


@cache  # read by the checks, then again by tables and figures
def _parse_steps(raw: bytes, source: Path) -> tuple[dict[str, Any], ...]:
    records = []
    for number, record in enumerate(unpacked_lines(raw, f"{source}: not a record of training steps"), 1):
        if number > MAX_METRIC_LINES:
            raise UserError(f"{source}: not a record of training steps (more than {MAX_METRIC_LINES:,} lines)")
        records.append(validation.read_step(record, f"{source}, line {number}"))
    return tuple(sorted(records, key=lambda record: int(record["step"])))
