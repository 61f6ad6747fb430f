"""Reader of PRMBench (Song et al., arXiv 2501.03124): solutions with a label on every step, grouped by kind of error.

As in its authors' script, labels of missing steps, blank steps (including headings without text) and repeated rows are
left out; one warning says how many.
"""

from __future__ import annotations

import json
import re
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from prmbench.core.records import Notice, Trace, UserError, text_hash
from prmbench.data import files, hub, row_kinds

HUB_ID = "hitsmy/PRMBench_Preview"
CORRECT = "correct"
"""Subset of the original processes, one per row of the category TWINNED; all their steps are right."""
TWINNED = "redundency"
SUBSETS = (
    *(TWINNED, "circular"),
    *("counterfactual", "step_contradiction", "domain_inconsistency", "confidence"),
    *("missing_condition", "deception", "multi_solutions"),
    CORRECT,
)
_PREFIX = re.compile(r"\A(?:step\s*)?\d+[.:]\s+", re.IGNORECASE)
"""`Step 3. `, `Step 3: `, `3. `. A space is required, or `0.5 of them` would lose its zero."""
_HEADING_ALONE = re.compile(r"\Astep\s*\d+\s*[.:)]?\Z", re.IGNORECASE)
"""`Step 3:` alone is not a step; a number alone, such as `30.`, is one."""
COUNTS = {
    **{"redundency": 758, "circular": 758, "counterfactual": 757, "step_contradiction": 758},
    **{"domain_inconsistency": 757, "confidence": 757, "missing_condition": 756, "deception": 750},
    **{"multi_solutions": 165, CORRECT: 758},
}
"""Traces of each subset of the whole data set, as published."""
_OFFICIAL_ID = re.compile(r"prm_test_p\d+_\d+")


@dataclass(frozen=True, slots=True)
class _Process:
    """The steps of a row with their labels, and what was left out of it."""

    steps: tuple[str, ...]
    labels: tuple[float, ...]
    left_out: tuple[str, ...]


def from_files(path: Path) -> list[Trace]:
    """Return the traces of one file, or of a folder with one file per category.

    A row's `classification` overrides the file name.
    """
    entries = ((row, file, location) for file in files.data_files(path) for location, row in files.located_rows(file))
    return _traces(entries, path.name)


def from_hub(subsets: Sequence[str], revision: str | None) -> tuple[list[Trace], str | None]:
    """Return the traces of these subsets from the hub, and the resolved revision."""
    (split,), commit = hub.splits(HUB_ID, ["train"], revision)
    traces = _traces(((row, None, f"{HUB_ID} row {n}") for n, row in enumerate(split, 1)), HUB_ID)
    return [t for t in traces if t.subset in subsets], commit


def is_official(traces: Iterable[Trace]) -> bool:
    """Return whether traces that were read from files are PRMBench's own, unchanged.

    The package ships a fingerprint of every trace of the first part of the data (`prm_test_p1_*`, without
    multi_solutions), of which a part is enough. Traces of the other parts are taken for PRMBench's only where the whole
    data set is there: the first part unchanged, and as many traces of each subset as are published.
    """
    traces = list(traces)
    return bool(traces) and all(map(_has_official_id, traces)) and not _doubt(traces)


def doubt(traces: Iterable[Trace]) -> str:
    """Return why traces with the ids of PRMBench are not certain to be its own; empty where nothing is open."""
    traces = list(traces)
    if not traces or not all(map(_has_official_id, traces)):
        return ""
    if reason := _doubt(traces):
        return reason
    unknown = sum(fingerprint(trace) not in _fingerprints() for trace in traces)
    return (
        f"{unknown} of its traces have the ids of PRMBench's, but prmbench has no fingerprints of them"
        if unknown
        else ""
    )


def fingerprint(trace: Trace) -> str:
    """Return 8 hex digits that depend on everything that judging reads: id, problem, steps and labels."""
    return text_hash(json.dumps([trace.id, trace.prompt, trace.steps, trace.first_error, trace.step_labels]))[:8]


@cache
def _fingerprints() -> frozenset[str]:
    """Return the fingerprints of the first part of the data."""
    text = (resources.files("prmbench") / "assets" / "prmbench_preview_fingerprints.txt").read_text(encoding="utf-8")
    return frozenset(text.split())


def _has_official_id(trace: Trace) -> bool:
    return _OFFICIAL_ID.fullmatch(trace.id.removeprefix(f"{trace.subset}_")) is not None


def _doubt(traces: Sequence[Trace]) -> str:
    """Return how traces with ids of PRMBench differ from it; empty where they do not, as far as can be told."""
    unknown = [trace for trace in traces if fingerprint(trace) not in _fingerprints()]
    changed = [t.id for t in unknown if "_test_p1_" in t.id and t.subset != "multi_solutions"]
    if changed:
        return f"{changed[0]} has the id of a trace of PRMBench's, and is another one"
    if not unknown:
        return ""
    if Counter(trace.subset for trace in traces) != COUNTS or len(traces) - len(unknown) != len(_fingerprints()):
        return "only its first part (prm_test_p1_*) and its whole can be told from other data"
    return ""


def _traces(rows: Iterable[tuple[Mapping[str, Any], Path | None, str]], source: str) -> list[Trace]:
    """Convert (row, file, location) triples; the first row with an id counts, as in PRMBench's script."""
    traces: dict[str, Trace] = {}
    left_out: Counter[str] = Counter()
    first = ""
    for row, file, location in rows:
        with row_kinds.advice(row, file, "prmbench"):
            read = to_traces(row, file.stem if file else "", location)
        for trace, left_out_of_row in read:
            reasons = ("a row that is there already",) if trace.id in traces else left_out_of_row
            traces.setdefault(trace.id, trace)
            left_out.update(reasons)
            first = first or (location if reasons else "")
    if left_out:
        listed = ", ".join(f"{count} x {reason}" for reason, count in sorted(left_out.items()))
        warnings.warn(f"{source}: left out: {listed}; the first is in {first}", Notice, stacklevel=3)
    return list(traces.values())


def to_traces(row: Mapping[str, Any], stem: str, location: str) -> list[tuple[Trace, tuple[str, ...]]]:
    """Return the trace of a row (and of its original process), each with the reasons why parts were left out.

    Raises:
        UserError: A field is missing or invalid; the message names the row and the field.
    """
    category = _category(row, stem, location)
    name = files.text_field(row, "idx", location)
    original = files.text_field(row, "original_question", location)
    # `original_question` differs in spelling between the categories, `question` does not.
    group = text_hash(files.text_field(row, "question", location) if row.get("question") else original)
    question = files.text_field(row, "modified_question", location)
    process = _process(row, "modified_process", _error_steps(row, location), location)
    traces = [(_trace(f"{category}_{name}", question, process, group, category), process.left_out)]
    if category == TWINNED:
        twin = _process(row, "original_process", [], location)
        traces.append((_trace(f"{CORRECT}_{name}", original, twin, group, CORRECT), twin.left_out))
    return traces


def _trace(name: str, question: str, process: _Process, group: str, subset: str) -> Trace:
    first = process.labels.index(0.0) if 0.0 in process.labels else -1
    return Trace(name, question, process.steps, first, process.labels, group=group, subset=subset)


def _category(row: Mapping[str, Any], stem: str, location: str) -> str:
    value = row.get("classification")
    for category in SUBSETS[:-1]:
        if stem.endswith(category) if value is None else value == category:
            return category
    fault = "no field 'classification', and no category ends its file's name"
    if value is not None:
        fault = f"field 'classification' is {value!r}"
    raise UserError(f"{location}: {fault}; expected one of {', '.join(SUBSETS[:-1])}")


def _error_steps(row: Mapping[str, Any], location: str) -> list[int]:
    """Return the 1-based numbers of the steps with an error."""
    value = row.get("error_steps")
    if not isinstance(value, list) or not all(type(n) is int and n > 0 for n in value):
        raise UserError(f"{location}: field 'error_steps' is {value!r}; expected a list of step numbers from 1")
    return value


def _process(row: Mapping[str, Any], name: str, errors: Sequence[int], location: str) -> _Process:
    """Return the non-blank steps without their numbers; their labels are 1.0 for valid and 0.0 for invalid."""
    value = row.get(name)
    if not isinstance(value, list) or not all(isinstance(step, str) for step in value):
        raise UserError(f"{location}: field {name!r} is {str(value)[:60]}; expected a list of texts, one a step")
    bare_steps = ["" if _HEADING_ALONE.match(step.strip()) else _PREFIX.sub("", step.strip()) for step in value]
    wrong = set(errors)
    labelled = [(step, 0.0 if number in wrong else 1.0) for number, step in enumerate(bare_steps, 1) if step]
    if not labelled:
        raise UserError(f"{location}: field {name!r} has no step that says anything")
    beyond = sum(number > len(value) for number in wrong)
    left_out = ["a label of a step that is not there"] * beyond + ["a blank step"] * (len(bare_steps) - len(labelled))
    steps = files.steps_field({"steps": [step for step, _ in labelled]}, location)
    return _Process(steps, tuple(label for _, label in labelled), tuple(left_out))
