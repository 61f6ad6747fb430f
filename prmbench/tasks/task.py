"""The `Task` record: everything that judging, tables and checks need to know about a task.

Each task has one file in this package, which ends with its `TASK`; registry.py lists them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from prmbench.core.records import MetricRow, RunManifest, RunResult, ScoredTrace, Trace
from prmbench.core.result_files import Run
from prmbench.tasks.metric_rows import Judged
from prmbench.tasks.table import PERCENT, Table, Unit

Fault = tuple[str, str]
"""A field and its error: (`outcome`, `is missing`)."""


@dataclass(frozen=True, slots=True)
class Column:
    """A metric as a column of a task's table."""

    metric: str
    heading: str
    unit: Unit = PERCENT
    lower_is_better: bool = False


class Floor(NamedTuple):
    """A number that needs no model."""

    protocol: str
    metric: str
    name: str
    """What reaches it: `a random pick`."""


@dataclass(frozen=True, slots=True)
class Leading:
    """A number that may stand for a run in an overview: one metric under one protocol."""

    protocol: str
    metric: str
    heading: str
    """Name of the metric in the overview: `F1`, `best_of@8`."""
    rule: str = ""
    """What numbers must share to stand in one column: the threshold rule, the aggregation, or how was sampled."""
    unit: Unit = PERCENT
    lower_is_better: bool = False
    floors: tuple[Floor, ...] = ()
    """Floors that the number is compared with. A ceiling is none."""
    has_baselines: bool = True
    """Whether it is compared with baselines' runs, too; not where a constant score is best by its nature."""


def _no_faults(*_: object) -> Iterator[Fault]:
    """The check of a task without requirements of its own."""
    return iter(())


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """What a run measures: its protocols, metrics, tables and checks."""

    name: str
    """The name used by manifests and benchmarks: lower case, a Python identifier."""
    title: str
    """What a model does in this task, for model cards: `finding the first wrong step`."""
    description: str
    """What the numbers mean, in one or more sentences; shown at the head of the task's page."""
    unscored: str
    """How a trace without a score is treated: `unscored, counted as wrong`."""
    protocols: Callable[[RunManifest], tuple[str, ...]]
    """Returns the keys of the protocols that every run with this kind of score has, in table order, without floors."""
    judge: Callable[[RunManifest, Sequence[ScoredTrace]], Judged]
    """Computes all cells of a run, floors first. A pure function of the stored scores."""
    columns: tuple[Column, ...] = ()
    """Metrics to show when the task defines no `tables` of its own."""
    tables: Callable[[Sequence[Run]], tuple[Table, ...]] | None = None
    """Builds the tables of a leaderboard page; None: one row per run and protocol, with the metrics of `columns`."""
    summary: Callable[[RunResult, Sequence[str]], Table] | None = None
    """Builds the table that `eval` prints from a result and the protocols to show; None: one made from `columns`."""
    leading: Callable[[RunResult], tuple[Leading, ...]] | None = None
    """Returns the numbers that may stand for a run, the recommended ones first, in the overview, on a model card and on
    the hub; None: in the overview the first of `columns` under each protocol, else see `headline_metrics`."""
    judge_one: Callable[[RunManifest, Sequence[ScoredTrace], str], Judged] | None = None
    """Computes the floors and one protocol of a run, for differences paired by bootstrap replicate; None: the overview
    shows differences without an interval."""
    headline_metrics: tuple[str, ...] = ()
    """Metrics of which a model card and the hub show one number where the task has no `leading`, the preferred one
    first; `avg@` means that of the largest N. Empty: the metrics of `columns`, else the first of the run."""
    headline_protocols: Callable[[RunManifest], tuple[str, ...]] | None = None
    """Returns the protocols for that number, the preferred one first; None: see `prmbench.report.headlines`."""
    lower_is_better: tuple[str, ...] = ()
    """Metrics of which a lower value is better, besides those of `columns` that say so."""
    has_threshold: bool = False
    """Whether protocol keys name a threshold rule, as in first-error F1: `step_sum/oracle`."""
    has_board: bool = False
    """Whether runs are shown on a board: one table per threshold rule, and a trace viewer."""
    resolve: Callable[[RunManifest, str], str] | None = None
    """Normalises a protocol key, or raises UserError if the run cannot have it; None: only `protocols` are allowed."""
    compare: Callable[..., tuple[MetricRow, ...]] | None = None
    """Compares two runs; None: every metric that both have, paired by bootstrap replicate."""
    pairs: Callable[..., Sequence[Any]] | None = None
    """Returns the protocols that `compare` uses when none is named; None: all that both runs have."""
    not_compared: tuple[str, ...] = ()
    """Prefixes of metrics that comparisons leave out."""
    reads_outcomes: bool = False
    """Whether scores are outcomes of the model's own completions instead of step scores."""
    is_per_problem: bool = False
    """Whether a number is a mean over problems, of which each has several traces: completions."""
    many_rows: bool = False
    """Whether per-subset rows are too many for a CSV file, which then holds only the averages."""
    check_manifest: Callable[[RunManifest], Iterator[Fault]] = _no_faults
    """Yields the errors in the manifest of a result file."""
    check_trace: Callable[[RunManifest, ScoredTrace], Iterator[Fault]] = _no_faults
    """Yields the errors in one stored score line."""
    check_scores: Callable[[Sequence[ScoredTrace]], Iterator[str]] = lambda _: iter(())
    """Yields a message for each error that involves several score lines."""
    check_data: Callable[[Sequence[Trace], str], None] = lambda _, __: None
    """Raises UserError when traces (from the named source) cannot be judged."""

    def prefers_low(self, metric: str) -> bool:
        """Whether a lower value of the metric is better."""
        return metric in self.lower_is_better or any(c.metric == metric and c.lower_is_better for c in self.columns)
