"""Turns numbers with bootstrap replicates into metric rows: intervals, averages over subsets, notes.

Which metrics there are, and how they are resampled, is up to each task.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from prmbench.core.records import MetricRow, RunManifest, ScoredTrace
from prmbench.metrics import first_error
from prmbench.metrics.first_error import Floats, Ints

OUT_OF_FOLD = "out_of_fold"
"""Note on the calibration subset's own cell, whose threshold comes from the other folds."""
RESAMPLED = ("p_value", "mdd", "drop_mdd")
"""Metrics that are computed from the replicates alone."""


@dataclass(frozen=True, slots=True)
class SubsetInfo:
    """Facts about a subset that all of its rows share."""

    name: str
    n: int
    unscored: int
    missing: str = ""
    """Why numbers do not exist in this subset, used when a cell gives no reason of its own."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One metric in one subset. `values` is [b]: first the sample's value, then the replicates; [nan] if undefined."""

    metric: str
    values: Floats
    note: str = ""
    averaged: bool = True
    """False for numbers without a meaning over several subsets, such as a threshold or a bin."""


@dataclass(frozen=True, slots=True)
class Judged:
    """All cells of a run: by protocol, then by subset."""

    parts: tuple[SubsetInfo, ...]
    cells: Mapping[str, Mapping[str, Sequence[Cell]]]
    averages: tuple[tuple[str, ...], ...] | None = None
    """Groups of subset names to average over; None: one average over all of them."""
    pooled: tuple[tuple[SubsetInfo, str, tuple[Cell, ...]], ...] = ()
    """Cells pooled over all subsets, with their protocols; their rows come last."""

    def rows(self) -> tuple[MetricRow, ...]:
        """Returns every cell as a row with its interval, and the averages."""
        rows: list[MetricRow] = []
        for protocol, cells in self.cells.items():
            rows += subset_rows(self.parts, protocol, cells, self.averages)
        for part, protocol, pooled_cells in self.pooled:
            rows += (row for cell in pooled_cells for row in cell_rows(part, protocol, cell))
        return tuple(rows)


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
    digest = hashlib.sha256(f"{manifest.seed}/{subset}".encode()).digest()
    replicates = manifest.replicates if count != 1 else 0
    return index, first_error.bootstrap_weights(np.arange(count), replicates, int.from_bytes(digest[:8]))


def weighted_mean(values: Floats, weights: Floats) -> Floats:
    """Returns the weighted means [b] of values [c] under weights [b, c]; problems whose value is nan are left out."""
    exists = np.isfinite(values)
    total = weights[:, exists].sum(axis=1)
    out = np.full(len(weights), np.nan)
    return np.asarray(np.divide(weights[:, exists] @ values[exists], total, out=out, where=total > 0))


def average_name(subsets: Sequence[str]) -> str:
    """Returns `avg[a,b]`: averages over different subsets have different names, so they never share a column."""
    return f"avg[{','.join(subsets)}]"


def subset_rows(
    parts: Sequence[SubsetInfo],
    protocol: str,
    cells: Mapping[str, Sequence[Cell]],
    averages: Sequence[Sequence[str]] | None = None,
) -> list[MetricRow]:
    """Returns the rows of one protocol: each subset's, then unweighted averages over all subsets or over `averages`."""
    rows = []
    for part in parts:
        for cell in cells[part.name]:
            rows += cell_rows(part, protocol, cell)
    for names in [[p.name for p in parts]] if averages is None else averages:
        averaged_parts = [p for p in parts if p.name in names]
        if len(averaged_parts) > 1:
            rows += _average_rows(averaged_parts, protocol, cells)
    return rows


def _average_rows(parts: Sequence[SubsetInfo], protocol: str, cells: Mapping[str, Sequence[Cell]]) -> list[MetricRow]:
    rows = []
    average_info = SubsetInfo(
        average_name([p.name for p in parts]), sum(p.n for p in parts), sum(p.unscored for p in parts)
    )
    by_metric = [{c.metric: c for c in cells[p.name]} for p in parts]
    for cell in cells[parts[0].name]:
        metric_cells = [by_name[cell.metric] for by_name in by_metric if cell.metric in by_name]
        if cell.averaged and len(metric_cells) == len(parts):
            rows += cell_rows(average_info, protocol, _average(metric_cells, [p.name for p in parts]))
    return rows


def _average(cells: Sequence[Cell], names: Sequence[str]) -> Cell:
    values = np.mean(np.broadcast_arrays(*(c.values for c in cells)), axis=0)
    if any(len(c.values) == 1 for c in cells):  # one of them has no interval, so their average has none
        values = values[:1]
    if np.isnan(values[0]):
        reasons = sorted({c.note for c in cells if c.note and np.isnan(c.values[0])})
        return Cell(cells[0].metric, values, "; ".join(reasons))
    out_of_fold = [name for name, c in zip(names, cells, strict=True) if c.note == OUT_OF_FOLD]
    if out_of_fold:
        return Cell(cells[0].metric, values, f"{','.join(out_of_fold)} {OUT_OF_FOLD}")
    notes = [f"{name}: {c.note}" for name, c in zip(names, cells, strict=True) if c.note]
    return Cell(cells[0].metric, values, "; ".join(notes))


def cell_rows(part: SubsetInfo, protocol: str, cell: Cell) -> list[MetricRow]:
    """Returns the cell's row with its interval, and the rows derived from its replicates."""
    value = float(cell.values[0])
    if np.isnan(value):
        note = cell.note if cell.note and cell.note != OUT_OF_FOLD else part.missing
        note = note or "undefined in a subset"
        return [MetricRow(part.name, protocol, cell.metric, None, None, None, part.n, part.unscored, note)]
    lo, hi = first_error.interval(cell.values[1:])
    row = MetricRow(part.name, protocol, cell.metric, value, lo, hi, part.n, part.unscored, cell.note)
    derived = _derived(protocol, cell)
    return [row, *(replace(row, metric=name, value=v, lo=None, hi=None) for name, v in derived.items())]


def _derived(protocol: str, cell: Cell) -> dict[str, float | None]:
    """p-value and minimum detectable difference, for the metrics that have them."""
    value, replicates = float(cell.values[0]), cell.values[1:]
    if cell.metric.endswith("_difference"):
        return {
            "p_value": first_error.paired_p(value, replicates),
            "mdd": first_error.minimum_detectable_difference(replicates, paired=True),
        }
    if cell.metric == "f1_drop":  # named apart from the mdd of the F1 itself
        return {
            "p_value": first_error.paired_p(value, replicates),
            "drop_mdd": first_error.minimum_detectable_difference(replicates, paired=True),
        }
    if cell.metric in ("f1", "prmscore") and not protocol.startswith("floor/"):
        return {"mdd": first_error.minimum_detectable_difference(replicates)}
    return {}
