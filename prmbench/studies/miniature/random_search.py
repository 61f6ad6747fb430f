"""Random search over the constants of training, with equal numbers of trials for all that are compared.

A search has rounds. In the first, every loss (or whatever has a name here) gets the same number of trials, drawn at
random from its ranges. A range whose edge holds the best trial is extended there; then every loss gets the same number
of further trials, whether its own ranges were extended or not. The search ends when no best trial lies at an edge, or
at the declared largest number of trials. All of it is a function of the values of the trials, so that a search can be
continued.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from random import Random
from statistics import fmean
from typing import Literal

EDGE = 0.1
"""Outer part of a range, at each end, in which a best trial says that the range is too narrow."""
EXTENSION = 0.5
"""Growth of a range at an edge, in widths of the range as it was declared."""
DIGITS = 3
"""Significant digits of drawn values, so that they can be written down exactly."""
Scale = Literal["log", "linear"]
Side = Literal["low", "high"]


@dataclass(frozen=True, slots=True)
class Range:
    """An interval of values, drawn uniformly on its scale."""

    low: float
    high: float
    scale: Scale = "log"
    fixed_low: bool = False
    """Whether nothing lies below `low`, such as margins below 0; a best trial there is no reason to extend."""

    def at(self, position: float) -> float:
        """Returns the value at a position from 0 (low) to 1 (high), rounded to DIGITS significant digits."""
        low, high = self._ends()
        return float(f"{self._from_scale(low + position * (high - low)):.{DIGITS}g}")

    def position(self, value: float) -> float:
        """Returns where a value lies, from 0 (low) to 1 (high)."""
        low, high = self._ends()
        return (self._to_scale(value) - low) / (high - low)

    def side(self, value: float) -> Side | None:
        """Returns the edge that a value lies at; None for a value inside the range, or at a fixed end."""
        position = self.position(value)
        if position < EDGE:
            return None if self.fixed_low else "low"
        return "high" if position > 1 - EDGE else None

    def extended(self, side: Side, width: float) -> Range:
        """Returns the range, longer by `width` on its scale at one side."""
        low, high = self._ends()
        ends = (low - width, high) if side == "low" else (low, high + width)
        low, high = (float(f"{self._from_scale(end):.{DIGITS}g}") for end in ends)
        return replace(self, low=low, high=high)

    def part(self, side: Side, longer: Range) -> Range:
        """Returns what `longer` adds to this range at one side, with this range's edge there."""
        edge = self.at(EDGE if side == "low" else 1 - EDGE)
        return replace(longer, high=edge) if side == "low" else replace(longer, low=edge, fixed_low=False)

    @property
    def width(self) -> float:
        """Width on the scale of the range."""
        low, high = self._ends()
        return high - low

    def _ends(self) -> tuple[float, float]:
        return self._to_scale(self.low), self._to_scale(self.high)

    def _to_scale(self, value: float) -> float:
        return math.log(value) if self.scale == "log" else value

    def _from_scale(self, value: float) -> float:
        return math.exp(value) if self.scale == "log" else value


Ranges = Mapping[str, Range]
"""Name of an option -> its range."""


@dataclass(frozen=True, slots=True)
class Trial:
    """One drawn setting."""

    name: str
    """What is searched for, such as a loss."""
    number: int
    """Counted from 0 for each name."""
    round: int
    values: Mapping[str, float]
    """Option -> value."""

    @property
    def key(self) -> str:
        """Name for files and progress: `ipvrm-07`."""
        return f"{self.name}-{self.number:02}"


@dataclass(frozen=True, slots=True)
class Search:
    """What is searched, and the rule by which the search ends."""

    spaces: Mapping[str, Ranges]
    """Name -> ranges of its options."""
    first: int = 16
    """Trials of each name in the first round."""
    further: int = 8
    """Trials of each name in every later round."""
    limit: int = 48
    """Most trials of each name."""
    seed: int = 0

    def rule(self) -> str:
        """Returns the rule in words."""
        return (
            f"Each loss gets {self.first} trials, drawn at random from its ranges and spread evenly over each of "
            f"them. Where the best trial of a loss lies in the outer {EDGE:.0%} of a range (an end beyond which "
            f"nothing exists excepted), the range grows there by {EXTENSION:.0%} of its declared width; then each "
            f"loss gets {self.further} further trials, drawn from "
            "its whole ranges, and in an option that was extended from the new part and the old edge. The search "
            f"ends when every best trial lies inside its ranges, or at {self.limit} trials a loss."
        )


@dataclass(frozen=True, slots=True)
class Round:
    """The trials of a round, and the ranges at that time."""

    number: int
    trials: tuple[Trial, ...]
    ranges: Mapping[str, Ranges]
    """Name -> whole ranges."""
    extended: Mapping[str, Mapping[str, Side]]
    """Name -> option -> the side that was extended before this round."""


def rounds(search: Search, values: Mapping[str, float]) -> Iterator[Round]:
    """Yields the rounds of a search, each once all trials of the earlier ones have a value.

    Args:
        search: the search.
        values: trial's key -> its value, higher is better. The caller may add to it between two rounds; the last
            round that is yielded lacks values, or the search has ended.
    """
    ranges: dict[str, dict[str, Range]] = {name: dict(space) for name, space in search.spaces.items()}
    trials: list[Trial] = []
    extended: dict[str, dict[str, Side]] = {}
    done, number = 0, 0
    while True:
        count = min(search.further if number else search.first, search.limit - done)
        drawn_from = _drawn_from(ranges, extended, search)
        new = [trial for name in ranges for trial in _draw(search, name, done, count, number, drawn_from[name])]
        trials, done = [*trials, *new], done + count
        yield Round(number, tuple(new), {name: dict(space) for name, space in ranges.items()}, extended)
        if any(trial.key not in values for trial in new):
            return
        extended = at_edges(ranges, best_trials(trials, values))
        if not extended or done >= search.limit:
            return
        for name, sides in extended.items():
            for option, side in sides.items():
                width = EXTENSION * search.spaces[name][option].width
                ranges[name][option] = ranges[name][option].extended(side, width)
        number += 1


def best_trials(trials: Sequence[Trial], values: Mapping[str, float]) -> dict[str, Trial]:
    """Returns the trial of highest value of each name; the earliest of several."""
    best: dict[str, Trial] = {}
    for trial in trials:
        if trial.name not in best or values[trial.key] > values[best[trial.name].key]:
            best[trial.name] = trial
    return best


def at_edges(ranges: Mapping[str, Ranges], best: Mapping[str, Trial]) -> dict[str, dict[str, Side]]:
    """Returns, by name and option, the edge of the range that the best trial lies at; names without one are absent."""
    sides = {
        name: {
            option: side
            for option, value in trial.values.items()
            if (side := ranges[name][option].side(value)) is not None
        }
        for name, trial in best.items()
    }
    return {name: of_name for name, of_name in sides.items() if of_name}


def mean_or_zero(values: Sequence[float | None]) -> float:
    """Returns the mean, in which a trial that came to nothing counts as 0."""
    return fmean(value or 0.0 for value in values)


def _drawn_from(
    ranges: Mapping[str, Ranges], extended: Mapping[str, Mapping[str, Side]], search: Search
) -> dict[str, dict[str, Range]]:
    """Returns the ranges that a round draws from: whole ones, but the new part of those extended just before it."""
    drawn: dict[str, dict[str, Range]] = {name: dict(space) for name, space in ranges.items()}
    for name, sides in extended.items():
        for option, side in sides.items():
            whole = ranges[name][option]
            width = EXTENSION * search.spaces[name][option].width
            before = whole.extended(side, -width)
            drawn[name][option] = before.part(side, whole)
    return drawn


def _draw(search: Search, name: str, first: int, count: int, number: int, space: Ranges) -> list[Trial]:
    """Draws the trials of a name in a round, spread evenly over every range (a Latin hypercube).

    Each range is cut into as many parts as there are trials, and each part gets one, at a random place in it. All names
    share the positions, so that none is luckier than another.
    """
    positions = {}
    for option in space:
        random = Random(f"trials/{search.seed}/{number}/{option}")
        parts = random.sample(range(count), count)
        positions[option] = [(part + random.random()) / count for part in parts]
    return [
        Trial(name, first + i, number, {option: span.at(positions[option][i]) for option, span in space.items()})
        for i in range(count)
    ]
