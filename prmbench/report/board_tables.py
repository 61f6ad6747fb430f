"""A board's tables: the first table of its page, one per threshold rule, accuracies, and published numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, replace

from prmbench.core.records import DEFAULT_READOUTS, EvalProtocol
from prmbench.core.result_files import Run, canonical_json
from prmbench.report.board import LEGEND, Board, F1Cell, LeaderboardRow, RuleTable
from prmbench.report.frame import frame
from prmbench.tasks.published import Published, reading_notes
from prmbench.tasks.steps import RECOMMENDED
from prmbench.tasks.table import DASH, PERCENT, Code, Row, Table, TableCell, Value
from prmbench.tasks.wording import RULES, members


def front_table(board: Board) -> Table | None:
    """Returns the first table of a page: a row per model under one recommended protocol, named in the title.

    The protocol's threshold rule is the first of RECOMMENDED that a model has, its readout the headline one of the
    model's kind of score. None when no model has such a protocol.
    """
    for rule in RECOMMENDED:
        for table in board.tables:
            rows = _first_by_model(table) if table.rule == rule else {}
            if any(row.group == "model" and _has_number(row) for row in rows.values()):
                shown = replace(table, rows=(*rows.values(), *_floors(table)))
                return _front_table(board, shown.with_ties(board.runs_by_id, board.tests))
    return None


def _has_number(row: LeaderboardRow) -> bool:
    return any(cell.f1 is not None for cell in row.cells.values())


def _front_table(board: Board, table: RuleTable) -> Table:
    table_of_rule = rule_table(board, table)
    protocols = dict.fromkeys(row.protocol for row in table.rows if row.group == "model")
    return replace(
        table_of_rule,
        label=f"{board.benchmark}-front",
        title=f"First-error F1 under {' or '.join(f'`{name}`' for name in protocols)}",
        caption="One row per model under the recommended protocol, which depends on the model's kind of score: sums "
        f"over a step's tokens, or one score per step. {RULES[table.rule][1]} Percent with 95% intervals; floors in "
        "the last rows need no model. Of several runs of a model the one that ranks first is shown. "
        f"{table.bold_text}".rstrip(),
        header=table_of_rule.header[:-1],
        groups=tuple(tuple(row[:-1] for row in group) for group in table_of_rule.groups),
    )


def _first_by_model(table: RuleTable) -> dict[str, LeaderboardRow]:
    """The best ranked row of each model among those whose readout is the headline of a kind of score."""
    rows: dict[str, LeaderboardRow] = {}
    for row in table.rows:
        if row.group != "floor":
            protocol = EvalProtocol.parse(row.protocol)
            if protocol.readout in DEFAULT_READOUTS.values() and not protocol.series:
                rows.setdefault(row.model, row)
    return rows


def _floors(table: RuleTable) -> list[LeaderboardRow]:
    return [row for row in table.rows if row.group == "floor"]


def rule_table(board: Board, table: RuleTable) -> Table:
    """Returns the table of one threshold rule: F1 with intervals, floors beneath."""
    title, text = RULES[table.rule]
    header = ("Model", "Protocol", "Input", "Trained from", *(_heading(c, board.sizes) for c in table.columns))
    groups = []
    for group in ("model", "baseline", "floor"):
        rows = tuple(_row(line, table) for line in table.rows if line.group == group)
        groups.append(rows)
    return Table(
        label=f"{board.benchmark}-{table.rule}",
        title=title,
        caption=f"{text} First-error F1 in percent with its 95% interval. {table.bold_text}".rstrip(),
        header=(*header, "Min. difference", "Unscored", "Run"),
        groups=tuple(g for g in groups if g),
        notes=_notes(table),
        text_columns=4,
    )


def _row(line: LeaderboardRow, table: RuleTable) -> Row:
    model_cells = (f1_value(line.cells.get(c), table.is_tied(line, c)) for c in table.columns)
    if line.group == "floor":
        return (line.model, Code(line.protocol), "", "", *model_cells, "", "", "")
    name = line.model + line.marks
    return (
        name,
        Code(line.protocol),
        line.input_format,
        line.signal,
        *model_cells,
        Value(table.mdd(line)),
        Value(line.unscored, "count"),
        line.run_id,
    )


def f1_value(cell: F1Cell | None, is_best: bool = False) -> Value:
    """Returns F1 with its interval, in bold if it shares the first place of its column."""
    if cell is None:
        return Value(None)
    return Value(cell.f1, PERCENT, cell.lo, cell.hi, is_best, cell.marks)


def _notes(table: RuleTable) -> tuple[str, ...]:
    used_marks = "".join(c.marks for line in table.rows for c in line.cells.values()) + "".join(
        x.marks for x in table.rows
    )
    notes = [f"{mark} {text}." for mark, text in LEGEND.items() if mark in used_marks]
    missing = {(c.note, name) for line in table.rows for name, c in line.cells.items() if c.f1 is None and c.note}
    notes += [f"{DASH} in {name}: {note}." for note, name in sorted(missing)]
    return tuple(notes)


def _heading(column: str, sizes: dict[str, int]) -> str:
    name = f"avg of {', '.join(members(column))}" if column.startswith("avg[") else column
    return f"{name} (n={sizes[column]})" if column in sizes else name


def accuracy_table(board: Board, table: RuleTable) -> Table:
    """Returns the two accuracies of each F1 in a rule's table."""
    rows = tuple(
        (line.model + line.marks, Code(line.protocol), *(_accuracies(line.cells.get(c)) for c in table.columns))
        for line in table.rows
        if line.group != "floor"
    )
    return Table(
        label=f"{board.benchmark}-{table.rule}-accuracies",
        title=f"{RULES[table.rule][0]}: accuracies",
        caption="Exact-index accuracy on traces with an error / accuracy on traces without one, percent.",
        header=("Model", "Protocol", *(_heading(c, board.sizes) for c in table.columns)),
        groups=(rows,),
    )


def _accuracies(cell: F1Cell | None) -> TableCell:
    return Value(None) if cell is None else (Value(cell.error), Value(cell.correct, marks=cell.marks))


def published_tables(published: Sequence[Published]) -> tuple[Table, ...]:
    """Returns one table per threshold rule; rows refer to their sources by number, which the notes list."""
    tables = []
    for rule, (title, _) in RULES.items():
        rows: list[Row] = []
        sources: list[str] = []
        row_notes: list[str] = []
        for publication in published:
            chosen = [row for row in publication.rows if row.rule == rule]
            if chosen:
                sources.append(f"{len(sources) + 1}: {publication.source}. {publication.note}")
            rows += [row.as_row(publication.subsets, len(sources)) for row in chosen]
            row_notes += [f"{row.name}: {row.note}." for row in chosen if row.note]
            row_notes += reading_notes(chosen)
        if rows:
            subsets = next(b.subsets for b in published if any(r.rule == rule for r in b.rows))
            tables.append(
                Table(
                    label=f"published-{rule.replace(' ', '-')}",
                    title=f"Published: {title[0].lower()}{title[1:]}",
                    caption="F1 (accuracy with an error / without), percent. No interval: none was published.",
                    header=("Model", "Readout", "Threshold", *subsets, "avg of the four", "Source"),
                    groups=(tuple(rows),),
                    notes=(*sources, *row_notes),
                    text_columns=3,
                )
            )
    return tuple(tables)


# --- CSV and JSON -------------------------------------------------------------------------------------


def csv(board: Board) -> str:
    """Returns every number of the board in long format: fractions with six decimals, thresholds with nine digits."""
    return frame_csv(board.runs)


def frame_csv(runs: Sequence[Run]) -> str:
    """Returns the same long format as `csv` for runs without a board."""
    table = frame(runs)
    for name in ("value", "lo", "hi"):
        table[name] = [
            "" if math.isnan(number) else f"{number:.9g}" if metric == "threshold" else f"{number:.6f}"
            for number, metric in zip(table[name], table["metric"], strict=True)
        ]
    return str(table.to_csv(index=False, lineterminator="\n"))


def board_json(board: Board, published: Sequence[Published]) -> str:
    """Returns the tables as JSON numbers (fractions, six decimals)."""
    tables = {
        table.rule: {
            "columns": list(table.columns),
            "lines": [{**asdict(line), "cells": _rounded(line)} for line in table.rows],
        }
        for table in board.tables
    }
    publications = [asdict(book) for book in published]
    return canonical_json(
        {"benchmark": board.benchmark, "sizes": board.sizes, "tables": tables, "published": publications}
    )


def _rounded(line: LeaderboardRow) -> dict[str, dict[str, object]]:
    return {
        column: {k: round(v, 6) if isinstance(v, float) else v for k, v in asdict(cell).items()}
        for column, cell in line.cells.items()
    }
