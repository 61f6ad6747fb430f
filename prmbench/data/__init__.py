"""Benchmarks are rows; `load` turns one into traces. A new benchmark is a row here and a loader beside it.

A policy's benchmark has prompts, not traces: prompts.py.
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
    """A benchmark by name; `version` moves when its meaning here does."""

    name: str
    version: int
    task: Task = "steps"
    hub_id: str = ""
    """Empty: there is nothing to download, --data is needed."""
    revision: str | None = None
    """Hub revision to load; None = the newest, resolved and recorded at run time."""
    subsets: tuple[str, ...] = ()
    """In table order; those that are not named follow by name."""


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
"""Of labelled solutions, by task; the others read rollouts."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """Traces with where they came from, and what they are for."""

    traces: tuple[Trace, ...]
    subsets: tuple[str, ...]
    source: str
    """`hub id` or the last part of the local path."""
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
    """Traces of a benchmark, in its subset order; `limit` keeps so many of each, or so many prompts with all of theirs.

    They are evenly spaced, and of both sorts (with an error and without, right and wrong) where a subset has both.
    `split` cuts completions that come as free text; `rendering`s are those of format_shift. Raises UserError.
    """
    row = BENCHMARKS[name]
    files.check_limit(limit)
    traces, source, revision = _read(row, data, subsets, split)
    present = _order({t.subset for t in traces}, row.subsets)
    _known(subsets, present, source)
    odd = [subset for subset in present if not validation.NAME.fullmatch(subset)]
    if odd:
        raise UserError(f"{source}: subset {odd[0]!r}: use letters, digits and . + - _ only, also in file names")
    chosen = tuple(name for name in present if not subsets or name in subsets)
    spread = _spread_labelled if row.task in _READERS else rollout_traces.spread
    kept = [t for name in chosen for t in spread([t for t in traces if t.subset == name], limit)]
    if not kept:
        raise UserError(f"{source}: holds no trace")
    files.unique_ids([t.id for t in kept], source)
    rollout_traces.check(row.task, kept, source)
    if row.task == "format_shift":
        kept = renderings.rendered(kept, rendering)
        chosen = tuple(dict.fromkeys(t.subset for t in kept))
    return Loaded(tuple(kept), chosen, source, revision, row.name, row.version, row.task)


def _read(row: Benchmark, data: Path | None, subsets: Sequence[str], split: str) -> tuple[list[Trace], str, str | None]:
    """(traces, source, revision)."""
    if data is not None:
        reader = _READERS.get(row.task)
        return reader.from_files(data) if reader else rollout_traces.from_files(data, split), data.name, None
    if not row.hub_id:
        raise UserError(f"--data is missing: benchmark {row.name} reads rollouts, as `prmbench rollout` writes them")
    _known(subsets, row.subsets, row.hub_id)
    traces, revision = _READERS[row.task].from_hub(subsets or row.subsets, row.revision)
    return traces, row.hub_id, revision


def _spread_labelled(traces: Sequence[Trace], limit: int | None) -> list[Trace]:
    return selection.spread(traces, limit, lambda trace: selection.sorts_of(trace.first_error, None))


def _known(wanted: Sequence[str], present: Sequence[str], source: str) -> None:
    for name in wanted:
        if name not in present:
            raise UserError(f"--subset {name}: {source} has {', '.join(present)}")


def _order(names: set[str], usual: Sequence[str]) -> tuple[str, ...]:
    return tuple(n for n in usual if n in names) + tuple(sorted(names - set(usual)))
