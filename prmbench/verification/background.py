"""Verifies completions in a thread, while the caller samples the next ones."""

from __future__ import annotations

from collections.abc import Callable
from multiprocessing.pool import ThreadPool
from queue import Empty, SimpleQueue

from prmbench.verification.verifiers import Claim, Verdict, Verifier

CLAIMS_AT_ONCE = 64
"""Most claims that the verifier gets together; their verdicts come together, too."""


class BackgroundVerifier:
    """Checks claims in a thread while the caller goes on; it alone uses the verifier. It is a context manager.

    Claims that arrive while others are checked are checked together, so that all workers of the verifier are busy.
    Verdicts are reported in the thread: the caller may be in one long call of an engine when they come.
    """

    def __init__(self, verifier: Verifier, on_verdict: Callable[[int, Verdict], None]) -> None:
        """Wrap a verifier, which stays open.

        Args:
            verifier: Checks the claims.
            on_verdict: Called in the thread with the key and the verdict of each claim.
        """
        self._verifier = verifier
        self._on_verdict = on_verdict
        self._claims: SimpleQueue[tuple[int, Claim]] = SimpleQueue()
        self._error: BaseException | None = None
        self._is_stopped = False
        self._thread = ThreadPool(1)

    def __enter__(self) -> BackgroundVerifier:
        return self

    def __exit__(self, *_: object) -> None:
        """Wait for the workers' next reply, and drop all other claims."""
        self._is_stopped = True
        self._join()

    def submit(self, key: int, claim: Claim) -> None:
        """Let a claim be checked. Raises the error of the verifier or of `on_verdict` where one has failed."""
        self._raise_error()
        self._claims.put((key, claim))
        self._thread.apply_async(self._check_waiting, error_callback=self._fail)

    def finish(self) -> None:
        """Wait for all verdicts; none can be submitted afterwards. Raises what `submit` raises."""
        self._join()
        self._raise_error()

    def _join(self) -> None:
        self._thread.close()
        self._thread.join()

    def _fail(self, error: BaseException) -> None:
        self._error = self._error or error

    def _raise_error(self) -> None:
        if self._error is not None:
            raise self._error

    def _check_waiting(self) -> None:
        """Check the claims that are waiting; there are none where an earlier call has checked them already."""
        waiting: list[tuple[int, Claim]] = []
        while len(waiting) < CLAIMS_AT_ONCE and not self._is_stopped:
            try:
                waiting.append(self._claims.get_nowait())
            except Empty:
                break
        if not waiting:
            return
        try:
            verdicts = self._verifier.check([claim for _, claim in waiting], lambda: self._is_stopped)
            for (key, _), verdict in zip(waiting, verdicts, strict=True):
                self._on_verdict(key, verdict)
        except BaseException:
            self._is_stopped = True  # before the thread takes the next claims; `_fail` is called in another
            raise
