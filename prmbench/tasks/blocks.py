"""Groups runs that are on the same traces, which a table may show side by side."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from prmbench.core.records import MetricRow, RunResult, ScoredTrace
from prmbench.core.result_files import Run, sha256
from prmbench.tasks.wording import members, subset_rank


@dataclass(frozen=True, slots=True)
class Block:
    """Runs on the same traces of a subset, or of several for an average."""

    subset: str
    traces: str
    """Hash of the traces' identities; shown when a subset has several blocks."""
    n: int
    runs: tuple[Run, ...]
    is_only: bool
    """Whether all runs on the subset have these traces."""

    @property
    def name(self) -> str:
        """`math (n=400)`."""
        subset = self.subset
        for prefix, phrase in (("avg[", "average of "), ("micro[", "pooled over ")):
            if subset.startswith(prefix):
                subset = phrase + subset.removeprefix(prefix)[:-1].replace(",", ", ")
        return f"{subset} (n={self.n}{'' if self.is_only else f', set {self.traces}'})"


def completion_identity(trace: ScoredTrace) -> object:
    """Fields in which two runs on the same completion agree."""
    return trace.id, trace.steps, trace.outcome, trace.answer


def problem_identity(trace: ScoredTrace) -> object:
    """The problem, which two policies that answer it share."""
    return trace.cluster


def prefix_identity(trace: ScoredTrace) -> object:
    """Fields in which two runs on the same prefixes agree."""
    return trace.id, trace.steps, trace.outcome, trace.step_labels


def blocks(runs: Sequence[Run], identity: Callable[[ScoredTrace], object]) -> list[Block]:
    """Groups runs by subset and by the traces that they scored there.

    Args:
        runs: Runs of one benchmark and task.
        identity: Returns what two scored traces must have in common to count as the same trace.

    Returns:
        Plain subsets in table order, then averages, then pooled ones; within a subset the block with most runs first.
    """
    by_subset: dict[str, dict[str, list[Run]]] = {}
    sizes: dict[tuple[str, str], int] = {}
    for run in runs:
        for subset in dict.fromkeys(row.subset for row in run.result.rows):
            subset_names = set(underlying_subsets(subset))
            traces = [t for t in run.scores if t.subset in subset_names]
            traces_hash = sha256(repr(sorted({repr((t.subset, identity(t))) for t in traces})).encode())[:6]
            by_subset.setdefault(subset, {}).setdefault(traces_hash, []).append(run)
            sizes[subset, traces_hash] = next(row.n for row in run.result.rows if row.subset == subset)
    return [
        Block(subset, traces_hash, sizes[subset, traces_hash], tuple(sets[traces_hash]), len(sets) == 1)
        for subset, sets in sorted(by_subset.items(), key=lambda item: _rank(item[0]))
        for traces_hash in sorted(
            sets, key=lambda traces_hash: (-len(sets[traces_hash]), -sizes[subset, traces_hash], traces_hash)
        )
    ]


def underlying_subsets(subset: str) -> tuple[str, ...]:
    """Returns the subsets of `avg[a,b]` or `micro[a,b]`, or the subset itself."""
    return members(subset.replace("micro[", "avg[", 1))


def _rank(subset: str) -> tuple[int, int, tuple[int, str]]:
    order = 0 if "[" not in subset else 1 if subset.startswith("avg[") else 2
    return order, -subset.count(","), subset_rank(subset)


def rows_of(result: RunResult, subset: str) -> dict[tuple[str, str], MetricRow]:
    """Returns the rows of a subset by (protocol, metric)."""
    return {(row.protocol, row.metric): row for row in result.rows if row.subset == subset}


def group_size(metric: str) -> int | None:
    """Returns the number of samples in a metric's name: 8 for `best_of@8`; None without one."""
    match = re.fullmatch(r"\w+@(\d+)", metric)
    return int(match[1]) if match else None


def average_or_only_subset(result: RunResult) -> str:
    """Returns the subset that summarises a run: the average over all subsets, or the only one."""
    return next((r.subset for r in result.rows if r.subset.startswith("avg[")), result.manifest.subsets[0])
