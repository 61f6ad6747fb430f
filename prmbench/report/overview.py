"""What the page's first view says of each benchmark: what it measures, how many runs, and its best honest number.

Honest: under a threshold rule that is reachable in use; of a board on all traces, the strongest floor beside it.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from prmbench.report.blocks import NOTED, text
from prmbench.report.board import OTHER, Board, Cell, Line, RuleTable
from prmbench.report.frame import RULES, members
from prmbench.report.sheets import Fact, Sheet
from prmbench.report.tables import DASH, RECOMMENDED, Grid, percent
from prmbench.report.taskgrids import AGGREGATIONS, BestPick, best_pick

STEPS_WORDS = "Whether a model finds the first wrong step of a solution. F1 of exact hits and of solutions passed."
LEADING = (r"best_of@\d+", r"overall", r"F1, plain", r"AUC", r"within worlds", r"(average|pooled).*", r".+ \(n=\d+\)")
"""Columns that say most about a sheet, where it has them; of several that match, the last."""


@dataclass(frozen=True, slots=True)
class Card:
    """One benchmark in a few words."""

    words: str
    runs: int
    number: str
    """`24.8 [18.8, 27.9]`, or empty."""
    facts: tuple[Fact, ...]
    """What the number is: (heading, text) pairs."""


def of_board(board: Board) -> Card:
    """The best line of the first reachable rule; the highest floor of its column."""
    told = next((found for rule in RECOMMENDED for t in board.tables if t.rule == rule and (found := _lead(t))), None)
    if told is None:
        return Card(STEPS_WORDS, len(board.runs), "", ())
    table, line, column = told
    floors = [(x.cells[column].f1 or 0.0, x.model) for x in table.lines if x.group == "floor" and column in x.cells]
    facts = [
        ("F1", f"average of {', '.join(members(column))}" if column.startswith("avg[") else column),
        ("Model", line.model),
        ("Protocol", f"`{line.protocol}`"),
        ("Rule", RULES[table.rule][0]),
    ]
    facts += [("Best floor", f"{percent(value)} {words}") for value, words in sorted(floors)[-1:]]
    return Card(STEPS_WORDS, len(board.runs), _number(line.cells[column]), tuple(facts))


def _number(cell: Cell) -> str:
    return percent(cell.f1) + ("" if cell.lo is None else f" [{percent(cell.lo)}, {percent(cell.hi)}]")


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
    if {run.result.manifest.task for run in sheet.runs} == {"best_of_n"} and (pick := best_pick(sheet.runs)):
        return Card(words, len(sheet.runs), text(pick.row).rstrip(NOTED), tuple(_pick_facts(pick)))
    grids = [grid for grid in sheet.grids if "oracle" not in grid.label.split("-")]
    if sheet.headline:
        return Card(words, len(sheet.runs), *sheet.headline)
    baselines = {run.result.manifest.model for run in sheet.runs if run.result.manifest.backend == "baseline"}
    found = [*(_best(grid, baselines) for grid in grids), *(_best(grid, ()) for grid in grids), ("", ())]
    return Card(words, len(sheet.runs), *next((told for told in found if told[0]), found[-1]))


def _pick_facts(pick: BestPick) -> Iterator[Fact]:
    """All of one line of the table: what the number is, and the floors of the same completions and N beside it."""
    yield "Number", pick.row.metric
    yield "Completions", pick.completions
    yield "Model", pick.model
    yield "Readout", f"`{pick.readout}`"
    meaning = AGGREGATIONS.get(pick.aggregation.partition("@")[0], "")
    yield "Aggregation", f"{pick.aggregation}: {meaning}" if meaning else pick.aggregation
    for key, row in pick.floors:
        yield f"Floor: {key.removeprefix('floor/')}", f"{text(row, interval=False).rstrip(NOTED)} ({row.metric})"


def _best(grid: Grid, baselines: Collection[str]) -> tuple[str, tuple[Fact, ...]]:
    """The best of the leading column, which is bold, or its first when nothing competes; baselines aside."""
    numbers = range(grid.text_columns, len(grid.header))
    leading = [i for pattern in LEADING for i in reversed(numbers) if re.fullmatch(pattern, grid.header[i])]
    averages = [group for group in grid.groups if any(text.startswith("average of ") for row in group for text in row)]
    rows = [row for group in (averages or grid.groups)[:1] for row in group if not _is_floor(row)]
    rows = [row for row in rows if not set(baselines) & set(row[: grid.text_columns])]
    for i in leading[:1]:
        for row in sorted(rows, key=lambda row: not row[i].startswith("**")):
            if row[i] not in ("", DASH):
                told = zip(grid.header[: grid.text_columns], row, strict=False)
                facts = tuple((heading, text) for heading, text in told if text)
                return row[i].replace("*", "").rstrip(NOTED), (("Number", grid.header[i]), *facts)
    return "", ()


def _is_floor(row: Sequence[str]) -> bool:
    return any(cell.startswith("`floor/") for cell in row)
