"""Started by tests: does runs of train-distrl, one after the other, some of which end by a signal at a given place.

Alone it forks a child for each, so that libraries are loaded once; under torchrun all processes do the runs together.
"""

from __future__ import annotations

import functools
import importlib
import json
import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prmbench.cli import app
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


def child(told: Mapping[str, Any]) -> int:
    """The exit code of the command."""
    if "place" in told:
        at_call(told["place"], told["number"], told["signal"])
    try:
        app(["train-distrl", *told["arguments"]])
    except SystemExit as left:
        return int(left.code or 0)
    return 0


LAZY = ("transformers.models.llama.modeling_llama", "torch.distributed.checkpoint", "prmbench.tasks", "sklearn.metrics")
"""What a run imports late; here once, for all children."""


def alone(told: list[Mapping[str, Any]]) -> list[int]:
    """How each run ended: its exit code, or minus the signal that killed it."""
    for module in LAZY:
        importlib.import_module(module)
    found = []
    for one in told:
        number = os.fork()
        if number == 0:
            code = 1
            try:
                code = child(one)
            finally:
                os._exit(code)
        _, status = os.waitpid(number, 0)
        found.append(os.waitstatus_to_exitcode(status))
    return found


def together(told: list[dict[str, Any]]) -> None:
    """One policy by all processes; process 0 alone asks itself to stop where a run says so."""
    for one in told:
        stop_at = one.pop("stop_at", None)

        def tell(done: int, _: int, line: Mapping[str, Any], stop_at: int | None = stop_at) -> None:
            if done == stop_at and "validation" not in line:
                os.kill(os.getpid(), signal.SIGTERM)

        try:
            train_distrl(DistRLConfig(**one), tell)
        except KeyboardInterrupt:
            continue
        except UserError as error:
            out = Path(one["out"])
            out.with_name(f"{out.name}-{processes.rank()}.error").write_text(str(error))


def main() -> None:
    file = Path(sys.argv[1])
    told = json.loads(file.read_text())
    if processes.world_size() > 1:
        together(told)
    else:
        file.with_suffix(".done").write_text(json.dumps(alone(told)))


if __name__ == "__main__":
    main()
