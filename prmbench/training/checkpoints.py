"""Sharded checkpoints that are complete or absent: written under a temporary name, sealed by a manifest, renamed.

Every process hashes the shards that it wrote, and its share of them before they are loaded; the manifest holds all
hashes. The newest valid checkpoint is used, and incomplete ones are removed. The caller decides what one holds.
"""

from __future__ import annotations

import hashlib
import io
import json
import pickle
import shutil
import warnings
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
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
    """The facts that `save` stored with the tensors."""


def save(folder: Path, step: int, state: dict[str, Any], facts: Mapping[str, Any]) -> None:
    """Writes `<folder>/<step>`, each process its shards, and keeps the newest two. All processes call it.

    Raises UserError when it cannot be written; earlier checkpoints are then unchanged.
    """
    temporary, final = folder / f".tmp-{step}", folder / f"{step:08d}"
    if processes.rank() == 0:
        clean(folder)
    processes.barrier()
    try:
        with (
            _without_single_process_warning(),
            writing.translate_write_errors(final),
            _lost_process("saving a checkpoint"),
        ):
            dcp.save(
                state,
                checkpoint_id=temporary,
                process_group=processes.waiting_group(),  # disks may differ
                no_dist=processes.world_size() == 1,
            )
        files = _hash_own_files(temporary)
        if processes.rank() == 0:
            _seal(temporary, step, facts, files)
            shutil.rmtree(final, ignore_errors=True)  # an invalid one of an earlier run
            temporary.rename(final)
            writing.fsync(folder)
            _prune(folder, final)
    except (OSError, UserError) as error:
        _give_up(final, temporary, error)
    except CheckpointException as error:  # wraps the errors of all processes
        _give_up(final, temporary, next(iter(error.failures.values()))[0])
    processes.barrier()


def _give_up(final: Path, temporary: Path, error: BaseException) -> NoReturn:
    """Raises UserError with the reason; removes what was written, since it may be what fills the disk."""
    if processes.rank() == 0:
        shutil.rmtree(temporary, ignore_errors=True)
    if isinstance(error, UserError):
        raise error
    writing.raise_cannot_write(final, error if isinstance(error, OSError) else OSError(str(error)))


def _prune(folder: Path, saved: Path) -> None:
    """Removes all but the newest checkpoints up to the one just saved.

    Later ones are damaged, or the run would have continued from them.
    """
    paths = sorted(folder.glob("[0-9]*"))
    end = paths.index(saved) + 1
    for path in paths[end:] + paths[:end][:-KEEP]:
        shutil.rmtree(path)


def newest(folder: Path) -> Checkpoint | None:
    """Returns the newest sealed checkpoint whose files are unchanged; None without one. All processes call it."""
    for path in processes.broadcast(sorted(folder.glob("[0-9]*"), reverse=True)):
        manifest = processes.broadcast(_read_manifest(path) if processes.rank() == 0 else None)
        if manifest is not None and all(processes.all_gather(_share_is_unchanged(path, manifest["files"]))):
            return Checkpoint(path, manifest["step"], manifest["facts"])
    return None


def clean(folder: Path) -> None:
    """Removes incomplete checkpoints. One process calls it."""
    for path in folder.glob(".tmp-*"):
        shutil.rmtree(path)


def remove(folder: Path) -> None:
    """Removes all checkpoints of a finished run. One process calls it."""
    shutil.rmtree(folder, ignore_errors=True)


def load(checkpoint: Checkpoint, state: dict[str, Any]) -> None:
    """Fills the tensors of `state`, however many processes wrote them. All processes call it.

    No code in the files is run: see `_Reader` and `_Planner`. Raises UserError on a checkpoint that
    holds anything but tensors and plain values, or that cannot be read.
    """
    reader = _Reader(checkpoint.path)
    try:
        reader.read_metadata()  # DCP reads it again, and would print a traceback where it cannot
        with _without_single_process_warning(), _lost_process("loading a checkpoint"):
            dcp.load(
                state,
                storage_reader=reader,
                planner=_Planner(),
                process_group=processes.waiting_group(),
                no_dist=processes.world_size() == 1,
            )
    except (CheckpointException, *_UNREADABLE) as error:
        causes = [cause for cause, _ in error.failures.values()] if isinstance(error, CheckpointException) else [error]
        raise UserError(
            f"{checkpoint.path}: is no checkpoint that can be read ({first_line(causes[0])}); delete it to begin anew"
        ) from error


def training_state(model: nn.Module, optimizer: torch.optim.Optimizer | None) -> dict[str, Any]:
    """Returns the trained weights and the optimizer's state by parameter name, as `save` and `load` take them.

    Give None for an optimizer that has not made a step yet: asking for its state makes torch take a step with gradients
    of zero, and count it.
    """
    if optimizer is None:
        return {"model": get_model_state_dict(model, options=_OPTIONS)}
    weights, moments = get_state_dict(model, optimizer, options=_OPTIONS)
    return {"model": weights, "optimizer": moments}


def put_back(model: nn.Module, optimizer: torch.optim.Optimizer | None, state: dict[str, Any]) -> None:
    """Puts a state of `training_state` back into model and optimizer."""
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


# --- reading files that anybody may have written --------------------------------------------------------------------


_PLAIN = {
    "collections": {"OrderedDict"},
    "pathlib": {"PosixPath"},
    "torch": {"Size", "device"},
    "torch.serialization": {"_get_layout"},
}
"""Classes of plain values in the metadata, whose construction has no side effects."""
_METADATA = ("torch.distributed.checkpoint.metadata", "torch.distributed.checkpoint.filesystem")
"""Modules of the dataclasses in DCP's `.metadata`."""
_UNREADABLE = (OSError, ValueError, KeyError, TypeError, AttributeError, EOFError, RuntimeError, pickle.UnpicklingError)
"""Exceptions that reading a damaged file raises, besides CheckpointException."""


class _Unpickler(pickle.Unpickler):
    """Builds only the dataclasses of DCP's metadata: a pickle may otherwise name any function to be called."""

    def find_class(self, module: str, name: str) -> Any:
        """Returns the class of that name. Raises UnpicklingError on any but the metadata's own and plain values."""
        allowed = name in _PLAIN.get(module, ())
        value = super().find_class(module, name) if allowed or (module in _METADATA and "." not in name) else None
        if allowed or (isinstance(value, type) and (is_dataclass(value) or issubclass(value, Enum))):
            return value
        if module == "torch" and isinstance(dtype := getattr(torch, name, None), torch.dtype):
            return dtype
        raise pickle.UnpicklingError(f"its metadata names {module}.{name}, which is no part of a checkpoint")


class _Reader(FileSystemReader):
    """DCP's reader, with `.metadata` read safely: its own `pickle.load` would run any code in the file."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """Returns the checkpoint's metadata; the arguments are DCP's. Raises UnpicklingError on any other object."""
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
    """DCP's planner, with values that are not tensors, such as a learning rate, read safely."""

    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
        """Puts one value into the state. Raises UnpicklingError on anything but tensors and plain values."""
        try:
            plain = torch.load(value, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError:  # torch's own text would tell how to load it unsafely
            raise pickle.UnpicklingError(f"{read_item.dest_index.fqn} is no plain value") from None
        safe = io.BytesIO()  # DCP's method unpickles the bytes it gets, so it gets bytes written here
        torch.save(plain, safe)
        safe.seek(0)
        super().load_bytes(read_item, safe)


_OPTIONS = StateDictOptions(ignore_frozen_params=True, strict=False)


@contextmanager
def _without_single_process_warning() -> Iterator[None]:
    """Silences DCP's warning that there is no process group."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        yield


def _lost_process(operation: str) -> AbstractContextManager[None]:
    """Returns a context that raises RetryError where another process is gone: the files are not to blame."""
    return processes.named_failures(operation, processes.LONG_TIMEOUT.total_seconds())


def _hash_own_files(folder: Path) -> dict[str, str]:
    """Returns the hashes of all files in a new checkpoint, by name, once they are on disk. All processes call it.

    Each process hashes the shards that it wrote, which DCP names `__<rank>_<number>.distcp`; process 0 the rest too.

    Raises:
        OSError: A process cannot read or flush its files; raised in all processes, so that none is left waiting.
    """
    own: dict[str, str] = {}
    error: OSError | None = None
    try:
        for path in sorted(folder.iterdir()):
            is_own_shard = path.name.startswith(f"__{processes.rank()}_")
            if is_own_shard or (processes.rank() == 0 and not path.name.endswith(".distcp")):
                own[path.name] = _digest(path)
                writing.fsync(path)
    except OSError as caught:
        error = caught
    files: dict[str, str] = {}
    for other_error, hashes in processes.all_gather((error, own)):
        if other_error is not None:
            raise other_error
        files |= hashes
    return files


def _seal(folder: Path, step: int, facts: Mapping[str, Any], files: Mapping[str, str]) -> None:
    manifest = {"step": step, "facts": dict(facts), "files": dict(sorted(files.items()))}
    writing.write_atomic(folder / MANIFEST, result_files.canonical_json(manifest))
    writing.fsync(folder)


def _read_manifest(folder: Path) -> dict[str, Any] | None:
    """Returns the manifest of a checkpoint whose files are all there; None where it is missing, torn or implausible."""
    try:
        manifest: dict[str, Any] = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        is_complete = all((folder / name).is_file() and isinstance(h, str) for name, h in manifest["files"].items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    step, facts = manifest.get("step"), manifest.get("facts")
    is_plausible = validation.is_count(step) and isinstance(facts, dict) and _all_counts(facts)
    return manifest if is_complete and is_plausible else None


def _share_is_unchanged(folder: Path, files: Mapping[str, str]) -> bool:
    """Returns whether this process's share of a checkpoint's files have the manifest's hashes."""
    share = sorted(files)[processes.rank() :: processes.world_size()]
    try:
        return all(_digest(folder / name) == files[name] for name in share)
    except OSError:
        return False


def _all_counts(value: Any) -> bool:
    """Returns whether all integers in a JSON value are counts, as all of ours are."""
    if isinstance(value, dict | list):
        return all(map(_all_counts, value.values() if isinstance(value, dict) else value))
    return not isinstance(value, int) or isinstance(value, bool) or validation.is_count(value)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "blake2b").hexdigest()
