"""Turns a benchmark into traces: `load` reads, chooses and checks them.

A new benchmark is a row in benchmarks.py and a reader module in this package. Prompts, which have no traces yet, are
read by prompts.py.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from prmbench.core import reading, validation
from prmbench.core.records import Notice, Trace, UserError
from prmbench.data import files
from prmbench.data.benchmarks import BENCHMARKS, ROLLOUTS, Benchmark, find_benchmark
from prmbench.data.field_names import Fields

__all__ = ["Benchmark", "LoadedBenchmark", "find_benchmark", "load", "texts"]

LONGEST_NAME = 100
"""Longest part of a file's name that names a benchmark; a result file allows names of 200 characters."""


@dataclass(frozen=True, slots=True)
class LoadedBenchmark:
    """The traces of a benchmark, with their source and the task that they are for."""

    traces: tuple[Trace, ...]
    subsets: tuple[str, ...]
    source: str
    """Hub id, or the last part of the local path."""
    revision: str | None = None
    benchmark: str = "processbench"
    """Its name in the results: that of the user's data where these are not the published ones."""
    version: int = 1
    task: str = "steps"
    """The task's name."""
    family: str = ""
    """The benchmark that was asked for, where `benchmark` is the name of the user's data; empty: the same.

    Run ids depend on it, and not on what a file is called.
    """


def load(
    name: str,
    data: Path | None,
    subsets: Sequence[str] = (),
    limit: int | None = None,
    split: str = "paragraph",
    rendering: Sequence[str] = (),
    fields: Fields | None = None,
    data_name: str | None = None,
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
        fields: The names that the rows of `data` have for some of their fields.
        data_name: Name in the results of the benchmark that `data` is; None: the benchmark's, or that of the file or
            folder where its traces are not those that were published under the benchmark's name.

    Raises:
        UserError: There is no such benchmark or subset, or the data cannot be read or judged.
    """
    row = find_benchmark(name)
    files.check_limit(limit)
    _check_data_name(data_name, row)
    if data is None and (data_name or fields):
        raise UserError("--data-name and --fields say something of your own --data; give it, or drop them")
    traces, source, revision = _read(row, data, subsets, split, fields)
    present = _ordered_subsets({t.subset for t in traces}, row.subsets)
    _check_subsets(subsets, present, source)
    invalid = [subset for subset in present if not validation.NAME.fullmatch(subset)]
    if invalid:
        raise UserError(f"{source}: subset {invalid[0]!r}: use letters, digits and . + - _ only, also in file names")
    chosen = tuple(subset for subset in present if not subsets or subset in subsets)
    if data is not None:
        data_name = data_name or _name_of_data(row, data, [t for t in traces if t.subset in chosen])
    limited = [t for subset in chosen for t in row.reader.limit([t for t in traces if t.subset == subset], limit)]
    if not limited:
        raise UserError(f"{source}: holds no trace")
    files.check_unique_ids([t.id for t in limited], source)
    row.task.check_data(limited, source if data is None else str(data))
    if row.render is not None:
        limited = row.render(limited, rendering)
        chosen = tuple(dict.fromkeys(t.subset for t in limited))
    return LoadedBenchmark(
        tuple(limited), chosen, source, revision, data_name or row.name, row.version, row.task.name, row.name
    )


def without_traces(row: Benchmark, subsets: Sequence[str], source: str, data_name: str | None) -> LoadedBenchmark:
    """Return a benchmark whose traces are not in its data. Raises UserError on a --data-name that it cannot have."""
    _check_data_name(data_name, row)
    name = data_name or row.name
    return LoadedBenchmark((), tuple(subsets), source, None, name, row.version, row.task.name, row.name)


def _check_data_name(name: str | None, row: Benchmark) -> None:
    """Raise UserError where --data-name is the name of another benchmark, or of a published one, or no name at all."""
    if name is None:
        return
    if not validation.NAME.fullmatch(name):
        raise UserError(f"--data-name {name}: use letters, digits and . + - _ only")
    if name.lower() in BENCHMARKS and (name != row.name or row.is_official is not None):
        raise UserError(f"--data-name {name}: is the name of a benchmark; give your data another one")


def _name_of_data(row: Benchmark, data: Path, traces: Sequence[Trace]) -> str:
    """Return the benchmark's name where the traces are those published under it, else one after the file or folder.

    Results of other traces would stand on the benchmark's board beside those of the published ones.
    """
    if row.is_official is None:
        return row.name
    place = data.stem if data.is_file() else data.resolve().name
    name = re.sub(r"[^\w.+-]+", "-", place)[:LONGEST_NAME].strip("-.") or "data"
    name = row.name if row.is_official(traces) else f"own-{name}" if name.lower() in BENCHMARKS else name
    if row.doubt is not None and (reason := row.doubt(traces)):
        certain = f"; without --data the traces are read from {row.hub_id}" if row.hub_id else ""
        message = f"{data}: unverified: {reason}, so the run is filed under {name}{certain}"
        warnings.warn(message, Notice, stacklevel=4)
    return name


def _read(
    row: Benchmark, data: Path | None, subsets: Sequence[str], split: str, fields: Fields | None
) -> tuple[list[Trace], str, str | None]:
    """Return (traces, source, revision)."""
    if data is not None:
        _check_place(row, data)
        if fields and not row.reader.takes_fields:
            raise UserError(f"--fields: benchmark {row.name} has a reader that knows no other names; drop it")
        arguments = (data, split, fields) if fields else (data, split)
        traces = row.reader.from_files(*arguments)
        if not isinstance(traces, list | tuple) or not all(isinstance(trace, Trace) for trace in traces):
            raise UserError(f"benchmark {row.name}: its reader must give a list of prmbench.Trace")
        return list(traces), data.name, None
    if row.reader.from_hub is None:
        hint = "rollouts, as `prmbench rollout` writes them" if row.reader is ROLLOUTS else "files of your own"
        raise UserError(f"--data is missing: benchmark {row.name} reads {hint}")
    if row.subsets:
        _check_subsets(subsets, row.subsets, row.hub_id)
    traces, revision = row.reader.from_hub(subsets or row.subsets, row.revision)
    return traces, row.hub_id, revision


def _check_place(row: Benchmark, data: Path) -> None:
    """Raise UserError where --data is the name of a benchmark or a subset of one, and no file."""
    if reading.exists(data):
        return
    name = str(data)
    for other in BENCHMARKS.values():
        if name.lower() in (other.name, other.hub_id.lower()) and other.hub_id:
            use = "" if row.name == other.name else f" --benchmark {other.name}"
            raise UserError(
                f"--data {name}: is a benchmark and no file here; leave --data out{use and f' and give{use}'}"
            )
    if name in row.subsets:
        raise UserError(f"--data {name}: is a subset and no file here; give --subset {name} in place of --data")


def _check_subsets(names: Sequence[str], present: Sequence[str], source: str) -> None:
    for name in names:
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
