"""A board's table of threshold-free numbers: how well the scores of each run separate wrong steps from right ones."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from operator import itemgetter

from prmbench.core.records import MetricRow
from prmbench.core.result_files import Run
from prmbench.report.board import LEGEND, OTHER_MARK, Board
from prmbench.report.frame import columns, frame, incomparable_subsets
from prmbench.tasks.step_ranking import FLOOR, METRICS, RULE
from prmbench.tasks.table import PERCENT, Code, Row, Table, Value, has_mark, notes_of
from prmbench.tasks.wording import members, rule_and_readout, run_name

NAMES = dict(zip(METRICS, ("AUROC", "AUPRC"), strict=True))


def ranking_table(board: Board) -> Table | None:
    """Returns the table of a board, AUROC first, then AUPRC, each with chance beneath; None where no run has them."""
    runs = [run for run in board.runs if any(row.metric in METRICS for row in run.result.rows)]
    if not runs:
        return None
    names = columns(frame(runs))
    incomparable = incomparable_subsets(board.runs)
    groups = []
    for metric in METRICS:
        rows = list(_model_rows(runs, metric, names, incomparable))
        groups.append((*rows, *_floor_row(runs, metric, names, incomparable)))
    marks = (f"{OTHER_MARK} {LEGEND[OTHER_MARK]}.",) if has_mark(groups, OTHER_MARK) else ()
    shown = [row for run in runs for row in run.result.rows if row.metric in METRICS]
    return Table(
        label=f"{board.benchmark}-{RULE}",
        title="Ranking of steps, without a threshold",
        caption="Wrong steps are the first errors, right ones all steps before them and those of solutions without an "
        "error; a lower score should mean a wrong step. AUROC: how often a wrong step scores lower than a right one. "
        "AUPRC: average precision of flagging the lowest scores first. Percent with 95% intervals over problems; the "
        "floor is chance: one half, and the share of wrong steps.",
        header=("Model", "Protocol", "Area", *map(_heading, names)),
        groups=tuple(groups),
        notes=(*marks, *(note for note in notes_of(shown) if not note.startswith("†"))),
        text_columns=3,
    )


def _model_rows(
    runs: Sequence[Run], metric: str, names: Sequence[str], incomparable: dict[str, set[str]]
) -> Iterator[Row]:
    """Yields a row for each run and readout, the highest first in the widest average, or else the last subset."""
    ranked: list[tuple[float, str, str, Row]] = []
    for run in runs:
        for key in dict.fromkeys(row.protocol for row in run.result.rows):
            if rule_and_readout(key)[0] == RULE:
                rows = _by_subset(run, key, metric)
                cells = tuple(_cell(rows.get(name), name, incomparable[run.result.manifest.run_id]) for name in names)
                wide = next((c.value for c in _widest_first(names, cells) if c.value is not None), -1.0)
                ranked.append((-wide, run_name(run), key, (run_name(run), Code(key), NAMES[metric], *cells)))
    yield from (row for *_, row in sorted(ranked, key=itemgetter(0, 1, 2)))


def _floor_row(
    runs: Sequence[Run], metric: str, names: Sequence[str], incomparable: dict[str, set[str]]
) -> Iterator[Row]:
    """Yields what chance reaches on the common traces of each column."""
    cells: dict[str, Value] = {}
    for run in runs:
        for name, row in _by_subset(run, FLOOR, metric).items():
            cell = _cell(row, name, incomparable[run.result.manifest.run_id])
            if OTHER_MARK not in cell.marks:
                cells.setdefault(name, cell)
    yield ("chance", Code(FLOOR), NAMES[metric], *(cells.get(name, Value(None)) for name in names))


def _widest_first(names: Sequence[str], cells: Sequence[Value]) -> Iterator[Value]:
    pairs = list(zip(names, cells, strict=True))
    yield from (cell for _, cell in sorted(pairs, key=lambda pair: -len(members(pair[0]))))


def _heading(name: str) -> str:
    return f"avg of {', '.join(members(name))}" if name.startswith("avg[") else name


def _by_subset(run: Run, key: str, metric: str) -> dict[str, MetricRow]:
    return {row.subset: row for row in run.result.rows if (row.protocol, row.metric) == (key, metric)}


def _cell(row: MetricRow | None, name: str, incomparable: set[str]) -> Value:
    if row is None:
        return Value(None)
    return Value(row.value, PERCENT, row.lo, row.hi, marks=OTHER_MARK * bool(incomparable & set(members(name))))
