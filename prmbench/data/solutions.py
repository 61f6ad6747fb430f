"""Splits free text into steps, and reads a user's unlabelled solutions: problem + steps, or problem + text.

The splitter is never guessed, but chosen by name. A text without a step is an error, and a splitter that cuts none of a
file's texts causes a warning.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from prmbench.core.reading import normalise_line_ends
from prmbench.core.records import Notice, Trace, UserError, text_hash
from prmbench.data import chat_texts, field_names, files, row_kinds
from prmbench.data.field_names import COMPLETION, Fields

# `30.` on a line of its own is an answer, so `3.` and `3)` are headings only with text after them on their line.
# `Step 3` is a heading with or without text after it.
_HEADED_LINE = re.compile(
    r"^(?=[ \t]*(?:#+[ \t]*)?(?:\*\*)?(?:step[ \t]+\d+\b|\d+[.)](?::?\*\*:?)?[ \t]+\S))", re.MULTILINE | re.IGNORECASE
)
_HEADING = re.compile(
    r"[ \t]*(?:#+[ \t]*)?(\*\*)?(?:step[ \t]+\d+[:.)]?(?(1):?\*\*:?)(?=\s|\Z)|\d+[.)](?(1):?\*\*:?)(?=[ \t]+\S))[ \t]*",
    re.IGNORECASE,
)
"""`Step 3:`, `### Step 3`, `**Step 3:**`, `3.`; not `**Step 3: Add**`, whose second pair of stars would remain."""


def by_paragraph(text: str) -> list[str]:
    """Split at blank lines."""
    return re.split(r"\n[^\S\n]*\n", text)


def by_line(text: str) -> list[str]:
    """Split at line feeds only, not at U+2028, NEL, form feed and the like."""
    return text.split("\n")


def by_number(text: str) -> list[str]:
    """Split before lines that begin with `Step 3`, `### Step 3`, `3. ...` or `3) ...`."""
    return _HEADED_LINE.split(text)


SPLITTERS: dict[str, Callable[[str], list[str]]] = {"paragraph": by_paragraph, "line": by_line, "numbered": by_number}


def split_text(text: str, split: str, drop_headings: bool = False) -> tuple[str, ...]:
    """Split a text into its non-blank steps; CR LF and CR count as LF.

    Args:
        text: The solution, as a person or a model wrote it.
        split: Name of a splitter.
        drop_headings: Whether to remove the headings of `numbered` steps, and so the steps that are only a heading.
    """
    pieces = SPLITTERS[split](normalise_line_ends(text))
    if drop_headings and split == "numbered":
        pieces = [piece[heading.end() :] if (heading := _HEADING.match(piece)) else piece for piece in pieces]
    return tuple(piece.strip() for piece in pieces if piece.strip())


def warn_if_never_cut(texts: Sequence[str], split: str, source: str) -> None:
    """Emit one warning when the splitter cuts none of the texts; it says how many the other splitters would cut."""
    if not texts or any(len(split_text(text, split)) > 1 for text in texts):
        return
    cut_by = {name: sum(len(split_text(text, name)) > 1 for text in texts) for name in SPLITTERS if name != split}
    others = ", ".join(f"--split {name} would cut {count}" for name, count in cut_by.items())
    warnings.warn(
        f"{source}: --split {split} finds no place to cut, so every text is one step (of {len(texts)}, {others})",
        Notice,
        stacklevel=2,
    )


def from_files(path: Path, split: str, fields: Fields | None = None) -> list[Trace]:
    """Return the unlabelled traces of a file or folder.

    Rows have `problem` (or `prompt`) and `steps` (a list) or `solution` (a text), or one of the other names that
    field_names.py lists; an `id` is generated when absent.

    Raises:
        UserError: A row is invalid; the message names the file, the row and the field.
    """
    traces: list[Trace] = []
    texts: list[str] = []
    for file in files.data_files(path):
        for number, (location, row) in enumerate(field_names.rows(file, fields)):
            with row_kinds.advice(row, file, "solutions"):
                traces.append(to_trace(row, file.stem, number, split, location))
                texts += [_solution(row, location)] if row.get("steps") is None else []
    warn_if_never_cut(texts, split, path.name)
    return traces


def to_trace(row: Mapping[str, Any], stem: str, number: int, split: str, location: str) -> Trace:
    """Return a row as an unlabelled Trace.

    Raises:
        UserError: A field is missing or invalid; the message names the row and the field.
    """
    problem = field_names.problem_text(row, location, ("prompt", "problem"))
    if row.get("steps") is not None:
        steps = files.steps_field(row, location)
    else:
        steps = split_text(_solution(row, location), split)
        if not steps:
            raise UserError(f"{location}: the splitter {split!r} finds no step in 'solution'")
    name = row.get("id")
    return Trace(
        id=f"{stem}-{number}" if name is None else files.checked_name(name, "id", location),
        prompt=problem,
        steps=steps,
        group=text_hash(problem),
        subset=stem,
    )


def _solution(row: Mapping[str, Any], location: str) -> str:
    """Return a row's solution as one text: its field `solution`, else its one completion by another name."""
    name, value = ("", None) if row.get("solution") is not None else field_names.find(row, COMPLETION, location)
    if not name:
        return files.text_field(row, "solution", f"{location}: no field 'steps', so")
    texts = chat_texts.completions(value, f"{location}: field {name!r}")
    if len(texts) != 1:
        raise UserError(f"{location}: field {name!r} has {len(texts)} completions; a row to score has one solution")
    return files.text_field({name: texts[0].text}, name, location)
