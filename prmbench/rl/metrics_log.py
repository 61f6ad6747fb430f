"""Writes metrics.jsonl, reports progress, and forwards metrics to an optional tracker."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prmbench.core import processes
from prmbench.rl.validation import Validation
from prmbench.training import run_folder
from prmbench.training.tracking import Track

StepProgress = Callable[[int, int, Mapping[str, Any]], None]
"""Called with (steps done, steps of the whole run, a line of metrics.jsonl)."""


@dataclass(frozen=True)
class _Step:
    """The fields that a line on a step has at least."""

    step: int
    completions: float
    seconds: float
    alarms: list[str]


@dataclass(frozen=True)
class _PromptResults:
    """The results of a validation, one for each prompt."""

    accuracy: list[float | None]
    truncated: list[float | None]


@dataclass(frozen=True)
class _Validated:
    """The fields that a line on a validation has."""

    step: int
    validation_accuracy: float | None
    validation: _PromptResults


def read_log(out: Path) -> list[dict[str, Any]]:
    """Returns the lines of metrics.jsonl. Raises UserError on a line of another form."""
    return run_folder.read_log(out, lambda line: _Validated if "validation" in line else _Step)


def start_validation(out: Path) -> Validation | None:
    """Returns the start policy's validation in a run's log; None where there is none. Raises UserError."""
    lines = [line["validation"] for line in read_log(out) if "validation" in line and line["step"] == 0]
    return Validation(tuple(lines[0]["accuracy"]), tuple(lines[0]["truncated"])) if lines else None


class Log:
    """Writes lines in process 0 and keeps those on steps in memory, for alarms."""

    def __init__(self, out: Path, steps: int, progress: StepProgress | None, track: Track | None) -> None:
        self.out, self.steps, self.progress, self.track = out, steps, progress, track
        self.history: list[Mapping[str, Any]] = [line for line in read_log(out) if "validation" not in line]

    def step(self, line: Mapping[str, Any]) -> None:
        """Logs the metrics of a step."""
        self.history.append(line)
        self._write(line)

    def validation(self, step: int, result: Validation) -> None:
        """Logs a validation: its mean, and the numbers of each prompt for the result file."""
        numbers = {"accuracy": list(result.accuracy), "truncated": list(result.truncated)}
        self._write({"step": step, "validation_accuracy": result.mean, "validation": numbers})

    def _write(self, line: Mapping[str, Any]) -> None:
        if processes.rank() != 0:
            return
        run_folder.log(self.out, line)
        if self.progress is not None:
            self.progress(line["step"], self.steps, line)
        if self.track is not None:
            self.track(line["step"], line)
