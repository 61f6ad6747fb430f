"""Traces -> step scores, batch by batch. Whole batches are journalled, so a killed run goes on where it was.

The batch plan is a function of the traces and the options alone: a resumed run forms the same batches, and so
gets the same numbers to the last bit.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prmbench import distributed, manifest, store
from prmbench.backends import Backend
from prmbench.schema import SCORING_VERSION, ScoredTrace, Trace, UserError, scored

Progress = Callable[[int, int, float], None]
"""Called with (batches done, batches in all, tokens a second)."""
CPU_BATCH_TOKENS, GPU_BATCH_TOKENS = 256, 16384
"""On a CPU one trace at a time is fastest: a batch needs a mask, and a mask the slow attention path."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What will be scored, and in which batches of trace indices (longest traces first)."""

    run_id: str
    batches: tuple[tuple[int, ...], ...]
    costs: tuple[int, ...]
    """Tokens per trace; 0 where a trace cannot be scored or no model is run."""

    @property
    def tokens(self) -> int:
        """Tokens of all traces, padding left out."""
        return sum(self.costs)


def make_plan(run_id: str, backend: Backend, traces: Sequence[Trace], batch_tokens: int | None) -> Plan:
    """Batches of at most `batch_tokens` padded tokens, traces sorted by length, then id."""
    budget = batch_budget(backend, batch_tokens)
    costs = tuple(backend.cost(trace) for trace in traces)
    order = sorted(range(len(traces)), key=lambda i: (-costs[i], traces[i].id))
    batches: list[list[int]] = []
    width = 0
    for i in order:
        if batches and costs[i] and (len(batches[-1]) + 1) * width <= budget:
            batches[-1].append(i)
        elif batches and not costs[i] and not width:
            batches[-1].append(i)  # what costs nothing goes into one batch
        else:
            batches.append([i])
            width = costs[i]
    return Plan(run_id, tuple(map(tuple, batches)), costs)


def batch_budget(backend: Backend, batch_tokens: int | None) -> int:
    """Padded tokens a batch may hold: what was asked for, or the device's default."""
    if batch_tokens is not None and batch_tokens < 1:
        raise UserError(f"--batch-tokens is {batch_tokens}; expected at least 1")
    return batch_tokens or (CPU_BATCH_TOKENS if backend.facts.device in ("", "cpu") else GPU_BATCH_TOKENS)


def score_all(
    plan: Plan, folder: Path, backend: Backend, traces: Sequence[Trace], progress: Progress | None = None
) -> store.Journal:
    """Scores this process's share of the batches that the journal does not hold yet, and waits for the others."""
    identity = {
        "run_id": plan.run_id,
        "scoring_version": SCORING_VERSION,
        "plan": store.short_hash({"batches": plan.batches}),
    }
    journal = store.Journal(folder / f"{plan.run_id}.journal", identity)
    with journal.claimed(distributed.rank()):
        distributed.barrier()  # all are here before any begins
        _score_share(plan, journal, backend, traces, progress)
        distributed.barrier()
    return journal


def _score_share(
    plan: Plan, journal: store.Journal, backend: Backend, traces: Sequence[Trace], progress: Progress | None
) -> None:
    done = set(journal.done())
    commit, dirty = manifest.code_state()
    begun, tokens = time.monotonic(), 0
    for number in range(distributed.rank(), len(plan.batches), distributed.world_size()):
        if number in done:
            continue
        batch = [traces[i] for i in plan.batches[number]]
        start = time.monotonic()
        rows = _score(backend, batch)
        now = time.monotonic()
        facts = {"process": distributed.rank(), "seconds": now - start, "commit": commit, "dirty": dirty}
        journal.append(distributed.rank(), store.batch_entry(number, rows, facts))
        tokens += sum(plan.costs[i] for i in plan.batches[number])
        done.add(number)
        if progress is not None:
            progress(len(done), len(plan.batches), tokens / max(now - begun, 1e-9))


def _score(backend: Backend, batch: Sequence[Trace]) -> list[ScoredTrace]:
    scores = list(backend.score(batch))
    if [s.id for s in scores] != [trace.id for trace in batch]:
        raise UserError("the backend's score() must give one entry for each trace, in order, with the trace's id")
    for s in scores:
        if not s.unscored and backend.facts.kind == "logratio" and len(s.tokens) != len(s.values):
            raise UserError("the backend's scores are sums, which need the number of tokens of every step")
        if not s.unscored and not set(backend.facts.series) <= set(s.also):
            raise UserError(f"the backend's scores lack the series {', '.join(backend.facts.series)} that it declares")
    return [scored(trace, s) for trace, s in zip(batch, scores, strict=True)]


def collect(
    plan: Plan, journal: store.Journal, traces: Sequence[Trace]
) -> tuple[tuple[ScoredTrace, ...], dict[str, Any]]:
    """All scores of a finished journal, and what it says of how they were made (RunManifest's names).

    Raises UserError when no trace has a usable number: then something is wrong with the model, not with a trace.
    """
    entries = journal.done()
    rows = tuple(ScoredTrace.from_json(row) for n in sorted(entries) for row in entries[n]["scores"])
    lacking = sorted(set(range(len(plan.batches))) - set(entries))
    if lacking:
        raise UserError(f"{journal.folder}: batches {lacking[:5]} are not there yet; run the same command again")
    if {row.id for row in rows} != {trace.id for trace in traces}:
        raise UserError(f"{journal.folder}: does not hold this run's traces; delete it to start afresh")
    if all(row.unscored for row in rows) and any(row.unscored == "non-finite" for row in rows):
        journal.remove()
        raise UserError("every score is NaN or infinite; check the weights, or use --dtype float32")
    return rows, _provenance([entries[n] for n in sorted(entries)])


def _provenance(entries: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
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
