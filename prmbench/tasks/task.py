"""What a task is: everything that judging, tables and checks need to know of it, in one row.

Each task has one file in this package, which ends with its row; `prmbench.tasks` looks tasks up by name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from prmbench.core.records import MetricRow, RunManifest, RunResult, ScoredTrace, Trace
from prmbench.core.result_files import Run
from prmbench.tasks.metric_rows import Judged
from prmbench.tasks.table import PERCENT, Headline, Table, Unit

Fault = tuple[str, str]
"""A field and what is wrong with it: (`outcome`, `is missing`)."""


@dataclass(frozen=True, slots=True)
class Column:
    """A metric as a column of a task's table."""

    metric: str
    heading: str
    unit: Unit = PERCENT
    lowest_is_best: bool = False


def _no_faults(*_: object) -> Iterator[Fault]:
    """The check of a task that demands nothing of its own."""
    return iter(())


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """What the rows of a run are about."""

    name: str
    """As manifests and benchmarks name it: lower case, a Python identifier."""
    title: str
    """What a model does in it, for model cards: `finding the first wrong step`."""
    description: str
    """One sentence or more at the head of its page: what the numbers say."""
    unscored: str
    """What becomes of a trace without a score: `unscored, counted as wrong`."""
    protocols: Callable[[RunManifest], tuple[str, ...]]
    """Keys of the protocols that every run of a kind of score has, in table order, without floors."""
    judge: Callable[[RunManifest, Sequence[ScoredTrace]], Judged]
    """Computes all cells of a run, floors first. A pure function of the stored scores."""
    columns: tuple[Column, ...] = ()
    """Metrics that the tables show, where the task has no tables of its own."""
    tables: Callable[[Sequence[Run]], tuple[Table, ...]] | None = None
    """Makes the tables of a leaderboard page from runs; None: a row for each run and protocol, see `columns`."""
    summary: Callable[[RunResult, Sequence[str]], Table] | None = None
    """Makes the table that `eval` prints, from a result and the protocols to show; None: see `columns`."""
    headline: Callable[[Sequence[Run]], Headline | None] | None = None
    """Picks the number that an overview shows; None: the best in the leading column of the first table."""
    has_threshold: bool = False
    """Whether protocol keys name a threshold rule, as those of first-error F1 do: `step_sum/oracle`."""
    has_board: bool = False
    """Whether runs stand on a board, with a table for each threshold rule and traces to look at."""
    resolve: Callable[[RunManifest, str], str] | None = None
    """Spells a protocol as rows do, and raises UserError on one that the run cannot have; None: one of `protocols`."""
    compare: Callable[..., tuple[MetricRow, ...]] | None = None
    """Compares two runs; None: every metric that both have, paired by the replicates of `judge`."""
    pairs: Callable[..., Sequence[Any]] | None = None
    """Says which protocols `compare` takes when none is named; None: all that both runs have."""
    not_compared: tuple[str, ...] = ()
    """Beginnings of the metrics that no comparison shows."""
    reads_outcomes: bool = False
    """Whether scores are outcomes of completions that the model itself wrote, not step scores."""
    many_rows: bool = False
    """Whether the rows of subsets are too many for a CSV file, which then holds the averages alone."""
    check_manifest: Callable[[RunManifest], Iterator[Fault]] = _no_faults
    """Yields what is wrong with the manifest of a result file."""
    check_trace: Callable[[RunManifest, ScoredTrace], Iterator[Fault]] = _no_faults
    """Yields what is wrong with a stored score line."""
    check_scores: Callable[[Sequence[ScoredTrace]], Iterator[str]] = lambda _: iter(())
    """Yields a line on each fault that several score lines make together."""
    check_data: Callable[[Sequence[Trace], str], None] = lambda _, __: None
    """Raises UserError where traces, from the source that is named, cannot be judged."""
