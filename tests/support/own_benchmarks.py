"""What a user writes, outside the package, for a benchmark of a task that there is and for a task of their own."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from prmbench.core.records import RunManifest, ScoredTrace, Trace
from prmbench.data.benchmarks import Benchmark, Reader
from prmbench.tasks import Cell, Column, Judged, SubsetInfo, Task, find_task
from prmbench.tasks.metric_rows import resampled, traces_of_subset, weighted_mean


def read(path: Path, _: str) -> list[Trace]:
    """Lines with a question, its steps, whether the answer is right, and the first wrong step."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return [
        Trace(
            row["key"],
            row["question"],
            tuple(row["steps"]),
            first_error=row["wrong_at"],
            outcome=row["right"],
            subset=row["level"],
        )
        for row in rows
    ]


READER = Reader(read)
ALGEBRA = Benchmark("algebra", 1, find_task("steps"), READER)
"""A benchmark of first-error F1."""


def protocols(manifest: RunManifest) -> tuple[str, ...]:
    return ("lowest/half", "last/half") if manifest.kind == "prob" else ()


def judge(manifest: RunManifest, scores: Sequence[ScoredTrace]) -> Judged:
    parts: list[SubsetInfo] = []
    cells: dict[str, dict[str, list[Cell]]] = {key: {} for key in ("floor/all_right", *protocols(manifest))}
    for name in manifest.subsets:
        traces = traces_of_subset(scores, name)
        problem, weights = resampled(manifest, name, [t.cluster for t in traces])
        parts.append(SubsetInfo(name, len(traces), sum(bool(t.unscored) for t in traces)))
        right = np.array([t.outcome == 1 for t in traces])
        for key, by_subset in cells.items():
            value = np.array([1.0 if key.startswith("floor/") else _score(t, key) for t in traces])
            by_problem = [
                np.bincount(problem, weights=numbers, minlength=weights.shape[1]) / np.bincount(problem)
                for numbers in ((value > 0.5) == right, value * (2 * right - 1))
            ]
            metrics = zip(("agreement", "margin"), by_problem, strict=True)
            by_subset[name] = [Cell(metric, weighted_mean(numbers, weights)) for metric, numbers in metrics]
    return Judged(tuple(parts), cells)


def _score(trace: ScoredTrace, key: str) -> float:
    if trace.unscored:
        return 0.0
    return min(trace.values) if key.startswith("lowest") else trace.values[-1]


SOLUTIONS = Task(
    name="solution_check",
    title="telling right solutions from wrong ones",
    description="Whether a solution's score says that its answer is right.",
    unscored="unscored, counted as called wrong",
    protocols=protocols,
    judge=judge,
    columns=(Column("agreement", "Agreement"), Column("margin", "Margin", "fraction")),
)
CHECKED = Benchmark("checked_algebra", 1, SOLUTIONS, READER)
"""A benchmark of a task of its own, with two metrics."""
