"""The reference's log-probabilities of every token trained on: computed once, stored, and shared with sibling runs.

They never change, so no second model stays in memory, and a resumed run does not compute them again.
"""

from __future__ import annotations

import logging
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
"""Arrays of a cache file that its hash covers."""


def logprobs(
    out: Path, identity: str, examples: Sequence[Example], budget: int, runner: Callable[[], Runner]
) -> list[Floats]:
    """Returns the [n] float32 log-probabilities of each example, in nats. All processes call it.

    Reads cache files in `out` and in the folders beside it; opens the model for what they lack and stores that in
    `out`.

    Args:
        out: The run's folder.
        identity: What identifies the model's numbers, weights and precision included.
        examples: The encoded completions.
        budget: Padded tokens of a micro-batch.
        runner: Opens the reference.

    Raises:
        NonFiniteError: The reference gives log-probabilities that are not finite.
    """
    name = f"reference-{result_files.sha256(identity.encode())[:16]}"
    keys = [example.key for example in examples]
    sizes = {example.key: len(example.score_positions) for example in examples}
    logprobs = _read(out, name, identity, sizes) if processes.rank() == 0 else {}
    # One process decides what is missing: a sibling run may write its file between two processes' reads.
    missing_keys = processes.broadcast({key for key in keys if key not in logprobs})
    if missing_keys:
        missing = {key: example for key, example in zip(keys, examples, strict=True) if key in missing_keys}
        computed = _compute(tuple(missing.values()), budget, runner())
        (bad,) = processes.all_reduce_sum([float(sum(not np.isfinite(row).all() for row in computed.values()))])
        if bad:
            raise NonFiniteError(
                f"the reference gives log-probabilities that are not finite, for {bad:.0f} of {len(missing)} "
                "examples; check its weights, or try --dtype float32"
            )
        _write(out / f"{name}.{processes.rank()}.safetensors", identity, logprobs | computed)
        processes.barrier()
    logprobs |= _read(out, name, identity, sizes)
    return [logprobs[key] for key in keys]


@torch.no_grad()
def _compute(examples: tuple[Example, ...], budget: int, runner: Runner) -> dict[str, Floats]:
    """Computes this process's share of the examples, by key."""
    data = Dataset(examples, tuple((i,) for i in range(len(examples))), {})
    logging.getLogger(__name__).info("log-probabilities of the reference, for %d rows", len(examples))
    shares = micro_batches(data.units, [len(e.ids) for e in examples], budget, processes.world_size())
    logprobs = {}
    for units in shares[processes.rank()]:
        batch = collate(data, units, stepwise=False, reference=None, device=runner.device)
        values = runner.values(batch).float().cpu().numpy()
        for (i,), row in zip(units, values, strict=False):  # a stand-in has no units
            logprobs[examples[i].key] = row[: len(examples[i].score_positions)]
    processes.reshard(runner.module)
    return logprobs


def _read(out: Path, name: str, identity: str, sizes: Mapping[str, int]) -> dict[str, Floats]:
    """Reads the cache files of this reference in `out` and beside it, as far as they can be trusted.

    A file is used when it and its folder are this user's, when it names this reference, when the hash inside it is that
    of its content, and when its numbers are finite. `sizes`: how many numbers each example has, by key.
    """
    logprobs: dict[str, Floats] = {}
    for path in sorted({*out.glob(f"{name}.*"), *out.parent.glob(f"*/{name}.*")}):
        try:
            if not (reading.belongs_to_user(path) and reading.belongs_to_user(path.parent)):
                raise ValueError("is of another user")
            logprobs |= _checked(load(reading.read_bytes(path)), identity, sizes)
        except (UserError, SafetensorError, KeyError, ValueError) as error:
            warnings.warn(f"{path}: not used ({error}); its numbers are computed again", Notice, stacklevel=3)
    return logprobs


def _checked(table: Mapping[str, NDArray[Any]], identity: str, sizes: Mapping[str, int]) -> dict[str, Floats]:
    """Returns the rows of a file by key. Raises ValueError or KeyError on a file that `_write` has not written."""
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
