"""Runs that are about the same traces, which a table may show side by side."""

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
    """Hash of what identifies the traces; shown where a subset has several blocks."""
    n: int
    runs: tuple[Run, ...]
    alone: bool

    @property
    def name(self) -> str:
        """`math (n=400)`."""
        subset = self.subset
        for prefix, words in (("avg[", "average of "), ("micro[", "pooled over ")):
            if subset.startswith(prefix):
                subset = words + subset.removeprefix(prefix)[:-1].replace(",", ", ")
        return f"{subset} (n={self.n}{'' if self.alone else f', set {self.traces}'})"


def candidate(trace: ScoredTrace) -> object:
    """What makes two runs score the same completions."""
    return trace.id, trace.steps, trace.outcome, trace.answer


def problem(trace: ScoredTrace) -> object:
    """What makes two policies answer the same problems."""
    return trace.cluster


def prefixes(trace: ScoredTrace) -> object:
    """What makes two runs value the same prefixes."""
    return trace.id, trace.steps, trace.outcome, trace.step_labels


def blocks(runs: Sequence[Run], identity: Callable[[ScoredTrace], object]) -> list[Block]:
    """Subsets in the field's order, then averages, then pooled ones; the largest block of a subset first."""
    found: dict[str, dict[str, list[Run]]] = {}
    sizes: dict[tuple[str, str], int] = {}
    for run in runs:
        for subset in dict.fromkeys(row.subset for row in run.result.rows):
            inside = set(parts(subset))
            traces = [t for t in run.scores if t.subset in inside]
            name = sha256(repr(sorted({repr((t.subset, identity(t))) for t in traces})).encode())[:6]
            found.setdefault(subset, {}).setdefault(name, []).append(run)
            sizes[subset, name] = next(row.n for row in run.result.rows if row.subset == subset)
    return [
        Block(subset, name, sizes[subset, name], tuple(sets[name]), len(sets) == 1)
        for subset, sets in sorted(found.items(), key=lambda item: _rank(item[0]))
        for name in sorted(sets, key=lambda name: (-len(sets[name]), -sizes[subset, name], name))
    ]


def parts(subset: str) -> tuple[str, ...]:
    """The subsets behind `avg[a,b]` or `micro[a,b]`, or the subset itself."""
    return members(subset.replace("micro[", "avg[", 1))


def _rank(subset: str) -> tuple[int, int, tuple[int, str]]:
    order = 0 if "[" not in subset else 1 if subset.startswith("avg[") else 2
    return order, -subset.count(","), subset_rank(subset)


def rows_of(result: RunResult, subset: str) -> dict[tuple[str, str], MetricRow]:
    """(protocol, metric) -> row."""
    return {(row.protocol, row.metric): row for row in result.rows if row.subset == subset}


def group_size(metric: str) -> int | None:
    """`best_of@8` -> 8; None for a metric without a number of samples."""
    found = re.fullmatch(r"\w+@(\d+)", metric)
    return int(found[1]) if found else None


def average_or_only_subset(result: RunResult) -> str:
    """Returns the subset that stands for the whole run: the average over all of them, or the only one."""
    return next((r.subset for r in result.rows if r.subset.startswith("avg[")), result.manifest.subsets[0])
