"""Progress bars on stderr, when that is a terminal: one of batches or updates, one of steps, or one per job."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

Progress = Callable[[int, int, float], None]
"""Called with (completed, total, tokens per second)."""
JobProgress = Callable[[str, str, int, int], None]
"""Called with (name of the job, such as a seed; what it is doing; completed; total)."""


@contextmanager
def progress_bar(quiet: bool, activity: str, unit: str = "tok") -> Iterator[Progress | None]:
    """Show one progress bar; yield None when `quiet`, or when stderr is not a terminal."""
    if _is_hidden(quiet):
        yield None
        return
    with _display(f"{{task.fields[note]}} {unit}/s") as display:
        task = display.add_task(activity, total=None, note="-")
        yield lambda done, total, rate: display.update(task, completed=done, total=total, note=f"{rate:,.0f}")


@contextmanager
def job_bars(quiet: bool) -> Iterator[JobProgress | None]:
    """Show a progress bar for every job that reports; yield None when `quiet`, or when stderr is not a terminal."""
    if _is_hidden(quiet):
        yield None
        return
    with _display("{task.fields[note]}") as display:
        tasks: dict[str, Any] = {}

        def report(name: str, activity: str, done: int, total: int) -> None:
            if name not in tasks:
                tasks[name] = display.add_task(name, total=None, note="")
            display.update(tasks[name], completed=done, total=total, note=activity)

        yield report


@contextmanager
def steps_bar(quiet: bool) -> Iterator[Callable[[int, int, Mapping[str, Any]], None] | None]:
    """Show a progress bar of steps with the latest metrics; yield None when `quiet`, or stderr is not a terminal."""
    if _is_hidden(quiet):
        yield None
        return
    with _display("{task.fields[note]}") as display:
        task = display.add_task("steps", total=None, note="")
        latest: dict[str, Any] = {}

        def report(step: int, total: int, metrics: Mapping[str, Any]) -> None:
            latest.update({name: metrics[name] for name in LABELS if metrics.get(name) is not None})
            notes = [f"{LABELS[name]} {latest[name]:.3g}" for name in LABELS if name in latest]
            display.update(task, completed=step, total=total, note=" ".join([*notes, *metrics.get("alarms", ())]))

        yield report


LABELS = {
    "accuracy": "right",
    "validation_accuracy": "valid",
    "rm_accuracy": "rm",
    "entropy": "entropy",
    "kl_old": "kl",
    "length": "tokens",
}
"""Metrics of a step that the progress bar shows, and their labels there; alarms follow them."""


def _is_hidden(quiet: bool) -> bool:
    return quiet or not sys.stderr.isatty()


@contextmanager
def _display(note: str) -> Iterator[Any]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn(note))
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True)) as display:
        yield display
