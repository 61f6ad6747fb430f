"""Runs that are about the same traces, side by side; and a metric row as the text of a table cell.

What the columns of a task's table are is in taskgrids.py.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from prmbench.core.records import MetricRow, RunResult, ScoredTrace
from prmbench.core.result_files import Run, sha256
from prmbench.report.frame import members, subset_rank
from prmbench.report.tables import DASH

NOTED = "†"
PLAIN, PERCENT, SIGNED = "plain", "percent", "signed"


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


def text(row: MetricRow | None, style: str = PERCENT, best: bool = False, interval: bool = True) -> str:
    """`**71.2** [68.0, 74.1]†`; the dagger says that the number has a note."""
    if row is None:
        return ""
    if row.value is None:
        return DASH
    ends = row.lo is not None and row.hi is not None and interval
    shown = number(row.value, style)
    span = f" [{number(row.lo, style)}, {number(row.hi, style)}]" if ends else ""
    return (f"**{shown}**" if best else shown) + span + (NOTED if row.note else "")


def number(value: float | None, style: str) -> str:
    """A fraction in percent with one decimal, that with its sign, or as it is with three."""
    if value is None:
        return DASH
    places = 3 if style == PLAIN else 1
    rounded = round(value if style == PLAIN else 100 * value, places) + 0.0  # no minus before a zero
    return f"{rounded:{'+' if style == SIGNED else ''}.{places}f}"


def group_size(metric: str) -> int | None:
    """`best_of@8` -> 8; None for a metric without a number of samples."""
    found = re.fullmatch(r"\w+@(\d+)", metric)
    return int(found[1]) if found else None


def remarks(rows: Iterable[MetricRow]) -> tuple[str, ...]:
    """Why numbers are missing, and what the dagger stands for; of notes that differ in a last number, the largest."""
    absent: dict[str, str] = {}
    noted: dict[str, str] = {}
    for row in rows:
        if row.note:
            stem = re.sub(r"[\d.]+$", "", row.note)
            kept = absent if row.value is None else noted
            kept[stem] = max(kept.get(stem, ""), row.note)
    lines = [f"{DASH} {note}." for note in sorted(absent.values())]
    return (*lines, *(f"{NOTED} {note}." for note in sorted(noted.values())))


def top_value(rows: Sequence[MetricRow | None], lowest: bool = False) -> float | None:
    """The best value of a column, when at least two compete."""
    values = [row.value for row in rows if row is not None and row.value is not None]
    return None if len(values) < 2 else min(values) if lowest else max(values)  # noqa: PLR2004
