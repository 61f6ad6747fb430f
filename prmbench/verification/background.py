"""Verifies completions in a thread, while the caller samples the next ones."""

from __future__ import annotations

from collections.abc import Iterator
from queue import Empty, SimpleQueue
from threading import Thread

from prmbench.verification.verifiers import Claim, Verdict, Verifier

CLAIMS_AT_ONCE = 64
"""Most claims that the thread gives the verifier together; it ends after such a group when the caller fails."""
Key = int


class BackgroundVerifier:
    """A verifier that checks claims while the caller goes on. Use it as a context manager.

    Its thread alone uses the verifier, so the caller must not.
    """

    def __init__(self, verifier: Verifier) -> None:
        """Wrap a verifier, which stays open."""
        self._verifier = verifier
        self._claims: SimpleQueue[tuple[Key, Claim] | None] = SimpleQueue()
        self._results: SimpleQueue[tuple[Key, Verdict] | BaseException] = SimpleQueue()
        self._pending = 0
        self._is_stopped = False
        self._thread = Thread(target=self._work, daemon=True)

    def __enter__(self) -> BackgroundVerifier:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Wait for the claims in progress, so that nobody uses the verifier any more."""
        self._is_stopped = True
        self._claims.put(None)
        self._thread.join()

    def submit(self, key: Key, claim: Claim) -> None:
        """Let a claim be checked; its verdict will come with this key."""
        self._pending += 1
        self._claims.put((key, claim))

    def finished(self) -> Iterator[tuple[Key, Verdict]]:
        """Yield the verdicts that are there already. Raises the error of the verifier where it failed."""
        while self._pending and not self._results.empty():
            yield self._next()

    def remaining(self) -> Iterator[tuple[Key, Verdict]]:
        """Wait for all claims, and yield their verdicts. Raises the error of the verifier where it failed."""
        while self._pending:
            yield self._next()

    def _next(self) -> tuple[Key, Verdict]:
        result = self._results.get()
        if isinstance(result, BaseException):
            raise result
        self._pending -= 1
        return result

    def _work(self) -> None:
        """Check claims, as many as are waiting, until the caller leaves."""
        while not self._is_stopped:
            group = self._next_claims()
            if not group:
                return
            try:
                verdicts = self._verifier.check([claim for _, claim in group])
            except BaseException as error:  # noqa: BLE001 - raised in the caller's thread
                self._results.put(error)
                return
            for (key, _), verdict in zip(group, verdicts, strict=True):
                self._results.put((key, verdict))

    def _next_claims(self) -> list[tuple[Key, Claim]]:
        """Wait for a claim, and return it with others that wait; nothing once the caller has left."""
        group: list[tuple[Key, Claim]] = []
        item = self._claims.get()
        while item is not None:
            group.append(item)
            if len(group) == CLAIMS_AT_ONCE:
                break
            try:
                item = self._claims.get_nowait()
            except Empty:
                break
        return group
