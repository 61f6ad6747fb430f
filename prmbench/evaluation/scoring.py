"""Scores traces in batches. Every finished batch is journalled, so that a killed run resumes where it stopped.

The batches depend on the traces and the options alone: a resumed run forms the same ones, and its numbers are
the same to the last bit.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from prmbench.backends import Backend
from prmbench.core import batch_jobs, processes, result_files
from prmbench.core.batch_jobs import Progress
from prmbench.core.records import SCORING_VERSION, ScoredTrace, StepScores, Trace, Usage, UserError, join_scores
from prmbench.core.token_batches import longest_first, token_batches
from prmbench.engines.cost_budget import Budget

CPU_BATCH_TOKENS, GPU_BATCH_TOKENS = 256, 16384
"""Small on a CPU, where one trace at a time is fastest: a batch needs a mask, which takes the slow attention path."""

USAGE = tuple(f.name for f in fields(Usage))


@dataclass(frozen=True, slots=True)
class Plan:
    """The batches of a run, as indices of traces, longest traces first."""

    run_id: str
    batches: tuple[tuple[int, ...], ...]
    costs: tuple[int, ...]
    """Tokens per trace; 0 where a trace cannot be scored, or where no model runs."""

    @property
    def tokens(self) -> int:
        """Tokens of all traces, without padding."""
        return sum(self.costs)


def make_plan(run_id: str, backend: Backend, traces: Sequence[Trace], batch_tokens: int | None) -> Plan:
    """Form batches of at most `batch_tokens` padded tokens from traces sorted by length, then id.

    Args:
        run_id: Id of the run.
        backend: It counts the tokens of a trace.
        traces: What will be scored.
        batch_tokens: Padded tokens a batch may hold; None for the default of the backend or the device.
    """
    logging.getLogger(__name__).info("tokenizing %d traces", len(traces))
    budget = batch_budget(backend, batch_tokens)
    costs = tuple(backend.cost(trace) for trace in traces)
    if wrong := [cost for cost in costs if not isinstance(cost, int | np.integer)]:
        raise UserError(f"the backend's cost() gives a {type(wrong[0]).__name__}; it must give a number of tokens")
    return Plan(run_id, tuple(form_batches(traces, costs, budget)), costs)


def form_batches(traces: Sequence[Trace], costs: Sequence[int], budget: int) -> list[tuple[int, ...]]:
    """Return batches of trace indices, each of at most `budget` padded tokens: longest first, equal lengths by id."""
    return token_batches(costs, budget, longest_first(costs, [trace.id for trace in traces]))


def batch_budget(backend: Backend, batch_tokens: int | None) -> int:
    """Return the padded tokens a batch may hold: the option, or the default of the backend or the device."""
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
    max_cost: float | None = None,
    restart: bool = False,
) -> result_files.Journal:
    """Score this process's share of the batches that the journal does not hold yet, and wait for the others.

    Args:
        plan: The batches.
        folder: Where the journal is.
        backend: One that counts its requests itself has a `budget`; for others the cost of `at_most(trace)`, where
            they have that, is reserved before a batch.
        traces: The traces of the plan.
        progress: Called after every batch.
        max_cost: Limit of the cost, that of earlier interrupted runs included; None for no limit.
        restart: Forget the scores of an earlier interrupted run, but not its cost.

    Returns:
        The journal, complete once all processes have returned.

    Raises:
        UserError: The next batch may cost more than is left of `max_cost`, or a score is invalid.
    """
    identity = {
        "run_id": plan.run_id,
        "scoring_version": SCORING_VERSION,
        "plan": result_files.short_hash({"batches": plan.batches}),
    }
    journal = batch_jobs.open_journal(folder / f"{plan.run_id}.journal", identity, len(plan.batches), restart)
    earlier_usages = [_usage(entry) for entry in journal.completed_batches().values()]
    backend_budget: Budget | None = getattr(backend, "budget", None)
    budget = backend_budget or Budget()
    earlier_cost = sum(u.cost for u in earlier_usages)
    if backend_budget is not None:
        tokens = sum(u.prompt_tokens for u in earlier_usages), sum(u.completion_tokens for u in earlier_usages)
        earlier_cost = budget.open_ledger(journal.folder, processes.rank(), tokens)
    budget.open(max_cost, earlier_cost, processes.world_size())
    score_batch = batch_scorer(backend)

    def score(number: int) -> tuple[dict[str, Any], int]:
        batch = [traces[i] for i in plan.batches[number]]
        # Only under a cap: a local critic tokenizes everything once more to know the largest cost.
        reserved_cost = _max_cost(backend, batch) if budget.capped else 0.0
        with budget.trace(reserved_cost):
            scores = score_batch(batch)
            if backend_budget is None:
                budget.spend(sum(s.usage.cost for s in scores if s.usage is not None))
        entry: dict[str, Any] = {"scores": [join_scores(t, s).to_json() for t, s in zip(batch, scores, strict=True)]}
        usages = [s.usage for s in scores if s.usage is not None]
        if usages:
            total = {name: sum(getattr(u, name) for u in usages) for name in USAGE}
            entry |= {"usage": total, "said": {s.id: s.said for s in scores}}
        changes = sorted({change for s in scores for change in s.request_changes})
        if changes:
            entry["request_changes"] = changes
        return entry, sum(plan.costs[i] for i in plan.batches[number])

    batch_jobs.run_batches(journal, len(plan.batches), score, progress, backend.facts.workers)
    return journal


Score = Callable[[Sequence[Trace]], list[StepScores]]


def batch_scorer(backend: Backend) -> Score:
    """Return a function that scores a batch, checks what the backend returned, and stays within memory.

    Raises:
        UserError: The returned function raises it where scores contradict what the backend declares, or one trace is
            too large for the memory.
    """
    return within_memory(partial(_score, backend), backend.cost)


def within_memory(score: Score, cost: Callable[[Trace], int]) -> Score:
    """Return a `score` that splits a batch, and every one after it, into halves once memory has run out.

    The plan and the journal's entries stay the same.

    Args:
        score: Scores a batch.
        cost: Tokens of a trace, for the error message.

    Raises:
        UserError: The returned function raises it when half a batch does not fit.
    """
    halved = False

    def score_within_memory(batch: Sequence[Trace]) -> list[StepScores]:
        nonlocal halved
        if not halved:
            try:
                return score(batch)
            except torch.OutOfMemoryError as error:
                if len(batch) == 1:
                    raise _out_of_memory(batch, cost) from error
            halved = True
            logging.getLogger(__name__).warning("out of memory: from here on every batch is scored in two halves")
        torch.cuda.empty_cache()  # after the `except` block: the error keeps the tensors of the batch alive
        middle = (len(batch) + 1) // 2
        scores = []
        for half in filter(len, (batch[:middle], batch[middle:])):
            try:
                scores += score(half)
            except torch.OutOfMemoryError as error:
                raise _out_of_memory(half, cost) from error
        return scores

    return score_within_memory


def _out_of_memory(batch: Sequence[Trace], cost: Callable[[Trace], int]) -> UserError:
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


def _max_cost(backend: Backend, batch: Sequence[Trace]) -> float:
    """Return the largest possible cost of a batch; 0 for backends without `at_most`."""
    max_usage: Callable[[Trace], Usage] | None = getattr(backend, "at_most", None)
    return sum(max_usage(trace).cost for trace in batch) if max_usage else 0.0


def _usage(entry: Mapping[str, Any]) -> Usage:
    return Usage(**entry.get("usage", {}))


def _score(backend: Backend, batch: Sequence[Trace]) -> list[StepScores]:
    """Score a batch. Raises UserError where the scores contradict what the backend declares."""
    result = backend.score(batch)
    scores = list(result) if isinstance(result, Iterable) else [result]
    if wrong := [s for s in scores if not isinstance(s, StepScores)]:
        raise UserError(f"the backend's score() gives a {type(wrong[0]).__name__}; it must give StepScores")
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
    """Return the scores in a complete journal, and the fields of a RunManifest that say how they were computed.

    Raises:
        UserError: The journal is of other traces or incomplete, or all scores are NaN or infinite: then something is
            wrong with the model.
    """
    entries = batch_jobs.completed_entries(journal, len(plan.batches))
    try:
        rows = tuple(ScoredTrace.from_json(row) for entry in entries for row in entry["scores"])
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{journal.folder}: not a journal of scores ({error}); delete it to start afresh") from error
    if {row.id for row in rows} != {trace.id for trace in traces}:
        raise UserError(f"{journal.folder}: does not hold this run's traces; delete it to start afresh")
    if all(row.unscored for row in rows) and any(row.unscored == "non-finite" for row in rows):
        journal.remove()
        raise UserError("every score is NaN or infinite; check the weights, or use --dtype float32")
    return rows, {**batch_jobs.manifest_fields(entries), **_usage_fields(entries)}


def _usage_fields(entries: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the fields of a RunManifest about tokens and cost of generated answers; empty where there are none."""
    usages = [_usage(entry) for entry in entries if "usage" in entry]
    if not usages:
        return {}
    prompt_tokens, completion_tokens = (
        sum(getattr(u, name) for u in usages) for name in ("prompt_tokens", "completion_tokens")
    )
    return {
        "tokens": prompt_tokens + completion_tokens,
        "completion_tokens": completion_tokens,
        "answers": sum(len(texts) for entry in entries for texts in entry.get("said", {}).values()),
        "cost": round(sum(u.cost for u in usages), 6) or None,
        "request_changes": tuple(sorted({c for entry in entries for c in entry.get("request_changes", ())})),
    }


def critiques(journal: result_files.Journal) -> dict[str, Sequence[str]]:
    """Return the texts of critics by trace id; empty for other backends."""
    return {
        name: texts
        for entry in journal.completed_batches().values()
        for name, texts in sorted(entry.get("said", {}).items())
    }
