"""Sharded checkpoints that are whole or absent: written aside by every process, sealed by a manifest, renamed.

The newest valid one wins and half-written ones are cleared away. What is in a checkpoint is the caller's business.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_state_dict,
    set_model_state_dict,
    set_state_dict,
)

from prmbench import distributed, store

MANIFEST = "MANIFEST.json"
KEEP = 2


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A sealed checkpoint on disk."""

    path: Path
    step: int
    """Updates done."""
    facts: Mapping[str, Any]
    """What `save` was given."""


def save(folder: Path, step: int, state: dict[str, Any], facts: Mapping[str, Any]) -> None:
    """Writes `<folder>/<step>`, every process its share, and keeps the newest two. All processes call it.

    Raises UserError when it cannot be written; the checkpoints before it are then as they were.
    """
    aside, final = folder / f".tmp-{step}", folder / f"{step:08d}"
    if distributed.rank() == 0:
        clean(folder)
    distributed.barrier()
    try:
        with _alone():
            dcp.save(state, checkpoint_id=aside, no_dist=distributed.world_size() == 1)
        distributed.barrier()  # every share is there
        if distributed.rank() == 0:
            _seal(aside, step, facts)
            shutil.rmtree(final, ignore_errors=True)  # an invalid one of an earlier sitting
            aside.rename(final)
            _sync(folder)
            _prune(folder, final)
    except OSError as error:
        store.cannot_write(final, error)
    except CheckpointException as error:  # DCP's wrapping of what went wrong in any process
        store.cannot_write(final, OSError(str(next(iter(error.failures.values()))[0])))
    distributed.barrier()


def _prune(folder: Path, saved: Path) -> None:
    """Later ones are damaged, or the run would have gone on from them: they do not count among the newest."""
    found = sorted(folder.glob("[0-9]*"))
    past = found.index(saved) + 1
    for path in found[past:] + found[:past][:-KEEP]:
        shutil.rmtree(path)


def newest(folder: Path) -> Checkpoint | None:
    """The newest sealed checkpoint whose files are all as they were written; None when there is none."""
    for path in sorted(folder.glob("[0-9]*"), reverse=True):
        sealed = _read(path)
        if sealed is not None:
            return Checkpoint(path, sealed["step"], sealed["facts"])
    return None


def clean(folder: Path) -> None:
    """Removes what was half-written. One process calls it."""
    for path in folder.glob(".tmp-*"):
        shutil.rmtree(path)


def remove(folder: Path) -> None:
    """Removes all checkpoints: the run is finished, and its model written. One process calls it."""
    shutil.rmtree(folder, ignore_errors=True)


def load(found: Checkpoint, state: dict[str, Any]) -> None:
    """Fills the tensors of `state`, whatever number of processes wrote them. All processes call it."""
    with _alone():
        dcp.load(state, checkpoint_id=found.path, no_dist=distributed.world_size() == 1)


def training_state(model: nn.Module, optimizer: torch.optim.Optimizer | None) -> dict[str, Any]:
    """What `save` and `load` take: the weights that are trained, and the optimizer's state, by parameter name.

    None for an optimizer that has not made a step yet: to ask for its state would make torch step it, with gradients of
    zero, and count that.
    """
    if optimizer is None:
        return {"model": get_model_state_dict(model, options=_OPTIONS)}
    weights, moments = get_state_dict(model, optimizer, options=_OPTIONS)
    return {"model": weights, "optimizer": moments}


def put_back(model: nn.Module, optimizer: torch.optim.Optimizer | None, state: dict[str, Any]) -> None:
    """Inverse of `training_state`."""
    if optimizer is None:
        set_model_state_dict(model, state["model"], options=_OPTIONS)
        return
    set_state_dict(
        model,
        optimizer,
        model_state_dict=state["model"],
        optim_state_dict=state["optimizer"],
        options=_OPTIONS,
    )


_OPTIONS = StateDictOptions(ignore_frozen_params=True, strict=False)


@contextmanager
def _alone() -> Iterator[None]:
    """Inside, DCP does not warn that a single process is one."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        yield


def _seal(folder: Path, step: int, facts: Mapping[str, Any]) -> None:
    files = {path.name: _digest(path) for path in sorted(folder.iterdir())}
    for name in files:
        _sync(folder / name)
    store.write_atomic(folder / MANIFEST, store.canonical_json({"step": step, "facts": dict(facts), "files": files}))
    _sync(folder)


def _read(folder: Path) -> dict[str, Any] | None:
    try:
        sealed: dict[str, Any] = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        whole = all(_digest(folder / name) == digest for name, digest in sealed["files"].items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return sealed if whole and {"step", "facts"} <= sealed.keys() else None


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "blake2b").hexdigest()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
