"""Verification beside sampling: what overlaps, in which order verdicts come, and what happens when something fails."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from threading import Event
from typing import Any

import pytest

from prmbench.core.records import UserError
from prmbench.verification.background import BackgroundVerifier
from prmbench.verification.verifiers import Claim, Verdict

PATIENCE = 30.0
"""Seconds after which a test that would wait for ever fails."""


class Gate:
    """A verifier that says when it begins, and waits until it may go on."""

    def __init__(self) -> None:
        self.began, self.may_end = Event(), Event()
        self.groups: list[list[str]] = []
        self.was_stopped = False

    def check(self, claims: Sequence[Claim], is_stopped: Callable[[], bool]) -> list[Verdict]:
        self.groups.append([claim.text for claim in claims])
        self.began.set()
        assert self.may_end.wait(PATIENCE)
        self.was_stopped = is_stopped()
        return [Verdict("right", claim.text) for claim in claims]


def _claim(text: str) -> Claim:
    return Claim(text, "1", "exact")


def _ignore(*_: object) -> None:
    pass


def test_the_caller_goes_on_while_a_claim_is_checked_and_the_next_are_checked_together() -> None:
    gate: Any = Gate()
    verdicts: dict[int, str] = {}
    with BackgroundVerifier(gate, lambda key, verdict: verdicts.update({key: verdict.answer})) as checks:
        checks.submit(7, _claim("a"))
        assert gate.began.wait(PATIENCE)
        assert verdicts == {}  # the first claim is being checked
        checks.submit(5, _claim("b"))
        checks.submit(6, _claim("c"))
        gate.may_end.set()
        checks.finish()
        assert verdicts == {7: "a", 5: "b", 6: "c"}
    assert gate.groups == [["a"], ["b", "c"]]


def test_a_verdict_is_reported_while_the_caller_is_busy() -> None:
    gate: Any = Gate()
    gate.may_end.set()
    reported = Event()
    with BackgroundVerifier(gate, lambda *_: reported.set()) as checks:
        checks.submit(0, _claim("a"))
        assert reported.wait(PATIENCE)


def test_an_error_of_the_verifier_reaches_the_caller() -> None:
    class Broken:
        def check(self, *_: object) -> list[Verdict]:
            raise UserError("no package")

    broken: Any = Broken()
    with BackgroundVerifier(broken, _ignore) as checks:
        checks.submit(0, _claim("a"))
        with pytest.raises(UserError, match="no package"):
            checks.finish()


def test_an_error_of_what_takes_verdicts_reaches_the_caller_and_ends_the_checks() -> None:
    def report(*_: object) -> None:
        raise UserError("the disk is full")

    gate: Any = Gate()
    with BackgroundVerifier(gate, report) as checks:
        checks.submit(0, _claim("a"))
        assert gate.began.wait(PATIENCE)
        gate.may_end.set()
        with pytest.raises(UserError, match="the disk is full"):
            checks.finish()
        with pytest.raises(UserError, match="the disk is full"):
            checks.submit(1, _claim("b"))
    assert gate.groups == [["a"]]


def test_claims_that_wait_are_dropped_when_the_caller_leaves() -> None:
    gate: Any = Gate()
    with BackgroundVerifier(gate, _ignore) as checks:
        checks.submit(0, _claim("a"))
        assert gate.began.wait(PATIENCE)
        checks.submit(1, _claim("b"))
        checks._is_stopped = True  # as leaving does, before it waits
        gate.may_end.set()
    assert gate.groups == [["a"]]
    assert gate.was_stopped
