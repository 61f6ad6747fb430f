"""A table of typed values, which every task builds from its results; prmbench.report renders it in several formats."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

from prmbench.core.records import MetricRow

DASH = "–"
"""Shown in place of a number that does not exist."""
NOTED = "†"
"""Marks a number that a note under the table explains."""
Unit = Literal["percent", "points", "fraction", "number", "hundredths", "correlation", "count", "p"]
PERCENT: Unit = "percent"
"""A fraction, shown in percent."""
POINTS: Unit = "points"
"""A difference of fractions, shown in percentage points with its sign."""
FRACTION: Unit = "fraction"
"""A number shown unscaled, with three decimals."""
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
"""Factor, decimals and format of each unit."""
SMALLEST_P = 0.001
"""Smaller p-values are shown as a bound."""


@dataclass(frozen=True, slots=True)
class Code:
    """A protocol's key or another identifier, shown as code."""

    key: str


@dataclass(frozen=True, slots=True)
class Value:
    """A number with its interval; None for a number that does not exist, which is shown as a dash."""

    value: float | None
    unit: Unit = PERCENT
    lo: float | None = None
    hi: float | None = None
    best: bool = False
    """Whether it is the best of its column or tied with it, which is shown in bold; see prmbench.tasks.ties."""
    marks: str = ""
    """Characters after the number that the notes explain."""
    suffix: str = ""
    """Text after the number: ` of 20`."""

    @property
    def number(self) -> str:
        """The value as printed, without interval and marks."""
        return number(self.value, self.unit) + self.suffix

    @property
    def interval(self) -> str:
        """`[68.0, 74.1]`; empty without an interval."""
        if self.value is None or self.lo is None or self.hi is None:
            return ""
        return f"[{number(self.lo, self.unit)}, {number(self.hi, self.unit)}]"


TableCell = str | Code | Value | tuple[Value, ...]
"""A tuple holds several numbers that are shown with slashes between them."""
Row = tuple[TableCell, ...]


Fact = tuple[str, str | Code]
"""A heading and its text."""


@dataclass(frozen=True, slots=True)
class Headline:
    """The number that an overview shows for a page."""

    number: TableCell
    facts: tuple[Fact, ...]
    """What the number is: metric, data, model, protocol and floors."""


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of cells with a heading for each column, in groups that are separated by a line."""

    label: str
    """Identifies the table among all tables of a report."""
    title: str
    caption: str
    header: tuple[str, ...]
    groups: tuple[tuple[Row, ...], ...]
    notes: tuple[str, ...] = ()
    text_columns: int = 2
    """How many of the first columns hold names; the others hold numbers."""
    lead: str = ""
    """Heading of the leading column, whose best number an overview shows; empty for a table that it leaves out."""
    ends_with_floors: bool = False
    """Whether the last group holds floors, which are shown fainter and are not sorted with the others."""


def number(value: float | None, unit: Unit) -> str:
    """Returns a number as printed in this unit; a dash for None."""
    if value is None:
        return DASH
    if unit == "p" and value < SMALLEST_P:
        return f"<{SMALLEST_P}"
    factor, decimals, style = _FORMATS[unit]
    return f"{round(factor * value, decimals) + 0.0:{style}}"  # + 0.0 turns -0.0 into 0.0


def cell_of(row: MetricRow | None, unit: Unit = PERCENT, best: bool = False, interval: bool = True) -> TableCell:
    """Returns a metric row as a cell, marked if it has a note; an empty cell for None."""
    if row is None:
        return ""
    if row.value is None:
        return Value(None, unit)
    lo, hi = (row.lo, row.hi) if interval else (None, None)
    return Value(row.value, unit, lo, hi, best, NOTED if row.note else "")


def without_marks(cell: TableCell) -> TableCell:
    """Returns the cell without the marks of its notes."""
    return replace(cell, marks="") if isinstance(cell, Value) else cell


def is_floor(row: Row) -> bool:
    """Whether a table row shows a floor, which needs no model."""
    return any(isinstance(cell, Code) and cell.key.startswith("floor/") for cell in row)


def has_mark(groups: Iterable[Iterable[Row]], mark: str) -> bool:
    """Whether any number of a table has this mark."""
    return any(isinstance(c, Value) and mark in c.marks for group in groups for row in group for c in row)


def notes_of(rows: Iterable[MetricRow]) -> tuple[str, ...]:
    """Returns the notes on missing and marked numbers; of notes that differ only in a final number, the largest."""
    missing: dict[str, str] = {}
    qualified: dict[str, str] = {}
    for row in rows:
        if row.note:
            text = re.sub(r"[\d.]+$", "", row.note)
            notes = missing if row.value is None else qualified
            notes[text] = max(notes.get(text, row.note), row.note, key=_final_number)
    notes_on_missing = [f"{DASH} {note}." for note in sorted(missing.values())]
    return (*notes_on_missing, *(f"{NOTED} {note}." for note in sorted(qualified.values())))


def _final_number(note: str) -> float:
    match = re.search(r"\d+(?:\.\d+)?$", note)
    return float(match[0]) if match else 0.0


def rank_value(row: MetricRow | None) -> float:
    """Returns a sort key: the value, or -1 for a row without one."""
    return -1.0 if row is None or row.value is None else row.value
