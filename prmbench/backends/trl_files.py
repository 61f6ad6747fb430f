"""Reads what TRL's trainer saves beside a model: the step separator that it was trained with."""

from __future__ import annotations

import pickletools
import zipfile
import zlib
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

TRAINING_ARGS = "training_args.bin"
"""The file in which transformers' trainers save their arguments; TRL's PRMTrainer its PRMConfig."""
MAX_BYTES = 2**20
"""Size of the pickle in it; an honest one has some kilobytes."""
DEFAULT_SEPARATOR = "\n"
"""The `step_separator` of TRL's PRMConfig where nobody sets it."""


def step_separator(path: Path) -> str | None:
    """Return the `step_separator` in a training_args.bin; None where there is none, or where it cannot be read.

    The file is a pickle. It is not unpickled, which would run its code: only its texts are read, in their order.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            entry = next(entry for entry in archive.infolist() if entry.filename.endswith("data.pkl"))
            if entry.file_size > MAX_BYTES:
                return None
            texts = list(_texts(archive.read(entry)))
    except (zipfile.BadZipFile, zlib.error, StopIteration, ValueError, OSError, LookupError, RuntimeError):
        return None  # RuntimeError: the archive is encrypted, or packed in an unknown way
    separator = next((value for key, value in pairwise(texts) if key == "step_separator"), None)
    return separator or None


def _texts(pickled: bytes) -> Iterator[str | None]:
    """Yield the texts of a pickle in their order, those that it repeats by number included, and None for all else."""
    memo: dict[int, str | None] = {}
    last: str | None = None
    for opcode, argument, _ in pickletools.genops(pickled):
        if "PUT" in opcode.name or opcode.name == "MEMOIZE":
            memo[len(memo) if argument is None else int(argument)] = last
            continue
        last = None
        if "UNICODE" in opcode.name:
            last = str(argument)
        elif opcode.name.endswith("GET"):
            last = memo.get(int(argument or 0))
        yield last
