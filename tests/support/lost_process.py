"""Run in each process of a group: process 1 dies, stops or is late while process 0 waits for it.

`run` ends as the command line would: one line on stderr, and its exit code.
"""

from __future__ import annotations

import itertools
import logging
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import typer

from prmbench.config import TrainRMConfig
from prmbench.config.cli_options import one_line_errors
from prmbench.core import processes
from prmbench.core.records import UserError
from prmbench.training import checkpoints
from prmbench.training import train as training


def run(where: Callable[..., None], how: str, *more: object) -> None:
    processes.NOTICE_SECONDS = 1.0
    logging.basicConfig(level=logging.INFO)
    try:
        with one_line_errors():
            where(how, *more)
    except typer.Exit as end:
        sys.exit(end.exit_code)


def disturb(how: str) -> None:
    if processes.rank() == 0:
        return
    if how == "is killed":
        os._exit(9)
    if how == "fails":
        raise UserError("a mistake")
    if how == "stops":
        os.kill(os.getpid(), signal.SIGSTOP)
    time.sleep(2 * processes.timeout_seconds())  # is late, but alive


def meet(how: str) -> None:
    processes.start()
    disturb(how)
    assert processes.all_reduce_sum([1.0, processes.rank()]) == [2.0, 1.0]


def load(how: str, folder: Path) -> None:
    processes.start()
    state = {"weight": torch.zeros(3)}
    checkpoints.save(folder, 1, state, {})
    newest = checkpoints.newest(folder)
    assert newest is not None
    inner = checkpoints.dcp.load

    def disturbed(*inputs: Any, **options: Any) -> None:
        disturb(how)
        inner(*inputs, **options)

    checkpoints.dcp.load = disturbed
    checkpoints.load(newest, state)


def train(how: str, config: TrainRMConfig) -> None:
    batches = itertools.count(1)
    collate = training.collate

    def disturbed(*inputs: Any, **options: Any) -> Any:
        if next(batches) == 3:  # there is one in each update
            disturb(how)
        return collate(*inputs, **options)

    training.collate = disturbed  # type: ignore[assignment]
    training.train(config)
