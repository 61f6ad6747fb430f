"""Traces -> step scores, batch by batch. Whole batches are journalled, so a killed run goes on where it was.

The batch plan is a function of the traces and the options alone: a resumed run forms the same batches, and so
gets the same numbers to the last bit.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import torch

from prmbench.backends import Backend
from prmbench.core import batch_jobs, processes, result_files
from prmbench.core.batch_jobs import Progress
from prmbench.core.records import SCORING_VERSION, ScoredTrace, StepScores, Trace, Usage, UserError, scored
from prmbench.engines.cost_budget import Budget

CPU_BATCH_TOKENS, GPU_BATCH_TOKENS = 256, 16384
"""On a CPU one trace at a time is fastest: a batch needs a mask, and a mask the slow attention path."""

USAGE = tuple(f.name for f in fields(Usage))


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
    default = backend.facts.batch_tokens or (
        CPU_BATCH_TOKENS if backend.facts.device in ("", "cpu") else GPU_BATCH_TOKENS
    )
    return batch_tokens or default


def score_all(
    plan: Plan,
    folder: Path,
    backend: Backend,
    traces: Sequence[Trace],
    progress: Progress | None = None,
    most_cost: float | None = None,
    anew: bool = False,
) -> result_files.Journal:
    """Scores this process's share of the batches that the journal does not hold yet, and waits for the others.

    `anew` forgets what an earlier sitting has scored, but not what it has spent. Raises UserError when what comes next
    may cost more than is left of `most_cost`, over all sittings. A backend whose requests are counted one by one has a
    `budget`; of any other one, `at_most(trace)` is reserved where it has that.
    """
    identity = {
        "run_id": plan.run_id,
        "scoring_version": SCORING_VERSION,
        "plan": result_files.short_hash({"batches": plan.batches}),
    }
    journal = batch_jobs.open_journal(folder / f"{plan.run_id}.journal", identity, len(plan.batches), anew)
    answered = [_usage(entry) for entry in journal.done().values()]
    counted: Budget | None = getattr(backend, "budget", None)
    budget = counted or Budget()
    earlier = sum(u.cost for u in answered)
    if counted is not None:
        tokens = sum(u.prompt_tokens for u in answered), sum(u.completion_tokens for u in answered)
        earlier = budget.open_ledger(journal.folder, processes.rank(), tokens)
    budget.open(most_cost, earlier, processes.world_size())
    scored_batch = within_memory(partial(_score, backend), backend.cost)

    def score(number: int) -> tuple[dict[str, Any], int]:
        batch = [traces[i] for i in plan.batches[number]]
        # Only under a cap: asking makes a local critic tokenize everything once more.
        most = _most_cost(backend, batch) if budget.capped else 0.0
        with budget.trace(most):
            found = scored_batch(batch)
            if counted is None:
                budget.spend(sum(s.usage.cost for s in found if s.usage is not None))
        entry: dict[str, Any] = {"scores": [scored(t, s).to_json() for t, s in zip(batch, found, strict=True)]}
        used = [s.usage for s in found if s.usage is not None]
        if used:
            total = {name: sum(getattr(u, name) for u in used) for name in USAGE}
            entry |= {"usage": total, "said": {s.id: s.said for s in found}}
        changes = sorted({change for s in found for change in s.request_changes})
        if changes:
            entry["request_changes"] = changes
        return entry, sum(plan.costs[i] for i in plan.batches[number])

    batch_jobs.work(journal, len(plan.batches), score, progress, backend.facts.workers)
    return journal


Score = Callable[[Sequence[Trace]], list[StepScores]]


def within_memory(score: Score, cost: Callable[[Trace], int]) -> Score:
    """`score`, which does a batch in two halves once memory has run out, and every batch after it.

    The plan stays as it is, and so do the journal's entries. Raises UserError when half a batch is too much.
    """
    halved = False

    def within(batch: Sequence[Trace]) -> list[StepScores]:
        nonlocal halved
        if not halved:
            try:
                return score(batch)
            except torch.OutOfMemoryError as error:
                if len(batch) == 1:
                    raise _too_much(batch, cost) from error
            halved = True
            logging.getLogger(__name__).warning("out of memory: from here on every batch is scored in two halves")
        torch.cuda.empty_cache()  # behind the `except`: the error holds what the batch had allocated
        middle = (len(batch) + 1) // 2
        found = []
        for half in filter(len, (batch[:middle], batch[middle:])):
            try:
                found += score(half)
            except torch.OutOfMemoryError as error:
                raise _too_much(half, cost) from error
        return found

    return within


def _too_much(batch: Sequence[Trace], cost: Callable[[Trace], int]) -> UserError:
    longest = max(map(cost, batch))
    if len(batch) > 1:
        return UserError(
            f"out of memory: {len(batch)} traces of up to {longest} tokens do not fit; use a smaller --batch-tokens, "
            "--dtype bfloat16 or another --device"
        )
    return UserError(
        f"out of memory: trace {batch[0].id} of {longest} tokens does not fit, at any --batch-tokens; use "
        "--dtype bfloat16 or another --device (balanced: all GPUs together)"
    )


def _most_cost(backend: Backend, batch: Sequence[Trace]) -> float:
    """What the answers about a batch may cost; 0 of a backend that cannot say."""
    at_most: Callable[[Trace], Usage] | None = getattr(backend, "at_most", None)
    return sum(at_most(trace).cost for trace in batch) if at_most else 0.0


def _usage(entry: Mapping[str, Any]) -> Usage:
    return Usage(**entry.get("usage", {}))


def _score(backend: Backend, batch: Sequence[Trace]) -> list[StepScores]:
    scores = list(backend.score(batch))
    if [s.id for s in scores] != [trace.id for trace in batch]:
        raise UserError("the backend's score() must give one entry for each trace, in order, with the trace's id")
    for s in scores:
        if not s.unscored and backend.facts.kind == "logratio" and len(s.tokens) != len(s.values):
            raise UserError("the backend's scores are sums, which need the number of tokens of every step")
        if backend.facts.kind == "prob" and any(math.isfinite(v) and not 0 <= v <= 1 for v in s.values):
            raise UserError(
                f"the backend's scores of {s.id} are not from 0 to 1, and its kind is prob; name its kind value"
            )
        if not s.unscored and not set(backend.facts.series) <= set(s.also):
            raise UserError(f"the backend's scores lack the series {', '.join(backend.facts.series)} that it declares")
    return scores


def collect(
    plan: Plan, journal: result_files.Journal, traces: Sequence[Trace]
) -> tuple[tuple[ScoredTrace, ...], dict[str, Any]]:
    """All scores of a finished journal, and what it says of how they were made (RunManifest's names).

    Raises UserError when no trace has a usable number: then something is wrong with the model, not with a trace.
    """
    entries = batch_jobs.finished(journal, len(plan.batches))
    try:
        rows = tuple(ScoredTrace.from_json(row) for entry in entries for row in entry["scores"])
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{journal.folder}: not a journal of scores ({error}); delete it to start afresh") from error
    if {row.id for row in rows} != {trace.id for trace in traces}:
        raise UserError(f"{journal.folder}: does not hold this run's traces; delete it to start afresh")
    if all(row.unscored for row in rows) and any(row.unscored == "non-finite" for row in rows):
        journal.remove()
        raise UserError("every score is NaN or infinite; check the weights, or use --dtype float32")
    return rows, {**batch_jobs.manifest_fields(entries), **_totals(entries)}


def _totals(entries: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What generated answers took, by RunManifest's names; empty where there were none."""
    used = [_usage(entry) for entry in entries if "usage" in entry]
    if not used:
        return {}
    prompts, answers = (sum(getattr(u, name) for u in used) for name in ("prompt_tokens", "completion_tokens"))
    return {
        "tokens": prompts + answers,
        "completion_tokens": answers,
        "cost": round(sum(u.cost for u in used), 6) or None,
        "request_changes": tuple(sorted({c for entry in entries for c in entry.get("request_changes", ())})),
    }


def said(journal: result_files.Journal) -> dict[str, Sequence[str]]:
    """What critics wrote, by trace id; empty for other backends."""
    return {name: texts for entry in journal.done().values() for name, texts in sorted(entry.get("said", {}).items())}
