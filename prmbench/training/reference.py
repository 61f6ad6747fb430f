"""The reference's log-probabilities of every token trained on: computed once, kept on disk, shared with sibling runs.

They never change, so no second model stays in memory and a resumed run skips the pass.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from prmbench import distributed, store
from prmbench.training.batching import collate, micro_batches
from prmbench.training.examples import Dataset, Example
from prmbench.training.model import Runner

Floats = NDArray[np.float32]


def logprobs(
    out: Path, identity: str, examples: Sequence[Example], budget: int, runner: Callable[[], Runner]
) -> list[Floats]:
    """[n] float32 natural logs of each example.

    Looks into `out` and into the folders beside it, then opens the model for what is missing and writes that into
    `out`. `identity`: all of the model and its precision that moves a number. All processes call this.
    """
    name = f"reference-{store.sha256(identity.encode())[:16]}"
    keys = [example.key for example in examples]
    known = _read(out, name) if distributed.rank() == 0 else {}
    # One process says what is missing: a sibling may write its file just between two processes' looks.
    wanted = distributed.from_first({key for key in keys if key not in known})
    if wanted:
        missing = {key: example for key, example in zip(keys, examples, strict=True) if key in wanted}
        found = _compute(tuple(missing.values()), budget, runner())
        _write(out / f"{name}.{distributed.rank()}.safetensors", known | found)
        distributed.barrier()
    known |= _read(out, name)
    return [known[key] for key in keys]


@torch.no_grad()
def _compute(examples: tuple[Example, ...], budget: int, runner: Runner) -> dict[str, Floats]:
    """This process's share."""
    data = Dataset(examples, tuple((i,) for i in range(len(examples))), {})
    shares = micro_batches(data.units, [len(e.ids) for e in examples], budget, distributed.world_size())
    found = {}
    for units in shares[distributed.rank()]:
        batch = collate(data, units, stepwise=False, reference=None, device=runner.device)
        values = runner.values(batch).float().cpu().numpy()
        for (i,), row in zip(units, values, strict=False):  # no units in a stand-in
            found[examples[i].key] = row[: len(examples[i].reads)]
    distributed.reshard(runner.module)
    return found


def _read(out: Path, name: str) -> dict[str, Floats]:
    known: dict[str, Floats] = {}
    for path in sorted({*out.glob(f"{name}.*"), *out.parent.glob(f"*/{name}.*")}):
        try:
            table = load(path.read_bytes())
            ends = table["lengths"].cumsum()
            rows = np.split(table["values"], ends[:-1])
        except (OSError, SafetensorError, KeyError, ValueError):
            continue  # not ours, or gone meanwhile; it is computed again
        known.update(zip(bytes(table["keys"]).decode().split(), rows, strict=True))
    return known


def _write(path: Path, rows: dict[str, Floats]) -> None:
    if not rows:
        return
    table: dict[str, NDArray[Any]] = {
        "keys": np.frombuffer(" ".join(rows).encode(), dtype=np.uint8),
        "lengths": np.array([len(row) for row in rows.values()], dtype=np.int64),
        "values": np.concatenate(list(rows.values())),
    }
    store.write_atomic(path, save(table))
