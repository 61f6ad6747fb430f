"""Verification beside sampling: what overlaps, in which order verdicts come, and what happens when something fails."""

from __future__ import annotations

from collections.abc import Sequence
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

    def check(self, claims: Sequence[Claim]) -> list[Verdict]:
        self.groups.append([claim.text for claim in claims])
        self.began.set()
        assert self.may_end.wait(PATIENCE)
        return [Verdict("right", claim.text) for claim in claims]


def _claim(text: str) -> Claim:
    return Claim(text, "1", "exact")


def test_the_caller_goes_on_while_a_claim_is_checked_and_the_next_are_checked_together() -> None:
    gate: Any = Gate()
    with BackgroundVerifier(gate) as checks:
        checks.submit(7, _claim("a"))
        assert gate.began.wait(PATIENCE)
        assert list(checks.finished()) == []  # the first claim is being checked
        checks.submit(5, _claim("b"))
        checks.submit(6, _claim("c"))
        gate.may_end.set()
        verdicts = dict(checks.remaining())
    assert gate.groups == [["a"], ["b", "c"]]
    assert {key: verdict.answer for key, verdict in verdicts.items()} == {7: "a", 5: "b", 6: "c"}


def test_an_error_of_the_verifier_reaches_the_caller() -> None:
    class Broken:
        def check(self, claims: Sequence[Claim]) -> list[Verdict]:
            raise UserError("no package")

    broken: Any = Broken()
    with BackgroundVerifier(broken) as checks:
        checks.submit(0, _claim("a"))
        with pytest.raises(UserError, match="no package"):
            list(checks.remaining())


def test_claims_that_wait_are_dropped_when_the_caller_leaves() -> None:
    gate: Any = Gate()
    with BackgroundVerifier(gate) as checks:
        checks.submit(0, _claim("a"))
        assert gate.began.wait(PATIENCE)
        checks.submit(1, _claim("b"))
        checks._is_stopped = True  # as leaving does, before it waits
        gate.may_end.set()
    assert gate.groups == [["a"]]
