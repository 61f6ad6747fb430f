"""Sharded checkpoints that are whole or absent: written aside by every process, sealed by a manifest, renamed.

The newest valid one wins and half-written ones are cleared away. What is in a checkpoint is the caller's business.
"""

from __future__ import annotations

import hashlib
import io
import json
import pickle
import shutil
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, is_dataclass
from enum import Enum
from pathlib import Path
from typing import Any, NoReturn

import torch
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta
from torch.distributed.checkpoint.planner import ReadItem
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_state_dict,
    set_model_state_dict,
    set_state_dict,
)

from prmbench.core import processes, result_files, validation, writing
from prmbench.core.records import UserError
from prmbench.core.redaction import first_line

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
    if processes.rank() == 0:
        clean(folder)
    processes.barrier()
    try:
        with _alone(), writing.library_writes(final):
            dcp.save(state, checkpoint_id=aside, no_dist=processes.world_size() == 1)
        processes.barrier()  # every share is there
        if processes.rank() == 0:
            _seal(aside, step, facts)
            shutil.rmtree(final, ignore_errors=True)  # an invalid one of an earlier sitting
            aside.rename(final)
            writing.sync(folder)
            _prune(folder, final)
    except (OSError, UserError) as error:
        _give_up(final, aside, error)
    except CheckpointException as error:  # DCP's wrapping of what went wrong in any process
        _give_up(final, aside, next(iter(error.failures.values()))[0])
    processes.barrier()


def _give_up(final: Path, aside: Path, error: BaseException) -> NoReturn:
    """Says why a checkpoint cannot be written; what there is of it goes, for it may be what fills the disk."""
    if processes.rank() == 0:
        shutil.rmtree(aside, ignore_errors=True)
    if isinstance(error, UserError):
        raise error
    writing.cannot_write(final, error if isinstance(error, OSError) else OSError(str(error)))


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
    """Fills the tensors of `state`, whatever number of processes wrote them. All processes call it.

    Nothing in the files is run, whoever wrote them: see `_Reader` and `_Planner`. Raises UserError on a checkpoint that
    holds anything but tensors and plain values, or that cannot be read.
    """
    reader = _Reader(found.path)
    try:
        reader.read_metadata()  # DCP reads it again, and would print a traceback where it cannot
        with _alone():
            dcp.load(
                state,
                storage_reader=reader,
                planner=_Planner(),
                no_dist=processes.world_size() == 1,
            )
    except (CheckpointException, *_UNREADABLE) as error:
        causes = [cause for cause, _ in error.failures.values()] if isinstance(error, CheckpointException) else [error]
        raise UserError(
            f"{found.path}: is no checkpoint that can be read ({first_line(causes[0])}); delete it to begin anew"
        ) from error


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


# --- reading what a stranger may have written --------------------------------------------------------------------


_PLAIN = {
    "collections": {"OrderedDict"},
    "pathlib": {"PosixPath"},
    "torch": {"Size", "device"},
    "torch.serialization": {"_get_layout"},
}
"""What metadata names besides its records and torch's dtypes: plain values, which do nothing when they are made."""
_METADATA = ("torch.distributed.checkpoint.metadata", "torch.distributed.checkpoint.filesystem")
"""Modules of the records that DCP's `.metadata` is made of."""
_UNREADABLE = (OSError, ValueError, KeyError, TypeError, AttributeError, EOFError, RuntimeError, pickle.UnpicklingError)
"""What reading an altered file raises, besides CheckpointException."""


class _Unpickler(pickle.Unpickler):
    """Makes the records of DCP's metadata, and nothing else: a pickle may otherwise name any function to be called."""

    def find_class(self, module: str, name: str) -> Any:
        """The class of that name. Raises UnpicklingError unless it is one of a record or of a plain value."""
        allowed = name in _PLAIN.get(module, ())
        value = super().find_class(module, name) if allowed or (module in _METADATA and "." not in name) else None
        if allowed or (isinstance(value, type) and (is_dataclass(value) or issubclass(value, Enum))):
            return value
        if module == "torch" and isinstance(dtype := getattr(torch, name, None), torch.dtype):
            return dtype
        raise pickle.UnpicklingError(f"its metadata names {module}.{name}, which is no part of a checkpoint")


class _Reader(FileSystemReader):
    """DCP's reader, whose own `pickle.load` of `.metadata` would run whatever the file says."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """The checkpoint's metadata; arguments are DCP's. Raises UnpicklingError on any other object."""
        rank = kwargs.get("rank")
        path = Path(self._get_metadata_path(rank))
        metadata = _Unpickler(io.BytesIO(path.read_bytes())).load()
        if not isinstance(metadata, Metadata):
            raise pickle.UnpicklingError("its metadata is of another kind")
        for info in (metadata.storage_data or {}).values():
            if Path(info.relative_path).name != info.relative_path:
                raise pickle.UnpicklingError(f"its metadata names a file elsewhere, {info.relative_path}")
        metadata.storage_meta = metadata.storage_meta or StorageMeta()
        metadata.storage_meta.load_id = self.load_id
        return metadata


class _Planner(DefaultLoadPlanner):
    """DCP's planner, which would unpickle values that are not tensors, such as a learning rate, in full trust."""

    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
        """Puts one such value into the state. Raises UnpicklingError on anything but tensors and plain values."""
        try:
            plain = torch.load(value, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError:  # without torch's own text, which tells how to load it unsafely
            raise pickle.UnpicklingError(f"{read_item.dest_index.fqn} is no plain value") from None
        ours = io.BytesIO()  # DCP's method takes bytes, and unpickles them: so it gets bytes of our own writing
        torch.save(plain, ours)
        ours.seek(0)
        super().load_bytes(read_item, ours)


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
        writing.sync(folder / name)
    writing.write_atomic(
        folder / MANIFEST, result_files.canonical_json({"step": step, "facts": dict(facts), "files": files})
    )
    writing.sync(folder)


def _read(folder: Path) -> dict[str, Any] | None:
    try:
        sealed: dict[str, Any] = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        files = {folder / name: digest for name, digest in sealed["files"].items()}
        whole = all(path.is_file() and _digest(path) == digest for path, digest in files.items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    step, facts = sealed.get("step"), sealed.get("facts")
    plausible = validation.is_count(step) and isinstance(facts, dict) and _counts(facts)
    return sealed if whole and plausible else None


def _counts(value: Any) -> bool:
    """Whether all whole numbers in a value that JSON can say are counts; all of ours are."""
    if isinstance(value, dict | list):
        return all(map(_counts, value.values() if isinstance(value, dict) else value))
    return not isinstance(value, int) or isinstance(value, bool) or validation.is_count(value)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "blake2b").hexdigest()
