"""Builds one board per benchmark: a table per threshold rule with ranked rows and chance floors.

board_tables.py and page.py render the boards.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import pandas as pd

from prmbench.core.records import MetricRow
from prmbench.core.result_files import Run
from prmbench.report.frame import columns, frame, incomparable_subsets, is_sheet_name, is_trained_on_benchmark
from prmbench.tasks import OUT_OF_FOLD, find_task
from prmbench.tasks.published import is_unofficial
from prmbench.tasks.ties import Entry, PairedTests, Place
from prmbench.tasks.wording import FLOORS, RULES, floors_under, members, run_name

OUT_OF_FOLD_MARK, OTHER_MARK, OVERLAP_MARK, UNOFFICIAL_MARK = "†", "‡", "§", "¶"
STEPS = "steps"
"""The task of a board without runs."""
LEGEND = {
    OUT_OF_FOLD_MARK: "the threshold was tuned on this subset, so its cell is judged out of fold (5 folds by problem, "
    "ten splits), and no average includes it",
    OTHER_MARK: "scored on other traces than the rest of the column (a part of them, or another version); not ranked",
    OVERLAP_MARK: "declares that it was trained on this benchmark or a part of it",
    UNOFFICIAL_MARK: "not the official reading: the model's published numbers have another input or readout, which the "
    "notes under them name",
}


@dataclass(frozen=True, slots=True)
class F1Cell:
    """F1, its interval and its two accuracies in one column, as fractions."""

    f1: float | None
    lo: float | None
    hi: float | None
    error: float | None
    correct: float | None
    mdd: float | None
    marks: str = ""
    note: str = ""


@dataclass(frozen=True, slots=True)
class LeaderboardRow:
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
    """The rows under one threshold rule, which may be compared with each other."""

    rule: str
    columns: tuple[str, ...]
    rows: tuple[LeaderboardRow, ...]
    tied: Mapping[str, frozenset[Place]] = field(default_factory=dict)
    """The rows in bold, by column: the best and those that a paired test does not tell apart from it."""
    bold_text: str = ""
    """What bold numbers mean."""

    def ranked_by(self, row: LeaderboardRow) -> str | None:
        """Returns the column that ranks a row: its average over most subsets, or its only subset."""
        return _ranked_by(row, self.columns)

    def mdd(self, row: LeaderboardRow) -> float | None:
        """Returns the minimum detectable difference in the column that ranks the row."""
        column = self.ranked_by(row)
        return None if column is None else row.cells[column].mdd

    def best(self, column: str) -> float | None:
        """Returns the highest ranked F1 of a column; None with fewer than two ranked rows, or under a floor."""
        scores = [c.f1 for c in self._ranked(column) if c.f1 is not None]
        floors = [row.cells[column].f1 or 0.0 for row in self.rows if row.group == "floor" and column in row.cells]
        best = max(scores, default=0.0)
        return best if len(scores) > 1 and best > max(floors, default=0.0) else None

    def with_ties(self, runs: Mapping[str, Run], tests: PairedTests) -> RuleTable:
        """Returns the table with the rows that share the first place of each column; `runs` are by run id."""
        tied = {c: self._tied(c, runs, tests) for c in self.columns if self.best(c) is not None}
        return replace(self, tied=tied, bold_text=tests.text if tied else "")

    def is_tied(self, row: LeaderboardRow, column: str) -> bool:
        """Whether a row shares the first place of a column; of a column that was not tested, whether it is the best."""
        cell = row.cells.get(column)
        if row.group != "model" or cell is None or cell.f1 is None:
            return False
        if column in self.tied:
            return (row.run_id, row.protocol) in self.tied[column]
        return cell.f1 == self.best(column)

    def _tied(self, column: str, runs: Mapping[str, Run], tests: PairedTests) -> frozenset[Place]:
        entries = [
            Entry(runs[row.run_id], MetricRow(column, row.protocol, "f1", cell.f1, cell.lo, cell.hi, 0, 0))
            for row in self.rows
            if row.group == "model" and row.run_id in runs
            if (cell := row.cells.get(column)) is not None and OTHER_MARK not in cell.marks
        ]
        return tests.tied(entries)

    def _ranked(self, column: str) -> list[F1Cell]:
        rows = [row for row in self.rows if row.group == "model"]
        return [row.cells[column] for row in rows if column in row.cells and OTHER_MARK not in row.cells[column].marks]


@dataclass(frozen=True, slots=True)
class Board:
    """All tables and runs of one benchmark."""

    benchmark: str
    sizes: dict[str, int]
    """Number of traces by column."""
    tables: tuple[RuleTable, ...]
    runs: tuple[Run, ...]
    tests: PairedTests = field(default_factory=lambda: PairedTests(find_task(STEPS)), compare=False)
    """The paired tests made for the tables."""

    @property
    def runs_by_id(self) -> dict[str, Run]:
        """The runs by run id."""
        return {run.result.manifest.run_id: run for run in self.runs}

    @property
    def name(self) -> str:
        """The benchmark's name, marked if a sheet could have the same name."""
        return f"{self.benchmark} (steps)" if is_sheet_name(self.benchmark) else self.benchmark


def boards(runs: Sequence[Run]) -> tuple[Board, ...]:
    """Returns one board per benchmark, sorted by name."""
    names = sorted({run.result.manifest.benchmark for run in runs})
    return tuple(_board(name, [r for r in runs if r.result.manifest.benchmark == name]) for name in names)


def _board(benchmark: str, runs: Sequence[Run]) -> Board:
    table = frame(runs)
    incomparable = incomparable_subsets(runs)
    by_id = {run.result.manifest.run_id: run for run in runs}
    rows, tests = _ruled_rows(table, by_id, incomparable), PairedTests(find_task(runs[0].result.manifest.task))
    floors = _floors(table, incomparable)
    tables = []
    for rule in RULES:
        chosen = [row for name, row in rows if name == rule]
        names = {c for row in chosen for c in row.cells}
        if chosen:
            columns_shown = tuple(c for c in columns(table) if c in names)
            beneath = [floor for floor in floors if floor.protocol in floors_under(rule)]
            rule_table = RuleTable(rule, columns_shown, (*_ranking(chosen, columns_shown), *beneath))
            tables.append(rule_table.with_ties(by_id, tests))
    is_common = [not (incomparable[r] & set(members(s))) for r, s in zip(table["run_id"], table["subset"], strict=True)]
    comparable = table[pd.Series(is_common, index=table.index, dtype=bool)]
    sizes = {str(name): int(n) for name, n in comparable.groupby("subset")["n"].max().items()}
    ordered = sorted(runs, key=lambda r: (r.result.manifest.model, r.result.manifest.run_id))
    return Board(benchmark, {c: sizes[c] for c in columns(table) if c in sizes}, tuple(tables), tuple(ordered), tests)


def _ruled_rows(
    table: pd.DataFrame, runs: dict[str, Run], incomparable: dict[str, set[str]]
) -> list[tuple[str, LeaderboardRow]]:
    """Every (threshold rule, row), for each run under each protocol."""
    ruled_rows = []
    for (run_id, protocol, rule), protocol_frame in table[table["rule"] != "floor"].groupby(
        ["run_id", "protocol", "rule"]
    ):
        run = runs[str(run_id)]
        manifest = run.result.manifest
        row = LeaderboardRow(
            group="baseline" if manifest.backend == "baseline" else "model",
            model=run_name(run),
            protocol=str(protocol),
            input_format=manifest.input_format,
            signal=manifest.signal or "unknown",
            run_id=manifest.run_id,
            n=manifest.n,
            unscored=int(
                protocol_frame[protocol_frame["subset"].isin(manifest.subsets)]
                .groupby("subset")["unscored"]
                .first()
                .sum()
            ),
            cells=_cells(protocol_frame, incomparable[manifest.run_id]),
            marks=OVERLAP_MARK * is_trained_on_benchmark(manifest)
            + UNOFFICIAL_MARK * is_unofficial(manifest, str(protocol)),
        )
        ruled_rows.append((str(rule), row))
    return ruled_rows


def _floors(table: pd.DataFrame, incomparable: dict[str, set[str]]) -> tuple[LeaderboardRow, ...]:
    """The floors on the common traces of each column; runs on other traces are left out."""
    floors = []
    for protocol, name in FLOORS.items():
        protocol_frame = table[table["protocol"] == protocol]
        cells: dict[str, F1Cell] = {}
        for run_id, rows in protocol_frame.groupby("run_id"):
            for column, cell in _cells(rows, incomparable[str(run_id)]).items():
                if OTHER_MARK not in cell.marks:
                    cells.setdefault(column, cell)
        if cells:
            floors.append(LeaderboardRow("floor", name, protocol, "", "", "", 0, 0, cells))
    return tuple(floors)


def _cells(protocol_frame: pd.DataFrame, incomparable: set[str]) -> dict[str, F1Cell]:
    cells = {}
    for column, rows in protocol_frame.groupby("subset"):
        by_metric = {str(r.metric): r for r in rows.itertuples()}
        if "f1" not in by_metric:
            continue
        f1 = by_metric["f1"]
        value = {name: _number(by_metric[name].value) if name in by_metric else None for name in _PARTS}
        marks = OUT_OF_FOLD_MARK * str(f1.note).endswith(OUT_OF_FOLD) + OTHER_MARK * bool(
            incomparable & set(members(str(column)))
        )
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


def _ranked_by(row: LeaderboardRow, columns_shown: Sequence[str]) -> str | None:
    order = [c for c in columns_shown if c.startswith("avg[")] + list(columns_shown)
    return next((c for c in order if c in row.cells), None)


def _ranking(rows: Sequence[LeaderboardRow], columns_shown: Sequence[str]) -> list[LeaderboardRow]:
    """Rows in order: models before baselines, comparable rows first, wider averages before narrower, then by F1."""

    def key(row: LeaderboardRow) -> tuple[object, ...]:
        column = _ranked_by(row, columns_shown)
        cell = row.cells[column] if column else None
        value = -1.0 if cell is None or cell.f1 is None else cell.f1
        partial = cell is not None and OTHER_MARK in cell.marks
        width = len(members(column)) if column else 0
        return row.group != "model", partial, -width, -value, row.model, row.protocol, row.run_id

    return sorted(rows, key=key)
