"""A table of typed values, as every task describes its results; prmbench.report prints it in several formats."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from prmbench.core.records import MetricRow

DASH = "–"
"""Stands where a number does not exist."""
NOTED = "†"
"""Marks a number that a note under the table qualifies."""
Unit = Literal["percent", "points", "fraction", "number", "hundredths", "correlation", "count", "p"]
PERCENT: Unit = "percent"
"""A fraction, shown in percent."""
POINTS: Unit = "points"
"""A difference of fractions, shown in percentage points with its sign."""
FRACTION: Unit = "fraction"
"""A number shown as it is, with three decimals."""
_FORMATS: dict[Unit, tuple[int, int, str]] = {
    PERCENT: (100, 1, ".1f"),
    POINTS: (100, 1, "+.1f"),
    FRACTION: (1, 3, ".3f"),
    "number": (1, 1, ".1f"),
    "hundredths": (1, 2, ".2f"),
    "correlation": (1, 2, "+.2f"),
    "count": (1, 0, ",.0f"),
    "p": (1, 3, ".3f"),
}
"""Unit -> factor, decimals, format."""
SMALLEST_P = 0.001
"""Smaller p-values are shown as a bound."""


@dataclass(frozen=True, slots=True)
class Code:
    """A protocol's key or another name that is set in a typewriter face."""

    key: str


@dataclass(frozen=True, slots=True)
class Value:
    """A number with its interval; None stands for one that does not exist, and is shown as a dash."""

    value: float | None
    unit: Unit = PERCENT
    lo: float | None = None
    hi: float | None = None
    best: bool = False
    """Whether it is the best of its column, which is set in bold."""
    marks: str = ""
    """Characters behind the number that the notes explain."""
    suffix: str = ""
    """Text behind the number that qualifies it: ` of 20`."""

    @property
    def number(self) -> str:
        """The value as it is printed, without interval and marks."""
        return number(self.value, self.unit) + self.suffix

    @property
    def interval(self) -> str:
        """`[68.0, 74.1]`; empty without an interval."""
        if self.value is None or self.lo is None or self.hi is None:
            return ""
        return f"[{number(self.lo, self.unit)}, {number(self.hi, self.unit)}]"


Cell = str | Code | Value | tuple[Value, ...]
"""A tuple holds several numbers that belong together, shown with slashes between them."""
Row = tuple[Cell, ...]


Fact = tuple[str, str | Code]
"""A heading and what stands under it."""


@dataclass(frozen=True, slots=True)
class Headline:
    """The one number that an overview shows of a page."""

    number: Cell
    facts: tuple[Fact, ...]
    """What the number is: whose, of what, under which protocol, and the floors beside it."""


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of cells under a heading for each column, in groups that a line sets apart."""

    label: str
    """Names the table among all tables of a report."""
    title: str
    caption: str
    header: tuple[str, ...]
    groups: tuple[tuple[Row, ...], ...]
    notes: tuple[str, ...] = ()
    text_columns: int = 2
    """The first columns hold names, the others numbers."""
    lead: str = ""
    """Heading of the column that says most, which an overview quotes; empty for a table that it leaves out."""
    ends_with_floors: bool = False
    """Whether the last group holds floors, which are shown fainter and never sorted among the others."""


def number(value: float | None, unit: Unit) -> str:
    """Returns a number as it is printed in this unit; a dash for None."""
    if value is None:
        return DASH
    if unit == "p" and value < SMALLEST_P:
        return f"<{SMALLEST_P}"
    factor, decimals, style = _FORMATS[unit]
    return f"{round(factor * value, decimals) + 0.0:{style}}"  # + 0.0: no minus before a zero


def cell_of(row: MetricRow | None, unit: Unit = PERCENT, best: bool = False, interval: bool = True) -> Cell:
    """Returns a metric row as a cell, marked where it has a note; an empty cell for no row."""
    if row is None:
        return ""
    if row.value is None:
        return Value(None, unit)
    lo, hi = (row.lo, row.hi) if interval else (None, None)
    return Value(row.value, unit, lo, hi, best, NOTED if row.note else "")


def without_marks(cell: Cell) -> Cell:
    """Returns the cell without the marks of its notes."""
    return replace(cell, marks="") if isinstance(cell, Value) else cell


def is_floor(row: Row) -> bool:
    """Whether a row is a floor: what needs no model."""
    return any(isinstance(cell, Code) and cell.key.startswith("floor/") for cell in row)


def has_mark(groups: Iterable[Iterable[Row]], mark: str) -> bool:
    """Whether any number of a table carries this mark."""
    return any(isinstance(c, Value) and mark in c.marks for group in groups for row in group for c in row)


def notes_of(rows: Iterable[MetricRow]) -> tuple[str, ...]:
    """Returns why numbers are missing and what NOTED stands for; of notes that differ in a last number, the largest."""
    missing: dict[str, str] = {}
    qualified: dict[str, str] = {}
    for row in rows:
        if row.note:
            stem = re.sub(r"[\d.]+$", "", row.note)
            notes = missing if row.value is None else qualified
            notes[stem] = max(notes.get(stem, ""), row.note)
    lines = [f"{DASH} {note}." for note in sorted(missing.values())]
    return (*lines, *(f"{NOTED} {note}." for note in sorted(qualified.values())))


def best_value(rows: Sequence[MetricRow | None], lowest: bool = False) -> float | None:
    """Returns the best value of a column; None unless at least two compete."""
    values = [row.value for row in rows if row is not None and row.value is not None]
    return None if len(values) < 2 else min(values) if lowest else max(values)  # noqa: PLR2004


def is_best(row: MetricRow | None, best: float | None) -> bool:
    """Whether a row has the best value of its column."""
    return row is not None and best is not None and row.value == best


def rank_value(row: MetricRow | None) -> float:
    """Returns a number to sort rows by, below every metric for a row without a value."""
    return -1.0 if row is None or row.value is None else row.value
