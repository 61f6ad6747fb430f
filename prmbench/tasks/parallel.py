"""Many runs at once: read and judged in parallel processes, given back in their order."""

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
"""Runs for which starting processes pays."""
CHUNK = 8
"""Runs that a process takes at a time: neighbours, which lie in one archive."""

Judged = tuple[Run, list[str]] | str
"""A run and where its stored rows differ from recomputed ones; or why it cannot be trusted."""


def read_and_judge(paths: Sequence[Path], recompute: bool, processes: int = 1) -> Iterator[Judged]:
    """Reads every run and holds its rows against its scores; see `judge.unfounded`.

    Args:
        paths: `<run-id>.json` of each run.
        recompute: Whether to derive all rows anew, intervals and all, and give these back; else a run whose stored
            numbers do not follow from its scores cannot be trusted.
        processes: How many may be started. More than one asks for a main module that can be imported.
    """
    one = partial(_read_and_judge, recompute=recompute)
    if processes < 2 or len(paths) < FEWEST:  # noqa: PLR2004 - one process is this one
        yield from map(one, paths)
        return
    with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as pool:
        yield from pool.map(one, paths, chunksize=CHUNK)


def usable_processors() -> int:
    """How many processes of this machine's processors may run at once for us."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _read_and_judge(path: Path, recompute: bool) -> Judged:
    try:
        if not recompute:
            return tasks.read_verified(path), []
        run = tasks.read_run(path)
        rows = tasks.judge(run.result.manifest, run.scores)
        faults = tasks.differences(run.result.rows, rows)
    except UserError as error:
        return str(error)
    return replace(run, result=replace(run.result, rows=rows)), faults
