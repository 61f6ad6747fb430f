"""Default tables, for tasks that only name their columns: one row per run and protocol."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from prmbench.core.records import MetricRow, RunResult, ScoredTrace
from prmbench.core.result_files import Run
from prmbench.tasks.blocks import Block, average_or_only_subset, blocks, rows_of
from prmbench.tasks.table import Code, Row, Table, best_value, cell_of, is_best, notes_of
from prmbench.tasks.task import Column, Task
from prmbench.tasks.wording import run_name

Rows = Mapping[tuple[str, str], MetricRow]
"""(protocol, metric) -> row."""


def tables_of(task: Task, runs: Sequence[Run]) -> tuple[Table, ...]:
    """Returns the task's own tables, or a default one with a row per run and protocol and a column per metric."""
    if task.tables is not None:
        return task.tables(runs)
    groups = [group for block in blocks(runs, _trace_identity) if (group := _group(task, block))]
    metrics = {column.metric for column in task.columns}
    return (
        Table(
            label=f"{task.name}-metrics",
            title="Every model and protocol",
            caption="Each number with its 95% interval over problems; model-free baselines are in the last rows.",
            header=("Traces", "Model", "Protocol", *(column.heading for column in task.columns)),
            groups=tuple(groups),
            notes=notes_of(row for run in runs for row in run.result.rows if row.metric in metrics),
            text_columns=3,
            lead=task.columns[0].heading if task.columns else "",
        ),
    )


def summary_of(task: Task, result: RunResult, keys: Sequence[str]) -> Table:
    """Returns the task's own table of one run, or a default one with a row per protocol and the floors beneath."""
    if task.summary is not None:
        return task.summary(result, keys)
    subset = average_or_only_subset(result)
    rows = rows_of(result, subset)
    is_a_part = len(result.manifest.subsets) > 1 and not subset.startswith("avg[")  # a task without averages
    floors = [key for key in dict.fromkeys(row.protocol for row in result.rows) if key.startswith("floor/")]
    groups = tuple(
        tuple((Code(key), *_cells(task, key, rows, {})) for key in protocols) for protocols in (keys, floors)
    )
    return Table(
        label=task.name,
        title="",
        caption="",
        header=(f"{task.title}: {subset}" if is_a_part else task.title, *(column.heading for column in task.columns)),
        groups=groups,
        notes=notes_of(
            rows[key, c.metric] for key in (*keys, *floors) for c in task.columns if (key, c.metric) in rows
        ),
        text_columns=1,
        ends_with_floors=True,
    )


def _trace_identity(trace: ScoredTrace) -> object:
    """Fields in which two runs on the same trace agree."""
    return trace.id, trace.steps, trace.label, trace.outcome, trace.step_labels


def _group(task: Task, block: Block) -> tuple[Row, ...]:
    run_rows = []
    for run in block.runs:
        rows = rows_of(run.result, block.subset)
        keys = dict.fromkeys(protocol for protocol, _ in rows if not protocol.startswith("floor/"))
        run_rows += [(run_name(run), key, rows) for key in keys]
    best = {
        column.metric: best_value([rows.get((key, column.metric)) for _, key, rows in run_rows], column.lower_is_better)
        for column in task.columns
    }
    if task.columns:
        run_rows.sort(key=lambda run_row: (_rank(task.columns[0], run_row[1], run_row[2]), run_row[0], run_row[1]))
    table_rows: list[Row] = [
        (block.name, name, Code(key), *_cells(task, key, rows, best)) for name, key, rows in run_rows
    ]
    rows = rows_of(block.runs[0].result, block.subset)
    floors = dict.fromkeys(protocol for protocol, _ in rows if protocol.startswith("floor/"))
    table_rows += [(block.name, "no model", Code(key), *_cells(task, key, rows, {})) for key in floors]
    return tuple(table_rows)


def _rank(column: Column, key: str, rows: Rows) -> tuple[bool, float]:
    """Sorts the best first, and what has no value last."""
    row = rows.get((key, column.metric))
    if row is None or row.value is None:
        return True, 0.0
    return False, row.value if column.lower_is_better else -row.value


def _cells(task: Task, key: str, rows: Rows, best: Mapping[str, float | None]) -> Row:
    return tuple(
        cell_of(row := rows.get((key, c.metric)), c.unit, is_best(row, best.get(c.metric))) for c in task.columns
    )
