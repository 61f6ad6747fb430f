"""Tasks: which metrics are computed from stored scores, one file per task, and how runs are judged and compared.

A task's file holds its protocols, metrics, tables, texts and checks, and ends with its `TASK`; registry.py lists them.
Nothing here needs a model.
"""

from prmbench.tasks.agreement import differences
from prmbench.tasks.judging import (
    JUDGED_AGAIN,
    Pair,
    check_draft,
    compare,
    is_of_earlier_estimators,
    judge,
    judge_again,
    pairs,
    protocol_keys,
    read_run,
    read_runs,
    read_verified,
    resolve_protocols,
    underivable_rows,
    verified,
)
from prmbench.tasks.metric_rows import OUT_OF_FOLD, Cell, Judged, SubsetInfo
from prmbench.tasks.registry import add_task, find_task, installed_benchmarks, known_tasks, load_entry
from prmbench.tasks.table import Code, Table, Value
from prmbench.tasks.task import Column, Task

__all__ = [
    "JUDGED_AGAIN",
    "OUT_OF_FOLD",
    "Cell",
    "Code",
    "Column",
    "Judged",
    "Pair",
    "SubsetInfo",
    "Table",
    "Task",
    "Value",
    "add_task",
    "check_draft",
    "compare",
    "differences",
    "find_task",
    "installed_benchmarks",
    "is_of_earlier_estimators",
    "judge",
    "judge_again",
    "known_tasks",
    "load_entry",
    "pairs",
    "protocol_keys",
    "read_run",
    "read_runs",
    "read_verified",
    "resolve_protocols",
    "underivable_rows",
    "verified",
]
