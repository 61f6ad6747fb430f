"""Recognises what a row of a file is, and says which command reads such rows.

A reader that cannot use a row raises its own error; `advice` adds what the row is and the command to give its file to.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from prmbench.core.records import UserError
from prmbench.data import chat_texts, field_names
from prmbench.data.field_names import ANSWER, COMPLETION, NAMES, OUTCOME, PROMPT
from prmbench.tasks.problem_groups import verify_advice

Kind = Literal[
    "prm800k",
    "math_shepherd",
    "trl",
    "prmbench",
    "traces",
    "rollouts",
    "training",
    "completions",
    "solutions",
    "prompts",
    "scores",
    "",
]
"""What a row is; empty where that is not recognised."""
Wanted = Literal["traces", "prmbench", "rollouts", "prompts", "solutions", "completions", "step_labels"]
"""What a reader expects."""


@dataclass(frozen=True, slots=True)
class _Description:
    """What rows of a kind are called, and what reads them; `{file}`, `{out}` and `{verify}` are filled in."""

    name: str
    use: str


_CONVERT = "`prmbench convert {file} --out {out}` makes traces of them, which eval, score and train-rm read"
DESCRIPTIONS: dict[Kind, _Description] = {
    "prm800k": _Description("PRM800K's rows", _CONVERT),
    "math_shepherd": _Description("Math-Shepherd's rows", _CONVERT),
    "trl": _Description("TRL's stepwise rows", _CONVERT),
    "prmbench": _Description(
        "PRMBench's rows", "`prmbench eval --benchmark prmbench_preview --data {file}` reads them"
    ),
    "traces": _Description(
        "solutions with step labels",
        "`prmbench eval --data {file}` judges a PRM on them, "
        "`prmbench train-rm --loss step_bce --data {file}` trains one",
    ),
    "rollouts": _Description(
        "completions with outcomes",
        "`prmbench eval --benchmark best_of_n --data {file}` judges a PRM on them (or --benchmark calibration), "
        "`prmbench train-rm --data {file}` trains one",
    ),
    "training": _Description(
        "conversations with outcomes", "`prmbench train-rm --data {file}` trains a reward model on them"
    ),
    "completions": _Description("completions without outcomes", "{verify}"),
    "solutions": _Description("solutions without labels", "`prmbench score --data {file}` scores their steps"),
    "prompts": _Description(
        "prompts with reference answers",
        "`prmbench rollout --model POLICY --data {file}` draws and verifies completions of them, "
        "`prmbench eval --benchmark policy --model POLICY --data {file}` judges a policy",
    ),
    "scores": _Description("step scores that prmbench wrote", "give the file of solutions that were scored"),
}
READS: dict[Wanted, frozenset[Kind]] = {
    "traces": frozenset({"traces"}),
    "prmbench": frozenset({"prmbench"}),
    "rollouts": frozenset({"rollouts", "training", "completions", "traces", "trl"}),
    "prompts": frozenset({"prompts"}),
    "solutions": frozenset({"solutions", "traces"}),
    "completions": frozenset({"completions", "rollouts"}),
    "step_labels": frozenset({"prm800k", "math_shepherd", "trl"}),
}
"""The kinds that a reader can use, whose rows get no advice: what is wrong there is in the row."""
COMPLETION_NAMES = ("completion", "completions", "response", "responses", "generation", "generations", "outputs")
"""Names by which a row is known to hold completions, whatever else it has: fewer than `field_names.NAMES` has for them,
since a file of prompts may have `output`, `solution` or `code` beside its answers."""


def kind_of(row: Mapping[str, Any]) -> Kind:
    """Return what a row is, by the names and the types of its fields."""
    if isinstance(row.get("question"), Mapping) and isinstance(row.get("label"), Mapping):
        return "prm800k"
    if isinstance(row.get("input"), str) and isinstance(row.get("label"), str):
        return "math_shepherd"
    if row.get("modified_process") is not None:
        return "prmbench"
    if row.get("values") is not None and row.get("tokens") is not None:
        return "scores"
    if row.get("conversation") is not None or (row.get("chosen") is not None and row.get("rejected") is not None):
        return "training"
    has_answer = bool(_has(row, ANSWER))
    if isinstance(row.get("completions"), list) and isinstance(row.get("labels"), list) and not has_answer:
        return "trl"
    if isinstance(row.get("steps"), list) and any(
        row.get(n) is not None for n in ("label", "first_error", "step_labels")
    ):
        return "traces"
    return _kind_of_texts(row, has_answer)


def _kind_of_texts(row: Mapping[str, Any], has_answer: bool) -> Kind:
    """Return the kind of a row without step labels."""
    if has_completion(row):
        return "rollouts" if _has(row, OUTCOME) else "completions"
    if row.get("steps") is not None or (row.get("solution") is not None and not has_answer):
        return "solutions"
    if _has(row, PROMPT):
        is_completion = bool(_has(row, COMPLETION)) or chat_texts.ends_with_assistant(row.get("messages"))
        return "completions" if is_completion and not isinstance(row.get("solution"), str) else "prompts"
    return ""


def has_completion(row: Mapping[str, Any]) -> bool:
    """Return whether a row has a field that only a model's completions have."""
    return any(row.get(name) is not None for name in COMPLETION_NAMES)


def _has(row: Mapping[str, Any], kind: str) -> bool:
    names = NAMES[kind]
    return any(field_names.lookup(row, name) not in (None, "", [], {}) for name in (*names.sure, *names.unsure))


@contextmanager
def advice(row: Mapping[str, Any], file: Path | None, wanted: Wanted) -> Iterator[None]:
    """Add to an error on a row what the row is and what reads its file, where this reader is for other rows.

    Args:
        row: The row.
        file: Its file; None: it is from the hub, and its errors stay as they are.
        wanted: What the reader expects.
    """
    try:
        yield
    except UserError as error:
        kind = kind_of(row)
        if file is None or not kind or kind in READS[wanted]:
            raise
        raise UserError(f"{error}; these are {_describe(kind, file)}") from error


def _describe(kind: Kind, file: Path) -> str:
    """Return what rows of a kind are called and what reads them, with commands to paste."""
    row_kind = DESCRIPTIONS[kind]
    out = shlex.quote(f"{file.stem}-traces.jsonl")
    use = row_kind.use.format(file=shlex.quote(str(file)), out=out, verify=verify_advice(str(file)))
    return f"{row_kind.name}: {use}"
