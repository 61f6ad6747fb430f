"""Limits what a run may spend: the largest possible cost of each request is reserved before it is sent.

A ledger on disk counts in tokens. It gets a line for every request before it is sent, and another when its usage is
known. Requests left open by a kill, a timeout or a broken connection count at their largest cost, also after a resume.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Condition
from typing import Any

from prmbench.core import reading, writing
from prmbench.core.records import UserError

MILLION = 1_000_000
MAX_LEDGER_TOKENS = 2**53
"""A larger count cannot be this program's, and is not exact as a float."""
LEDGER_SUFFIX = ".ledger"
_RELATIVE_ROUNDING = 1e-9
"""Allowed rounding error of sums of costs, relative to the cap."""


@dataclass(slots=True)
class Reservation:
    """The tokens of one request: the most it may use, and once it is settled those that it used."""

    prompt_tokens: int
    completion_tokens: int
    settled: bool = False

    def settle(self, prompt_tokens: int, completion_tokens: int) -> None:
        """Record the tokens that the server reports for the request."""
        self.prompt_tokens, self.completion_tokens, self.settled = prompt_tokens, completion_tokens, True

    def release(self) -> None:
        """Record that the request cost nothing: it was refused, or never arrived."""
        self.settle(0, 0)


class Budget:
    """Limits what a run spends; thread-safe.

    The sum of spent and reserved cost never exceeds the cap. Each of several processes gets an equal part of what
    remains when they start.
    """

    def __init__(self, prices: tuple[float, float] = (0.0, 0.0)) -> None:
        """`prices`: the price of a million prompt tokens and of a million answer tokens."""
        self._prices = prices
        self._condition = Condition()
        self._cap: float | None = None
        self._remaining_at_start = math.inf
        self._spent_before = self._spent = self._reserved_by_requests = self._reserved_by_traces = 0.0
        self._open_requests = self._open_traces = self._last_request = 0
        self._ledger: Path | None = None

    @property
    def capped(self) -> bool:
        """Whether the cost is limited."""
        return self._cap is not None

    def cost(self, prompt_tokens: int, completion_tokens: int) -> float:
        """Return the price of these tokens."""
        return (prompt_tokens * self._prices[0] + completion_tokens * self._prices[1]) / MILLION

    def open(self, cap: float | None, spent_before: float, processes: int = 1) -> None:
        """Set the cost limit of the run.

        Args:
            cap: The most that the run may spend over all its resumes; None = no limit.
            spent_before: Cost of the run so far.
            processes: Number of processes that divide what remains.
        """
        self._cap, self._spent_before = cap, spent_before
        self._remaining_at_start = math.inf if cap is None else (cap - spent_before) / processes

    def open_ledger(self, folder: Path, process: int, journal_tokens: tuple[int, int]) -> float:
        """Open this process's ledger in a run's journal.

        Args:
            folder: The journal's folder.
            process: The rank of this process.
            journal_tokens: Prompt and completion tokens of the answers in the journal. They count where there is no
                ledger, as in journals that an older version began.

        Returns:
            The cost of all processes before this start, at the present prices.
        """
        self._ledger = folder / f"{process}{LEDGER_SUFFIX}"
        ledgers = {path: _read_ledger(path) for path in folder.glob(f"*{LEDGER_SUFFIX}")}
        self._last_request = max(ledgers.get(self._ledger, {0: (0, 0)}), default=0)
        if not any(ledgers.values()) and any(journal_tokens):
            if process == 0:
                self._append_to_ledger(0, *journal_tokens)
            ledgers = {self._ledger: {0: journal_tokens}}
        return sum(self.cost(*tokens) for requests in ledgers.values() for tokens in requests.values())

    @contextmanager
    def trace(self, max_cost: float) -> Iterator[None]:
        """Start a trace only when its largest possible cost remains, so that no money goes into an unfinished one.

        The cap itself is enforced by `request`. Waits for open traces, which may leave something of their reservation.

        Raises:
            UserError: Too little remains, and no open trace could release any.
        """
        with self._condition:
            while not self._fits(self._spent + self._reserved_by_traces + max_cost) or self._is_exhausted():
                if not self._open_traces:
                    raise self._exhausted_error(max_cost)
                self._condition.wait()
            self._open_traces += 1
            self._reserved_by_traces += max_cost
        try:
            yield
        finally:
            with self._condition:
                self._open_traces -= 1
                self._reserved_by_traces -= max_cost
                self._condition.notify_all()

    @contextmanager
    def request(self, prompt_tokens: int, completion_tokens: int) -> Iterator[Reservation]:
        """Reserve the tokens that a request may use; a reservation that is not settled counts in full.

        Raises:
            UserError: The request would exceed the cap, and no open request could release anything.
        """
        reservation = Reservation(prompt_tokens, completion_tokens)
        max_cost = self.cost(prompt_tokens, completion_tokens)
        with self._condition:
            while not self._fits(self._spent + self._reserved_by_requests + max_cost):
                if not self._open_requests:
                    raise self._exhausted_error(max_cost)
                self._condition.wait()
            self._last_request += 1
            number = self._last_request
            self._append_to_ledger(number, prompt_tokens, completion_tokens)
            self._open_requests += 1
            self._reserved_by_requests += max_cost
        try:
            yield reservation
        finally:
            with self._condition:
                self._open_requests -= 1
                self._reserved_by_requests -= max_cost
                self._spent += self.cost(reservation.prompt_tokens, reservation.completion_tokens)
                self._condition.notify_all()
                if reservation.settled:
                    self._append_to_ledger(number, reservation.prompt_tokens, reservation.completion_tokens)

    def spend(self, cost: float) -> None:
        """Count a cost that did not go through `request`."""
        with self._condition:
            self._spent += cost
            self._condition.notify_all()

    def _fits(self, total: float) -> bool:
        return total <= self._remaining_at_start + (self._cap or 0.0) * _RELATIVE_ROUNDING

    def _is_exhausted(self) -> bool:
        return self._spent >= self._remaining_at_start - (self._cap or 0.0) * _RELATIVE_ROUNDING

    def _exhausted_error(self, max_cost: float) -> UserError:
        spent = self._spent_before + self._spent
        reason = (
            "" if self._is_exhausted() else f", and what comes next may cost {max_cost:.4g} (as --critic-tokens has it)"
        )
        return UserError(
            f"--max-cost {self._cap:g}: {spent:.4g} is spent{reason}; what was answered is kept, and the same command "
            "with a higher --max-cost goes on from there"
        )

    def _append_to_ledger(self, number: int, prompt_tokens: int, completion_tokens: int) -> None:
        """Append a line to the ledger durably; a later line with the same number replaces it."""
        if self._ledger is None:
            return
        writing.append_lines(self._ledger, [json.dumps([number, prompt_tokens, completion_tokens])], durable=True)


def _read_ledger(path: Path) -> dict[int, tuple[int, int]]:
    """Return the tokens of each request by its number; a torn line is skipped, since its request was never sent."""
    requests: dict[int, tuple[int, int]] = {}
    for line in reading.read_appended_lines(path):
        try:
            entry: Any = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(entry, list) and len(entry) == 3 and all(type(n) is int and n >= 0 for n in entry):  # noqa: PLR2004
            if max(entry) > MAX_LEDGER_TOKENS:
                raise UserError(f"{path}: holds a number that no request takes; delete the folder to start afresh")
            requests[entry[0]] = (entry[1], entry[2])
    return requests
