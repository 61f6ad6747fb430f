"""Reader of ProcessBench (Zheng et al., ACL 2025): traces labelled with their first wrong step.

Reads the hub's data set, or any file with its fields: id, problem, steps, label, final_answer_correct (optional) and
subset (optional). Rollout files (rollouts.py) use the names prompt, first_error and outcome for three of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from prmbench.core.records import Trace, UserError, text_hash
from prmbench.data import files, hub

HUB_ID = "Qwen/ProcessBench"
SUBSETS = ("gsm8k", "math", "olympiadbench", "omnimath")


def from_files(path: Path) -> list[Trace]:
    """Return the traces of one file, or of a folder with one file per subset; a row's `subset` overrides its name."""
    traces = []
    for file in files.data_files(path):
        rows = files.read_rows(file)
        traces += [to_trace(row, file.stem, f"{file} row {n}") for n, row in enumerate(rows)]
    return traces


def from_hub(subsets: Sequence[str], revision: str | None) -> tuple[list[Trace], str | None]:
    """Return the traces of these subsets from the hub, and the resolved revision."""
    splits, commit = hub.splits(HUB_ID, subsets, revision)
    pairs = zip(subsets, splits, strict=True)
    rows = ((row, name, n) for name, split in pairs for n, row in enumerate(split))
    return [to_trace(row, name, f"{HUB_ID} {name} row {n}") for row, name, n in rows], commit


def to_trace(row: Mapping[str, Any], subset: str, location: str) -> Trace:
    """Return a row as a Trace.

    Raises:
        UserError: A field is missing or invalid; the message names the row and the field.
    """
    steps = files.steps_field(row, location)
    problem = files.text_field(row, _field_name(row, "problem", "prompt"), location)
    name = _field_name(row, "label", "first_error")
    label = row.get(name)
    if type(label) is not int or not -1 <= label < len(steps):
        raise UserError(
            f"{location}: field {name!r} is {label!r:.60}; expected -1 or the index of one of {len(steps)} steps"
        )
    name = _field_name(row, "final_answer_correct", "outcome")
    correct = row.get(name)
    if correct not in (None, True, False):
        raise UserError(f"{location}: field {name!r} is {correct!r}; expected true or false")
    return Trace(
        id=files.text_field(row, "id", location),
        prompt=problem,
        steps=steps,
        first_error=label,
        outcome=None if correct is None else int(correct),
        group=text_hash(problem),
        subset=files.text_field(row, "subset", location) if row.get("subset") else subset,
    )


def _field_name(row: Mapping[str, Any], published: str, ours: str) -> str:
    """Return which of a field's two names the row has; the published one where it has neither."""
    return ours if row.get(published) is None and row.get(ours) is not None else published
