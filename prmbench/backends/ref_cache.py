"""The reference's step log-probabilities, kept on disk: models trained from one reference share its forward pass.

Keyed by token ids and step ranges, so that a hit is the same number. Lines are appended; a torn one is passed over.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from prmbench import distributed
from prmbench.backends.common import step_sums
from prmbench.engines import Reader
from prmbench.engines.hf import Placement
from prmbench.engines.render import Encoded
from prmbench.store import cannot_write
from prmbench.textfiles import json_lines

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

    `reference`: its `identity`; each has files of its own.
    """
    name = hashlib.sha256(reference.encode()).hexdigest()[:16]
    known = _read(folder, name)
    own = folder / f"{name}.{distributed.rank()}.jsonl"
    engine: list[Reader] = []

    def sums(batch: Sequence[Encoded]) -> Iterator[tuple[float, ...]]:
        missing = [e for e in batch if _key(e) not in known]
        if missing:
            if not engine:
                engine.append(open_engine())
            found = dict(zip(map(_key, missing), step_logprobs(engine[0], missing), strict=True))
            _append(own, found)
            known.update(found)
        for encoded in batch:
            yield known[_key(encoded)]

    return sums


def _key(encoded: Encoded) -> str:
    """16 hex digits of all that the engine sees of a trace."""
    seen = (encoded.ids, encoded.start, encoded.ends, encoded.masked)
    return hashlib.sha256(repr(seen).encode()).hexdigest()[:16]


def _read(folder: Path, name: str) -> dict[str, tuple[float, ...]]:
    known = {}
    for path in sorted(folder.glob(f"{name}.*.jsonl")):
        for line in json_lines(path.read_text(encoding="utf-8")):
            try:
                key, values = json.loads(line)
            except ValueError:
                continue  # torn by a kill; it is computed again
            known[key] = tuple(values)
    return known


def _append(path: Path, found: dict[str, tuple[float, ...]]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            file.write("\n" + "".join(json.dumps([key, values]) + "\n" for key, values in found.items()))
    except OSError as error:
        cannot_write(path, error)
