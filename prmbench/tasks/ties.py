"""Which runs of a column share its first place: the best, and those that a paired test does not tell apart from it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import NamedTuple

from prmbench.core.records import MetricRow, UserError
from prmbench.core.result_files import Run
from prmbench.metrics.equivalence import ALPHA
from prmbench.tasks.metric_rows import Cell, Judged, SubsetInfo, difference
from prmbench.tasks.task import Task

MAX_TESTED = 10
"""How many runs of a column are tested against its best: the next best ones. Keeps reports of many runs fast."""
TIED_TEXT = (
    "Bold: the best of a column, and what a paired test over problems does not tell apart from it at 5% "
    f"(unadjusted; the {MAX_TESTED} next best are tested, and what cannot be paired is not marked)."
)
UNTESTED_TEXT = "Bold: the best of a column; it was not tested whether others are as good."
Place = tuple[str, str]
"""Run id and protocol: a row of a table."""


class Entry(NamedTuple):
    """A number in a column and the run that it is of."""

    run: Run
    row: MetricRow

    @property
    def place(self) -> Place:
        """The row of the table that shows the number."""
        return place_of(self.run, self.row.protocol)


def place_of(run: Run, protocol: str) -> Place:
    """Returns the row of a table that shows a run under a protocol."""
    return run.result.manifest.run_id, protocol


class PairedTests:
    """Paired tests between the runs of a page; each pair of runs and protocols is tested once, for all columns."""

    def __init__(self, task: Task) -> None:
        self._task = task
        self._p_values: dict[tuple[Place, Place], dict[tuple[str, str], float]] = {}
        self._judged: dict[tuple[Place, int, int], Judged] = {}
        self.were_made = False
        """Whether any number was tested against the best of its column."""

    @property
    def text(self) -> str:
        """What bold numbers mean, for a caption."""
        return TIED_TEXT if self.were_made else UNTESTED_TEXT

    def tied_in_column(
        self, runs: Iterable[tuple[Run, MetricRow | None]], lower_is_better: bool = False
    ) -> frozenset[Place]:
        """Returns the rows that share the first place of a column, from its runs with their numbers; see `tied`."""
        return self.tied((Entry(run, row) for run, row in runs if row is not None), lower_is_better)

    def tied(self, entries: Iterable[Entry], lower_is_better: bool = False) -> frozenset[Place]:
        """Returns the rows that share the first place of a column; none of a column with fewer than two numbers.

        Intervals that do not overlap tell two runs apart without a test, since that of the paired difference is
        narrower than both together.
        """
        sign = 1 if lower_is_better else -1
        ranked = sorted(
            (entry for entry in entries if entry.row.value is not None),
            key=lambda entry: (sign * (entry.row.value or 0.0), entry.place),
        )
        if len(ranked) < 2:  # noqa: PLR2004 - nothing to be better than
            return frozenset()
        best, *others = ranked
        equal = [other for other in others if other.row.value == best.row.value]
        unequal = [o for o in others if o not in equal and _has_interval(best.row) and _has_interval(o.row)]
        near = [other for other in unequal if _overlap(best.row, other.row)][:MAX_TESTED]
        self.were_made |= len(unequal) > len(near)
        return frozenset(e.place for e in (best, *equal, *(n for n in near if self._is_tied(best, n))))

    def _is_tied(self, best: Entry, other: Entry) -> bool:
        p = self._p(best, other)
        self.were_made |= p is not None
        return p is not None and p >= ALPHA

    def _p(self, best: Entry, other: Entry) -> float | None:
        if self._task.compare is None:
            return _p_value(self.cell(best, best), self.cell(best, other))
        key = best.place, other.place
        if key not in self._p_values:
            self._p_values[key] = _compared(self._task, best, other)
        return self._p_values[key].get((best.row.subset, best.row.metric))

    def cell(self, best: Entry, entry: Entry) -> tuple[SubsetInfo, Cell] | None:
        """Returns an entry's number with its replicates, resampled like those of the best run, and its subset."""
        task, seeds = self._task, best.run.result.manifest
        manifest = replace(entry.run.result.manifest, seed=seeds.seed, replicates=seeds.replicates)
        key = (entry.place if task.judge_one else (entry.place[0], "")), manifest.seed, manifest.replicates
        if key not in self._judged:
            scores, one = entry.run.scores, task.judge_one
            judged = one(manifest, scores, entry.row.protocol) if one else task.judge(manifest, scores)
            self._judged[key] = judged
        return self._judged[key].find(entry.row)


def _has_interval(row: MetricRow) -> bool:
    return row.lo is not None and row.hi is not None


def _overlap(a: MetricRow, b: MetricRow) -> bool:
    if a.lo is None or a.hi is None or b.lo is None or b.hi is None:
        return False
    return a.lo <= b.hi and b.lo <= a.hi


def _p_value(first: tuple[SubsetInfo, Cell] | None, second: tuple[SubsetInfo, Cell] | None) -> float | None:
    """The two-sided p-value of a difference; None without replicates of both."""
    if first is None or second is None or len(first[1].values) != len(second[1].values):
        return None
    return difference(first[1].metric, first[1], second[1])[-1].p_value(first[0].problems)


def _compared(task: Task, a: Entry, b: Entry) -> dict[tuple[str, str], float]:
    """The p-values of `prmbench compare` by (subset, metric); empty where the runs cannot be paired."""
    protocols = a.row.protocol, b.row.protocol
    if task.pairs is None or task.compare is None:
        return {}
    try:
        pairs = task.pairs(a.run.result.manifest, b.run.result.manifest, protocols[:1], protocols[1])
        rows = task.compare((a.run.result, a.run.scores), (b.run.result, b.run.scores), pairs)
    except UserError:
        return {}
    return {(row.subset, a.row.metric): row.value for row in rows if row.metric == "p_value" and row.value is not None}
