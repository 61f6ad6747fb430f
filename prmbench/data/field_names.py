"""The names that the fields of a row go by: what is a prompt, a completion or a reference answer, in one place.

A name is `sure` when it means one thing in every row, and `unsure` when it may mean another: an `answer` is a reference
answer here and a completion there. An unsure name counts only in a row without a sure one. Two names of one kind with
different contents are refused, with the `--fields` that decides. Narrower lists, which say why they are, stand in
chat_texts (for objects inside a row) and row_kinds (for what tells files of completions from others).
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prmbench.core.records import UserError
from prmbench.data import chat_texts, files

Fields = Mapping[str, str]
"""Kind of field -> its name in the user's rows, `a.b` for a field of an object: what `--fields` gives."""


@dataclass(frozen=True, slots=True)
class Names:
    """The names that one kind of field goes by."""

    sure: tuple[str, ...]
    unsure: tuple[str, ...] = ()


PROMPT, COMPLETION, ANSWER, OUTCOME = "prompt", "completion", "answer", "outcome"
NAMES: dict[str, Names] = {
    PROMPT: Names(
        ("prompt", "problem", "question", "query", "instruction"),
        ("input", "messages", "conversations", "doc.problem", "doc.question", "arguments.gen_args_0.arg_0"),
    ),
    COMPLETION: Names(
        (
            *("completion", "completions", "response", "responses", "output", "outputs", "generation", "generations"),
            *("generated_text", "generated_responses", "model_output", "model_response", "prediction", "predictions"),
            *("samples", "candidates", "resps", "code"),
        ),
        ("solution", "solutions"),
    ),
    ANSWER: Names(
        (
            *("gold", "gold_answer", "ground_truth", "reference", "references", "reference_answer", "expected_answer"),
            *("correct_answer", "target", "gt", "reward_model.ground_truth", "extra_info.ground_truth"),
        ),
        ("answer", "answers", "final_answer"),
    ),
    OUTCOME: Names(("outcome", "outcomes", "correct", "is_correct", "correctness", "final_answer_correct")),
}
"""The order of names matters to nothing but messages."""
OTHER_KINDS = ("id", "subset", "steps", "label", "finish")
"""Further kinds that `--fields` may name, which have one name here."""
ALIASES = {"gold": ANSWER, "problem": PROMPT, "question": PROMPT, "response": COMPLETION, "first_error": "label"}
"""Other spellings of kinds in `--fields`."""


def parse(text: str | None) -> Fields:
    """Return what `--fields kind=name,...` says; empty where it is not given.

    Raises:
        UserError: It is not a list of known kinds, each once, with a name.
    """
    fields: dict[str, str] = {}
    kinds = (*NAMES, *OTHER_KINDS)
    for part in filter(None, (text or "").split(",")):
        written, equals, name = (piece.strip() for piece in part.partition("="))
        kind = ALIASES.get(written, written)
        if not (equals and name):
            raise UserError(f"--fields {part.strip()}: write it as kind=name, such as prompt=question")
        if kind not in kinds:
            near = difflib.get_close_matches(written, kinds, 1)
            hint = f"did you mean {near[0]}?" if near else f"choose from {', '.join(kinds)}"
            raise UserError(f"--fields {part.strip()}: there is no kind of field {written!r}; {hint}")
        if kind in fields:
            raise UserError(f"--fields {text}: names {kind} twice")
        fields[kind] = name
    return fields


def rows(
    file: Path, fields: Fields | None = None, on_unreadable: Callable[[str], None] | None = None
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield every row of a file with its location, its fields renamed as `--fields` says.

    A kind that is named there has its own name in the row, and no other name of the kind is left.

    Args:
        file: The file.
        fields: What `--fields` says.
        on_unreadable: Called with the reason for every row that is not an object, which is then left out.

    Raises:
        UserError: A row is not an object, or no row has a field that `--fields` names.
    """
    located = files.located_rows(file, on_unreadable)
    for kind, path in (fields or {}).items():
        if all(lookup(row, path) is None for _, row in located):
            present = ", ".join(dict.fromkeys(name for _, row in located for name in row))
            raise UserError(f"{file}: --fields {kind}={path}: no row has the field {path!r}; the rows have {present}")
    for location, row in located:
        yield location, _renamed(row, fields) if fields else row


def _renamed(row: Mapping[str, Any], fields: Fields) -> dict[str, Any]:
    values = {kind: lookup(row, path) for kind, path in fields.items()}
    taken = {path.partition(".")[0] for path in fields.values() if path in row}
    others = {name for kind in fields for name in _every_name(kind) if "." not in name}
    kept = {name: value for name, value in row.items() if name not in taken | others}
    # An object is taken apart by its dotted names, so those of the renamed kinds must not be found in it again.
    objects = {name.partition(".")[0] for kind in fields for name in _every_name(kind) if "." in name}
    kept = {name: value for name, value in kept.items() if name not in objects or not isinstance(value, dict)}
    names = {ANSWER: "gold", "label": "first_error"}
    return {**kept, **{names.get(kind, kind): value for kind, value in values.items() if value is not None}}


def _every_name(kind: str) -> tuple[str, ...]:
    names = NAMES.get(kind, Names(("label", "first_error") if kind == "label" else (kind,)))
    return (*names.sure, *names.unsure)


def lookup(row: Mapping[str, Any], path: str) -> Any:
    """Return the value of a field, or of a field of an object (`a.b`); None where there is none."""
    if path in row:
        return row[path]
    value: Any = row
    for name in path.split("."):
        value = value.get(name) if isinstance(value, Mapping) else None
    return value


def find(row: Mapping[str, Any], kind: str, location: str) -> tuple[str, Any]:
    """Return the name and the value of a row's field of a kind; `("", None)` where it has none.

    Args:
        row: The row.
        kind: PROMPT, COMPLETION, ANSWER or OUTCOME.
        location: Location of the row, for error messages.

    Raises:
        UserError: Two names of the kind have different contents.
    """
    names = NAMES[kind]
    unsure = names.unsure
    if kind == COMPLETION and _present(row, NAMES[ANSWER].sure, ANSWER):
        # The reference answer has a name of its own, so that an `answer` can only be what a model wrote.
        unsure = (*unsure, "answer", "answers")
    candidates = _present(row, names.sure, kind) or _present(row, unsure, kind)
    if kind == PROMPT and [name for name, _ in candidates] == ["instruction"]:
        candidates += _present(row, ("input",), kind)  # which may be the other half of the problem
    if not candidates:
        return "", None
    (name, value), *others = candidates
    for other, other_value in others:
        if not _alike(kind, value, other_value):
            raise UserError(
                f"{location}: {name!r} and {other!r} differ, and each may be the {kind}; choose: "
                f"--fields {kind}={name} or --fields {kind}={other}"
            )
    return name, value


def check_clear(row: Mapping[str, Any], location: str) -> None:
    """Raise UserError where two fields that differ may both be a row's prompt, completion or reference answer."""
    for kind in (PROMPT, COMPLETION, ANSWER):
        find(row, kind, location)


def _present(row: Mapping[str, Any], names: Sequence[str], kind: str) -> list[tuple[str, Any]]:
    """Return (name, value) of the fields that are there; only a completion may be an empty text."""
    empty: tuple[Any, ...] = ([], {}) if kind == COMPLETION else ("", [], {})
    values = ((name, lookup(row, name)) for name in names)
    return [(name, value) for name, value in values if value is not None and value not in empty]


def _alike(kind: str, a: Any, b: Any) -> bool:
    """Whether two fields say the same, if one of them is a chat or a list with one entry."""
    if kind == PROMPT:
        text = chat_texts.prompt_or_none(a)
        return text is not None and text == chat_texts.prompt_or_none(b)
    return bool(_bare(a) == _bare(b))


def _bare(value: Any) -> Any:
    while isinstance(value, list) and len(value) == 1:
        value = value[0]
    return str(value).strip() if isinstance(value, str | int | float) else value


def problem_text(row: Mapping[str, Any], location: str, own_names: Sequence[str]) -> str:
    """Return a row's problem: the first of `own_names` that it has, else a field that is a prompt by another name.

    Raises:
        UserError: It has none, or it is no text that is not blank.
    """
    name = next((name for name in own_names if row.get(name) is not None), "")
    if isinstance(row.get(name), list):
        return chat_texts.prompt(row[name], f"{location}: field {name!r}")
    if name:
        return files.text_field(row, name, location)
    name, value = find(row, PROMPT, location)
    if not name:
        return files.text_field(row, "problem", location)  # which says that it is missing
    return chat_texts.prompt(value, f"{location}: field {name!r}")
