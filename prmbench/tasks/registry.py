"""Looks tasks up by name: those of this package, of installed packages, and those that the caller added."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import EntryPoint, entry_points

from prmbench.core.plugins import load_entry_point
from prmbench.core.records import UserError
from prmbench.tasks import best_of_n, calibration, distrl, format_shift, policy, steps, validity
from prmbench.tasks.task import Task

TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        steps.TASK,
        validity.TASK,
        format_shift.TASK,
        best_of_n.TASK,
        policy.TASK,
        calibration.TASK,
        distrl.TASK,
    )
}
"""This package's tasks. A new task is a file in this package and a line here."""
ENTRY_POINTS = "prmbench.benchmarks"
"""Entry-point group in which installed packages declare their benchmarks."""
_added: dict[str, Task] = {}


def add_task(task: Task) -> None:
    """Registers a caller's task for the rest of the process.

    Raises:
        UserError: Another task has its name.
    """
    if TASKS.get(task.name, _added.get(task.name, task)) != task:
        raise UserError(f"task {task.name}: there is another task of this name; choose another name")
    if task.name not in TASKS:
        _added[task.name] = task


def find_task(name: str) -> Task:
    """Returns the task of this name.

    Raises:
        UserError: There is none, or a package that may have had it cannot be imported.
    """
    failures: list[UserError] = []
    if name not in TASKS and name not in _added:
        for entry in installed_benchmarks():
            try:
                task = getattr(load_entry(entry), "task", None)
                if isinstance(task, Task):
                    add_task(task)
            except UserError as error:  # it need not be the package that has the task
                failures.append(error)
    task = TASKS.get(name) or _added.get(name)
    if task is None and failures:
        raise failures[0]
    if task is None:
        raise UserError(
            f"task {name!r} is not known here, which has {', '.join((*TASKS, *_added))}; install the package that "
            "defines it, or name its benchmark with --benchmark pkg.mod:NAME"
        )
    return task


def known_tasks() -> tuple[Task, ...]:
    """Returns this package's tasks in table order, then those added so far."""
    return (*TASKS.values(), *_added.values())


def installed_benchmarks() -> Iterator[EntryPoint]:
    """Yields the benchmarks of installed packages, by name."""
    yield from sorted(entry_points(group=ENTRY_POINTS), key=lambda entry: entry.name)


def load_entry(entry: EntryPoint) -> object:
    """Returns the object that an entry point names. Raises UserError when its package cannot be imported."""
    return load_entry_point(entry, ENTRY_POINTS)
