"""Scores the traces of many requests in shared batches, by one thread that owns the model.

Requests wait in a bounded queue, are measured in order, and are cut into batches by the function that plans a run of
`prmbench score`. A request whose client has gone, or whose time is over, is left out of the batches that remain.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal, TypeVar

from prmbench.backends import Backend
from prmbench.core.records import StepScores, Trace, UserError
from prmbench.core.redaction import one_line
from prmbench.evaluation import run_identity, scoring

T = TypeVar("T")
BATCHES_AT_ONCE = 32
"""Requests are batched together until their tokens fill this many batches; later ones wait for the next round."""


class QueueFullError(Exception):
    """As many requests wait as are allowed."""


class ScoringError(Exception):
    """The model failed on a request; the message is one line."""


class StoppedError(Exception):
    """The server stopped before the request was scored."""


@dataclass(frozen=True, slots=True)
class Scored:
    """The scores of a trace, and the number of tokens of the model's input."""

    scores: StepScores
    input_tokens: int


@dataclass(eq=False)
class Job:
    """The traces of one request, which are answered together."""

    traces: tuple[Trace, ...]
    answer: asyncio.Future[list[Scored]]
    costs: tuple[int, ...] = ()
    scores: dict[int, StepScores] = field(default_factory=dict)
    """The scores that are there already, by the trace's position."""


Entry = tuple[Job, int]
"""A trace in a batch: its job, and its position there."""


class Scheduler:
    """The queue in front of a model. `run` has to run for `score` to return."""

    def __init__(
        self, backend: Backend, budget: int, max_pending: int, batching: Literal["shared", "request"] = "shared"
    ) -> None:
        """Make a queue.

        Args:
            backend: The model; every call of it is made in one thread.
            budget: Padded tokens of a batch.
            max_pending: Requests that may be unanswered at once.
            batching: Whether batches hold traces of several requests.
        """
        self._backend, self._budget, self._max_pending, self._batching = backend, budget, max_pending, batching
        self._score_batch = scoring.batch_scorer(backend)
        self._pending: set[Job] = set()
        self._waiting: deque[Job] = deque()
        self._arrived = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, "model")
        self._accepted = 0
        # Where an id seeds the scores, it has to stay; elsewhere ids of different requests are made different.
        self._ids_are_seeds = not run_identity.is_deterministic(backend.facts)
        self.busy_since: float | None = None
        """When the call of the model that is running began, on the monotonic clock."""

    @property
    def is_full(self) -> bool:
        """Whether as many requests are unanswered as may be."""
        return len(self._pending) >= self._max_pending

    async def score(self, traces: Sequence[Trace]) -> list[Scored]:
        """Return the scores of a request's traces, in order; when this is cancelled, its work is dropped.

        Raises:
            QueueFullError: Too many requests are unanswered.
            ScoringError: The model failed on this request.
            StoppedError: `stop` was called.
        """
        if self.is_full:
            raise QueueFullError
        prefix = "" if self._ids_are_seeds else f"{self._accepted}/"
        self._accepted += 1
        answer = asyncio.get_running_loop().create_future()
        job = Job(tuple(replace(trace, id=prefix + trace.id) for trace in traces), answer)
        self._pending.add(job)
        self._waiting.append(job)
        self._arrived.set()
        try:
            scored: list[Scored] = await answer
        finally:
            self._pending.discard(job)
            if job in self._waiting:
                self._waiting.remove(job)
        return [replace(s, scores=replace(s.scores, id=trace.id)) for s, trace in zip(scored, traces, strict=True)]

    async def run(self) -> None:
        """Score what arrives, until this is cancelled."""
        while True:
            await self._arrived.wait()
            jobs = await self._next_jobs()
            for batch in self._batches(jobs):
                await self._score(batch)
            forget = getattr(self._backend, "forget_encodings", None)
            if forget is not None:
                forget()

    def stop(self) -> None:
        """Answer every request that is still unanswered with StoppedError."""
        for job in self._pending:
            if not job.answer.done():
                job.answer.set_exception(StoppedError())

    def close(self) -> None:
        """Let the thread end once its call of the model has returned."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def _next_jobs(self) -> list[Job]:
        """Return the oldest waiting jobs with their costs, as many as are batched together."""
        jobs: list[Job] = []
        tokens, most_tokens = 0, BATCHES_AT_ONCE * self._budget
        most_jobs = 1 if self._batching == "request" else self._max_pending
        while self._waiting and tokens < most_tokens and len(jobs) < most_jobs:
            job = self._waiting.popleft()
            if job.answer.done():
                continue
            measured = await self._in_thread(partial(self._costs, job.traces))
            if _fail_if_failed(job, measured):
                continue
            job.costs = measured.result()
            tokens += sum(job.costs)
            jobs.append(job)
        if not self._waiting:
            self._arrived.clear()
        return jobs

    def _costs(self, traces: Sequence[Trace]) -> tuple[int, ...]:
        return tuple(self._backend.cost(trace) for trace in traces)

    def _batches(self, jobs: Sequence[Job]) -> Iterator[list[Entry]]:
        """Yield the batches of the jobs, as `prmbench score` forms them, without what nobody waits for any longer."""
        entries = [(job, index) for job in jobs for index in range(len(job.traces))]
        traces = [job.traces[index] for job, index in entries]
        costs = [job.costs[index] for job, index in entries]
        for batch in scoring.form_batches(traces, costs, self._budget):
            for part in _with_unique_ids([entries[i] for i in batch]):
                unanswered = [(job, index) for job, index in part if not job.answer.done()]
                if unanswered:
                    yield unanswered

    async def _score(self, batch: Sequence[Entry]) -> None:
        """Score a batch; where that fails, each of its jobs alone, so that only the one at fault fails."""
        jobs = list(dict.fromkeys(job for job, _ in batch))
        done = await self._in_thread(lambda: self._score_batch([job.traces[index] for job, index in batch]))
        if done.exception() is None:
            for (job, index), scores in zip(batch, done.result(), strict=True):
                _deliver(job, index, scores)
        elif len(jobs) == 1:
            _fail_if_failed(jobs[0], done)
        else:
            for job in [job for job in jobs if not job.answer.done()]:
                await self._score([entry for entry in batch if entry[0] is job])

    async def _in_thread(self, call: Callable[[], T]) -> Future[T]:
        """Return the finished call with its result or its error, whichever kind that is."""
        loop, finished = asyncio.get_running_loop(), asyncio.Event()
        self.busy_since = time.monotonic()
        future = self._thread.submit(call)
        future.add_done_callback(lambda _: _notify(loop, finished))
        await finished.wait()
        self.busy_since = None
        return future


def _notify(loop: asyncio.AbstractEventLoop, finished: asyncio.Event) -> None:
    if not loop.is_closed():  # the server may have ended during the call
        loop.call_soon_threadsafe(finished.set)


def _deliver(job: Job, index: int, scores: StepScores) -> None:
    job.scores[index] = scores
    if len(job.scores) == len(job.traces) and not job.answer.done():
        job.answer.set_result([Scored(job.scores[i], cost) for i, cost in enumerate(job.costs)])


def _fail_if_failed(job: Job, call: Future[Any]) -> bool:
    """Answer the job with the error of the call; return whether there is one."""
    error = call.exception()
    if error is None:
        return False
    if not job.answer.done():
        detail = one_line(error) if isinstance(error, UserError) else type(error).__name__
        failure = ScoringError(f"the model failed on this request: {detail}")
        failure.__cause__ = error
        job.answer.set_exception(failure)
    return True


def _with_unique_ids(batch: Sequence[Entry]) -> list[list[Entry]]:
    """Split a batch so that no id is twice in a part: backends may look up traces by id."""
    parts: list[dict[str, Entry]] = []
    for job, index in batch:
        name = job.traces[index].id
        part = next((p for p in parts if name not in p), None)
        if part is None:
            parts.append(part := {})
        part[name] = (job, index)
    return [list(part.values()) for part in parts]
