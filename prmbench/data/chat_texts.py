"""Reads prompts and completions out of the shapes that chat APIs and libraries put them in.

A prompt is a text or a chat with one user turn. A completion is a text, a chat that ends with one assistant turn (as in
TRL), or an object that holds either: vLLM's `outputs`, an OpenAI-compatible server's `choices`, a batch's response.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from prmbench.core.records import UserError
from prmbench.data import files

TEXT_NAMES = (
    *("text", "content", "completion", "response", "output", "generation", "generated_text", "solution", "answer"),
)
"""Names of the text in an object that stands for one completion.

Not those of `field_names.NAMES`, which are of rows: an object has no list of completions, and its `text`, `content` and
`answer` can be nothing but what the model wrote.
"""
OUTCOME_NAMES = ("outcome", "correct", "is_correct", "correctness")
"""Names of one outcome in such an object: those of `field_names.NAMES` without `outcomes`, a list for all completions
of a row, and `final_answer_correct`, which only rows of solutions have."""
_ROLES = {"human": "user", "gpt": "assistant", "model": "assistant", "chatbot": "assistant"}


@dataclass(frozen=True, slots=True)
class CompletionText:
    """One completion as a row has it."""

    text: str
    finish: str = ""
    """`stop`, `length`, or empty when unknown."""
    outcome: Any = None
    """What the completion's own object says of its outcome; None: nothing."""


def role(turn: Any) -> str:
    """Return the role of a chat turn; empty for anything else."""
    if not isinstance(turn, Mapping):
        return ""
    name = turn.get("role", turn.get("from"))
    return _ROLES.get(name, name) if isinstance(name, str) else ""


def is_chat(value: Any) -> bool:
    """Return whether a value is a list of chat turns."""
    return isinstance(value, list) and bool(value) and all(role(turn) for turn in value)


def prompt(value: Any, location: str) -> str:
    """Return the text of a prompt: of a chat the one user turn, whatever system message stands before it.

    Raises:
        UserError: It is neither a text that is not blank nor a chat with one user turn.
    """
    if isinstance(value, str) and files.is_text(value):
        return value
    if not is_chat(value):
        expected = "expected a text that is not blank, in valid Unicode, or a chat with one user turn"
        raise UserError(f"{location} is {files.quoted_value(value)}; {expected}")
    users = [turn for turn in value if role(turn) == "user"]
    if len(users) != 1:
        raise UserError(f"{location}: is a chat with {len(users)} user turns; expected one question and its answer")
    return files.text_field({"content": _content(users[0])}, "content", f"{location}: user turn")


def prompt_or_none(value: Any) -> str | None:
    """Return the text of a prompt, or None where it is none."""
    try:
        return prompt(value, "").strip()
    except UserError:
        return None


def ends_with_assistant(value: Any) -> bool:
    """Return whether a value is a chat whose last turn is a model's."""
    return is_chat(value) and role(value[-1]) == "assistant"


def has_system_message(value: Any) -> bool:
    """Return whether a prompt is a chat with instructions before the user's turn."""
    return is_chat(value) and any(role(turn) in ("system", "developer") for turn in value)


def completions(value: Any, location: str) -> list[CompletionText]:
    """Return the completions of a field: one of a text, of a chat or of an object, several of a list.

    Raises:
        UserError: One of them has no text, or is a conversation of several turns.
    """
    if isinstance(value, list) and not is_one_chat(value):
        nested = [completions(item, f"{location}, entry {n}") for n, item in enumerate(value, 1)]
        return [completion for found in nested for completion in found]
    if isinstance(value, list):
        turns = [turn for turn in value if role(turn) == "assistant"]
        if len(turns) != 1 or role(value[-1]) != "assistant":
            raise UserError(f"{location}: is a chat of {len(value)} turns; expected one answer of an assistant, last")
        return completions(turns[0], location)
    if isinstance(value, Mapping):
        return _of_object(value, location)
    if isinstance(value, str):
        if value.strip():
            files.text_field({"text": value}, "text", location)  # which refuses what is not valid Unicode
        return [CompletionText(value)]
    raise UserError(f"{location} is {files.quoted_value(value)}; expected a text, a chat or a list of them")


def is_null(value: Any) -> bool:
    """Return whether an entry of a list of completions holds none: null, or an object whose text is null."""
    if not isinstance(value, Mapping):
        return value is None
    present = [value[name] for name in ("message", "value", *TEXT_NAMES) if name in value]
    return bool(present) and all(map(is_null, present))


def is_one_chat(value: list[Any]) -> bool:
    """Return whether a list is one conversation; one of assistant turns alone holds a completion in each."""
    return is_chat(value) and (len(value) == 1 or any(role(turn) != "assistant" for turn in value))


def _of_object(value: Mapping[str, Any], location: str) -> list[CompletionText]:
    for name in ("body", "response", "choices", "outputs", "message"):
        inner = value.get(name)
        if isinstance(inner, Mapping | list) and inner:
            found = completions(inner, f"{location}: {name}")
            return [_with_facts(completion, value) for completion in found]
    name = next((name for name in ("value", *TEXT_NAMES) if value.get(name) is not None), "")
    text = _content({"content": value.get(name)})
    if not isinstance(text, str):
        raise UserError(
            f"{location}: has no text; expected a completion in one of {', '.join(TEXT_NAMES)}, or in message.content"
        )
    return [_with_facts(completion, value) for completion in completions(text, f"{location}: {name}")]


def _with_facts(completion: CompletionText, value: Mapping[str, Any]) -> CompletionText:
    finish = value.get("finish_reason", value.get("finish"))
    outcome = next((value[name] for name in OUTCOME_NAMES if value.get(name) is not None), None)
    return CompletionText(
        completion.text,
        completion.finish or (finish if finish in ("stop", "length") else ""),
        completion.outcome if outcome is None else outcome,
    )


def _content(turn: Mapping[str, Any]) -> Any:
    """Return the content of a turn; parts of a content are joined where all of them are texts."""
    content = turn.get("content", turn.get("value"))
    if isinstance(content, list):
        parts = [part.get("text") if isinstance(part, Mapping) else part for part in content]
        texts = [part for part in parts if isinstance(part, str)]
        return "".join(texts) if len(texts) == len(parts) else None
    return content
