"""From a prompt and a completion to token ids and the range that training sums over; batched.

Steps of evaluation rows are encoded by encoding.py, here only cut to what training needs. No text is ever truncated.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

from prmbench.core.records import Trace, UserError
from prmbench.engines.encoding import (
    bare_ids,
    conversation,
    encode_chat,
    encode_separated,
    numbered,
    render,
    step_ranges,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

StepForm = Literal["chat", "separated"]
SEPARATOR = "\n\n"
"""Closes a step in the form `separated`; backends read it from prm.json."""
_STAND_IN = "0completion0"
"""Rendered in a completion's place, to see what a template writes after it."""


class Exchange(NamedTuple):
    """What is to be encoded."""

    prompt: str
    completion: str
    finished: bool = True
    """False for a completion that was cut by length: no end of turn is put behind it."""


@dataclass(frozen=True, slots=True)
class CompletionIds:
    """Token ids that end with the last token of interest; nothing that follows it is kept."""

    ids: tuple[int, ...] = ()
    start: int = 0
    """The response's tokens are `ids[start:stop]`; start is at least 1, since token 0 has no log-probability."""
    stop: int = 0
    reads: tuple[int, ...] = ()
    """Of steps: the position whose output carries the step's label. Empty for a completion."""
    unscored: str = ""
    """Why there is nothing to train on; a reason names no row, so that reasons can be counted."""


def encode_completion(
    tokenizer: PreTrainedTokenizerBase,
    prompt: str,
    completion: str,
    template: str | None = None,
    finished: bool = True,
    max_tokens: int | None = None,
) -> CompletionIds:
    """`encode_completions` of one."""
    return encode_completions(tokenizer, [Exchange(prompt, completion, finished)], template, max_tokens)[0]


def encode_completions(
    tokenizer: PreTrainedTokenizerBase,
    exchanges: Sequence[Exchange],
    template: str | None = None,
    max_tokens: int | None = None,
) -> list[CompletionIds]:
    """User = the prompt, assistant = the completion, rendered and tokenised as for evaluation.

    The response is what the owner rule gives to the completion's text, then, when finished, the end of turn: the first
    special token that the template writes behind it, or the tokenizer's end of sequence where it writes none ("plain").
    Prompt and completion are tokenised as one text and nothing behind them, so a marker that is no special token cannot
    merge with the last word. Ids may differ from those that were sampled, where a model chose a spelling that its
    tokenizer would merge. What a template puts before the completion (Qwen3's empty think block) belongs to the prompt.
    Raises UserError when the tokenizer or the template cannot be used for any row.
    """
    markup = _markup(tokenizer, template)
    placed = [
        _place(render(tokenizer, conversation(e.prompt, e.completion), template), e.completion, markup.after)
        for e in exchanges
    ]
    if not tokenizer.is_fast:
        raise UserError("the tokenizer gives no character offsets (a slow one); use a model that has a tokenizer.json")
    if not placed:
        return []
    texts = [place.text for place in placed]
    out = tokenizer(texts, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    rows = zip(exchanges, placed, out["input_ids"], out["offset_mapping"], strict=True)
    found = (_row(place, ids, offsets, markup.closing if e.finished else ()) for e, place, ids, offsets in rows)
    return [_limited(row, max_tokens) for row in found]


def steps_text(steps: Sequence[str]) -> str:
    """The completion that a row of bare steps stands for: what `encode_chat` renders as the assistant's turn."""
    return "\n\n".join(numbered(steps))


def encode_steps(
    tokenizer: PreTrainedTokenizerBase,
    trace: Trace,
    form: StepForm,
    template: str | None = None,
    separator: str = SEPARATOR,
    max_tokens: int | None = None,
) -> CompletionIds:
    """Steps for step labels, token for token as the backends that read the trained model encode them.

    `chat`: `encode_chat`, read at each step's last token (backend value_head); `separated`: `encode_separated`, read
    at the end of the separator behind each step (backend token_cls). Raises UserError as those do.
    """
    if form == "chat":
        encoded = encode_chat(tokenizer, trace, template)
        reads = tuple(end - 1 for end in encoded.ends)
    else:
        encoded = encode_separated(tokenizer, trace, separator)
        reads = encoded.reads
    if encoded.unscored:
        return CompletionIds(unscored=encoded.unscored)
    stop = reads[-1] + 1
    return _limited(CompletionIds(encoded.ids[:stop], encoded.start, stop, reads), max_tokens)


class _Markup(NamedTuple):
    after: str | None
    """What the template writes behind a completion; None when it does not keep completions as they are."""
    closing: tuple[int, ...]
    """The end of turn."""


def _markup(tokenizer: PreTrainedTokenizerBase, template: str | None) -> _Markup:
    text = render(tokenizer, conversation("0", _STAND_IN), template)
    _, found, after = text.rpartition(_STAND_IN)
    special = {*tokenizer.all_special_ids, *(i for i, token in tokenizer.added_tokens_decoder.items() if token.special)}
    tail = bare_ids(tokenizer, after)
    ends = [position for position, token in enumerate(tail, 1) if token in special]
    eos = () if tokenizer.eos_token_id is None else (tokenizer.eos_token_id,)
    return _Markup(after if found else None, tail[: ends[0]] if ends else eos)


class _Place(NamedTuple):
    text: str
    """The rendered text up to the completion's end."""
    at: int = 0
    """Where the completion begins."""
    unscored: str = ""


def _place(text: str, completion: str, after: str | None) -> _Place:
    """Finds the completion, whose blanks a template may trim.

    Its end is known from what follows it: a short completion, searched for, may turn up inside an end-of-turn marker.
    """
    if not completion.strip():
        return _Place("", unscored="empty completion")
    if after is not None and text.endswith(after):
        text = text[: len(text) - len(after)]
        for candidate in (completion, completion.lstrip(), completion.rstrip(), completion.strip()):
            if text.endswith(candidate):
                return _Place(text, len(text) - len(candidate))
    return _Place("", unscored="the chat template rewrites the completion")


def _row(
    place: _Place, ids: Sequence[int], offsets: Sequence[tuple[int, int]], closing: tuple[int, ...]
) -> CompletionIds:
    if place.unscored:
        return CompletionIds(unscored=place.unscored)
    start, (stop,) = step_ranges(offsets, [place.at], len(place.text))
    if start == stop:
        return CompletionIds(unscored="the completion has no token of its own")
    if start == 0:
        return CompletionIds(unscored="no token comes before the completion")
    kept = (*ids[:stop], *closing)
    return CompletionIds(kept, start, len(kept))


def _limited(found: CompletionIds, max_tokens: int | None) -> CompletionIds:
    if max_tokens is not None and len(found.ids) > max_tokens:
        return CompletionIds(unscored=f"longer than {max_tokens} tokens")
    return found
