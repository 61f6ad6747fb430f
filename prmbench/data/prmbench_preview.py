"""PRMBench (Song et al., arXiv 2501.03124): solutions with a label on every step, by kind of error; files or the hub.

Read as its own script reads it: labels of steps that are not there, blank steps (also headings without any text) and
repeated rows are left out, and one warning says how many.
"""

from __future__ import annotations

import re
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prmbench.core.records import Notice, Trace, UserError, text_hash
from prmbench.data import files, hub

HUB_ID = "hitsmy/PRMBench_Preview"
CORRECT = "correct"
"""The original processes, one for each row of the category TWINNED; every step is right."""
TWINNED = "redundency"
SUBSETS = (
    *(TWINNED, "circular"),
    *("counterfactual", "step_contradiction", "domain_inconsistency", "confidence"),
    *("missing_condition", "deception", "multi_solutions"),
    CORRECT,
)
_PREFIX = re.compile(r"\A(?:step\s*)?\d+[.:]\s+", re.IGNORECASE)
"""`Step 3. `, `Step 3: `, `3. `; no space and text behind it, no prefix, or `0.5 of them` would lose its zero."""
_HEADING_ALONE = re.compile(r"\Astep\s*\d+\s*[.:)]?\Z", re.IGNORECASE)
"""`Step 3:` and nothing else says nothing. A number alone does: `30.` is a step, with its label."""


@dataclass(frozen=True, slots=True)
class _Process:
    """The steps of a row, and which of its fields needed mending."""

    steps: tuple[str, ...]
    labels: tuple[float, ...]
    odd: tuple[str, ...]


def from_files(path: Path) -> list[Trace]:
    """Reads a folder (one file a category) or one file. A row's `classification` wins over its file's name."""
    named = ((row, file, n) for file in files.data_files(path) for n, row in enumerate(files.read_rows(file), 1))
    return _traces(((row, file.stem, f"{file} row {n}") for row, file, n in named), path.name)


def from_hub(subsets: Sequence[str], revision: str | None) -> tuple[list[Trace], str | None]:
    """Loads the set from the hub; also the resolved revision."""
    (split,), commit = hub.splits(HUB_ID, ["train"], revision)
    found = _traces(((row, "", f"{HUB_ID} row {n}") for n, row in enumerate(split, 1)), HUB_ID)
    return [t for t in found if t.subset in subsets], commit


def _traces(rows: Iterable[tuple[Mapping[str, Any], str, str]], source: str) -> list[Trace]:
    """(row, file stem, where) -> traces; of rows with one id the first, as PRMBench's script keeps it."""
    found: dict[str, Trace] = {}
    odd: Counter[str] = Counter()
    first = ""
    for row, stem, where in rows:
        for trace, faults in to_traces(row, stem, where):
            told = ("a row that is there already",) if trace.id in found else faults
            found.setdefault(trace.id, trace)
            odd.update(told)
            first = first or (where if told else "")
    if odd:
        listed = ", ".join(f"{times} x {name}" for name, times in sorted(odd.items()))
        warnings.warn(f"{source}: left out: {listed}; the first is in {first}", Notice, stacklevel=3)
    return list(found.values())


def to_traces(row: Mapping[str, Any], stem: str, where: str) -> list[tuple[Trace, tuple[str, ...]]]:
    """The trace of one row (and its twin), each with what was left out. Raises UserError naming the row and field."""
    category = _category(row, stem, where)
    name = files.text_field(row, "idx", where)
    original = files.text_field(row, "original_question", where)
    # the original questions of one problem are not spelled alike in all categories; `question` is
    group = text_hash(files.text_field(row, "question", where) if row.get("question") else original)
    question = files.text_field(row, "modified_question", where)
    process = _process(row, "modified_process", _error_steps(row, where), where)
    found = [(_trace(f"{category}_{name}", question, process, group, category), process.odd)]
    if category == TWINNED:
        twin = _process(row, "original_process", [], where)
        found.append((_trace(f"{CORRECT}_{name}", original, twin, group, CORRECT), twin.odd))
    return found


def _trace(name: str, question: str, process: _Process, group: str, subset: str) -> Trace:
    first = process.labels.index(0.0) if 0.0 in process.labels else -1
    return Trace(name, question, process.steps, first, process.labels, group=group, subset=subset)


def _category(row: Mapping[str, Any], stem: str, where: str) -> str:
    named = row.get("classification")
    found = [c for c in SUBSETS[:-1] if (stem.endswith(c) if named is None else named == c)]
    if not found:
        told = "no field 'classification', and no category ends its file's name"
        told = told if named is None else f"field 'classification' is {named!r}"
        raise UserError(f"{where}: {told}; expected one of {', '.join(SUBSETS[:-1])}")
    return found[0]


def _error_steps(row: Mapping[str, Any], where: str) -> list[int]:
    """Steps with an error, 1-based."""
    value = row.get("error_steps")
    if not isinstance(value, list) or not all(type(n) is int and n > 0 for n in value):
        raise UserError(f"{where}: field 'error_steps' is {value!r}; expected a list of step numbers from 1")
    return value


def _process(row: Mapping[str, Any], name: str, errors: Sequence[int], where: str) -> _Process:
    """The steps that say something, without their numbers, and a label for each: 1.0 valid, 0.0 not."""
    value = row.get(name)
    if not isinstance(value, list) or not all(isinstance(step, str) for step in value):
        raise UserError(f"{where}: field {name!r} is {str(value)[:60]}; expected a list of texts, one a step")
    plain = ["" if _HEADING_ALONE.match(step.strip()) else _PREFIX.sub("", step.strip()) for step in value]
    wrong = set(errors)
    kept = [(step, 0.0 if number in wrong else 1.0) for number, step in enumerate(plain, 1) if step]
    if not kept:
        raise UserError(f"{where}: field {name!r} has no step that says anything")
    beyond = sum(number > len(value) for number in wrong)
    odd = ["a label of a step that is not there"] * beyond + ["a blank step"] * (len(plain) - len(kept))
    steps = files.steps_field({"steps": [step for step, _ in kept]}, where)
    return _Process(steps, tuple(label for _, label in kept), tuple(odd))
