"""The tasks that there are, by name: those of this package, those of installed packages, and those of the caller."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import EntryPoint, entry_points

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
"""Those of this package. A new task is a file beside its siblings, and its row here."""
ENTRY_POINTS = "prmbench.benchmarks"
"""Group under which an installed package names its benchmarks."""
_added: dict[str, Task] = {}


def add_task(task: Task) -> None:
    """Makes a task of the caller's known for the rest of the process. Raises UserError on a name that is taken."""
    if TASKS.get(task.name, _added.get(task.name, task)) != task:
        raise UserError(f"task {task.name}: there is another task of this name; choose another name")
    if task.name not in TASKS:
        _added[task.name] = task


def find_task(name: str) -> Task:
    """Returns the task of this name. Raises UserError when no one here knows it."""
    if name not in TASKS and name not in _added:
        for entry in installed_benchmarks():
            task = getattr(load_entry(entry), "task", None)
            if isinstance(task, Task):
                add_task(task)
    task = TASKS.get(name) or _added.get(name)
    if task is None:
        raise UserError(
            f"task {name!r} is not known here, which has {', '.join((*TASKS, *_added))}; install the package that "
            "defines it, or name its benchmark with --benchmark pkg.mod:NAME"
        )
    return task


def known_tasks() -> tuple[Task, ...]:
    """Returns every task that is known by now: this package's in table order, then the caller's."""
    return (*TASKS.values(), *_added.values())


def installed_benchmarks() -> Iterator[EntryPoint]:
    """Yields the benchmarks of installed packages, by name."""
    yield from sorted(entry_points(group=ENTRY_POINTS), key=lambda entry: entry.name)


def load_entry(entry: EntryPoint) -> object:
    """Returns what an entry point names. Raises UserError, in one line, when its package is broken."""
    try:
        return entry.load()
    except Exception as error:
        raise UserError(
            f"entry point {entry.name} ({ENTRY_POINTS}): {entry.value} cannot be loaded "
            f"({type(error).__name__}: {error}); repair or uninstall its package"
        ) from error
