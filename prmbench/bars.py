"""Progress on stderr, when that is a terminal: one bar of batches or updates, or a bar a seed."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

Progress = Callable[[int, int, float], None]
"""(done, in all, tokens a second)."""
Tell = Callable[[int, str, int, int], None]
"""(seed, what is being done, how much of it is done, out of how much)."""


@contextmanager
def bar(quiet: bool, what: str) -> Iterator[Progress | None]:
    """One bar; None where nobody looks."""
    if _unseen(quiet):
        yield None
        return
    with _opened("{task.fields[note]} tok/s") as shown:
        task = shown.add_task(what, total=None, note="-")
        yield lambda done, total, rate: shown.update(task, completed=done, total=total, note=f"{rate:,.0f}")


@contextmanager
def bars(quiet: bool) -> Iterator[Tell | None]:
    """A bar for every seed that is told of; None where nobody looks."""
    if _unseen(quiet):
        yield None
        return
    with _opened("{task.fields[note]}") as shown:
        tasks: dict[int, Any] = {}

        def tell(seed: int, what: str, done: int, total: int) -> None:
            if seed not in tasks:
                tasks[seed] = shown.add_task(f"seed {seed}", total=None, note="")
            shown.update(tasks[seed], completed=done, total=total, note=what)

        yield tell


def _unseen(quiet: bool) -> bool:
    return quiet or not sys.stderr.isatty()


@contextmanager
def _opened(note: str) -> Iterator[Any]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn(note))
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True)) as shown:
        yield shown
