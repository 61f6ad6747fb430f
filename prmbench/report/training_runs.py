"""One run of `train-distrl` for tables and figures: its validations, and the metrics recorded at every step."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import fmean
from typing import Any

from prmbench.core import validation
from prmbench.core.records import RunManifest, UserError
from prmbench.core.result_files import MAX_UNPACKED_BYTES, Run, metrics_path, read_file, sha256, unpacked_lines

MOST_METRIC_LINES = 1_000_000


@dataclass(frozen=True, slots=True)
class TrainingRun:
    """A run with its validations and its step metrics."""

    run: Run
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

    def validations(self) -> dict[int, float]:
        """Step -> accuracy as a fraction, the mean over problems."""
        problems = [t.values for t in self.run.scores if len(t.values) == len(self.steps)]
        return {step: sum(v[i] for v in problems) / len(problems) for i, step in enumerate(self.steps) if problems}


def read_metrics(path: Path, manifest: RunManifest) -> tuple[dict[str, Any], ...]:
    """The lines of the run's metrics in order of steps; none where the manifest names none.

    Raises UserError when the file is missing, altered or not what it should be.
    """
    wanted = manifest.config.get("metrics_sha256")
    if not wanted:
        return ()
    source = metrics_path(path)
    raw = read_file(source, MAX_UNPACKED_BYTES, "restore it or train again")
    if sha256(raw) != wanted:
        raise UserError(f"{source}: its SHA-256 is not the one in {path.name}; restore the file or train again")
    return _steps(raw, source)


@cache  # checks ask for them first, then tables and figures
def _steps(raw: bytes, source: Path) -> tuple[dict[str, Any], ...]:
    lines = []
    for number, line in enumerate(unpacked_lines(raw, f"{source}: not a record of training steps"), 1):
        if number > MOST_METRIC_LINES:
            raise UserError(f"{source}: not a record of training steps (more than {MOST_METRIC_LINES:,} lines)")
        lines.append(validation.read_step(line, f"{source}, line {number}"))
    return tuple(sorted(lines, key=lambda line: int(line["step"])))
