"""The frame -> one board per benchmark: a table per threshold rule, its lines ranked, chance floors beneath.

What a line and a cell hold; how they are printed is in board_tables.py and page.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from prmbench.core.records import RunManifest
from prmbench.core.result_files import Run
from prmbench.report.frame import columns, frame, is_sheet_name, odd_subsets, overlaps
from prmbench.tasks import OUT_OF_FOLD
from prmbench.tasks.wording import FLOORS, RULES, members, model_name

OUT, OTHER, OVERLAP = "†", "‡", "§"
LEGEND = {
    OUT: "the threshold was tuned on this subset, so its cell is judged out of fold (5 folds by problem); "
    "an average with the mark includes such a cell",
    OTHER: "scored on other traces than the rest of the column (a part of them, or another version); not ranked",
    OVERLAP: "says it was trained on this benchmark or a part of it",
}


@dataclass(frozen=True, slots=True)
class F1Cell:
    """F1 and its parts in one column; fractions."""

    f1: float | None
    lo: float | None
    hi: float | None
    error: float | None
    correct: float | None
    mdd: float | None
    marks: str = ""
    note: str = ""


@dataclass(frozen=True, slots=True)
class Line:
    """One run under one protocol, or a floor."""

    group: str
    """`model`, `baseline` or `floor`."""
    model: str
    protocol: str
    input_format: str
    signal: str
    run_id: str
    n: int
    unscored: int
    cells: dict[str, F1Cell]
    marks: str = ""


@dataclass(frozen=True, slots=True)
class RuleTable:
    """Lines that may be compared with each other: one threshold rule."""

    rule: str
    columns: tuple[str, ...]
    lines: tuple[Line, ...]

    def ranked_by(self, line: Line) -> str | None:
        """The column that ranks a line: its average over most subsets, or its only subset."""
        return _ranked_by(line, self.columns)

    def mdd(self, line: Line) -> float | None:
        """Minimum detectable difference in the column that ranks the line."""
        column = self.ranked_by(line)
        return None if column is None else line.cells[column].mdd

    def best(self, column: str) -> float | None:
        """Highest ranked F1 of a column, when at least two lines compete."""
        found = [c.f1 for c in self._ranked(column) if c.f1 is not None]
        return max(found) if len(found) > 1 else None

    def _ranked(self, column: str) -> list[F1Cell]:
        lines = [line for line in self.lines if line.group == "model"]
        return [line.cells[column] for line in lines if column in line.cells and OTHER not in line.cells[column].marks]


@dataclass(frozen=True, slots=True)
class Board:
    """Everything known about one benchmark."""

    benchmark: str
    sizes: dict[str, int]
    """Column -> traces in it."""
    tables: tuple[RuleTable, ...]
    runs: tuple[Run, ...]

    @property
    def name(self) -> str:
        """The benchmark's, told apart from a sheet of that name."""
        return f"{self.benchmark} (steps)" if is_sheet_name(self.benchmark) else self.benchmark


def boards(runs: Sequence[Run]) -> tuple[Board, ...]:
    """One board per benchmark, by name."""
    names = sorted({run.result.manifest.benchmark for run in runs})
    return tuple(_board(name, [r for r in runs if r.result.manifest.benchmark == name]) for name in names)


def _board(benchmark: str, runs: Sequence[Run]) -> Board:
    table = frame(runs)
    odd = odd_subsets(runs)
    manifests = {run.result.manifest.run_id: run.result.manifest for run in runs}
    lines = _lines(table, manifests, odd)
    floors = _floors(table, odd)
    tables = []
    for rule in RULES:
        chosen = [line for name, line in lines if name == rule]
        names = {c for line in chosen for c in line.cells}
        if chosen:
            shown = tuple(c for c in columns(table) if c in names)
            tables.append(RuleTable(rule, shown, (*_ranking(chosen, shown), *floors)))
    is_common = [not (odd[r] & set(members(s))) for r, s in zip(table["run_id"], table["subset"], strict=True)]
    whole = table[pd.Series(is_common, index=table.index, dtype=bool)]
    sizes = {str(name): int(n) for name, n in whole.groupby("subset")["n"].max().items()}
    ordered = sorted(runs, key=lambda r: (r.result.manifest.model, r.result.manifest.run_id))
    return Board(benchmark, {c: sizes[c] for c in columns(table) if c in sizes}, tuple(tables), tuple(ordered))


def _lines(table: pd.DataFrame, manifests: dict[str, RunManifest], odd: dict[str, set[str]]) -> list[tuple[str, Line]]:
    """(rule, line) of every run under every protocol."""
    found = []
    for (run_id, protocol, rule), part in table[table["rule"] != "floor"].groupby(["run_id", "protocol", "rule"]):
        m = manifests[str(run_id)]
        line = Line(
            group="baseline" if m.backend == "baseline" else "model",
            model=model_name(m),
            protocol=str(protocol),
            input_format=m.input_format,
            signal=m.signal or "unknown",
            run_id=m.run_id,
            n=m.n,
            unscored=int(part[part["subset"].isin(m.subsets)].groupby("subset")["unscored"].first().sum()),
            cells=_cells(part, odd[m.run_id]),
            marks=OVERLAP if overlaps(m) else "",
        )
        found.append((str(rule), line))
    return found


def _floors(table: pd.DataFrame, odd: dict[str, set[str]]) -> tuple[Line, ...]:
    """What chance reaches on the common traces of each column; runs on other traces have no say."""
    found = []
    for protocol, words in FLOORS.items():
        part = table[table["protocol"] == protocol]
        cells: dict[str, F1Cell] = {}
        for run_id, rows in part.groupby("run_id"):
            for column, cell in _cells(rows, odd[str(run_id)]).items():
                if OTHER not in cell.marks:
                    cells.setdefault(column, cell)
        if cells:
            found.append(Line("floor", words, protocol, "", "", "", 0, 0, cells))
    return tuple(found)


def _cells(part: pd.DataFrame, odd: set[str]) -> dict[str, F1Cell]:
    cells = {}
    for column, rows in part.groupby("subset"):
        by = {str(r.metric): r for r in rows.itertuples()}
        if "f1" not in by:
            continue
        f1 = by["f1"]
        value = {name: _number(by[name].value) if name in by else None for name in _PARTS}
        marks = OUT * str(f1.note).endswith(OUT_OF_FOLD) + OTHER * bool(odd & set(members(str(column))))
        cells[str(column)] = F1Cell(
            f1=_number(f1.value),
            lo=_number(f1.lo),
            hi=_number(f1.hi),
            error=value["error_accuracy"],
            correct=value["correct_accuracy"],
            mdd=value["mdd"],
            marks=marks,
            note=str(f1.note),
        )
    return cells


_PARTS = ("error_accuracy", "correct_accuracy", "mdd")


def _number(value: object) -> float | None:
    return None if pd.isna(value) else float(value)  # type: ignore[arg-type, call-overload]


def _ranked_by(line: Line, shown: Sequence[str]) -> str | None:
    order = [c for c in shown if c.startswith("avg[")] + list(shown)
    return next((c for c in order if c in line.cells), None)


def _ranking(lines: Sequence[Line], shown: Sequence[str]) -> list[Line]:
    """Models before baselines; comparable lines before others, wider averages before narrower, then by F1."""

    def key(line: Line) -> tuple[object, ...]:
        column = _ranked_by(line, shown)
        cell = line.cells[column] if column else None
        value = -1.0 if cell is None or cell.f1 is None else cell.f1
        partial = cell is not None and OTHER in cell.marks
        width = len(members(column)) if column else 0
        return line.group != "model", partial, -width, -value, line.model, line.protocol, line.run_id

    return sorted(lines, key=key)
