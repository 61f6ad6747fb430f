"""Turns numbers with bootstrap replicates into metric rows: intervals, averages over subsets, notes.

Which metrics there are, and how they are resampled, is up to each task.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from prmbench.core.records import MetricRow, RunManifest, ScoredTrace
from prmbench.metrics import first_error, intervals, paired_tests
from prmbench.metrics.first_error import Floats, Ints
from prmbench.metrics.intervals import Kind
from prmbench.metrics.paired_tests import SwapTest

Groups = Sequence[Sequence[str]]
"""Groups of subset names, each of which is averaged over."""
OUT_OF_FOLD = "out_of_fold"
"""Note on the calibration subset's own cell, whose threshold comes from the other folds."""
RESAMPLED = ("p_value", "p_adjusted", "mdd", "drop_mdd")
"""Metrics that are computed from the replicates alone."""


@dataclass(frozen=True, slots=True)
class SubsetInfo:
    """Facts about a subset that all of its rows share."""

    name: str
    n: int
    unscored: int
    missing: str = ""
    """Why numbers do not exist in this subset, used when a cell gives no reason of its own."""
    problems: int = 0
    """Number of problems, which are what is resampled; of an average, the smallest of its subsets' numbers. 0: unknown
    and taken to be large."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One metric in one subset. `values` is [b]: first the sample's value, then the replicates; [nan] if undefined."""

    metric: str
    values: Floats
    note: str = ""
    averaged: bool = True
    """False for numbers without a meaning over several subsets, such as a threshold or a bin."""
    kind: Kind = "percentile"
    """How the interval is made from the replicates: `share` for numbers between 0 and 1."""
    centre: float | None = None
    """The estimate that the interval surrounds, where it is not the value: an oracle's F1 is too high on average."""
    test: SwapTest | None = None
    """The paired test of a difference, if it is not made from the replicates."""
    p_adjusted: float | None = None
    """The p-value of a difference that is adjusted for all protocols compared with it."""

    def ends(self, problems: int) -> intervals.Ends:
        """Returns the ends of the 95% interval."""
        if self.test is not None:
            return self.test.interval()
        centre = float(self.values[0]) if self.centre is None else self.centre
        return intervals.interval(self.kind, centre, self.values[1:], problems)

    def t_values(self, problems: int) -> Floats:
        """Returns a difference over its standard error: as observed, then as it varies around "no difference", [b]."""
        if self.test is not None:
            return self.test.t_values
        error = max(intervals.standard_error(self.values[1:], problems), intervals.ROUNDING)
        t_values = np.concatenate([self.values[:1], self.values[1:] - self.values[0]]) / error
        return np.nan_to_num(t_values)  # a replicate without the metric says nothing

    def p_value(self, problems: int) -> float | None:
        """Returns the two-sided p-value of a difference."""
        if self.test is not None:
            return self.test.p
        return intervals.two_sided_p(float(self.values[0]), self.values[1:], problems)

    def detectable(self, problems: int, paired: bool) -> float | None:
        """Returns the minimum detectable difference; see `intervals.detectable_difference`."""
        if self.test is not None:
            return self.test.detectable()
        return intervals.detectable_difference(self.values[1:], problems, paired)


def share(metric: str, values: Floats, note: str = "") -> Cell:
    """Returns the cell of a number between 0 and 1, such as an accuracy."""
    return Cell(metric, values, note, kind="share")


def difference(metric: str, first: Cell, second: Cell) -> list[Cell]:
    """Returns the cells of a comparison: both numbers and the second minus the first, paired by replicate."""
    note = first.note or second.note
    values = np.subtract(*np.broadcast_arrays(second.values, first.values))
    are_shares = first.kind == second.kind == "share"
    return [
        replace(first, metric=f"{metric}_a", note=note),
        replace(second, metric=f"{metric}_b", note=note),
        Cell(f"{metric}_difference", values, note, kind="share_difference" if are_shares else "difference"),
    ]


@dataclass(frozen=True, slots=True)
class Judged:
    """All cells of a run: by protocol, then by subset."""

    parts: tuple[SubsetInfo, ...]
    cells: Mapping[str, Mapping[str, Sequence[Cell]]]
    averages: Groups | None = None
    """Groups of subset names to average over; None: one average over all of them."""
    other_averages: Mapping[str, Groups] = field(default_factory=dict)
    """The groups of protocols that are averaged over others."""
    mixed: bool = False
    """Whether averages may mix cells judged out of fold with others; their notes name the former."""
    pooled: tuple[tuple[SubsetInfo, str, tuple[Cell, ...]], ...] = ()
    """Cells pooled over all subsets, with their protocols; their rows come last."""

    def rows(self) -> tuple[MetricRow, ...]:
        """Returns every cell as a row with its interval, and the averages."""
        rows: list[MetricRow] = []
        for protocol in self.cells:
            rows += (row for part, cell in self._placed(protocol) for row in cell_rows(part, protocol, cell))
        for part, protocol, pooled_cells in self.pooled:
            rows += (row for cell in pooled_cells for row in cell_rows(part, protocol, cell))
        return tuple(rows)

    def find(self, row: MetricRow) -> tuple[SubsetInfo, Cell] | None:
        """Returns the cell that a row of this run is made of, with its subset or average; None if there is none."""
        placed = self._placed(row.protocol) if row.protocol in self.cells else []
        pooled = [(part, cell) for part, key, cells in self.pooled if key == row.protocol for cell in cells]
        wanted = row.subset, row.metric
        return next(((part, cell) for part, cell in (*pooled, *placed) if (part.name, cell.metric) == wanted), None)

    def _placed(self, protocol: str) -> list[tuple[SubsetInfo, Cell]]:
        groups = self.other_averages.get(protocol, self.averages)
        return with_averages(self.parts, self.cells[protocol], groups, self.mixed)


def absent(names: Sequence[str], reason: str) -> list[Cell]:
    """Returns undefined cells for these metrics, with the reason as their note."""
    return [Cell(name, np.array([np.nan]), reason) for name in names]


def traces_of_subset(scores: Sequence[ScoredTrace], name: str) -> tuple[ScoredTrace, ...]:
    """Returns the traces of one subset, sorted by id so that rows do not depend on the order of the scores."""
    return tuple(sorted((t for t in scores if t.subset == name), key=lambda t: t.id))


def resampled(manifest: RunManifest, subset: str, clusters: Sequence[str]) -> tuple[Ints, Floats]:
    """Draws the bootstrap samples of a subset's problems.

    The draws depend only on the seed and the subset's name, so two runs on a subset are resampled identically.

    Args:
        manifest: Holds the seed and the number of replicates.
        subset: Name of the subset.
        clusters: Name of each trace's problem, [n].

    Returns:
        The problem of each trace, [n] in 0..c-1 (by name), and how often each problem is drawn, [replicates + 1, c];
        [1, c] for a single problem, which says nothing of how its numbers vary between problems.
    """
    index = np.unique(clusters, return_inverse=True)[1].astype(np.int64)
    count = int(index.max()) + 1 if len(index) else 0
    replicates = manifest.replicates if count != 1 else 0
    return index, first_error.bootstrap_weights(np.arange(count), replicates, subset_seed(manifest, subset))


def subset_seed(manifest: RunManifest, subset: str) -> int:
    """Returns the seed of a subset's draws, which runs on the same subset share."""
    return int.from_bytes(hashlib.sha256(f"{manifest.seed}/{subset}".encode()).digest()[:8])


def weighted_mean(values: Floats, weights: Floats) -> Floats:
    """Returns the weighted means [b] of values [c] under weights [b, c]; problems whose value is nan are left out."""
    exists = np.isfinite(values)
    total = weights[:, exists].sum(axis=1)
    out = np.full(len(weights), np.nan)
    return np.asarray(np.divide(weights[:, exists] @ values[exists], total, out=out, where=total > 0))


def average_name(subsets: Sequence[str]) -> str:
    """Returns `avg[a,b]`: averages over different subsets have different names, so they never share a column."""
    return f"avg[{','.join(subsets)}]"


def compared_rows(
    parts: Sequence[SubsetInfo],
    cells: Mapping[str, Mapping[str, Sequence[Cell]]],
    averages: Mapping[str, Groups | None],
    mixed: bool = False,
) -> list[MetricRow]:
    """Returns the rows of a comparison under several protocols, with p-values that are adjusted for their number.

    Args:
        parts: The subsets.
        cells: Cells by protocol and subset.
        averages: The groups of subsets to average over, by protocol; see `with_averages`.
        mixed: See `Judged`.
    """
    placed = {
        protocol: with_averages(parts, by_subset, averages[protocol], mixed) for protocol, by_subset in cells.items()
    }
    families: dict[str, list[Floats]] = {}
    for pairs in placed.values():
        for part, cell in pairs:
            if _is_tested(cell):
                families.setdefault(part.name, []).append(cell.t_values(part.problems))
    rows = []
    for protocol, pairs in placed.items():
        for part, cell in pairs:
            if _is_tested(cell) and len(cells) > 1:
                adjusted = paired_tests.adjusted_p(cell.t_values(part.problems), families[part.name])
                p = cell.p_value(part.problems)
                cell = replace(cell, p_adjusted=None if adjusted is None or p is None else max(adjusted, p))  # noqa: PLW2901
            rows += cell_rows(part, protocol, cell)
    return rows


def _is_tested(cell: Cell) -> bool:
    return cell.metric.endswith("_difference") and len(cell.values) > 1 and not np.isnan(cell.values[0])


def with_averages(
    parts: Sequence[SubsetInfo],
    cells: Mapping[str, Sequence[Cell]],
    averages: Groups | None = None,
    mixed: bool = False,
) -> list[tuple[SubsetInfo, Cell]]:
    """Returns the cells of one protocol with their subsets, then the averages, over all subsets or over `averages`.

    An average that would mix cells judged out of fold with others is left out, since they answer different questions,
    unless `mixed` allows it.
    """
    placed = [(part, cell) for part in parts for cell in cells[part.name]]
    for names in [[p.name for p in parts]] if averages is None else averages:
        averaged_parts = [p for p in parts if p.name in names]
        if len(averaged_parts) > 1:
            placed += _averages(averaged_parts, cells, mixed)
    return placed


def _averages(
    parts: Sequence[SubsetInfo], cells: Mapping[str, Sequence[Cell]], mixed: bool
) -> list[tuple[SubsetInfo, Cell]]:
    info = SubsetInfo(
        average_name([p.name for p in parts]),
        sum(p.n for p in parts),
        sum(p.unscored for p in parts),
        problems=min(p.problems for p in parts),
    )
    by_metric = [{c.metric: c for c in cells[p.name]} for p in parts]
    averaged = []
    for cell in cells[parts[0].name]:
        metric_cells = [by_name[cell.metric] for by_name in by_metric if cell.metric in by_name]
        is_mixture = len({c.note == OUT_OF_FOLD for c in metric_cells}) > 1
        if cell.averaged and len(metric_cells) == len(parts) and (mixed or not is_mixture):
            averaged.append((info, _average(metric_cells, [p.name for p in parts])))
    return averaged


def _average(cells: Sequence[Cell], names: Sequence[str]) -> Cell:
    first, tests = cells[0], [c.test for c in cells if c.test is not None]
    values = np.mean(np.broadcast_arrays(*(c.values for c in cells)), axis=0)
    if any(len(c.values) == 1 for c in cells):  # one of them has no interval, so their average has none
        values, tests = values[:1], []
    if np.isnan(values[0]):
        reasons = sorted({c.note for c in cells if c.note and np.isnan(c.values[0])})
        return Cell(first.metric, values, "; ".join(reasons))
    out_of_fold = [name for name, c in zip(names, cells, strict=True) if c.note == OUT_OF_FOLD]
    notes = [f"{name}: {c.note}" for name, c in zip(names, cells, strict=True) if c.note]
    note = f"{','.join(out_of_fold)} {OUT_OF_FOLD}" if out_of_fold else "; ".join(notes)
    centre = (
        None if first.centre is None else float(np.mean([c.values[0] if c.centre is None else c.centre for c in cells]))
    )
    test = paired_tests.average(tests) if len(tests) == len(cells) else None
    return Cell(first.metric, values, note, kind=first.kind, centre=centre, test=test)


def cell_rows(part: SubsetInfo, protocol: str, cell: Cell) -> list[MetricRow]:
    """Returns the cell's row with its interval, and the rows derived from its replicates."""
    value = float(cell.values[0])
    if np.isnan(value):
        note = cell.note if cell.note and cell.note != OUT_OF_FOLD else part.missing
        note = note or "undefined in a subset"
        return [MetricRow(part.name, protocol, cell.metric, None, None, None, part.n, part.unscored, note)]
    lo, hi = cell.ends(part.problems)
    row = MetricRow(part.name, protocol, cell.metric, value, lo, hi, part.n, part.unscored, cell.note)
    derived = _derived(protocol, cell, part.problems)
    return [row, *(replace(row, metric=name, value=v, lo=None, hi=None) for name, v in derived.items())]


def _derived(protocol: str, cell: Cell, problems: int) -> dict[str, float | None]:
    """p-value and minimum detectable difference, for the metrics that have them."""
    if cell.metric.endswith("_difference"):
        adjusted = {} if cell.p_adjusted is None else {"p_adjusted": cell.p_adjusted}
        return {"p_value": cell.p_value(problems), **adjusted, "mdd": cell.detectable(problems, paired=True)}
    if cell.metric == "f1_drop":  # named apart from the mdd of the F1 itself
        return {"p_value": cell.p_value(problems), "drop_mdd": cell.detectable(problems, paired=True)}
    if cell.metric in ("f1", "prmscore") and not protocol.startswith("floor/"):
        return {"mdd": cell.detectable(problems, paired=False)}
    return {}
