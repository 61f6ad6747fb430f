"""The reference's step log-probabilities, kept on disk: models trained from one reference share its forward pass.

Keyed by token ids and step ranges, so that a hit is the same number. Lines are appended, each with a hash over itself
and the reference; one that is torn or altered is computed again.
"""

from __future__ import annotations

import hashlib
import json
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from prmbench.backends.common import step_sums
from prmbench.core import processes, reading, writing
from prmbench.core.records import Notice, UserError
from prmbench.engines import Reader
from prmbench.engines.encoding import Encoded
from prmbench.engines.hf import Placement

Sums = Callable[[Sequence[Encoded]], Iterator[tuple[float, ...]]]
"""Per trace: the sum of log pi over each step's tokens, nats."""


def step_logprobs(engine: Reader, batch: Sequence[Encoded]) -> Iterator[tuple[float, ...]]:
    """Per trace: the sum of log pi over each step's tokens, nats, added up in float64."""
    for encoded, out in zip(batch, engine.logprobs(batch), strict=True):
        yield step_sums(out.logprobs, encoded)


def identity(weights: str, where: Placement, engine: str = "hf") -> str:
    """All of a reference that moves its numbers, so not which of several GPUs it is on: processes share their files."""
    return f"{weights} {where.device.partition(':')[0]} {where.dtype}" + (f" {engine}" if engine != "hf" else "")


def cached(folder: Path, reference: str, open_engine: Callable[[], Reader]) -> Sums:
    """`step_logprobs` that looks into `folder` first, and opens the model when something is not there.

    `reference`: its `identity`; each has files of its own. Raises UserError when the folder is another user's.
    """
    if reading.lexists(folder) and not reading.belongs_to_user(folder):
        raise UserError(f"--ref-cache {folder}: belongs to another user, whose numbers are not taken; name your own")
    name = hashlib.sha256(reference.encode()).hexdigest()[:16]
    known = _read(folder, name, reference)
    own = folder / f"{name}.{processes.rank()}.jsonl"
    engine: list[Reader] = []

    def is_missing(encoded: Encoded) -> bool:
        return len(known.get(_key(encoded), ())) != len(encoded.spans)

    def sums(batch: Sequence[Encoded]) -> Iterator[tuple[float, ...]]:
        missing = [e for e in batch if is_missing(e)]
        if missing:
            if not engine:
                engine.append(open_engine())
            found = dict(zip(map(_key, missing), step_logprobs(engine[0], missing), strict=True))
            _append(own, reference, {key: values for key, values in found.items() if all(map(math.isfinite, values))})
            known.update(found)
        for encoded in batch:
            yield known[_key(encoded)]

    return sums


def _key(encoded: Encoded) -> str:
    """16 hex digits of all that the engine sees of a trace."""
    seen = (encoded.ids, encoded.start, encoded.ends, encoded.masked_positions)
    return hashlib.sha256(repr(seen).encode()).hexdigest()[:16]


def _read(folder: Path, name: str, reference: str) -> dict[str, tuple[float, ...]]:
    """Entries by key; those of a file of another user, and lines whose hash is not theirs, are left out and counted."""
    known, faults = {}, 0
    for path in sorted(folder.glob(f"{name}.*.jsonl")):
        if not reading.belongs_to_user(path):
            warnings.warn(f"{path}: not used (it belongs to another user)", Notice, stacklevel=3)
            continue
        for line in reading.appended_lines(path):
            try:
                key, values, digest = json.loads(line)
                if digest != _digest(reference, key, values) or not all(map(math.isfinite, values)):
                    raise ValueError
            except (ValueError, TypeError, OverflowError, RecursionError):
                faults += 1  # torn by a kill, altered, or of an older version; it is computed again
                continue
            known[key] = tuple(map(float, values))
    if faults:
        warnings.warn(f"{folder}: {faults} entries not used (torn, altered, or without a hash)", Notice, stacklevel=3)
    return known


def _digest(reference: str, key: Any, values: Any) -> str:
    """16 hex digits that bind an entry to its reference."""
    return hashlib.sha256(json.dumps([reference, key, values]).encode()).hexdigest()[:16]


def _append(path: Path, reference: str, found: Mapping[str, tuple[float, ...]]) -> None:
    lines = [json.dumps([key, values, _digest(reference, key, values)]) for key, values in found.items()]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        writing.cannot_write(path, error)
    writing.append_lines(path, lines)
