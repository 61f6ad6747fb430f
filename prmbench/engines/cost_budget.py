"""What a run may cost and has cost: each request is reserved at its possible cost before it is sent.

A ledger on disk, in tokens, has a line for every request before it is sent and one when its use is known. What a killed
process, a timeout or a broken connection left open counts at its possible cost, in every later sitting too.
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
MOST_IN_LEDGER = 2**53
"""A count above it was not written by this program, and is no exact float."""
LEDGER_SUFFIX = ".ledger"
_ROUNDING = 1e-9
"""Share of the cap by which sums of floats may be off."""


@dataclass(slots=True)
class Reservation:
    """The tokens that one request may take, until those that it took are known."""

    prompt_tokens: int
    completion_tokens: int
    settled: bool = False

    def settle(self, prompt_tokens: int, completion_tokens: int) -> None:
        """Note what the server says the request took."""
        self.prompt_tokens, self.completion_tokens, self.settled = prompt_tokens, completion_tokens, True

    def release(self) -> None:
        """Note that the server took nothing for the request: it was refused, or never arrived."""
        self.settle(0, 0)


class Budget:
    """Bounds what a run spends. Safe to be used from several threads.

    The sum of what is spent and of what is reserved never exceeds the cap. With several processes each has an equal
    share of what is left when they begin.
    """

    def __init__(self, prices: tuple[float, float] = (0.0, 0.0)) -> None:
        """`prices`: of a million prompt tokens and of a million answer tokens."""
        self._prices = prices
        self._changed = Condition()
        self._cap: float | None = None
        self._room = math.inf
        self._earlier = self._spent = self._reserved = self._admitted = 0.0
        self._requests_under_way = self._traces_under_way = self._last_request = 0
        self._ledger: Path | None = None

    @property
    def capped(self) -> bool:
        """Whether there is a cap."""
        return self._cap is not None

    def cost(self, prompt_tokens: int, completion_tokens: int) -> float:
        """What so many tokens cost."""
        return (prompt_tokens * self._prices[0] + completion_tokens * self._prices[1]) / MILLION

    def open(self, cap: float | None, earlier: float, processes: int = 1) -> None:
        """Set what may be spent over all sittings, and what earlier ones have spent. Raises UserError on a bad cap."""
        if cap is not None and not (math.isfinite(cap) and cap >= 0):
            raise UserError(f"--max-cost is {cap}; expected a number of at least 0")
        self._cap, self._earlier = cap, earlier
        self._room = math.inf if cap is None else (cap - earlier) / processes

    def open_ledger(self, folder: Path, process: int, answered: tuple[int, int]) -> float:
        """Open this process's ledger in a run's journal.

        Args:
            folder: Of the journal.
            process: The number of this process.
            answered: Prompt and completion tokens of the answers in the journal. They count where there is no ledger,
                as in journals that an older version began.

        Returns:
            What all processes have spent in earlier sittings, at today's prices.
        """
        self._ledger = folder / f"{process}{LEDGER_SUFFIX}"
        ledgers = {path: _read(path) for path in folder.glob(f"*{LEDGER_SUFFIX}")}
        self._last_request = max(ledgers.get(self._ledger, {0: (0, 0)}), default=0)
        if not any(ledgers.values()) and any(answered):
            if process == 0:
                self._write(0, *answered)
            ledgers = {self._ledger: {0: answered}}
        return sum(self.cost(*tokens) for requests in ledgers.values() for tokens in requests.values())

    @contextmanager
    def trace(self, most: float) -> Iterator[None]:
        """A trace under way, whose answers cost at most so much: it is begun only where that is left.

        So no money goes into a trace that cannot be finished. What holds the cap is `request`.

        Raises:
            UserError: It is not left, and no trace is under way that could leave some.
        """
        with self._changed:
            while not self._fits(self._spent + self._admitted + most) or self._is_used_up():
                if not self._traces_under_way:
                    raise self._stop(most)
                self._changed.wait()
            self._traces_under_way += 1
            self._admitted += most
        try:
            yield
        finally:
            with self._changed:
                self._traces_under_way -= 1
                self._admitted -= most
                self._changed.notify_all()

    @contextmanager
    def request(self, prompt_tokens: int, completion_tokens: int) -> Iterator[Reservation]:
        """A request under way that may take so many tokens; what is not settled counts as if it took them all.

        Raises:
            UserError: They would exceed the cap, and no request is under way that could leave some.
        """
        reservation = Reservation(prompt_tokens, completion_tokens)
        most = self.cost(prompt_tokens, completion_tokens)
        with self._changed:
            while not self._fits(self._spent + self._reserved + most):
                if not self._requests_under_way:
                    raise self._stop(most)
                self._changed.wait()
            self._last_request += 1
            number = self._last_request
            self._write(number, prompt_tokens, completion_tokens)
            self._requests_under_way += 1
            self._reserved += most
        try:
            yield reservation
        finally:
            with self._changed:
                self._requests_under_way -= 1
                self._reserved -= most
                self._spent += self.cost(reservation.prompt_tokens, reservation.completion_tokens)
                self._changed.notify_all()
                if reservation.settled:
                    self._write(number, reservation.prompt_tokens, reservation.completion_tokens)

    def spend(self, cost: float) -> None:
        """Count what was spent otherwise than by `request`."""
        with self._changed:
            self._spent += cost
            self._changed.notify_all()

    def _fits(self, total: float) -> bool:
        return total <= self._room + (self._cap or 0.0) * _ROUNDING

    def _is_used_up(self) -> bool:
        return self._spent >= self._room - (self._cap or 0.0) * _ROUNDING

    def _stop(self, most: float) -> UserError:
        spent = self._earlier + self._spent
        needed = "" if self._is_used_up() else f", and what comes next may cost {most:.4g} (as --critic-tokens has it)"
        return UserError(
            f"--max-cost {self._cap:g}: {spent:.4g} is spent{needed}; what was answered is kept, and the same command "
            "with a higher --max-cost goes on from there"
        )

    def _write(self, number: int, prompt_tokens: int, completion_tokens: int) -> None:
        """A line of the ledger, on disk when this returns; a later line of the same number replaces it."""
        if self._ledger is None:
            return
        writing.append_lines(self._ledger, [json.dumps([number, prompt_tokens, completion_tokens])], durable=True)


def _read(path: Path) -> dict[int, tuple[int, int]]:
    """Tokens by the number of the request; a torn line is passed over: what it announces was not sent."""
    requests: dict[int, tuple[int, int]] = {}
    for line in reading.appended_lines(path):
        try:
            entry: Any = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(entry, list) and len(entry) == 3 and all(type(n) is int and n >= 0 for n in entry):  # noqa: PLR2004
            if max(entry) > MOST_IN_LEDGER:
                raise UserError(f"{path}: holds a number that no request takes; delete the folder to start afresh")
            requests[entry[0]] = (entry[1], entry[2])
    return requests
