"""The reference's log-probabilities of every token trained on: computed once, kept on disk, shared with sibling runs.

They never change, so no second model stays in memory and a resumed run skips the pass.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from prmbench.core import processes, reading, result_files, writing
from prmbench.core.records import NonFiniteError, Notice, UserError
from prmbench.training.batching import collate, micro_batches
from prmbench.training.examples import Dataset, Example
from prmbench.training.model import Runner

Floats = NDArray[np.float32]
PARTS = ("identity", "keys", "lengths", "values")
"""Arrays of a file that its hash is taken over."""


def logprobs(
    out: Path, identity: str, examples: Sequence[Example], budget: int, runner: Callable[[], Runner]
) -> list[Floats]:
    """[n] float32 natural logs of each example.

    Looks into `out` and into the folders beside it, then opens the model for what is missing and writes that into
    `out`. `identity`: all of the model and its precision that moves a number. All processes call this.
    """
    name = f"reference-{result_files.sha256(identity.encode())[:16]}"
    keys = [example.key for example in examples]
    sizes = {example.key: len(example.reads) for example in examples}
    known = _read(out, name, identity, sizes) if processes.rank() == 0 else {}
    # One process says what is missing: a sibling may write its file just between two processes' looks.
    wanted = processes.from_first({key for key in keys if key not in known})
    if wanted:
        missing = {key: example for key, example in zip(keys, examples, strict=True) if key in wanted}
        found = _compute(tuple(missing.values()), budget, runner())
        (spoilt,) = processes.sums([float(sum(not np.isfinite(row).all() for row in found.values()))])
        if spoilt:
            raise NonFiniteError(
                f"the reference gives log-probabilities that are not finite, for {spoilt:.0f} of {len(missing)} "
                "examples; check its weights, or try --dtype float32"
            )
        _write(out / f"{name}.{processes.rank()}.safetensors", identity, known | found)
        processes.barrier()
    known |= _read(out, name, identity, sizes)
    return [known[key] for key in keys]


@torch.no_grad()
def _compute(examples: tuple[Example, ...], budget: int, runner: Runner) -> dict[str, Floats]:
    """This process's share."""
    data = Dataset(examples, tuple((i,) for i in range(len(examples))), {})
    shares = micro_batches(data.units, [len(e.ids) for e in examples], budget, processes.world_size())
    found = {}
    for units in shares[processes.rank()]:
        batch = collate(data, units, stepwise=False, reference=None, device=runner.device)
        values = runner.values(batch).float().cpu().numpy()
        for (i,), row in zip(units, values, strict=False):  # no units in a stand-in
            found[examples[i].key] = row[: len(examples[i].reads)]
    processes.reshard(runner.module)
    return found


def _read(out: Path, name: str, identity: str, sizes: Mapping[str, int]) -> dict[str, Floats]:
    """What the files of this reference in `out` and beside it hold, as far as it can be trusted.

    A file counts when it and its folder are this user's, when it names this very reference, when the hash inside it is
    that of its content, and when its numbers are finite. `sizes`: how many numbers each example has, by key.
    """
    known: dict[str, Floats] = {}
    for path in sorted({*out.glob(f"{name}.*"), *out.parent.glob(f"*/{name}.*")}):
        try:
            if not (reading.belongs_to_user(path) and reading.belongs_to_user(path.parent)):
                raise ValueError("is of another user")
            known |= _checked(load(reading.read_bytes(path)), identity, sizes)
        except (UserError, SafetensorError, KeyError, ValueError) as error:
            warnings.warn(f"{path}: not used ({error}); its numbers are computed again", Notice, stacklevel=3)
    return known


def _checked(table: Mapping[str, NDArray[Any]], identity: str, sizes: Mapping[str, int]) -> dict[str, Floats]:
    """The rows of a file by key. Raises ValueError or KeyError on a file that is not as `_write` leaves it."""
    if bytes(table["identity"]).decode(errors="replace") != identity:
        raise ValueError("is of another reference")
    if bytes(table["sha256"]).hex() != _digest(table):
        raise ValueError("its hash is not that of its content")
    values, lengths = table["values"], table["lengths"]
    keys = bytes(table["keys"]).decode().split()
    if values.dtype != np.float32 or len(keys) != len(lengths) or (lengths < 0).any() or lengths.sum() != len(values):
        raise ValueError("its parts do not fit together")
    if not np.isfinite(values).all():
        raise ValueError("it holds numbers that are not finite")
    rows = dict(zip(keys, np.split(values, lengths.cumsum()[:-1]), strict=True))
    if any(len(rows[key]) != size for key, size in sizes.items() if key in rows):
        raise ValueError("it holds an example with another number of tokens")
    return rows


def _digest(table: Mapping[str, NDArray[Any]]) -> str:
    return result_files.sha256(b"".join(np.ascontiguousarray(table[part]).tobytes() for part in PARTS))


def _write(path: Path, identity: str, rows: dict[str, Floats]) -> None:
    if not rows:
        return
    table: dict[str, NDArray[Any]] = {
        "identity": np.frombuffer(identity.encode(), dtype=np.uint8),
        "keys": np.frombuffer(" ".join(rows).encode(), dtype=np.uint8),
        "lengths": np.array([len(row) for row in rows.values()], dtype=np.int64),
        "values": np.concatenate(list(rows.values())),
    }
    table["sha256"] = np.frombuffer(bytes.fromhex(_digest(table)), dtype=np.uint8)
    writing.write_atomic(path, save(table))
