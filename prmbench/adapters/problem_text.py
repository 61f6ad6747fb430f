"""Recovers the problem that a reward model must read from what a trainer calls a prompt.

That is a text, a conversation, or the token ids of a conversation that the policy's chat template rendered.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from prmbench.adapters.token_alignment import decode
from prmbench.core.records import UserError
from prmbench.core.redaction import one_line
from prmbench.engines.encoding import render

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_SYSTEM, _USER = "0system0", "0user0"
"""Rendered to find what a template writes around a turn."""
_SHOWN = 80
"""Characters of a prompt that an error message shows."""
Prompt = str | Sequence[Mapping[str, Any]] | Sequence[int]
"""A problem, a conversation, or token ids."""


def problem_of(prompt: Prompt, tokenizer: PreTrainedTokenizerBase | None) -> str:
    """Return the problem: the text, the last user turn of the conversation, or that of the decoded tokens.

    Args:
        prompt: A problem, a conversation with `role` and `content`, or token ids, perhaps with padding before them.
        tokenizer: The policy's; needed for token ids.

    Raises:
        UserError: The prompt has no user turn that can be found.
    """
    if isinstance(prompt, str):
        return prompt
    items: list[Any] = list(prompt)
    if items and isinstance(items[0], Mapping):
        return _last_user_turn(items)
    if tokenizer is None:
        raise UserError("prompts are token ids: give the policy's tokenizer, policy_tokenizer=")
    return last_user_text(decode(tokenizer, _without_padding(tokenizer, items), special=True), tokenizer)


def last_user_text(text: str, tokenizer: PreTrainedTokenizerBase) -> str:
    """Return the last user turn of a prompt that the tokenizer's chat template rendered, without its markup.

    A text without markup is a problem already: so base models are asked it.

    Raises:
        UserError: The text has special tokens that are not the template's user turn.
    """
    problem = _inside_user_turn(text, tokenizer)
    if problem is not None:
        return problem
    plain = text.removeprefix(tokenizer.bos_token or "")
    added = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
    if any(token in plain for token in (*tokenizer.all_special_tokens, *added)):
        raise UserError(
            f"the prompt {one_line(text)[:_SHOWN]!r} has no user turn of the policy's chat template; give the problem "
            "itself: as text, as a conversation, or by problem=, a function from the decoded prompt to it"
        )
    return plain


def _inside_user_turn(text: str, tokenizer: PreTrainedTokenizerBase) -> str | None:
    """Return what stands between the markup of the last user turn; None where there is no such markup."""
    openings, closing = _user_markup(tokenizer)
    end = text.rfind(closing) if closing.strip() else -1
    begins = [text.rfind(opening, 0, end) + len(opening) for opening in openings if opening in text[: max(end, 0)]]
    return text[max(begins) : end] if begins else None


@lru_cache(maxsize=8)
def _user_markup(tokenizer: PreTrainedTokenizerBase) -> tuple[tuple[str, ...], str]:
    """Return what the template writes before a user turn, first or after a system turn, and what it writes after it."""
    if not tokenizer.chat_template:
        return (), ""
    user = {"role": "user", "content": _USER}
    before, _, after = render(tokenizer, [user], None).partition(_USER)
    try:
        both = render(tokenizer, [{"role": "system", "content": _SYSTEM}, user], None)
    except UserError:  # some templates refuse system turns
        both = ""
    between = both.partition(_SYSTEM)[2].partition(_USER)[0]
    bos = tokenizer.bos_token or ""
    return tuple(filter(str.strip, {before, before.removeprefix(bos), between})), after


def _last_user_turn(messages: Sequence[Mapping[str, Any]]) -> str:
    for message in reversed(messages):
        if message.get("role") == "user":
            content = message.get("content")
            parts = [content] if isinstance(content, str) else content
            return "\n".join(filter(None, map(_part_text, parts or ())))
    raise UserError("the prompt is a conversation without a user turn; give the problem by problem=")


def _part_text(part: Any) -> str:
    """Return the text of a part of a turn: a text, or what has a `text`; that of an image is empty."""
    if isinstance(part, str):
        return part
    return str((part.get("text") if isinstance(part, Mapping) else getattr(part, "text", None)) or "")


def _without_padding(tokenizer: PreTrainedTokenizerBase, ids: Sequence[Any]) -> list[int]:
    numbers = [int(i) for i in ids]
    while numbers and numbers[0] == tokenizer.pad_token_id:
        numbers.pop(0)
    return numbers
