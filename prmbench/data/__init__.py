"""The benchmarks, one row each, and `load`, which reads one as traces.

A new benchmark is a row here and a reader module in this package. Prompts, which have no traces yet: prompts.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from prmbench.core import validation
from prmbench.core.records import Task, Trace, UserError
from prmbench.data import files, prmbench_preview, processbench, renderings, rollout_traces, selection


@dataclass(frozen=True, slots=True)
class Benchmark:
    """One benchmark; its `version` is raised whenever the traces that we read from it change."""

    name: str
    version: int
    task: Task = "steps"
    hub_id: str = ""
    """Data set on the Hugging Face hub; empty when there is none, so that --data is required."""
    revision: str | None = None
    """Hub revision to load; None = the newest, whose commit is recorded at run time."""
    subsets: tuple[str, ...] = ()
    """Subsets in the order of the tables; any others follow alphabetically."""


BENCHMARKS = {
    row.name: row
    for row in (
        Benchmark("processbench", 1, hub_id=processbench.HUB_ID, subsets=processbench.SUBSETS),
        Benchmark(
            "prmbench_preview",
            2,  # 2: a step that is only a number is a step
            "validity",
            hub_id=prmbench_preview.HUB_ID,
            subsets=prmbench_preview.SUBSETS,
        ),
        Benchmark("format_shift", 1, "format_shift", hub_id=processbench.HUB_ID, subsets=processbench.SUBSETS),
        Benchmark("best_of_n", 1, "best_of_n"),
        Benchmark("policy", 1, "policy"),
        Benchmark("calibration", 1, "calibration"),
    )
}


_READERS = {"steps": processbench, "format_shift": processbench, "validity": prmbench_preview}
"""Task -> reader of labelled solutions; the other tasks read rollout files."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """The traces of a benchmark, with their source and the task that they are for."""

    traces: tuple[Trace, ...]
    subsets: tuple[str, ...]
    source: str
    """Hub id, or the last part of the local path."""
    revision: str | None = None
    benchmark: str = "processbench"
    version: int = 1
    task: Task = "steps"


def load(
    name: str,
    data: Path | None,
    subsets: Sequence[str] = (),
    limit: int | None = None,
    split: str = "paragraph",
    rendering: Sequence[str] = (),
) -> Loaded:
    """Return the traces of a benchmark, subset after subset.

    Args:
        name: Key of BENCHMARKS.
        data: Local file or folder; None downloads the data set from the hub.
        subsets: Subsets to keep; empty keeps all.
        limit: Number of traces per subset or, for rollouts, of prompts per subset with all their completions. They are
            evenly spaced, and include both classes (with and without an error, right and wrong) where a subset has
            both.
        split: Name of the splitter that cuts free-text completions into steps.
        rendering: Renderings to produce, for the benchmark format_shift only; empty produces all.

    Raises:
        UserError: The data cannot be read, or does not fit the task or the options.
    """
    row = BENCHMARKS[name]
    files.check_limit(limit)
    traces, source, revision = _read(row, data, subsets, split)
    present = _ordered_subsets({t.subset for t in traces}, row.subsets)
    _check_subsets(subsets, present, source)
    invalid = [subset for subset in present if not validation.NAME.fullmatch(subset)]
    if invalid:
        raise UserError(f"{source}: subset {invalid[0]!r}: use letters, digits and . + - _ only, also in file names")
    chosen = tuple(name for name in present if not subsets or name in subsets)
    select = _select_labelled if row.task in _READERS else rollout_traces.select_prompts
    selected = [t for name in chosen for t in select([t for t in traces if t.subset == name], limit)]
    if not selected:
        raise UserError(f"{source}: holds no trace")
    files.unique_ids([t.id for t in selected], source)
    rollout_traces.check_for_task(row.task, selected, source)
    if row.task == "format_shift":
        selected = renderings.rendered(selected, rendering)
        chosen = tuple(dict.fromkeys(t.subset for t in selected))
    return Loaded(tuple(selected), chosen, source, revision, row.name, row.version, row.task)


def _read(row: Benchmark, data: Path | None, subsets: Sequence[str], split: str) -> tuple[list[Trace], str, str | None]:
    """Return (traces, source, revision)."""
    if data is not None:
        reader = _READERS.get(row.task)
        return reader.from_files(data) if reader else rollout_traces.from_files(data, split), data.name, None
    if not row.hub_id:
        raise UserError(f"--data is missing: benchmark {row.name} reads rollouts, as `prmbench rollout` writes them")
    _check_subsets(subsets, row.subsets, row.hub_id)
    traces, revision = _READERS[row.task].from_hub(subsets or row.subsets, row.revision)
    return traces, row.hub_id, revision


def _select_labelled(traces: Sequence[Trace], limit: int | None) -> list[Trace]:
    return selection.spread(traces, limit, lambda trace: selection.classes_of(trace.first_error, None))


def _check_subsets(requested: Sequence[str], present: Sequence[str], source: str) -> None:
    for name in requested:
        if name not in present:
            raise UserError(f"--subset {name}: {source} has {', '.join(present)}")


def _ordered_subsets(names: set[str], table_order: Sequence[str]) -> tuple[str, ...]:
    return tuple(n for n in table_order if n in names) + tuple(sorted(names - set(table_order)))
