"""Forwards the numbers of metrics.jsonl to an optional tracker; the file stays the record of a run."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from prmbench.core import extras, processes

Track = Callable[[int, Mapping[str, Any]], None]
"""Called with (step or update, its line of metrics.jsonl); sends the numbers and ignores the other fields."""
MODULES = {"tensorboard": "torch.utils.tensorboard", "wandb": "wandb", "trackio": "trackio"}
"""What each tracker imports."""
_Send = Callable[[int, Mapping[str, float]], None]


def check_installed(name: str) -> None:
    """Raises UserError where a tracker's package cannot be imported, before data are read or anything is written."""
    if name == "none":
        return
    try:
        importlib.import_module(MODULES[name])
    except ImportError as error:
        raise extras.missing(name, f"--tracker {name}", error) from error


def tracker(name: str, out: Path, config: Mapping[str, Any]) -> Track | None:
    """Returns a function that forwards metrics to a tracker; None for `none`, and in all processes but the first.

    Args:
        name: One of TRACKERS, or `none`.
        out: Folder of the run, whose name the run has in the tracker.
        config: The run's options, shown by trackers that can.
    """
    if name == "none" or processes.rank() != 0:
        return None
    send = TRACKERS[name](out, config)
    return lambda step, line: send(step, {k: float(v) for k, v in line.items() if isinstance(v, int | float)})


def _tensorboard(out: Path, _: Mapping[str, Any]) -> _Send:
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(str(out / "tensorboard"))

    def send(step: int, numbers: Mapping[str, float]) -> None:
        for name, value in numbers.items():
            writer.add_scalar(name, value, step)
        writer.flush()

    return send


def _wandb_like(package: str) -> Callable[[Path, Mapping[str, Any]], _Send]:
    def start(out: Path, config: Mapping[str, Any]) -> _Send:
        module = importlib.import_module(package)
        module.init(project="prmbench", name=out.name, config=dict(config))
        return lambda step, numbers: module.log(dict(numbers), step=step)

    return start


TRACKERS = {"tensorboard": _tensorboard, "wandb": _wandb_like("wandb"), "trackio": _wandb_like("trackio")}
