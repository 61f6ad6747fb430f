"""Reads and judges many runs in parallel processes."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

from prmbench import tasks
from prmbench.core.records import UserError
from prmbench.core.result_files import Run

FEWEST = 32
"""With fewer runs, starting processes costs more than it saves."""
CHUNK = 8
"""Runs that a process takes at a time; neighbouring runs lie in the same archive."""

VerifiedRun = tuple[Run, list[str]] | str
"""A run and the differences between its stored and recomputed rows; or the error because of which it is left out."""


def read_and_judge(paths: Sequence[Path], recompute: bool, processes: int = 1) -> Iterator[VerifiedRun]:
    """Yields every run, in the order of `paths`, after checking its rows against its scores.

    Args:
        paths: `<run-id>.json` of each run.
        recompute: Whether to recompute all rows with their intervals and return these instead of the stored ones. If
            not, a run whose stored numbers do not follow from its scores gives an error; see `underivable_rows`.
        processes: How many processes to start at most. More than one needs an importable main module.
    """
    read_one = partial(_read_and_judge, recompute=recompute)
    if processes < 2 or len(paths) < FEWEST:  # noqa: PLR2004 - no pool for a single process
        yield from map(read_one, paths)
        return
    with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as pool:
        yield from pool.map(read_one, paths, chunksize=CHUNK)


def usable_processors() -> int:
    """Returns the number of processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _read_and_judge(path: Path, recompute: bool) -> VerifiedRun:
    try:
        run = tasks.read_run(path)
        if not recompute or tasks.is_of_earlier_estimators(run):
            return tasks.verified(run), []
        rows = tasks.judge(run.result.manifest, run.scores)
        faults = tasks.differences(run.result.rows, rows)
    except UserError as error:
        return str(error)
    return replace(run, result=replace(run.result, rows=rows)), faults
