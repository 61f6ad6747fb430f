"""Batches shared among processes and journalled: what is on disk is not done again, and who made it is told.

What a batch is, and what doing it means, is the caller's: scoring.py scores traces, policy.py draws completions.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from prmbench import distributed, manifest, store
from prmbench.schema import UserError

Progress = Callable[[int, int, float], None]
"""Called with (batches done, batches in all, tokens a second)."""
Work = Callable[[int], tuple[Mapping[str, Any], int]]
"""Batch number -> (its part of the journal's entry, its tokens)."""


def work(journal: store.Journal, batches: int, do: Work, progress: Progress | None = None) -> None:
    """Does this process's share of the batches that the journal does not hold yet, and waits for the others."""
    rank = distributed.rank()
    with journal.claimed(rank):
        distributed.barrier()  # all are here before any begins
        done = set(journal.done())
        commit, dirty = manifest.code_state()
        begun, tokens = time.monotonic(), 0
        for number in range(rank, batches, distributed.world_size()):
            if number in done:
                continue
            start = time.monotonic()
            made, count = do(number)
            now = time.monotonic()
            facts = {"batch": number, "process": rank, "seconds": now - start, "commit": commit, "dirty": dirty}
            journal.append(rank, {**made, **facts})
            tokens += count
            done.add(number)
            if progress is not None:
                progress(len(done), batches, tokens / max(now - begun, 1e-9))
        distributed.barrier()


def finished(journal: store.Journal, batches: int) -> list[Mapping[str, Any]]:
    """All entries, by batch. Raises UserError when some are not there."""
    entries = journal.done()
    lacking = sorted(set(range(batches)) - set(entries))
    if lacking:
        raise UserError(f"{journal.folder}: batches {lacking[:5]} are not there yet; run the same command again")
    return [entries[number] for number in sorted(entries)]


def provenance(entries: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """How a journal's entries were made, by RunManifest's names."""
    per_process: dict[int, float] = {}
    for entry in entries:
        per_process[entry["process"]] = per_process.get(entry["process"], 0.0) + entry["seconds"]
    commit, dirty = manifest.code_state()
    sittings = list(dict.fromkeys(entry["commit"] or "unknown" for entry in entries))
    every = {dirty, *(entry["dirty"] for entry in entries)}
    return {
        "commit": None if "unknown" in sittings else commit,
        "commits": tuple(sittings) if sittings != [commit] else (),
        "dirty": None if None in every else any(every),
        "seconds": round(max(per_process.values(), default=0.0), 3),
    }
