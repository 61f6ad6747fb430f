"""Batches shared among processes and journalled: what is on disk is not done again, and who made it is told.

What a batch is, and what doing it means, is the caller's: scoring.py scores traces, policy.py draws completions.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from multiprocessing.pool import ThreadPool
from pathlib import Path
from queue import SimpleQueue
from threading import Event
from typing import Any

from prmbench.core import processes, provenance, result_files
from prmbench.core.records import Notice, UserError

FACTS = {"process", "seconds", "commit", "dirty"}
"""What every entry of a journal says of how it was made."""
Progress = Callable[[int, int, float], None]
"""Called with (batches done, batches in all, tokens a second)."""
Made = tuple[Mapping[str, Any], int]
"""A batch's part of the journal's entry, and its tokens."""
Work = Callable[[int], Made]
"""Batch number -> what is made of it."""


def open_journal(folder: Path, identity: Mapping[str, Any], batches: int, anew: bool = False) -> result_files.Journal:
    """The journal of a run of so many batches, emptied first if `anew`; says what an earlier sitting has left.

    All processes call it. Raises UserError when the folder holds another run.
    """
    first = processes.rank() == 0
    if not first:
        processes.barrier()  # the first may have to empty it
    journal = result_files.Journal(folder, identity, anew=anew and first)
    if first:
        processes.barrier()
        done = len(journal.done())
        if done:
            message = f"{folder}: {done} of {batches} batches were done before and are used; delete it to begin anew"
            warnings.warn(message, Notice, stacklevel=2)
    return journal


def work(
    journal: result_files.Journal, batches: int, do: Work, progress: Progress | None = None, workers: int = 1
) -> None:
    """Does this process's share of the batches that the journal does not hold yet, and waits for the others.

    `workers`: batches under way at once, in threads.
    """
    rank = processes.rank()
    with journal.claimed(rank):
        processes.barrier()  # all are here before any begins
        done = set(journal.done())
        commit, dirty = provenance.code_state()
        begun = last = time.monotonic()
        tokens = 0
        mine = [number for number in range(rank, batches, processes.world_size()) if number not in done]
        for number, (made, count) in _results(mine, do, workers):
            now = time.monotonic()  # the seconds of an entry are those since the one before: they add up to the wall's
            facts = {"batch": number, "process": rank, "seconds": now - last, "commit": commit, "dirty": dirty}
            journal.append(rank, {**made, **facts, "memory_gib": processes.peak_memory_gib()})
            last = now
            tokens += count
            done.add(number)
            if progress is not None:
                progress(len(done), batches, tokens / max(now - begun, 1e-9))
        processes.barrier()


def _results(numbers: Sequence[int], do: Work, workers: int) -> Iterator[tuple[int, Made]]:
    """(number, what was made) as they come. When one fails, those under way are given out first, and no more begun."""
    if workers == 1:
        yield from ((number, do(number)) for number in numbers)
        return
    stop = Event()
    ended: SimpleQueue[tuple[int, Made] | BaseException | None] = SimpleQueue()

    def unless_stopped(number: int) -> tuple[int, Made] | None:
        if stop.is_set():
            return None
        try:
            return number, do(number)
        except BaseException:
            stop.set()
            raise

    failed: BaseException | None = None
    # Daemon threads, which concurrent.futures has none of: on Ctrl-C nobody waits for what a server may never say.
    with ThreadPool(min(workers, len(numbers) or 1)) as pool:
        for number in numbers:
            pool.apply_async(unless_stopped, (number,), callback=ended.put, error_callback=ended.put)
        try:
            for _ in numbers:
                result = ended.get()
                if isinstance(result, BaseException):
                    failed = failed or result
                elif result is not None:
                    yield result
        finally:
            stop.set()  # what is under way ends, or is left behind
    if failed is not None:
        raise failed


def finished(journal: result_files.Journal, batches: int) -> list[Mapping[str, Any]]:
    """All entries, by batch. Raises UserError when some are not there."""
    entries = journal.done()
    lacking = sorted(set(range(batches)) - set(entries))
    if lacking:
        raise UserError(f"{journal.folder}: batches {lacking[:5]} are not there yet; run the same command again")
    if not all(entry.keys() >= FACTS for entry in entries.values()):
        raise UserError(f"{journal.folder}: holds entries that this program did not write; delete it to start afresh")
    return [entries[number] for number in range(batches)]


def manifest_fields(entries: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """How a journal's entries were made, by RunManifest's names."""
    per_process: dict[int, float] = {}
    for entry in entries:
        per_process[entry["process"]] = per_process.get(entry["process"], 0.0) + entry["seconds"]
    commit, dirty = provenance.code_state()
    sittings = list(dict.fromkeys(entry["commit"] or "unknown" for entry in entries))
    every = {dirty, *(entry["dirty"] for entry in entries)}
    return {
        "commit": None if "unknown" in sittings else commit,
        "commits": tuple(sittings) if sittings != [commit] else (),
        "dirty": None if None in every else any(every),
        "memory_gib": max((round(entry["memory_gib"], 3) for entry in entries if "memory_gib" in entry), default=None),
        "seconds": round(max(per_process.values(), default=0.0), 3),
    }
