"""The files of a training run: train.json, metrics.jsonl, checkpoints, and the trained model with its prm.json.

`train.json` holds the run's identity from the start, and at the end its result.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import prmbench
from prmbench.config import public_name
from prmbench.core import processes, provenance, reading, result_files, validation, writing
from prmbench.core.provenance import CARD_FILE
from prmbench.core.records import UserError
from prmbench.training import checkpoints
from prmbench.training.losses import LossRow
from prmbench.training.model import Runner, merged

RUN, METRICS, CHECKPOINTS, NON_FINITE = "train.json", "metrics.jsonl", "checkpoints", "non_finite.json"


ANOTHER = "choose another --out"
"""The remedy in errors about a run whose files cannot be read."""
F = TypeVar("F", bound="Facts")


@dataclass(frozen=True, slots=True)
class _RunRecord:
    """The fields of train.json that every run has."""

    identity: dict[str, Any]
    finished: bool


@dataclass(frozen=True)
class Facts:
    """What every checkpoint holds besides its tensors."""

    run: str
    """Hash of the run's identity."""
    metrics: int
    """Bytes of metrics.jsonl when the checkpoint was written."""


@contextmanager
def claimed(out: Path) -> Iterator[None]:
    """Keeps other processes from training in `out`. Raises UserError when one does, or when it cannot be written."""
    if processes.rank() != 0:
        yield
        return
    writing.check_writable(out)
    with writing.file_lock(out / ".lock", f"--out {out}: another process trains here; wait for it, or choose another"):
        yield


def begin(out: Path, identity: Mapping[str, Any], facts: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what train.json in `out` says; writes it if there was none. Raises UserError when it is another run's."""
    path = out / RUN
    if not path.exists():
        if (out / CARD_FILE).exists() or any(out.glob("model*.safetensors")):
            raise UserError(f"--out {out}: holds a model that was not trained here; choose another folder")
        writing.write_atomic(
            path, result_files.canonical_json({"identity": dict(identity), **facts, "finished": False})
        )
    run: dict[str, Any] = reading.read_json(path)
    stored = validation.read_record(_RunRecord, run, str(path), ANOTHER).identity
    changed = sorted(k for k in {*identity, *stored} if stored.get(k) != identity.get(k))
    if changed:
        raise UserError(
            f"--out {out}: holds a run with another {', '.join(changed)}; give it the same options, or choose another"
        )
    return run


def has_progress(out: Path) -> bool:
    """Returns whether a run in `out` has trained: it has logged an update or written a checkpoint."""
    return any((out / name).exists() for name in (METRICS, CHECKPOINTS))


def finish(out: Path, run: Mapping[str, Any], result: Mapping[str, Any]) -> None:
    """Marks the run in train.json as finished, with its result."""
    writing.write_atomic(out / RUN, result_files.canonical_json({**run, "result": dict(result), "finished": True}))


def newest_checkpoint(
    out: Path, identity: Mapping[str, Any], record: type[F]
) -> tuple[checkpoints.Checkpoint, F] | None:
    """Returns the newest checkpoint in `out` and its facts, None without one. All processes call it.

    Raises UserError when it is another run's, or when its facts have not the fields of `record`.
    """
    folder = out / CHECKPOINTS
    checkpoint = checkpoints.newest(folder)
    if checkpoint is None:
        return None
    remedy = f"{ANOTHER}, or delete {folder}"
    facts = validation.read_record(record, checkpoint.facts, str(checkpoint.path), remedy)
    if facts.run != result_files.short_hash(identity):
        raise UserError(f"{checkpoint.path}: is a checkpoint of another run; {remedy}")
    return checkpoint, facts


def log(out: Path, entry: Mapping[str, Any]) -> None:
    """Appends one line to metrics.jsonl."""
    writing.append_lines(out / METRICS, [json.dumps(entry)])


def logged(out: Path) -> int:
    """Returns the bytes of metrics.jsonl, all of them flushed to disk."""
    path = out / METRICS
    if not path.exists():
        return 0
    try:
        writing.fsync(path)
        return path.stat().st_size
    except OSError as error:
        writing.raise_cannot_write(path, error)


def cut_log(out: Path, size: int) -> None:
    """Truncates metrics.jsonl to `size` bytes: what was logged after a checkpoint is done again."""
    path = out / METRICS
    if not path.exists():
        return
    try:
        with writing.open_to_append(path) as file:
            file.truncate(min(size, file.seek(0, os.SEEK_END)))  # it may have been shortened by hand
    except OSError as error:
        writing.raise_cannot_write(path, error)


def read_log(out: Path, record_of: Callable[[dict[str, Any]], type[Any]]) -> list[dict[str, Any]]:
    """Returns the lines of metrics.jsonl; none where there is no such file.

    `record_of` chooses the dataclass whose fields a line must have. Raises UserError on a line without them.
    """
    path = out / METRICS
    if not path.exists():
        return []
    try:
        entries = [json.loads(line) for line in reading.split_json_lines(reading.read_text(path))]
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not the record of a run ({error}); choose another --out") from error
    for number, entry in enumerate(entries, 1):
        record = record_of(entry) if isinstance(entry, dict) else dict[str, Any]
        validation.read_record(record, entry, f"{path} line {number}", ANOTHER)
    return entries


def save_model(out: Path, runner: Runner, template: str | None) -> None:
    """Writes the trained weights in float32 with config and tokenizer. All processes call it.

    Adapters are merged in, and also stored in `adapter/`. A `template` becomes the tokenizer's own, so that evaluation
    needs no flag. Files get their names once all are written: a full disk leaves no incomplete model, but a UserError.
    """
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    model = runner.model
    state: dict[str, Any] = get_model_state_dict(
        model, options=StateDictOptions(full_state_dict=True, cpu_offload=True)
    )
    if processes.rank() == 0:
        with writing.translate_write_errors(out), writing.temporary_folder(out) as temporary:
            if runner.adapters is not None:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", UserWarning)  # a .gguf file has no config.json beside it
                    runner.adapters.save_pretrained(temporary / "adapter", state_dict=_for_peft(state))
                state = merged(state, model)
            tied = getattr(model, "all_tied_weights_keys", None) or {}
            model.save_pretrained(temporary, state_dict={name: w for name, w in state.items() if name not in tied})
            tokenizer = runner.engine.tokenizer
            if template is not None:
                tokenizer.chat_template = template
            tokenizer.save_pretrained(temporary)
            writing.move_into(temporary, out)
    processes.barrier()


def _for_peft(state: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the state under the names that peft gives to the parameters of the model inside it."""
    return {f"base_model.model.{name}": value for name, value in state.items()}


def card(row: LossRow, config: Any, facts: Mapping[str, Any], out: Path) -> dict[str, Any]:
    """Returns the content of prm.json: how `eval` reads the model, and how it was trained."""
    reference = (config.ref_model or config.model) if row.reference else None
    if reference is not None and Path(reference).exists():
        reference = os.path.relpath(reference, out)  # folders may move together
    commit, dirty = provenance.code_state()
    return {
        "backend": row.backend,
        "ref_model": reference,
        "beta": config.beta,
        **row.card,
        "signal": "steps" if row.view == "steps" else "outcome",
        "trained_on": [public_name(str(config.data))],
        "loss": config.loss,
        "margin": config.margin,
        "reduction": config.reduction,
        "start_model": public_name(config.model),
        "seed": config.seed,
        "prmbench": prmbench.__version__,
        "commit": commit,
        "dirty": dirty,
        **facts,
    }


def write_card(out: Path, values: Mapping[str, Any]) -> None:
    """Writes prm.json."""
    writing.write_atomic(out / CARD_FILE, result_files.canonical_json(dict(values)))


def write_non_finite(out: Path, facts: Mapping[str, Any], ids: Sequence[str]) -> Path:
    """Writes the ids of the batch on which training stopped; returns the file's path."""
    path = out / NON_FINITE
    writing.write_atomic(path, result_files.canonical_json({**facts, "ids": sorted(ids)}))
    return path
