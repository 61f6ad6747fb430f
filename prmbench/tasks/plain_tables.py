"""Default tables, for tasks that only name their columns: one row per run and protocol."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from prmbench.core.records import MetricRow, RunResult, ScoredTrace
from prmbench.core.result_files import Run
from prmbench.tasks.blocks import Block, average_or_only_subset, blocks, rows_of
from prmbench.tasks.table import Code, Row, Table, cell_of, notes_of
from prmbench.tasks.task import Column, Task
from prmbench.tasks.ties import PairedTests, place_of
from prmbench.tasks.wording import run_name

Rows = Mapping[tuple[str, str], MetricRow]
"""(protocol, metric) -> row."""


def tables_of(task: Task, runs: Sequence[Run]) -> tuple[Table, ...]:
    """Returns the task's own tables, or a default one with a row per run and protocol and a column per metric."""
    if task.tables is not None:
        return task.tables(runs)
    tests = PairedTests(task)
    groups = [group for block in blocks(runs, _trace_identity) if (group := _group(task, block, tests))]
    metrics = {column.metric for column in task.columns}
    return (
        Table(
            label=f"{task.name}-metrics",
            title="Every model and protocol",
            caption="Each number with its 95% interval over problems; model-free baselines are in the last rows. "
            f"{tests.text}",
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
    groups = tuple(tuple((Code(key), *_cells(task, key, rows)) for key in protocols) for protocols in (keys, floors))
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


def _group(task: Task, block: Block, tests: PairedTests) -> tuple[Row, ...]:
    run_rows = []
    for run in block.runs:
        rows = rows_of(run.result, block.subset)
        keys = dict.fromkeys(protocol for protocol, _ in rows if not protocol.startswith("floor/"))
        run_rows += [(run, key, rows) for key in keys]
    tied = {
        c.metric: tests.tied_in_column(
            ((run, rows.get((key, c.metric))) for run, key, rows in run_rows), c.lower_is_better
        )
        for c in task.columns
    }
    if task.columns:
        run_rows.sort(key=lambda row: (_rank(task.columns[0], row[1], row[2]), run_name(row[0]), row[1]))
    table_rows: list[Row] = [
        (
            block.name,
            run_name(run),
            Code(key),
            *_cells(task, key, rows, [m for m in tied if place_of(run, key) in tied[m]]),
        )
        for run, key, rows in run_rows
    ]
    rows = rows_of(block.runs[0].result, block.subset)
    floors = dict.fromkeys(protocol for protocol, _ in rows if protocol.startswith("floor/"))
    table_rows += [(block.name, "no model", Code(key), *_cells(task, key, rows)) for key in floors]
    return tuple(table_rows)


def _rank(column: Column, key: str, rows: Rows) -> tuple[bool, float]:
    """Sorts the best first, and what has no value last."""
    row = rows.get((key, column.metric))
    if row is None or row.value is None:
        return True, 0.0
    return False, row.value if column.lower_is_better else -row.value


def _cells(task: Task, key: str, rows: Rows, bold: Collection[str] = ()) -> Row:
    """Returns the numbers of a row; `bold`: metrics whose number shares the first place."""
    return tuple(cell_of(rows.get((key, c.metric)), c.unit, c.metric in bold) for c in task.columns)
