"""ProcessBench (Zheng et al., ACL 2025): traces labelled with the first wrong step, from the hub or from files.

Any file of that schema will do: id, problem, steps, label, final_answer_correct (optional), subset (optional); or of
rollouts.py's, which calls these prompt, first_error and outcome.
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
    """Reads a folder (one file a subset) or one file. A row's `subset` wins over its file's name."""
    traces = []
    for file in files.data_files(path):
        rows = files.read_rows(file)
        traces += [to_trace(row, file.stem, f"{file} row {n}") for n, row in enumerate(rows)]
    return traces


def from_hub(subsets: Sequence[str], revision: str | None) -> tuple[list[Trace], str | None]:
    """Loads the splits from the hub; also the resolved revision."""
    splits, found = hub.splits(HUB_ID, subsets, revision)
    pairs = zip(subsets, splits, strict=True)
    rows = ((row, name, n) for name, split in pairs for n, row in enumerate(split))
    return [to_trace(row, name, f"{HUB_ID} {name} row {n}") for row, name, n in rows], found


def to_trace(row: Mapping[str, Any], subset: str, where: str) -> Trace:
    """One row as a Trace. Raises UserError naming the row and the field that is wrong."""
    steps = files.steps_field(row, where)
    problem = files.text_field(row, _either(row, "problem", "prompt"), where)
    name = _either(row, "label", "first_error")
    label = row.get(name)
    if type(label) is not int or not -1 <= label < len(steps):
        raise UserError(
            f"{where}: field {name!r} is {label!r:.60}; expected -1 or the index of one of {len(steps)} steps"
        )
    name = _either(row, "final_answer_correct", "outcome")
    correct = row.get(name)
    if correct not in (None, True, False):
        raise UserError(f"{where}: field {name!r} is {correct!r}; expected true or false")
    return Trace(
        id=files.text_field(row, "id", where),
        prompt=problem,
        steps=steps,
        first_error=label,
        outcome=None if correct is None else int(correct),
        group=text_hash(problem),
        subset=files.text_field(row, "subset", where) if row.get("subset") else subset,
    )


def _either(row: Mapping[str, Any], usual: str, ours: str) -> str:
    """The name that the row gives a field by; the usual one where it has neither."""
    return ours if row.get(usual) is None and row.get(ours) is not None else usual
