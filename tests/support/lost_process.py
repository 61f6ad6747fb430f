"""Started once a process: process 1 dies, stops or is late while process 0 waits for it, in training or elsewhere.

Ends as the command line would: one line on stderr, and its exit code.
"""

from __future__ import annotations

import itertools
import json
import logging
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import typer

from prmbench.config.cli_options import one_line_errors
from prmbench.core import processes
from prmbench.core.records import UserError


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


def main() -> None:
    where, how, config = sys.argv[1:]
    processes.NOTICE_SECONDS = 1.0
    logging.basicConfig(level=logging.INFO)
    if where == "meeting":
        processes.start()
        disturb(how)
        assert processes.all_reduce_sum([1.0, processes.rank()]) == [2.0, 1.0]
    elif where == "loading":
        import torch

        from prmbench.training import checkpoints

        processes.start()
        state = {"weight": torch.zeros(3)}
        checkpoints.save(Path(config), 1, state, {})
        newest = checkpoints.newest(Path(config))
        assert newest is not None
        load = checkpoints.dcp.load

        def disturbed_load(*inputs: Any, **options: Any) -> None:
            disturb(how)
            load(*inputs, **options)

        checkpoints.dcp.load = disturbed_load
        checkpoints.load(newest, state)
    else:
        from prmbench.config import TrainRMConfig
        from prmbench.training import train

        batches = itertools.count(1)
        collate = train.collate

        def disturbed(*inputs: Any, **options: Any) -> Any:
            if next(batches) == 3:  # there is one in each update
                disturb(how)
            return collate(*inputs, **options)

        train.collate = disturbed  # type: ignore[assignment]
        train.train(TrainRMConfig(**json.loads(Path(config).read_text())))


if __name__ == "__main__":
    try:
        with one_line_errors():
            main()
    except typer.Exit as end:
        sys.exit(end.exit_code)
