"""Many seeds of the miniature study, a process each and two at a time, one thread a process.

Starts, hears from and ends the processes; what they do is study.py's.
"""

from __future__ import annotations

import multiprocessing
import os
import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any

from prmbench.miniature.study import Recipe, seed_runs
from prmbench.miniature.world import Sizes, World
from prmbench.schema import UserError

PROCESSES = 2
QUIET_SECONDS = 0.2
"""A process tells at most so often what it does."""
Tell = Callable[[int, str, int, int], None]
"""Called with (seed, what is being done, how much of it is done, out of how much)."""
DONE = "done"
"""The last that is told of a seed."""


def run(
    seeds: Sequence[int],
    methods: Mapping[str, Recipe],
    root: Path,
    out: Path,
    tell: Tell | None = None,
    sizes: Sizes | None = None,
    tuning: bool = False,
) -> None:
    """Works through the seeds: worlds in `root`, runs in `out`. Goes on where an earlier call was interrupted.

    Raises UserError when a process fails; the others are ended then, and keep what they have finished.
    """
    context = multiprocessing.get_context("spawn")
    news: Any = context.Queue()
    waiting, running = list(seeds), dict[int, SpawnProcess]()
    try:
        while waiting or running:
            while waiting and len(running) < PROCESSES:
                seed = waiting.pop(0)
                given = (seed, dict(methods), root, out, sizes or Sizes(), tuning, news)
                running[seed] = context.Process(target=_work, args=given, daemon=True)
                running[seed].start()
            _hear(news, tell)
            for seed in [seed for seed, process in running.items() if not process.is_alive()]:
                code = running.pop(seed).exitcode
                _hear(news, tell)
                if code:
                    raise UserError(f"seed {seed}: its process ended with code {code}; the same command goes on")
    finally:
        for process in running.values():
            process.terminate()
        for process in running.values():
            process.join()


def _hear(news: Any, tell: Tell | None) -> None:
    """Passes on what has come in, after a moment. Raises UserError when that is a user's mistake."""
    try:
        seed, what, done, most = news.get(timeout=QUIET_SECONDS)
        while True:
            if what == DONE and isinstance(done, str):
                raise UserError(done)
            if tell is not None:
                tell(seed, what, done, most)
            seed, what, done, most = news.get_nowait()
    except queue.Empty:
        return


def _leave_with_parent() -> None:
    """A parent that is killed cannot end its children; what they have finished is kept."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _work(
    seed: int, methods: Mapping[str, Recipe], root: Path, out: Path, sizes: Sizes, tuning: bool, news: Any
) -> None:
    """One seed, in a process of its own."""
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
            news.put((seed, what, done, most))

    try:
        seed_runs(World(root / f"seed-{seed}", seed), methods, out, sizes, tell, tuning)
    except UserError as error:
        news.put((seed, DONE, str(error), 0))
        return
    news.put((seed, DONE, 1, 1))
