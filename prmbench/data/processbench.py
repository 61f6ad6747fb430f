"""Reader of ProcessBench (Zheng et al., ACL 2025): traces labelled with their first wrong step.

Reads the hub's data set, or any file with its fields: id, problem, steps, label, final_answer_correct (optional) and
subset (optional). Rollout files (rollouts.py) use the names prompt, first_error and outcome for three of them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from prmbench.core.records import Trace, UserError, text_hash
from prmbench.data import field_names, files, hub, row_kinds
from prmbench.data.field_names import Fields

HUB_ID = "Qwen/ProcessBench"
SUBSETS = ("gsm8k", "math", "olympiadbench", "omnimath")
OMNIMATH = "omnimath"
"""The subset without fingerprints."""
OMNIMATH_FACTS = {
    "traces": 1000,
    "traces with an outcome": 1000,
    "traces without an error": 241,
    "traces with an error and a right answer": 259,
    "traces without an error and with a wrong answer": 0,
    "traces of at least 10 steps": 274,
    "different problems": 951,
    "steps": 8291,
    "steps of the longest trace": 35,
}
"""What is published about all of omnimath."""

_OMNIMATH_ID = re.compile(r"omnimath-\d+")


def from_files(path: Path, fields: Fields | None = None) -> list[Trace]:
    """Return the traces of one file, or of a folder with one file per subset; a row's `subset` overrides its name."""
    traces = []
    for file in files.data_files(path):
        for location, row in field_names.rows(file, fields):
            with row_kinds.advice(row, file, "traces"):
                traces.append(to_trace(row, file.stem, location))
    return traces


def from_hub(subsets: Sequence[str], revision: str | None) -> tuple[list[Trace], str | None]:
    """Return the traces of these subsets from the hub, and the resolved revision."""
    splits, commit = hub.splits(HUB_ID, subsets, revision)
    pairs = zip(subsets, splits, strict=True)
    rows = ((row, name, n) for name, split in pairs for n, row in enumerate(split, 1))
    return [to_trace(row, name, f"{HUB_ID} {name} row {n}") for row, name, n in rows], commit


def is_official(traces: Iterable[Trace]) -> bool:
    """Return whether traces that were read from files are ProcessBench's own, unchanged; a part of it is enough.

    The package ships a fingerprint of every trace of three subsets. Of omnimath, which has none, all traces must be
    there, with the ids and the counts that are published.
    """
    by_subset = _by_subset(traces)
    omnimath = by_subset.pop(OMNIMATH, [])
    if omnimath and _doubt_of_omnimath(omnimath):
        return False
    return bool(omnimath or by_subset) and all(
        subset in SUBSETS and t.id.startswith(f"{subset}-") and fingerprint(t) in _fingerprints()
        for subset, members in by_subset.items()
        for t in members
    )


def doubt(traces: Iterable[Trace]) -> str:
    """Return why traces with the ids of ProcessBench are not certain to be its own; empty where nothing is open."""
    omnimath = _by_subset(traces).get(OMNIMATH, [])
    if not any(_OMNIMATH_ID.fullmatch(trace.id) for trace in omnimath):
        return ""
    return _doubt_of_omnimath(omnimath) or (
        "omnimath has the ids and the counts of ProcessBench's, but prmbench has no fingerprints of its contents"
    )


def _by_subset(traces: Iterable[Trace]) -> dict[str, list[Trace]]:
    by_subset: dict[str, list[Trace]] = {}
    for trace in traces:
        by_subset.setdefault(trace.subset, []).append(trace)
    return by_subset


def _doubt_of_omnimath(traces: Sequence[Trace]) -> str:
    """Return how traces differ from what is published about omnimath; empty where they do not."""
    size = OMNIMATH_FACTS["traces"]
    if not {t.id for t in traces} <= {f"omnimath-{n}" for n in range(size)}:
        return "omnimath has ids that are not ProcessBench's"
    if len(traces) < size:
        return f"only {len(traces)} of the {size} traces of omnimath are there, and a part of it cannot be checked"
    lengths = [len(trace.steps) for trace in traces]
    facts = {
        "traces": len(traces),
        "traces with an outcome": sum(t.outcome is not None for t in traces),
        "traces without an error": sum(t.first_error == -1 for t in traces),
        "traces with an error and a right answer": sum(t.first_error != -1 and t.outcome == 1 for t in traces),
        "traces without an error and with a wrong answer": sum(t.first_error == -1 and t.outcome == 0 for t in traces),
        "traces of at least 10 steps": sum(length >= 10 for length in lengths),  # noqa: PLR2004
        "different problems": len({t.group for t in traces}),
        "steps": sum(lengths),
        "steps of the longest trace": max(lengths),
    }
    differing = [
        f"{facts[name]} {name} instead of {count}" for name, count in OMNIMATH_FACTS.items() if facts[name] != count
    ]
    return f"omnimath has the ids of ProcessBench's, but {differing[0]}" if differing else ""


def fingerprint(trace: Trace) -> str:
    """Return 8 hex digits that depend on everything that judging reads: id, problem, steps, label and outcome."""
    return text_hash(json.dumps([trace.id, trace.prompt, trace.steps, trace.first_error, trace.outcome]))[:8]


@cache
def _fingerprints() -> frozenset[str]:
    """Return the fingerprints of the published traces of gsm8k, math and olympiadbench."""
    text = (resources.files("prmbench") / "assets" / "processbench_fingerprints.txt").read_text(encoding="utf-8")
    return frozenset(text.split())


def to_trace(row: Mapping[str, Any], subset: str, location: str) -> Trace:
    """Return a row as a Trace.

    Raises:
        UserError: A field is missing or invalid; the message names the row and the field.
    """
    steps = files.steps_field(row, location)
    problem = field_names.problem_text(row, location, ("problem", "prompt"))
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
