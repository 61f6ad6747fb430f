"""Benchmarks are rows; `load` turns one into traces. A new benchmark is a row here and a loader beside it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from prmbench import sound
from prmbench.data import files, processbench
from prmbench.schema import Trace, UserError


@dataclass(frozen=True, slots=True)
class Benchmark:
    """A benchmark by name; `version` moves when its meaning here does."""

    name: str
    version: int
    hub_id: str
    revision: str | None
    """Hub revision to load; None = the newest, resolved and recorded at run time."""
    subsets: tuple[str, ...]


BENCHMARKS = {row.name: row for row in (Benchmark("processbench", 1, processbench.HUB_ID, None, processbench.SUBSETS),)}


@dataclass(frozen=True, slots=True)
class Loaded:
    """Traces with where they came from."""

    traces: tuple[Trace, ...]
    subsets: tuple[str, ...]
    source: str
    """`hub id` or the last part of the local path."""
    revision: str | None


def load(name: str, data: Path | None, subsets: Sequence[str] = (), limit: int | None = None) -> Loaded:
    """Labelled traces of a benchmark, in the benchmark's subset order; `limit` keeps so many of each."""
    row = BENCHMARKS[name]
    check_limit(limit)
    if data is not None:
        traces, source, revision = processbench.from_files(data), data.name, None
    else:
        _known(subsets, row.subsets, row.hub_id)
        (traces, revision), source = processbench.from_hub(subsets or row.subsets, row.revision), row.hub_id
    present = _order({t.subset for t in traces}, row.subsets)
    _known(subsets, present, source)
    odd = [subset for subset in present if not sound.NAME.fullmatch(subset)]
    if odd:
        raise UserError(f"{source}: subset {odd[0]!r}: use letters, digits and . + - _ only, also in file names")
    chosen = tuple(name for name in present if not subsets or name in subsets)
    kept = [t for name in chosen for t in _spread([t for t in traces if t.subset == name], limit)]
    if not kept:
        raise UserError(f"{source}: holds no trace")
    files.unique_ids([t.id for t in kept], source)
    return Loaded(tuple(kept), chosen, source, revision)


def check_limit(limit: int | None) -> None:
    """Raises UserError on a --limit that leaves nothing."""
    if limit is not None and limit < 1:
        raise UserError(f"--limit is {limit}; expected at least 1")


def _spread(traces: Sequence[Trace], limit: int | None) -> list[Trace]:
    """`limit` traces at even distances. ProcessBench lists its errors first: the first ones would be of one sort."""
    if limit is None or limit >= len(traces):
        return list(traces)
    return [traces[i * len(traces) // limit] for i in range(limit)]


def _known(wanted: Sequence[str], present: Sequence[str], source: str) -> None:
    for name in wanted:
        if name not in present:
            raise UserError(f"--subset {name}: {source} has {', '.join(present)}")


def _order(names: set[str], usual: Sequence[str]) -> tuple[str, ...]:
    return tuple(n for n in usual if n in names) + tuple(sorted(names - set(usual)))
