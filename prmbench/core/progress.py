"""Progress on stderr: bars where that is a terminal, and elsewhere a plain line every so often.

What a command does before it can count, such as loading a model, is shown too: modules log it by `logging` at INFO.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

Progress = Callable[[int, int, float], None]
"""Called with (completed, total, tokens per second)."""
JobProgress = Callable[[str, str, int, int], None]
"""Called with (name of the job, such as a seed; what it is doing; completed; total)."""
FIRST_SECONDS, EVERY_SECONDS = 5.0, 30.0
"""How long something new is done before a line says so, and the time between two lines."""
POLL_SECONDS = 0.5


@contextmanager
def progress_bar(quiet: bool, activity: str, unit: str = "tok") -> Iterator[Progress | None]:
    """Show the progress of one piece of work, as a bar or as plain lines; yield None when `quiet`."""
    if quiet:
        yield None
        return
    if not sys.stderr.isatty():
        with _plain_lines(activity) as lines:
            yield lambda done, total, rate: lines.update(activity, done, total, f"{rate:,.0f} {unit}/s" if rate else "")
        return
    with _display("{task.fields[note]}") as display:
        task = display.add_task("starting", total=None, note="")

        def report(done: int, total: int, rate: float) -> None:
            note = f"{rate:,.0f} {unit}/s" if rate else ""
            display.update(task, description=activity, completed=done, total=total, note=note)

        with _activities(lambda text: display.update(task, description=text)):
            yield report


@contextmanager
def job_bars(quiet: bool) -> Iterator[JobProgress | None]:
    """Show the progress of every job that reports, as a bar each or as plain lines; yield None when `quiet`."""
    if quiet:
        yield None
        return
    if not sys.stderr.isatty():
        with _plain_lines("starting") as lines:
            yield lambda name, activity, done, total: lines.update(f"{name}, {activity}", done, total, job=name)
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
    """Show the progress of steps with the latest metrics, as a bar or as plain lines; yield None when `quiet`."""
    if quiet:
        yield None
        return
    latest: dict[str, Any] = {}

    def note(metrics: Mapping[str, Any]) -> str:
        latest.update({name: metrics[name] for name in LABELS if metrics.get(name) is not None})
        notes = [f"{LABELS[name]} {latest[name]:.3g}" for name in LABELS if name in latest]
        return " ".join([*notes, *metrics.get("alarms", ())])

    if not sys.stderr.isatty():
        with _plain_lines("training") as lines:
            yield lambda step, total, metrics: lines.update("steps", step, total, note(metrics))
        return
    with _display("{task.fields[note]}") as display:
        task = display.add_task("starting", total=None, note="")

        def report(step: int, total: int, metrics: Mapping[str, Any]) -> None:
            display.update(task, description="steps", completed=step, total=total, note=note(metrics))

        with _activities(lambda text: display.update(task, description=text)):
            yield report


LABELS = {
    "accuracy": "right",
    "validation_accuracy": "valid",
    "rm_accuracy": "rm",
    "entropy": "entropy",
    "kl_old": "kl",
    "length": "tokens",
}
"""Metrics of a step that are shown with its number, and their labels there; alarms follow them."""


@contextmanager
def _display(note: str) -> Iterator[Any]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn(note))
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True)) as display:
        yield display


class PlainLines:
    """Says in single lines what is done, how much of it, how fast, and how long it will still take.

    A line is due `FIRST_SECONDS` after something new has begun, and every `EVERY_SECONDS`: quick work says nothing.

    Args:
        activity: What is done first.
        write: Prints a line.
        clock: Returns the time in seconds.
    """

    def __init__(
        self, activity: str, write: Callable[[str], object], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._write, self._clock = write, clock
        self._lock = threading.Lock()
        self._begun = self._printed = clock()
        self._activity, self._is_new = activity, True
        self._counts: dict[str, tuple[str, int, int, str]] = {}
        self._first: dict[str, tuple[float, int]] = {}

    def begin(self, activity: str) -> None:
        """Note what is done from now on, of which there is no count; one that is not complete stays beside it."""
        with self._lock:
            self._begun, self._activity, self._is_new = self._clock(), activity, True
            if all(done >= total for _, done, total, _ in self._counts.values()):
                self._counts.clear()
                self._first.clear()

    def update(self, activity: str, done: int, total: int, note: str = "", job: str = "") -> None:
        """Note how much is done of one activity, or of each job's."""
        with self._lock:
            now, previous = self._clock(), self._counts.get(job)
            if previous is None or previous[0] != activity:
                # The speed counts from here: loading took the time before, and an earlier run may have done a part.
                self._first[job] = (now, done)
                if not self._counts:
                    self._begun, self._is_new = now, True
            self._counts[job] = (activity, done, total, note)
            self._activity = ""

    def tick(self) -> None:
        """Print a line if one is due."""
        with self._lock:
            now = self._clock()
            if now - self._printed >= EVERY_SECONDS or (self._is_new and now - self._begun >= FIRST_SECONDS):
                self._write(self._line(now))
                self._printed, self._is_new = now, False

    def _line(self, now: float) -> str:
        counts = [self._count(job, now) for job in sorted(self._counts)]
        uncounted = [f"{self._activity} ({duration(now - self._begun)})"] if self._activity else []
        return "; ".join(counts + uncounted)

    def _count(self, job: str, now: float) -> str:
        activity, done, total, note = self._counts[job]
        start, first = self._first[job]
        share = f" ({done / total:.0%})" if total else ""
        parts = [f"{activity}: {done:,} of {total:,}{share}", note]
        if first < done < total:
            parts.append(f"about {duration((now - start) / (done - first) * (total - done))} left")
        return ", ".join(filter(None, parts))


def duration(seconds: float) -> str:
    """Return a time span in its largest sensible unit: `40 s`, `12 min`, `3.4 h`."""
    if seconds < 90:  # noqa: PLR2004 - below, minutes would be too coarse
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"  # noqa: PLR2004 - as above


@contextmanager
def _plain_lines(activity: str) -> Iterator[PlainLines]:
    """Print lines on stderr from a thread, so that they come even while a single batch takes minutes."""
    stream = sys.stderr
    lines = PlainLines(f"{activity}: loading libraries and data", lambda line: stream.write(f"{line}\n"))
    stop = threading.Event()

    def run() -> None:
        while not stop.wait(POLL_SECONDS):
            lines.tick()

    thread = threading.Thread(target=run, daemon=True)
    if os.environ.get("RANK", "0") == "0":  # under torchrun one process speaks for all
        thread.start()
    try:
        with _activities(lines.begin):
            yield lines
    finally:
        stop.set()
        if thread.is_alive():
            thread.join()


class _ActivityHandler(logging.Handler):
    """Passes on what this package logs at INFO, and prints what is worse as a line on stderr."""

    def __init__(self, begin: Callable[[str], None]) -> None:
        super().__init__(logging.INFO)
        self._begin = begin

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno > logging.INFO:
            sys.stderr.write(f"note: {record.getMessage()}\n")
        else:
            self._begin(record.getMessage())


@contextmanager
def _activities(begin: Callable[[str], None]) -> Iterator[None]:
    """Call `begin` with what the package's modules log at INFO while the context is open."""
    logger, handler = logging.getLogger("prmbench"), _ActivityHandler(begin)
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
