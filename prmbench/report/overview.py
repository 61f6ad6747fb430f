"""What the page's first view says of each benchmark: what it measures, how many runs, and its best honest number.

Honest: under a threshold rule that is reachable in use; of a board on all traces, the strongest floor beside it.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass

from prmbench.report.board import OTHER, Board, Line, RuleTable
from prmbench.report.board_tables import RECOMMENDED, f1_value
from prmbench.report.sheets import Sheet
from prmbench.tasks import find_task
from prmbench.tasks.table import PERCENT, Cell, Code, Fact, Headline, Row, Table, Value, is_floor, number, without_marks
from prmbench.tasks.wording import RULES, members


@dataclass(frozen=True, slots=True)
class Card:
    """One benchmark in a few words."""

    words: str
    runs: int
    number: Cell
    """The best honest number with its interval, or empty."""
    facts: tuple[Fact, ...]
    """What the number is: (heading, text) pairs."""


def of_board(board: Board) -> Card:
    """The best line of the first reachable rule; the highest floor of its column."""
    told = next((found for rule in RECOMMENDED for t in board.tables if t.rule == rule and (found := _lead(t))), None)
    if told is None:
        return Card(find_task("steps").description, len(board.runs), "", ())
    table, line, column = told
    floors = [(x.cells[column].f1 or 0.0, x.model) for x in table.lines if x.group == "floor" and column in x.cells]
    facts: list[Fact] = [
        ("F1", f"average of {', '.join(members(column))}" if column.startswith("avg[") else column),
        ("Model", line.model),
        ("Protocol", Code(line.protocol)),
        ("Rule", RULES[table.rule][0]),
    ]
    facts += [("Best floor", f"{number(value, PERCENT)} {words}") for value, words in sorted(floors)[-1:]]
    return Card(
        find_task("steps").description, len(board.runs), without_marks(f1_value(line.cells[column])), tuple(facts)
    )


def _lead(table: RuleTable) -> tuple[RuleTable, Line, str] | None:
    """The first model with a number on all traces; lines are ranked."""
    for line in table.lines:
        column = table.ranked_by(line)
        cell = line.cells.get(column or "")
        if line.group == "model" and column and cell and cell.f1 is not None and OTHER not in cell.marks:
            return table, line, column
    return None


def of_sheet(sheet: Sheet) -> Card:
    """The sheet's own headline, or the best in the leading column of its first table, oracles aside.

    On the average where there is one, else on the traces that stand first there; which ones is told beside it.
    """
    words = " ".join(re.split(r"(?<=[.?]) ", sheet.words)[:2])
    if sheet.headline is not None:
        return Card(words, len(sheet.runs), sheet.headline.number, sheet.headline.facts)
    tables = [table for table in sheet.tables if "oracle" not in table.label.split("-")]
    baselines = {run.result.manifest.model for run in sheet.runs if run.result.manifest.backend == "baseline"}
    for apart in (baselines, set[str]()):
        for table in tables:
            if (best := _best(table, apart)) is not None:
                return Card(words, len(sheet.runs), best.number, best.facts)
    return Card(words, len(sheet.runs), "", ())


def _best(table: Table, baselines: Collection[str]) -> Headline | None:
    """The best of the leading column, or its first when nothing competes; baselines aside."""
    if not table.lead:
        return None
    at = table.header.index(table.lead)
    averages = [group for group in table.groups if any(_is_average(row) for row in group)]
    rows = [row for group in (averages or table.groups)[:1] for row in group if not is_floor(row)]
    rows = [row for row in rows if not set(baselines) & {cell for cell in row if isinstance(cell, str)}]
    numbers = [(row, row[at]) for row in rows]
    shown = [(row, cell) for row, cell in numbers if isinstance(cell, Value) and cell.value is not None]
    for row, cell in sorted(shown, key=lambda pair: not pair[1].best):
        named = zip(table.header[: table.text_columns], row, strict=False)
        facts: list[Fact] = [(heading, name) for heading, name in named if isinstance(name, str | Code) and name]
        return Headline(without_marks(cell), (("Number", table.lead), *facts))
    return None


def _is_average(row: Row) -> bool:
    return any(isinstance(cell, str) and cell.startswith("average of ") for cell in row)
