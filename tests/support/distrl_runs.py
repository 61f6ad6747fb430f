"""Runs of train-distrl in processes of their own, some of which end by a signal at a given place."""

from __future__ import annotations

import functools
import importlib
import os
import signal
from collections.abc import Mapping, Sequence
from typing import Any

from forked import prmbench

from prmbench.config.distrl_options import DistRLConfig
from prmbench.core import processes
from prmbench.core.records import UserError
from prmbench.rl.distrl import train_distrl


def at_call(place: str, number: int, name: str) -> None:
    """The process signals itself when `module.function` is called for the so-manieth time."""
    module, _, function = place.rpartition(".")
    owner = importlib.import_module(module)
    inner, calls = getattr(owner, function), [0]

    @functools.wraps(inner)
    def counted(*args: Any, **more: Any) -> Any:
        calls[0] += 1
        if calls[0] == number:
            os.kill(os.getpid(), getattr(signal, name))
        return inner(*args, **more)

    setattr(owner, function, counted)


def with_signal(arguments: Sequence[str], place: str = "", number: int = 0, name: str = "") -> None:
    """The command, which gets the signal `name` at a call of `place`."""
    if place:
        at_call(place, number, name)
    prmbench("train-distrl", *arguments)


def together(runs: Sequence[tuple[DistRLConfig, int]]) -> None:
    """Run in each process of a group: the runs in turn, where process 0 alone asks itself to stop after some steps."""
    for config, stop_at in runs:

        def tell(done: int, _: int, line: Mapping[str, Any], stop_at: int = stop_at) -> None:
            if done == stop_at and processes.rank() == 0 and "validation" not in line:
                os.kill(os.getpid(), signal.SIGTERM)

        try:
            train_distrl(config, tell)
        except KeyboardInterrupt:
            continue
        except UserError as error:
            config.out.with_name(f"{config.out.name}-{processes.rank()}.error").write_text(str(error))
