"""The page's overview: models against benchmarks, and a card per benchmark with its best honest number.

Honest means under a threshold rule that could be used in practice, and under a protocol that is recommended beforehand.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from prmbench.report.board import Board
from prmbench.report.sheets import Sheet, sheet_name
from prmbench.report.standings import Column, Standing, column
from prmbench.tasks import find_task
from prmbench.tasks.blocks import underlying_subsets
from prmbench.tasks.table import (
    PERCENT,
    POINTS,
    Code,
    Fact,
    Headline,
    Row,
    Table,
    TableCell,
    Unit,
    Value,
    is_floor,
    number,
    without_marks,
)
from prmbench.tasks.wording import run_name

MAX_NAMED_SUBSETS = 4
"""An average over more subsets is named by their number."""
UNPAIRED = "not paired, so without an interval"


@dataclass(frozen=True, slots=True)
class Card:
    """The overview's card of one benchmark."""

    description: str
    runs: int
    number: TableCell
    """The best honest number with its interval, or empty."""
    facts: tuple[Fact, ...]
    """What the number is: (heading, text) pairs."""


def board_column(board: Board) -> Column | None:
    """Returns the overview's column of a board; None without a number that may stand by itself."""
    return column(board.name, board.runs)


def sheet_column(sheet: Sheet) -> Column | None:
    """Returns the overview's column of a task's sheet; None for studies, whose runs are not compared one by one."""
    is_task = sheet.runs and all(sheet_name(run.result.manifest) == sheet.name for run in sheet.runs)
    return column(sheet.name, sheet.runs) if is_task else None


def board_card(board: Board, standing: Column | None) -> Card:
    """Returns the card of a board: its best model under the recommended protocol, and the best without a model."""
    task = find_task(board.runs[0].result.manifest.task if board.runs else "steps")  # or only published numbers
    return _card(task.description, len(board.runs), standing)


def sheet_card(sheet: Sheet, standing: Column | None = None) -> Card:
    """Returns the card of a sheet: its own headline, the best of its column, or the best number of its first table.

    Oracle tables are left out. The average over subsets is preferred, else the table's first set of traces is used.
    """
    description = " ".join(re.split(r"(?<=[.?]) ", sheet.description)[:2])
    if sheet.headline is not None:
        return Card(description, sheet.size, sheet.headline.number, sheet.headline.facts)
    if standing is not None:
        return _card(description, sheet.size, standing)
    tables = [table for table in sheet.tables if "oracle" not in table.label.split("-")]
    baselines = {run_name(run) for run in sheet.runs if run.result.manifest.backend == "baseline"}
    for excluded in (baselines, set[str]()):
        for table in tables:
            if (best := _best(table, excluded)) is not None:
                return Card(description, sheet.size, best.number, best.facts)
    return Card(description, sheet.size, "", ())


def _card(description: str, runs: int, standing: Column | None) -> Card:
    """The card of a column's best model."""
    best = next((s for s in standing.standings.values() if s.row), None) if standing else None
    if standing is None or best is None or best.row is None:
        return Card(description, runs, "", ())
    facts: list[Fact] = [
        (standing.heading, traces_name(standing.subset)),
        ("Model", run_name(best.runs[0])),
        ("Protocol", Code(best.protocol)),
        ("Rule", standing.rule),
    ]
    if standing.bound is not None:
        texts = [f"{number(bound.value, standing.unit)} {bound.name}" for bound in standing.bounds]
        facts += [("Baseline", texts[0]), *([("Other baselines", ", ".join(texts[1:]))] if texts[1:] else [])]
        facts.append(("Difference", " ".join(filter(None, difference_texts(best, standing.unit)))))
    return Card(description, runs, Value(best.row.value, standing.unit, best.row.lo, best.row.hi), tuple(facts))


def traces_name(subset: str) -> str:
    """Returns the name of a set of traces: `math`, `average of gsm8k, math`, `pooled over 9 subsets`."""
    names = underlying_subsets(subset)
    kind = "average of" if subset.startswith("avg[") else "pooled over"
    listing = ", ".join(names) if len(names) <= MAX_NAMED_SUBSETS else f"{len(names)} subsets"
    return f"{kind} {listing}" if "[" in subset else subset


def difference_texts(standing: Standing, unit: Unit) -> tuple[str, str]:
    """Returns a difference and its interval as printed; (`+3.1`, `not paired, ...`) where it has none."""
    if standing.difference is None:
        return "", ""
    value = Value(standing.difference, POINTS if unit == PERCENT else "correlation", standing.lo, standing.hi)
    return value.number, value.interval or f"({UNPAIRED})"


def column_data(standing: Column | None) -> dict[str, Any] | None:
    """Returns the page's data of a column: its head, the bound, and a cell by model."""
    if standing is None:
        return None
    bound = standing.bound
    return {
        "heading": standing.heading,
        "traces": f"{traces_name(standing.subset)} ({_size(standing)})",
        "rule": standing.rule,
        "rule_text": standing.rule_text,
        "protocols": standing.protocols,
        "bound": None if bound is None else {"name": bound.name, "number": number(bound.value, standing.unit)},
        "cells": {name: _cell_data(cell, standing.unit) for name, cell in standing.standings.items()},
    }


def _size(standing: Column) -> str:
    """`n=400`; of tasks with several completions a problem `n=50 problems, 400 completions`."""
    if standing.problems is None:
        return f"n={standing.n}"
    return f"n={standing.problems} problems, {standing.n} completions"


def _cell_data(standing: Standing, unit: Unit) -> dict[str, Any]:
    row = standing.row
    if row is None:
        return {"reason": standing.reason}
    value = Value(row.value, unit, row.lo, row.hi)
    difference, interval = difference_texts(standing, unit)
    is_clear = standing.lo is not None and standing.hi is not None and (standing.lo > 0 or standing.hi < 0)
    return {
        "value": row.value,
        "number": value.number,
        "interval": value.interval,
        "protocol": standing.protocol,
        "difference": difference,
        "difference_interval": interval,
        "clear": 0 if not is_clear else 1 if (standing.difference or 0) > 0 else -1,
        "runs": len(standing.runs),
        "reading": standing.reading,
    }


def model_order(columns: Sequence[Column]) -> list[str]:
    """Returns the models of all columns: those with most numbers first, then by their rank in the columns."""
    counts: dict[str, int] = {}
    ranks: dict[str, tuple[int, int]] = {}
    for at, standing in enumerate(columns):
        for rank, (name, cell) in enumerate(standing.standings.items()):
            counts[name] = counts.get(name, 0) + (cell.row is not None)
            ranks.setdefault(name, (at, rank))
    return sorted(counts, key=lambda name: (-counts[name], ranks[name], name))


def _best(table: Table, baselines: Collection[str]) -> Headline | None:
    """The best number of the leading column, or its first if none is marked as best; baselines are left out."""
    if not table.lead:
        return None
    at = table.header.index(table.lead)
    averages = [group for group in table.groups if any(_is_average(row) for row in group)]
    rows = [row for group in (averages or table.groups)[:1] for row in group if not is_floor(row)]
    rows = [row for row in rows if not set(baselines) & {cell for cell in row if isinstance(cell, str)}]
    numbers = [(row, row[at]) for row in rows]
    scored = [(row, cell) for row, cell in numbers if isinstance(cell, Value) and cell.value is not None]
    for row, cell in sorted(scored, key=lambda pair: not pair[1].best):
        names = zip(table.header[: table.text_columns], row, strict=False)
        facts: list[Fact] = [(heading, name) for heading, name in names if isinstance(name, str | Code) and name]
        return Headline(without_marks(cell), (("Number", table.lead), *facts))
    return None


def _is_average(row: Row) -> bool:
    return any(isinstance(cell, str) and cell.startswith("average of ") for cell in row)
