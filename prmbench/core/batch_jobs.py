"""Batches of work shared among processes and journalled: a batch that is on disk is not done again.

The caller decides what a batch is and what doing it means: evaluation scores traces, sampling draws completions.
"""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from multiprocessing.pool import ThreadPool
from pathlib import Path
from queue import SimpleQueue
from threading import Event
from typing import Any

from prmbench.core import processes, provenance, result_files
from prmbench.core.records import Notice, UserError

FACTS = {"process", "seconds", "commit", "dirty"}
"""Fields of every journal entry: which process computed it, in what time, from which commit."""
Progress = Callable[[int, int, float], None]
"""Called with (completed batches, all batches, tokens per second)."""
BatchResult = tuple[Mapping[str, Any], int]
"""What the journal's entry holds of a batch, and the batch's tokens."""
Work = Callable[[int], BatchResult]
"""Batch number -> its result."""
Record = Callable[[int, BatchResult], None]
"""Appends the result of a batch to the journal."""


def open_journal(
    folder: Path, identity: Mapping[str, Any], batches: int, restart: bool = False
) -> result_files.Journal:
    """Open the journal of a run. All processes call it; a Notice says how many batches are there already.

    Args:
        folder: Where the journal is, or will be.
        identity: What a run must have in common with the journal to continue it.
        batches: Number of batches of the run.
        restart: Empty the journal first.

    Raises:
        UserError: The folder holds another run.
    """
    is_first = processes.rank() == 0
    if not is_first:
        processes.barrier()  # process 0 may have to empty it
    journal = result_files.Journal(folder, identity, restart=restart and is_first)
    if is_first:
        processes.barrier()
        completed = len(journal.completed_batches())
        if completed:
            message = f"{folder}: {completed} of {batches} batches were done before and are used; --force begins anew"
            warnings.warn(message, Notice, stacklevel=2)
    return journal


def run_batches(
    journal: result_files.Journal, batches: int, do: Work, progress: Progress | None = None, workers: int = 1
) -> None:
    """Do this process's share of the batches that the journal does not hold yet, and wait for the others.

    Args:
        journal: The run's journal, to which every finished batch is appended.
        batches: Number of batches of the run.
        do: Does one batch.
        progress: Told of every finished batch.
        workers: Batches in progress at the same time, each in a thread.
    """
    with recorded_batches(journal, batches, progress) as (remaining, record):
        for number, result in _results(remaining, do, workers):
            record(number, result)


@contextmanager
def recorded_batches(
    journal: result_files.Journal, batches: int, progress: Progress | None = None
) -> Iterator[tuple[list[int], Record]]:
    """Lock the journal, and wait for the other processes at the end.

    Args:
        journal: The run's journal.
        batches: Number of batches of the run.
        progress: Told of every finished batch.

    Yields:
        This process's share of the batches that the journal does not hold yet, and a function that appends one.
    """
    rank = processes.rank()
    with journal.lock(rank):
        processes.barrier()  # no process starts before all have read the journal
        completed = set(journal.completed_batches())
        commit, dirty = provenance.code_state()
        start = previous = time.monotonic()
        tokens = 0
        logging.getLogger(__name__).info("batch %d of %d is in progress", len(completed) + 1, batches)

        def record(number: int, result: BatchResult) -> None:
            nonlocal previous, tokens
            now = time.monotonic()  # an entry's seconds are those since the previous one, so they add up to wall time
            facts = {"batch": number, "process": rank, "seconds": now - previous, "commit": commit, "dirty": dirty}
            journal.append(rank, {**result[0], **facts, "memory_gib": processes.peak_memory_gib()})
            previous = now
            tokens += result[1]
            completed.add(number)
            if progress is not None:
                progress(len(completed), batches, tokens / max(now - start, 1e-9))

        yield [n for n in range(rank, batches, processes.world_size()) if n not in completed], record
        processes.barrier()


def _results(numbers: Sequence[int], do: Work, workers: int) -> Iterator[tuple[int, BatchResult]]:
    """Yield (number, result) as batches finish.

    When one fails, no more are started, those in progress are yielded, and then its error is raised.
    """
    if workers == 1:
        yield from ((number, do(number)) for number in numbers)
        return
    stop = Event()
    finished_batches: SimpleQueue[tuple[int, BatchResult] | BaseException | None] = SimpleQueue()

    def do_unless_stopped(number: int) -> tuple[int, BatchResult] | None:
        if stop.is_set():
            return None
        try:
            return number, do(number)
        except BaseException:
            stop.set()
            raise

    first_error: BaseException | None = None
    # Daemon threads, which concurrent.futures does not have: Ctrl-C must not wait for a server that never answers.
    with ThreadPool(min(workers, len(numbers) or 1)) as pool:
        for number in numbers:
            pool.apply_async(
                do_unless_stopped, (number,), callback=finished_batches.put, error_callback=finished_batches.put
            )
        try:
            for _ in numbers:
                result = finished_batches.get()
                if isinstance(result, BaseException):
                    first_error = first_error or result
                elif result is not None:
                    yield result
        finally:
            stop.set()  # threads end after their batch, or are abandoned
    if first_error is not None:
        raise first_error


def completed_entries(journal: result_files.Journal, batches: int) -> list[Mapping[str, Any]]:
    """Return all entries of a completed journal, in the order of their batches.

    Raises:
        UserError: An entry is missing, or was not written by this program.
    """
    entries = journal.completed_batches()
    missing = sorted(set(range(batches)) - set(entries))
    if missing:
        raise UserError(f"{journal.folder}: batches {missing[:5]} are not there yet; run the same command again")
    if not all(entry.keys() >= FACTS for entry in entries.values()):
        raise UserError(f"{journal.folder}: holds entries that this program did not write; delete it to start afresh")
    return [entries[number] for number in range(batches)]


def manifest_fields(entries: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the fields of a RunManifest that say how a journal's entries were computed.

    The seconds are those of the slowest process, and the memory that of the largest.
    """
    seconds_per_process: dict[int, float] = {}
    for entry in entries:
        seconds_per_process[entry["process"]] = seconds_per_process.get(entry["process"], 0.0) + entry["seconds"]
    commit, dirty = provenance.code_state()
    commits = list(dict.fromkeys(entry["commit"] or "unknown" for entry in entries))
    dirty_flags = {dirty, *(entry["dirty"] for entry in entries)}
    return {
        "commit": None if "unknown" in commits else commit,
        "commits": tuple(commits) if commits != [commit] else (),
        "dirty": None if None in dirty_flags else any(dirty_flags),
        "memory_gib": max((round(entry["memory_gib"], 3) for entry in entries if "memory_gib" in entry), default=None),
        "seconds": round(max(seconds_per_process.values(), default=0.0), 3),
    }
