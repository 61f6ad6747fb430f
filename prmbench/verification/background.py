"""Verifies completions in a thread, while the caller samples the next ones."""

from __future__ import annotations

from collections.abc import Iterator
from multiprocessing.pool import ThreadPool
from queue import Empty, SimpleQueue

from prmbench.verification.verifiers import Claim, Verdict, Verifier

CLAIMS_AT_ONCE = 64
"""Most claims that the verifier gets together, which bounds how long the thread goes on after the caller has failed."""
Verdicts = list[tuple[int, Verdict]]


class BackgroundVerifier:
    """Checks claims while the caller goes on; meanwhile its thread alone uses the verifier. It is a context manager.

    Claims that arrive while others are checked are checked together, so that all workers of the verifier are busy.
    """

    def __init__(self, verifier: Verifier) -> None:
        """Wrap a verifier, which stays open."""
        self._verifier = verifier
        self._claims: SimpleQueue[tuple[int, Claim]] = SimpleQueue()
        self._results: SimpleQueue[Verdicts | BaseException] = SimpleQueue()
        self._pending = 0
        self._is_stopped = False
        self._thread = ThreadPool(1)

    def __enter__(self) -> BackgroundVerifier:
        return self

    def __exit__(self, *_: object) -> None:
        """Wait for the claims in progress, and drop the others."""
        self._is_stopped = True
        self._thread.close()
        self._thread.join()

    def submit(self, key: int, claim: Claim) -> None:
        """Let a claim be checked; its verdict will come with this key."""
        self._pending += 1
        self._claims.put((key, claim))
        self._thread.apply_async(self._check_waiting, callback=self._results.put, error_callback=self._results.put)

    def finished(self) -> Iterator[tuple[int, Verdict]]:
        """Yield the verdicts that are there already. Raises the verifier's error where it failed."""
        while not self._results.empty():
            yield from self._next()

    def remaining(self) -> Iterator[tuple[int, Verdict]]:
        """Wait for all claims, and yield their verdicts. Raises the verifier's error where it failed."""
        while self._pending:
            yield from self._next()

    def _next(self) -> Verdicts:
        result = self._results.get()
        if isinstance(result, BaseException):
            raise result
        self._pending -= len(result)
        return result

    def _check_waiting(self) -> Verdicts:
        """Check the claims that are waiting; none where an earlier call has checked them already."""
        waiting: list[tuple[int, Claim]] = []
        while len(waiting) < CLAIMS_AT_ONCE and not self._is_stopped:
            try:
                waiting.append(self._claims.get_nowait())
            except Empty:
                break
        verdicts = self._verifier.check([claim for _, claim in waiting]) if waiting else []
        return [(key, verdict) for (key, _), verdict in zip(waiting, verdicts, strict=True)]
