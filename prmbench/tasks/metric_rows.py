"""From a number with its replicates to metric rows: intervals, averages over subsets, notes. Knows no metric.

What the number is and how it is resampled is the tasks' business (steps.py and its siblings).
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
"""Note on the calibration subset's own cell: there the threshold comes from the other folds."""
RESAMPLED = ("p_value", "mdd", "drop_mdd")
"""Metrics that are made of the replicates alone."""


@dataclass(frozen=True, slots=True)
class Part:
    """A subset as its rows show it."""

    name: str
    n: int
    unscored: int
    missing: str = ""
    """Why numbers do not exist here, where a cell does not say so itself."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One number in one subset, [b]: row 0 of `values` is the sample, the rest are replicates. [1] if there is none."""

    metric: str
    values: Floats
    note: str = ""
    averaged: bool = True
    """False for what has no meaning over several subsets: a threshold, a bin."""


@dataclass(frozen=True, slots=True)
class Judged:
    """All cells of a run: by protocol, then by subset."""

    parts: tuple[Part, ...]
    cells: Mapping[str, Mapping[str, Sequence[Cell]]]
    averages: tuple[tuple[str, ...], ...] | None = None
    """Names of the parts that are averaged with each other; None = all of them."""
    pooled: tuple[tuple[Part, str, tuple[Cell, ...]], ...] = ()
    """Cells over all subsets together, with their protocols; their rows come last."""

    def rows(self) -> tuple[MetricRow, ...]:
        """Every cell as a row with its interval, and the averages."""
        rows: list[MetricRow] = []
        for protocol, cells in self.cells.items():
            rows += subset_rows(self.parts, protocol, cells, self.averages)
        for part, protocol, pooled_cells in self.pooled:
            rows += (row for cell in pooled_cells for row in cell_rows(part, protocol, cell))
        return tuple(rows)


def absent(names: Sequence[str], reason: str) -> list[Cell]:
    """Cells without a number, [1]."""
    return [Cell(name, np.array([np.nan]), reason) for name in names]


def of_subset(scores: Sequence[ScoredTrace], name: str) -> tuple[ScoredTrace, ...]:
    """The traces of one subset in id order: rows never depend on the order of the scores."""
    return tuple(sorted((t for t in scores if t.subset == name), key=lambda t: t.id))


def resampled(manifest: RunManifest, subset: str, clusters: Sequence[str]) -> tuple[Ints, Floats]:
    """Which problem each trace is of, [n], in 0..c-1 by name, and how often each is drawn, [replicates + 1, c].

    A subset's draws depend on nothing but the seed and its name: two runs on it are resampled alike.
    """
    index = np.unique(clusters, return_inverse=True)[1].astype(np.int64)
    count = int(index.max()) + 1 if len(index) else 0
    digest = hashlib.sha256(f"{manifest.seed}/{subset}".encode()).digest()
    return index, first_error.bootstrap_weights(np.arange(count), manifest.replicates, int.from_bytes(digest[:8]))


def weighted_mean(values: Floats, weights: Floats) -> Floats:
    """[c] numbers, nan where a problem has none, and [b, c] weights -> [b] means over the problems that have one."""
    there = np.isfinite(values)
    total = weights[:, there].sum(axis=1)
    out = np.full(len(weights), np.nan)
    return np.asarray(np.divide(weights[:, there] @ values[there], total, out=out, where=total > 0))


def average_name(subsets: Sequence[str]) -> str:
    """`avg[a,b]`: an average is named by the subsets it is over, so that unlike ones never share a column."""
    return f"avg[{','.join(subsets)}]"


def subset_rows(
    parts: Sequence[Part],
    protocol: str,
    cells: Mapping[str, Sequence[Cell]],
    averages: Sequence[Sequence[str]] | None = None,
) -> list[MetricRow]:
    """Rows of one protocol: each subset's cells, then unweighted averages: over the subsets present, or as told."""
    rows = []
    for part in parts:
        for cell in cells[part.name]:
            rows += cell_rows(part, protocol, cell)
    for names in [[p.name for p in parts]] if averages is None else averages:
        chosen = [p for p in parts if p.name in names]
        if len(chosen) > 1:
            rows += _average_rows(chosen, protocol, cells)
    return rows


def _average_rows(parts: Sequence[Part], protocol: str, cells: Mapping[str, Sequence[Cell]]) -> list[MetricRow]:
    rows = []
    whole = Part(average_name([p.name for p in parts]), sum(p.n for p in parts), sum(p.unscored for p in parts))
    by_metric = [{c.metric: c for c in cells[p.name]} for p in parts]
    for first in cells[parts[0].name]:
        alike = [found[first.metric] for found in by_metric if first.metric in found]
        if first.averaged and len(alike) == len(parts):
            rows += cell_rows(whole, protocol, _average(alike, [p.name for p in parts]))
    return rows


def _average(cells: Sequence[Cell], names: Sequence[str]) -> Cell:
    values = np.mean(np.broadcast_arrays(*(c.values for c in cells)), axis=0)
    if np.isnan(values[0]):
        reasons = sorted({c.note for c in cells if c.note and np.isnan(c.values[0])})
        return Cell(cells[0].metric, values, "; ".join(reasons))
    marked = [name for name, c in zip(names, cells, strict=True) if c.note == OUT_OF_FOLD]
    if marked:
        return Cell(cells[0].metric, values, f"{','.join(marked)} {OUT_OF_FOLD}")
    told = [f"{name}: {c.note}" for name, c in zip(names, cells, strict=True) if c.note]
    return Cell(cells[0].metric, values, "; ".join(told))


def cell_rows(part: Part, protocol: str, cell: Cell) -> list[MetricRow]:
    """The cell's row with its interval, and rows that follow from its replicates."""
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
    """Numbers that follow from a cell's replicates."""
    value, replicates = float(cell.values[0]), cell.values[1:]
    if cell.metric.endswith("_difference"):
        return {
            "p_value": first_error.paired_p(value, replicates),
            "mdd": first_error.minimum_detectable_difference(replicates, paired=True),
        }
    if cell.metric == "f1_drop":  # beside an F1 that has an mdd of its own
        return {
            "p_value": first_error.paired_p(value, replicates),
            "drop_mdd": first_error.minimum_detectable_difference(replicates, paired=True),
        }
    if cell.metric in ("f1", "prmscore") and not protocol.startswith("floor/"):
        return {"mdd": first_error.minimum_detectable_difference(replicates)}
    return {}
