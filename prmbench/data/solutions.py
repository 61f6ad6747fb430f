"""A user's own unlabelled solutions: problem + steps, or problem + free text that a named splitter cuts.

What it does not do: guess. The splitter is chosen by name, and a text that yields no step is an error.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from prmbench.data import files
from prmbench.schema import Trace, UserError, text_hash

_HEADING = re.compile(r"(?m)^(?=[ \t]*(?:#+[ \t]*)?(?:\*\*)?(?:[Ss]tep[ \t]+\d+\b|\d+[.)][ \t]))")


def by_paragraph(text: str) -> list[str]:
    """Blank lines end a step."""
    return re.split(r"\n[ \t]*\n", text)


def by_line(text: str) -> list[str]:
    """Every line is a step."""
    return text.splitlines()


def by_number(text: str) -> list[str]:
    """A step begins at a line headed `Step 3`, `### Step 3`, `3.` or `3)`; text before the first heading is a step."""
    return _HEADING.split(text)


SPLITTERS: dict[str, Callable[[str], list[str]]] = {"paragraph": by_paragraph, "line": by_line, "numbered": by_number}


def from_files(path: Path, split: str) -> list[Trace]:
    """Rows with `problem` (or `prompt`) and `steps` (a list) or `solution` (a text); `id` is made when absent."""
    traces = []
    for file in files.data_files(path):
        rows = files.read_rows(file)
        traces += [to_trace(row, file.stem, n, split, f"{file} row {n}") for n, row in enumerate(rows)]
    return traces


def to_trace(row: Mapping[str, Any], stem: str, number: int, split: str, where: str) -> Trace:
    """One row as an unlabelled Trace. Raises UserError naming the row and the field that is wrong."""
    problem = files.text_field(row, "prompt" if "prompt" in row else "problem", where)
    if row.get("steps") is not None:
        steps = files.steps_field(row, where)
    else:
        text = files.text_field(row, "solution", f"{where}: no field 'steps', so")
        steps = tuple(piece.strip() for piece in SPLITTERS[split](text) if piece.strip())
        if not steps:
            raise UserError(f"{where}: the splitter {split!r} finds no step in 'solution'")
    name = row.get("id")
    return Trace(
        id=f"{stem}-{number}" if name is None else files.checked_name(name, "id", where),
        prompt=problem,
        steps=steps,
        group=text_hash(problem),
        subset=stem,
    )
