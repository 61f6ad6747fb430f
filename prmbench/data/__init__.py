"""Turns a benchmark into traces: `load` reads, chooses and checks them.

A new benchmark is a row in benchmarks.py and a reader module in this package. Prompts, which have no traces yet, are
read by prompts.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from prmbench.core import validation
from prmbench.core.records import Trace, UserError
from prmbench.data import files
from prmbench.data.benchmarks import ROLLOUTS, Benchmark, find_benchmark

__all__ = ["Benchmark", "LoadedBenchmark", "find_benchmark", "load", "texts"]


@dataclass(frozen=True, slots=True)
class LoadedBenchmark:
    """The traces of a benchmark, with their source and the task that they are for."""

    traces: tuple[Trace, ...]
    subsets: tuple[str, ...]
    source: str
    """Hub id, or the last part of the local path."""
    revision: str | None = None
    benchmark: str = "processbench"
    version: int = 1
    task: str = "steps"
    """The task's name."""


def load(
    name: str,
    data: Path | None,
    subsets: Sequence[str] = (),
    limit: int | None = None,
    split: str = "paragraph",
    rendering: Sequence[str] = (),
) -> LoadedBenchmark:
    """Returns the traces of a benchmark, in its subset order.

    Args:
        name: A benchmark's name, or `pkg.mod:NAME`.
        data: File or folder to read; None: the benchmark's own place on the hub.
        subsets: Those to keep; none: all.
        limit: Traces of each subset, or prompts with all of theirs; evenly spaced, and of both sorts (with an error
            and without, right and wrong) where a subset has both. None: all.
        split: How completions that come as free text become steps.
        rendering: Formats of a benchmark that has some; none: all.

    Raises:
        UserError: There is no such benchmark or subset, or the data cannot be read or judged.
    """
    row = find_benchmark(name)
    files.check_limit(limit)
    traces, source, revision = _read(row, data, subsets, split)
    present = _ordered_subsets({t.subset for t in traces}, row.subsets)
    _check_subsets(subsets, present, source)
    invalid = [subset for subset in present if not validation.NAME.fullmatch(subset)]
    if invalid:
        raise UserError(f"{source}: subset {invalid[0]!r}: use letters, digits and . + - _ only, also in file names")
    chosen = tuple(subset for subset in present if not subsets or subset in subsets)
    limited = [t for subset in chosen for t in row.reader.limit([t for t in traces if t.subset == subset], limit)]
    if not limited:
        raise UserError(f"{source}: holds no trace")
    files.check_unique_ids([t.id for t in limited], source)
    row.task.check_data(limited, source)
    if row.render is not None:
        limited = row.render(limited, rendering)
        chosen = tuple(dict.fromkeys(t.subset for t in limited))
    return LoadedBenchmark(tuple(limited), chosen, source, revision, row.name, row.version, row.task.name)


def _read(row: Benchmark, data: Path | None, subsets: Sequence[str], split: str) -> tuple[list[Trace], str, str | None]:
    """Return (traces, source, revision)."""
    if data is not None:
        return row.reader.from_files(data, split), data.name, None
    if row.reader.from_hub is None:
        hint = "rollouts, as `prmbench rollout` writes them" if row.reader is ROLLOUTS else "files of your own"
        raise UserError(f"--data is missing: benchmark {row.name} reads {hint}")
    if row.subsets:
        _check_subsets(subsets, row.subsets, row.hub_id)
    traces, revision = row.reader.from_hub(subsets or row.subsets, row.revision)
    return traces, row.hub_id, revision


def _check_subsets(wanted: Sequence[str], present: Sequence[str], source: str) -> None:
    for name in wanted:
        if name not in present:
            raise UserError(f"--subset {name}: {source} has {', '.join(present)}")


def _ordered_subsets(names: set[str], table_order: Sequence[str]) -> tuple[str, ...]:
    return tuple(n for n in table_order if n in names) + tuple(sorted(names - set(table_order)))


def texts(data: Path | None) -> dict[str, Trace]:
    """Return traces by id, for whoever shows their text.

    Args:
        data: Files of ProcessBench's form, or rollouts; None: ProcessBench on the hub.

    Raises:
        UserError: The data can be read as neither.
    """
    try:
        traces = load("processbench", data).traces
    except UserError as error:
        if data is None:
            raise
        try:
            traces = load("best_of_n", data).traces
        except UserError:
            raise error from None
    return {trace.id: trace for trace in traces}
