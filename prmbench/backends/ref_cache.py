"""A cache on disk of the reference's step log-probabilities, shared by all models trained from one reference.

Entries are keyed by token ids and step ranges, so a hit is the same number. Each is a line with a hash of itself and
the reference; a torn or altered line is computed again.
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

StepSums = Callable[[Sequence[Encoded]], Iterator[tuple[float, ...]]]
"""Yields for each trace the sums of log pi over each step's tokens, in nats."""


def step_logprobs(engine: Reader, batch: Sequence[Encoded]) -> Iterator[tuple[float, ...]]:
    """Yield for each trace the sums of log pi over each step's tokens, in nats, added in float64."""
    for encoded, out in zip(batch, engine.logprobs(batch), strict=True):
        yield step_sums(out.logprobs, encoded)


def reference_identity(weights: str, placement: Placement, engine: str = "hf") -> str:
    """Return a text of everything that changes the reference's numbers; the GPU's index does not, and is left out.

    Args:
        weights: Hash of the weights, or hub id and commit.
        placement: Device and precision.
        engine: Name of the engine.
    """
    suffix = f" {engine}" if engine != "hf" else ""
    return f"{weights} {placement.device.partition(':')[0]} {placement.dtype}{suffix}"


def cached(folder: Path, reference: str, open_engine: Callable[[], Reader]) -> StepSums:
    """Return a `step_logprobs` that reads from a cache and opens the model only at the first miss.

    Args:
        folder: Folder of the cache.
        reference: The reference's `reference_identity`; each has its own files.
        open_engine: Opens the reference model.

    Raises:
        UserError: The folder belongs to another user.
    """
    if reading.lexists(folder) and not reading.belongs_to_user(folder):
        raise UserError(f"--ref-cache {folder}: belongs to another user, whose numbers are not taken; name your own")
    file_stem = hashlib.sha256(reference.encode()).hexdigest()[:16]
    cache = _read_entries(folder, file_stem, reference)
    own_file = folder / f"{file_stem}.{processes.rank()}.jsonl"
    opened: list[Reader] = []

    def is_missing(encoded: Encoded) -> bool:
        return len(cache.get(_key(encoded), ())) != len(encoded.spans)

    def sums(batch: Sequence[Encoded]) -> Iterator[tuple[float, ...]]:
        uncached = [e for e in batch if is_missing(e)]
        if uncached:
            if not opened:
                opened.append(open_engine())
            computed = dict(zip(map(_key, uncached), step_logprobs(opened[0], uncached), strict=True))
            finite = {key: values for key, values in computed.items() if all(map(math.isfinite, values))}
            _append_entries(own_file, reference, finite)
            cache.update(computed)
        for encoded in batch:
            yield cache[_key(encoded)]

    return sums


def _key(encoded: Encoded) -> str:
    """Return a hash, in 16 hex digits, of everything that the engine reads of a trace."""
    inputs = (encoded.ids, encoded.start, encoded.ends, encoded.masked_positions)
    return hashlib.sha256(repr(inputs).encode()).hexdigest()[:16]


def _read_entries(folder: Path, name: str, reference: str) -> dict[str, tuple[float, ...]]:
    """Return the entries by key; files of other users and lines with a wrong hash are skipped with a notice."""
    entries, rejected = {}, 0
    for path in sorted(folder.glob(f"{name}.*.jsonl")):
        if not reading.belongs_to_user(path):
            warnings.warn(f"{path}: not used (it belongs to another user)", Notice, stacklevel=3)
            continue
        for line in reading.read_appended_lines(path):
            try:
                key, values, digest = json.loads(line)
                if digest != _digest(reference, key, values) or not all(map(math.isfinite, values)):
                    raise ValueError
            except (ValueError, TypeError, OverflowError, RecursionError):
                rejected += 1  # torn by a kill, altered, or from an older version: computed again
                continue
            entries[key] = tuple(map(float, values))
    if rejected:
        warnings.warn(f"{folder}: {rejected} entries not used (torn, altered, or without a hash)", Notice, stacklevel=3)
    return entries


def _digest(reference: str, key: Any, values: Any) -> str:
    """Return a hash, in 16 hex digits, that binds an entry to its reference."""
    return hashlib.sha256(json.dumps([reference, key, values]).encode()).hexdigest()[:16]


def _append_entries(path: Path, reference: str, sums: Mapping[str, tuple[float, ...]]) -> None:
    lines = [json.dumps([key, values, _digest(reference, key, values)]) for key, values in sums.items()]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        writing.raise_cannot_write(path, error)
    writing.append_lines(path, lines)
