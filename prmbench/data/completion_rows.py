"""Reads completions in the shapes that other tools write them in: a row a completion, or a row a problem with a list.

The names of fields are those of field_names.py, and the shapes of texts those of chat_texts.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prmbench.core.records import UserError
from prmbench.core.validation import NAME
from prmbench.data import chat_texts, field_names, files
from prmbench.data.chat_texts import CompletionText
from prmbench.data.field_names import ANSWER, COMPLETION, OUTCOME, PROMPT

ID_NAMES = ("id", "unique_id", "problem_id", "question_id", "custom_id", "uid")


def own_rows(row: Mapping[str, Any], location: str) -> list[dict[str, Any]]:
    """Return a row of rollouts.py's own format for each completion of a row, with the outcome that it has.

    Completions that are null are left out; `null_completions` counts them.

    Raises:
        UserError: The row has no prompt or no completion, or a field of it has several meanings or cannot be read.
    """
    prompt_name, prompt = field_names.find(row, PROMPT, location)
    name, value = _completions_field(row, prompt_name, prompt, location)
    if not name:
        raise UserError(_no_completion(row, location))
    if not prompt_name:
        raise UserError(
            f"{location}: field 'problem' is missing beside {name!r}; name the prompt's field: --fields prompt=..."
        )
    present = _present(value)
    texts = chat_texts.completions(
        value if len(present) == _length(value) else [value[k] for k in present], f"{location}: field {name!r}"
    )
    if not texts:
        what = "holds only nulls" if _length(value) else "is an empty list"
        raise UserError(f"{location}: field {name!r} {what}; expected at least one completion")
    text = chat_texts.prompt(prompt, f"{location}: field {prompt_name!r}")
    golds = _per_completion(_reference_answers(row, location), len(texts), f"{location}: reference answers")
    outcomes = _outcomes(row, texts, present if len(present) < _length(value) else None, location)
    finish = row.get("finish_reason", row.get("finish"))
    name = _id(row, location)
    subset = row.get("subset")
    return [
        {
            "id": name if len(texts) == 1 else f"{name}/{k}" if name else "",
            "prompt": text,
            "completion": completion.text,
            "outcome": outcome,
            "gold": gold,
            "finish": completion.finish or (finish if finish in ("stop", "length") else ""),
            "subset": subset if isinstance(subset, str) and NAME.fullmatch(subset) else "",
        }
        for k, (completion, gold, outcome) in enumerate(zip(texts, golds, outcomes, strict=True))
    ]


def null_completions(row: Mapping[str, Any], location: str) -> int:
    """Return how many completions in the list of a row are null. Raises UserError as `own_rows` does."""
    _, value = _completions_field(row, *field_names.find(row, PROMPT, location), location)
    return _length(value) - len(_present(value))


def _length(value: Any) -> int:
    return len(value) if isinstance(value, list) else 1


def _present(value: Any) -> list[int]:
    """Return the indices of the completions in a list that are not null."""
    if not isinstance(value, list) or chat_texts.is_one_chat(value):
        return list(range(_length(value)))
    return [k for k, entry in enumerate(value) if not chat_texts.is_null(entry)]


def _completions_field(row: Mapping[str, Any], prompt_name: str, prompt: Any, location: str) -> tuple[str, Any]:
    """Return the name and the value of a row's completions; a chat in which a model has answered holds both."""
    name, value = field_names.find(row, COMPLETION, location)
    if name in ("", "solution", "solutions") and chat_texts.ends_with_assistant(prompt):
        return prompt_name, prompt
    choices = row.get("choices")
    if not name and isinstance(choices, list) and all(isinstance(choice, Mapping) for choice in choices):
        return "choices", choices  # a reply of an OpenAI-compatible server; options of a question are texts
    return name, value


def _no_completion(row: Mapping[str, Any], location: str) -> str:
    message = (
        f"{location}: has neither 'completion' nor 'steps'; rollouts need one of them, or 'conversation', or "
        "'chosen' and 'rejected'"
    )
    names = [name for name in row if name in ("answer", "answers", "final_answer")]
    if names:
        return message + f"; if {names[0]!r} is what a model wrote: --fields completion={names[0]}"
    return message + f"; name them by --fields prompt=...,completion=...,answer=...: the row has {', '.join(row)}"


def _id(row: Mapping[str, Any], location: str) -> str:
    name = next((name for name in ID_NAMES if isinstance(row.get(name), str | int) and row[name] != ""), "")
    return files.checked_name(row[name], name, location) if name else ""


def _reference_answers(row: Mapping[str, Any], location: str) -> list[str]:
    """Return the different reference answers of a row as texts; none where it has no reference answer."""
    name, value = field_names.find(row, ANSWER, location)
    values = value if isinstance(value, list) else [] if value is None else [value]
    if not all(isinstance(v, str | int | float) and not isinstance(v, bool) for v in values):
        raise UserError(
            f"{location}: field {name!r} is {files.quoted_value(value)}; expected an answer as text or number"
        )
    return [text for v in values if (text := str(v)).strip()]


def _per_completion(answers: list[str], count: int, location: str) -> list[str]:
    """Return one reference answer for each completion."""
    if len(set(answers)) <= 1:
        return (answers[:1] or [""]) * count
    if len(answers) == count:
        raise UserError(
            f"{location}: {count} different ones for {count} completions of one problem; name the field with the one "
            "that is right: --fields answer=..."
        )
    raise UserError(f"{location}: {len(answers)} different ones; a problem has one here")


def _outcomes(
    row: Mapping[str, Any], texts: list[CompletionText], present: list[int] | None, location: str
) -> list[int | None]:
    """Return the outcomes that a row has for its completions; one that is neither 0 nor 1 is none.

    Args:
        row: The row.
        texts: Its completions that are not null.
        present: Their indices in the row's list; None where none is null.
        location: Location of the row, for errors.
    """
    _, value = field_names.find(row, OUTCOME, location)
    values = value if isinstance(value, list) else [value] * len(texts)
    if present is not None and len(values) > max(present) and len(values) != len(texts):
        values = [values[k] for k in present]
    if len(values) != len(texts):
        raise UserError(f"{location}: has {len(values)} outcomes for {len(texts)} completions; expected one for each")
    return [_outcome(text.outcome if v is None else v) for text, v in zip(texts, values, strict=True)]


def _outcome(value: Any) -> int | None:
    return int(value) if isinstance(value, int | float) and value in (0, 1) else None
