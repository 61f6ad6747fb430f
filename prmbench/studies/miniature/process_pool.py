"""Runs the jobs of the miniature studies in processes, two at a time with one thread each.

A job stores what it has finished, so that a second call continues where the first one stopped.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import queue
import threading
import time
from collections.abc import Callable, Mapping
from multiprocessing.context import SpawnProcess
from typing import Any

from prmbench.core.progress import JobProgress
from prmbench.core.records import UserError
from prmbench.studies.miniature.world import ActivityProgress

PROCESSES = 2
REPORT_SECONDS = 0.2
"""Least time between two progress messages of a process."""
Job = Callable[[ActivityProgress], None]
"""Called in another process, so it must be picklable: a module's function, or a partial of one."""
FINISHED = "done"
"""Activity of a job's last message; its second field is then the error message, or 1."""


def run_jobs(jobs: Mapping[str, Job], progress: JobProgress | None = None) -> None:
    """Runs the jobs in their order.

    Args:
        jobs: by a name that `progress` and error messages show.
        progress: receives (job, activity, units done, units in total).

    Raises:
        UserError: a job raised one, or its process failed; the other processes are then terminated.
    """
    logging.getLogger(__name__).info("starting %d jobs: %s", len(jobs), ", ".join(jobs))
    context = multiprocessing.get_context("spawn")
    messages: Any = context.Queue()
    waiting, running = list(jobs), dict[str, SpawnProcess]()
    try:
        while waiting or running:
            while waiting and len(running) < PROCESSES:
                name = waiting.pop(0)
                running[name] = context.Process(target=_run_job, args=(name, jobs[name], messages), daemon=True)
                running[name].start()
            _forward_messages(messages, progress)
            for name in [name for name, process in running.items() if not process.is_alive()]:
                exit_code = running.pop(name).exitcode
                _forward_messages(messages, progress)
                if exit_code:
                    raise UserError(f"{name}: its process ended with code {exit_code}; the same command goes on")
    finally:
        for process in running.values():
            process.terminate()
        for process in running.values():
            process.join()


def _forward_messages(messages: Any, progress: JobProgress | None) -> None:
    """Waits a moment for messages and passes them on; raises UserError when a job ended in one."""
    try:
        name, activity, done, total = messages.get(timeout=REPORT_SECONDS)
        while True:
            if activity == FINISHED and isinstance(done, str):
                raise UserError(done)
            if progress is not None:
                progress(name, activity, done, total)
            name, activity, done, total = messages.get_nowait()
    except queue.Empty:
        return


def _exit_with_parent() -> None:
    """Ends this process when its parent has died: a parent that is killed cannot terminate its children."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _run_job(name: str, job: Job, messages: Any) -> None:
    """Runs one job in its own process."""
    import torch
    import transformers

    threading.Thread(target=_exit_with_parent, daemon=True).start()
    torch.set_num_threads(1)
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    last_sent = 0.0

    def progress(activity: str, done: int, total: int) -> None:
        nonlocal last_sent
        if done == total or time.monotonic() - last_sent > REPORT_SECONDS:
            last_sent = time.monotonic()
            messages.put((name, activity, done, total))

    try:
        job(progress)
    except UserError as error:
        messages.put((name, FINISHED, str(error), 0))
        return
    messages.put((name, FINISHED, 1, 1))
