"""Progress on stderr, when that is a terminal: one bar of batches or updates, or a bar a process."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

Progress = Callable[[int, int, float], None]
"""(done, in all, tokens a second)."""
Tell = Callable[[str, str, int, int], None]
"""(whose process, such as a seed's; what it does; how much of that is done; out of how much)."""


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
    """A bar for everyone that is told of; None where nobody looks."""
    if _unseen(quiet):
        yield None
        return
    with _opened("{task.fields[note]}") as shown:
        tasks: dict[str, Any] = {}

        def tell(name: str, what: str, done: int, total: int) -> None:
            if name not in tasks:
                tasks[name] = shown.add_task(name, total=None, note="")
            shown.update(tasks[name], completed=done, total=total, note=what)

        yield tell


@contextmanager
def steps_bar(quiet: bool) -> Iterator[Callable[[int, int, Mapping[str, Any]], None] | None]:
    """One bar of steps with the numbers to watch beside it; None where nobody looks."""
    if _unseen(quiet):
        yield None
        return
    with _opened("{task.fields[note]}") as shown:
        task = shown.add_task("steps", total=None, note="")
        seen: dict[str, Any] = {}

        def tell(step: int, total: int, line: Mapping[str, Any]) -> None:
            seen.update({name: line[name] for name in WATCHED if line.get(name) is not None})
            told = [f"{WATCHED[name]} {seen[name]:.3g}" for name in WATCHED if name in seen]
            shown.update(task, completed=step, total=total, note=" ".join([*told, *line.get("alarms", ())]))

        yield tell


WATCHED = {
    "accuracy": "right",
    "validation_accuracy": "valid",
    "rm_accuracy": "rm",
    "entropy": "entropy",
    "kl_old": "kl",
    "length": "tokens",
}
"""Numbers of a step that are shown while it runs, and what they are called there; alarms stand behind them."""


def _unseen(quiet: bool) -> bool:
    return quiet or not sys.stderr.isatty()


@contextmanager
def _opened(note: str) -> Iterator[Any]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn(note))
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True)) as shown:
        yield shown
