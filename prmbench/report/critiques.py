"""The texts of critics for the trace viewer, from the file that `eval` writes beside a critic's result."""

from __future__ import annotations

import json
import warnings
from collections.abc import Collection
from pathlib import Path

from prmbench.core import reading
from prmbench.core.records import Notice, UserError
from prmbench.core.result_files import Run

SUFFIX = ".critiques.jsonl"
MAX_FILE_BYTES = 2**29
MAX_TEXT = 6_000
"""Characters of a critique; the page says where it was cut."""
MAX_TEXTS = 16
"""Critiques of a trace."""
MAX_TOTAL = 3_000_000
"""Characters of all critiques of a run; the page stays readable by any browser."""
CUT = " \u2026 [cut here; the whole text is in the file of critiques beside the result]"


def read_critiques(run: Run, ids: Collection[str]) -> dict[str, list[str]]:
    """Returns the critiques of these traces by id, as many as fit; empty where the run has no such file.

    A file that cannot be read is left out with a notice: the numbers do not depend on it.
    """
    path = run.path.with_suffix(SUFFIX)
    if not path.is_file():
        return {}
    texts: dict[str, list[str]] = {}
    total = 0
    try:
        lines = reading.split_json_lines(reading.decode_text(reading.read_bytes(path, max_bytes=MAX_FILE_BYTES), path))
        for number, line in enumerate(lines, 1):
            name, critiques = _parse(line, path, number)
            if name in ids:
                texts[name] = [_cut(text) for text in critiques[:MAX_TEXTS]]
                total += sum(map(len, texts[name]))
            if total > MAX_TOTAL:
                break
    except UserError as error:
        warnings.warn(f"critiques are not shown: {error}", Notice, stacklevel=2)
        return {}
    return texts


def _parse(line: str, path: Path, number: int) -> tuple[str, list[str]]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}, line {number}: not valid JSON; delete the file or score again") from error
    name, critiques = (row.get("id"), row.get("said")) if isinstance(row, dict) else (None, None)
    if not isinstance(name, str) or not isinstance(critiques, list) or not all(isinstance(t, str) for t in critiques):
        raise UserError(f"{path}, line {number}: needs `id`, a text, and `said`, a list of texts; score again")
    return name, critiques


def _cut(text: str) -> str:
    shown = text if len(text) <= MAX_TEXT else text[:MAX_TEXT] + CUT
    return shown.encode(errors="replace").decode()  # half a character would make the page unwritable
