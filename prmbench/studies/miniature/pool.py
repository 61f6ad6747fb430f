"""Jobs of the miniature study, a process each and two at a time, one thread a process.

Starts, hears from and ends the processes; a job keeps what it has finished, so that a second call goes on.
"""

from __future__ import annotations

import multiprocessing
import os
import queue
import threading
import time
from collections.abc import Callable, Mapping
from multiprocessing.context import SpawnProcess
from typing import Any

from prmbench.core.progress import Tell
from prmbench.core.records import UserError
from prmbench.studies.miniature import world

PROCESSES = 2
QUIET_SECONDS = 0.2
"""A process tells at most so often what it does."""
Job = Callable[[world.Tell], None]
"""To be called in another process: a module's function, or a partial of one."""
DONE = "done"
"""The last that is told of a job."""


def run(jobs: Mapping[str, Job], tell: Tell | None = None) -> None:
    """Works through the jobs in their order, whose names are for `tell` and for messages.

    Raises UserError when a job does, or its process fails; the others are ended then.
    """
    context = multiprocessing.get_context("spawn")
    news: Any = context.Queue()
    waiting, running = list(jobs), dict[str, SpawnProcess]()
    try:
        while waiting or running:
            while waiting and len(running) < PROCESSES:
                name = waiting.pop(0)
                running[name] = context.Process(target=_work, args=(name, jobs[name], news), daemon=True)
                running[name].start()
            _hear(news, tell)
            for name in [name for name, process in running.items() if not process.is_alive()]:
                code = running.pop(name).exitcode
                _hear(news, tell)
                if code:
                    raise UserError(f"{name}: its process ended with code {code}; the same command goes on")
    finally:
        for process in running.values():
            process.terminate()
        for process in running.values():
            process.join()


def _hear(news: Any, tell: Tell | None) -> None:
    """Passes on what has come in, after a moment. Raises UserError when that is a user's mistake."""
    try:
        name, what, done, most = news.get(timeout=QUIET_SECONDS)
        while True:
            if what == DONE and isinstance(done, str):
                raise UserError(done)
            if tell is not None:
                tell(name, what, done, most)
            name, what, done, most = news.get_nowait()
    except queue.Empty:
        return


def _leave_with_parent() -> None:
    """A parent that is killed cannot end its children; what they have finished is kept."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _work(name: str, job: Job, news: Any) -> None:
    """One job, in a process of its own."""
    import torch
    import transformers

    threading.Thread(target=_leave_with_parent, daemon=True).start()
    torch.set_num_threads(1)
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    last = 0.0

    def tell(what: str, done: int, most: int) -> None:
        nonlocal last
        if done == most or time.monotonic() - last > QUIET_SECONDS:
            last = time.monotonic()
            news.put((name, what, done, most))

    try:
        job(tell)
    except UserError as error:
        news.put((name, DONE, str(error), 0))
        return
    news.put((name, DONE, 1, 1))
