"""Run in each process of a group: trains in turn; process 0 alone gets SIGTERM where a run says so."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

from prmbench.config import TrainRMConfig
from prmbench.core import processes
from prmbench.training.train import train


@dataclass(frozen=True)
class Run:
    config: TrainRMConfig
    stop_at: int = 0
    kept_gradient_bytes: int = 1 << 30


def train_all(runs: Sequence[Run]) -> None:
    for run in runs:
        processes.KEPT_GRADIENT_BYTES = run.kept_gradient_bytes

        def progress(done: int, _: int, __: float, stop_at: int = run.stop_at) -> None:
            if done == stop_at and processes.rank() == 0:
                os.kill(os.getpid(), signal.SIGTERM)

        with suppress(KeyboardInterrupt):
            train(run.config, progress)
