"""The folder of a run: train.json, metrics.jsonl, the trained model with its prm.json. No training.

`train.json` says at once whose folder it is, and at the end that the run is finished.
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
"""What helps where the record of a run cannot be read."""
F = TypeVar("F", bound="Facts")


@dataclass(frozen=True, slots=True)
class _Begun:
    """What train.json says of every run."""

    identity: dict[str, Any]
    finished: bool


@dataclass(frozen=True)
class Facts:
    """What every checkpoint says beside its tensors."""

    run: str
    """Hash of the run's identity."""
    metrics: int
    """Bytes of metrics.jsonl."""


@contextmanager
def claimed(out: Path) -> Iterator[None]:
    """While this is open, no other run trains here. Raises UserError when one does, or when nothing can be written."""
    if processes.rank() != 0:
        yield
        return
    writing.check_writable(out)
    with writing.locked(out / ".lock", f"--out {out}: another process trains here; wait for it, or choose another"):
        yield


def begin(out: Path, identity: Mapping[str, Any], facts: Mapping[str, Any]) -> dict[str, Any]:
    """The run that lies in `out`, begun if there was none. Raises UserError when it is another one."""
    path = out / RUN
    if not path.exists():
        if (out / CARD_FILE).exists() or any(out.glob("model*.safetensors")):
            raise UserError(f"--out {out}: holds a model that was not trained here; choose another folder")
        writing.write_atomic(
            path, result_files.canonical_json({"identity": dict(identity), **facts, "finished": False})
        )
    run: dict[str, Any] = reading.read_json(path)
    begun = validation.read_record(_Begun, run, str(path), ANOTHER).identity
    changed = sorted(k for k in {*identity, *begun} if begun.get(k) != identity.get(k))
    if changed:
        raise UserError(
            f"--out {out}: holds a run with another {', '.join(changed)}; give it the same options, or choose another"
        )
    return run


def finish(out: Path, run: Mapping[str, Any], result: Mapping[str, Any]) -> None:
    """Seals the run."""
    writing.write_atomic(out / RUN, result_files.canonical_json({**run, "result": dict(result), "finished": True}))


def newest_checkpoint(
    out: Path, identity: Mapping[str, Any], record: type[F]
) -> tuple[checkpoints.Checkpoint, F] | None:
    """The newest checkpoint of the run in `out`, if there is one, and what it says. All processes call it.

    Raises UserError when it is another run's, or says something else than `record` has.
    """
    folder = out / CHECKPOINTS
    found = processes.from_first(checkpoints.newest(folder) if processes.rank() == 0 else None)
    if found is None:
        return None
    remedy = f"{ANOTHER}, or delete {folder}"
    facts = validation.read_record(record, found.facts, str(found.path), remedy)
    if facts.run != result_files.short_hash(identity):
        raise UserError(f"{found.path}: is a checkpoint of another run; {remedy}")
    return found, facts


def log(out: Path, entry: Mapping[str, Any]) -> None:
    """One line of metrics.jsonl."""
    writing.append_lines(out / METRICS, [json.dumps(entry)])


def logged(out: Path) -> int:
    """Bytes of metrics.jsonl, on disk when this returns."""
    path = out / METRICS
    if not path.exists():
        return 0
    try:
        writing.sync(path)
        return path.stat().st_size
    except OSError as error:
        writing.cannot_write(path, error)


def cut_log(out: Path, size: int) -> None:
    """Drops what was logged after a checkpoint: those updates are done again."""
    path = out / METRICS
    if not path.exists():
        return
    try:
        with writing.open_to_append(path) as file:
            file.truncate(min(size, file.seek(0, os.SEEK_END)))  # it may have been cut by somebody else
    except OSError as error:
        writing.cannot_write(path, error)


def read_log(out: Path, record_of: Callable[[dict[str, Any]], type[Any]]) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl; none where there is no such file.

    Raises UserError on a line that is not ours: `record_of` names the dataclass whose fields a line must have.
    """
    path = out / METRICS
    if not path.exists():
        return []
    try:
        entries = [json.loads(line) for line in reading.json_lines(reading.read_text(path))]
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not the record of a run ({error}); choose another --out") from error
    for number, entry in enumerate(entries, 1):
        record = record_of(entry) if isinstance(entry, dict) else dict[str, Any]
        validation.read_record(record, entry, f"{path} line {number}", ANOTHER)
    return entries


def save_model(out: Path, runner: Runner, template: str | None) -> None:
    """The trained weights in float32, adapters merged in (and kept in `adapter/`), config and tokenizer.

    A template given to training becomes the tokenizer's own, so that evaluation needs no flag. All processes call it.
    Files come to their names once all are written: a full disk leaves no half of a model. Raises UserError then.
    """
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    model = runner.model
    state: dict[str, Any] = get_model_state_dict(
        model, options=StateDictOptions(full_state_dict=True, cpu_offload=True)
    )
    if processes.rank() == 0:
        with writing.library_writes(out), writing.folder_aside(out) as aside:
            if runner.adapters is not None:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", UserWarning)  # a .gguf file has no config.json beside it
                    runner.adapters.save_pretrained(aside / "adapter", state_dict=_for_peft(state))
                state = merged(state, model)
            tied = getattr(model, "all_tied_weights_keys", None) or {}
            model.save_pretrained(aside, state_dict={name: w for name, w in state.items() if name not in tied})
            tokenizer = runner.engine.tokenizer
            if template is not None:
                tokenizer.chat_template = template
            tokenizer.save_pretrained(aside)
            writing.move_into(aside, out)
    processes.barrier()


def _for_peft(state: Mapping[str, Any]) -> dict[str, Any]:
    """With the names that peft gives to the parameters of the model inside it."""
    return {f"base_model.model.{name}": value for name, value in state.items()}


def card(row: LossRow, config: Any, facts: Mapping[str, Any], out: Path) -> dict[str, Any]:
    """prm.json: how `eval` reads the model, and how it came to be."""
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
    """The rows of the batch on which training stopped."""
    path = out / NON_FINITE
    writing.write_atomic(path, result_files.canonical_json({**facts, "ids": sorted(ids)}))
    return path
