"""Cards of the page's overview: what each benchmark measures, how many runs it has, and its best honest number.

Honest means under a threshold rule that could be used in practice.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass

from prmbench.report.board import OTHER_MARK, Board, LeaderboardRow, RuleTable
from prmbench.report.board_tables import RECOMMENDED, f1_value
from prmbench.report.sheets import Sheet
from prmbench.tasks import find_task
from prmbench.tasks.table import (
    PERCENT,
    Code,
    Fact,
    Headline,
    Row,
    Table,
    TableCell,
    Value,
    is_floor,
    number,
    without_marks,
)
from prmbench.tasks.wording import RULES, members, model_name


@dataclass(frozen=True, slots=True)
class Card:
    """The overview's card of one benchmark."""

    description: str
    runs: int
    number: TableCell
    """The best honest number with its interval, or empty."""
    facts: tuple[Fact, ...]
    """What the number is: (heading, text) pairs."""


def board_card(board: Board) -> Card:
    """Returns the card of a board: its best row under the first recommended rule, and the highest floor."""
    leader = next(
        (candidate for rule in RECOMMENDED for t in board.tables if t.rule == rule and (candidate := _leading_row(t))),
        None,
    )
    if leader is None:
        return Card(_description(board), len(board.runs), "", ())
    table, row, column = leader
    floors = [
        (row.cells[column].f1 or 0.0, row.model) for row in table.rows if row.group == "floor" and column in row.cells
    ]
    facts: list[Fact] = [
        ("F1", f"average of {', '.join(members(column))}" if column.startswith("avg[") else column),
        ("Model", row.model),
        ("Protocol", Code(row.protocol)),
        ("Rule", RULES[table.rule][0]),
    ]
    facts += [("Best floor", f"{number(value, PERCENT)} {name}") for value, name in sorted(floors)[-1:]]
    return Card(_description(board), len(board.runs), without_marks(f1_value(row.cells[column])), tuple(facts))


def _description(board: Board) -> str:
    """What the board's task measures; a board without runs has published numbers of first-error F1."""
    return find_task(board.runs[0].result.manifest.task if board.runs else "steps").description


def _leading_row(table: RuleTable) -> tuple[RuleTable, LeaderboardRow, str] | None:
    """The first model with a number on all traces; rows are ranked."""
    for row in table.rows:
        column = table.ranked_by(row)
        cell = row.cells.get(column or "")
        if row.group == "model" and column and cell and cell.f1 is not None and OTHER_MARK not in cell.marks:
            return table, row, column
    return None


def sheet_card(sheet: Sheet) -> Card:
    """Returns the card of a sheet: its own headline, or the best number in the leading column of its first table.

    Oracle tables are left out. The average over subsets is preferred, else the table's first set of traces is used.
    """
    description = " ".join(re.split(r"(?<=[.?]) ", sheet.description)[:2])
    if sheet.headline is not None:
        return Card(description, len(sheet.runs), sheet.headline.number, sheet.headline.facts)
    tables = [table for table in sheet.tables if "oracle" not in table.label.split("-")]
    baselines = {model_name(run.result.manifest) for run in sheet.runs if run.result.manifest.backend == "baseline"}
    for excluded in (baselines, set[str]()):
        for table in tables:
            if (best := _best(table, excluded)) is not None:
                return Card(description, len(sheet.runs), best.number, best.facts)
    return Card(description, len(sheet.runs), "", ())


def _best(table: Table, baselines: Collection[str]) -> Headline | None:
    """The best number of the leading column, or its first if none is marked as best; baselines are left out."""
    if not table.lead:
        return None
    column = table.header.index(table.lead)
    averages = [group for group in table.groups if any(_is_average(row) for row in group)]
    rows = [row for group in (averages or table.groups)[:1] for row in group if not is_floor(row)]
    rows = [row for row in rows if not set(baselines) & {cell for cell in row if isinstance(cell, str)}]
    numbers = [(row, row[column]) for row in rows]
    scored = [(row, cell) for row, cell in numbers if isinstance(cell, Value) and cell.value is not None]
    for row, cell in sorted(scored, key=lambda pair: not pair[1].best):
        names = zip(table.header[: table.text_columns], row, strict=False)
        facts: list[Fact] = [(heading, name) for heading, name in names if isinstance(name, str | Code) and name]
        return Headline(without_marks(cell), (("Number", table.lead), *facts))
    return None


def _is_average(row: Row) -> bool:
    return any(isinstance(cell, str) and cell.startswith("average of ") for cell in row)
