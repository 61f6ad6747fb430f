"""Encodes prompts with completions, or with steps, as token ids and the range of tokens that training uses.

Steps are encoded by encoding.py, as for evaluation. No text is ever truncated.
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
    number_steps,
    render,
    step_ranges,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

StepForm = Literal["chat", "separated"]
SEPARATOR = "\n\n"
"""Text that closes a step in the form `separated`; prm.json records it for the backends."""
_STAND_IN = "0completion0"
"""Rendered in a completion's place, to find what a template writes after it."""


class PromptCompletion(NamedTuple):
    """A prompt with its completion."""

    prompt: str
    completion: str
    finished: bool = True
    """False for a completion that was cut by length, which gets no end of turn."""


@dataclass(frozen=True, slots=True)
class EncodedCompletion:
    """Token ids up to the last token that training uses."""

    ids: tuple[int, ...] = ()
    start: int = 0
    """The response is `ids[start:stop]`. start is at least 1, since token 0 has no log-probability."""
    stop: int = 0
    score_positions: tuple[int, ...] = ()
    """Positions whose outputs are the steps' scores, one a step. Empty for a completion."""
    unscored: str = ""
    """Why there is nothing to train on. Reasons name no row, so that equal ones can be counted."""


def encode_completion(
    tokenizer: PreTrainedTokenizerBase,
    prompt: str,
    completion: str,
    template: str | None = None,
    finished: bool = True,
    max_tokens: int | None = None,
) -> EncodedCompletion:
    """Encode one prompt and completion; see `encode_completions`."""
    return encode_completions(tokenizer, [PromptCompletion(prompt, completion, finished)], template, max_tokens)[0]


def encode_completions(
    tokenizer: PreTrainedTokenizerBase,
    exchanges: Sequence[PromptCompletion],
    template: str | None = None,
    max_tokens: int | None = None,
) -> list[EncodedCompletion]:
    """Encode prompts as user turns and completions as assistant turns, rendered and tokenised as for evaluation.

    The response consists of the tokens that `step_ranges` assigns to the completion's text and, when it is finished,
    the end of turn: the first special token that the template writes after it, or the tokenizer's end of sequence where
    it writes none ("plain"). Prompt and completion are tokenised as one text without what follows, so that a marker
    that is no special token cannot merge with the last word. Ids may differ from the sampled ones where a model spelled
    a text in tokens that its tokenizer would merge. What a template writes before the completion, such as Qwen3's empty
    think block, belongs to the prompt.

    Args:
        tokenizer: A fast tokenizer.
        exchanges: The prompts and completions.
        template: None = the tokenizer's own, "plain" = no chat markup, anything else = Jinja source.
        max_tokens: Longest encoding; a longer one is unscored. None = no limit.

    Returns:
        One encoding for each exchange, in order.

    Raises:
        UserError: The tokenizer or the template cannot be used for any row.
    """
    markup = _read_markup(tokenizer, template)
    placements = [
        _locate_completion(
            render(tokenizer, conversation(e.prompt, e.completion), template), e.completion, markup.after
        )
        for e in exchanges
    ]
    if not tokenizer.is_fast:
        raise UserError("the tokenizer gives no character offsets (a slow one); use a model that has a tokenizer.json")
    if not placements:
        return []
    texts = [placement.text for placement in placements]
    out = tokenizer(texts, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    rows = zip(exchanges, placements, out["input_ids"], out["offset_mapping"], strict=True)
    encoded = (
        _encode_placed(placement, ids, offsets, markup.closing if e.finished else ())
        for e, placement, ids, offsets in rows
    )
    return [_limit_length(row, max_tokens) for row in encoded]


def encode_continuation(
    tokenizer: PreTrainedTokenizerBase, lead: str, text: str
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Encode a text that goes on in the middle of a turn; return the tokens of its lead and those of `text`.

    Both are tokenised as one. A token that touches `text` belongs to it.
    """
    out = tokenizer(lead + text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    ids, before = tuple(out["input_ids"]), sum(end <= len(lead) for _, end in out["offset_mapping"])
    return ids[:before], ids[before:]


def render_steps(steps: Sequence[str]) -> str:
    """Return the text that `encode_chat` renders as the assistant's turn for these steps."""
    return "\n\n".join(number_steps(steps))


def encode_steps(
    tokenizer: PreTrainedTokenizerBase,
    trace: Trace,
    form: StepForm,
    template: str | None = None,
    separator: str = SEPARATOR,
    max_tokens: int | None = None,
) -> EncodedCompletion:
    """Encode steps for training on step labels exactly as the backend of the trained model will encode them.

    Args:
        tokenizer: A fast tokenizer.
        trace: Prompt and steps.
        form: `chat` uses `encode_chat` and scores each step at its last token (backend value_head); `separated` uses
            `encode_separated` and scores it at the last token of its separator (backend token_cls).
        template: Chat template, as `encode_chat` takes it.
        separator: Text that closes a step in the form `separated`.
        max_tokens: Longest encoding; None = no limit.

    Raises:
        UserError: As for `encode_chat` and `encode_separated`.
    """
    if form == "chat":
        encoded = encode_chat(tokenizer, trace, template)
        score_positions = tuple(end - 1 for end in encoded.ends)
    else:
        encoded = encode_separated(tokenizer, trace, separator)
        score_positions = encoded.score_positions
    if encoded.unscored:
        return EncodedCompletion(unscored=encoded.unscored)
    stop = score_positions[-1] + 1
    return _limit_length(EncodedCompletion(encoded.ids[:stop], encoded.start, stop, score_positions), max_tokens)


class _Markup(NamedTuple):
    after: str | None
    """Text that the template writes after a completion; None when it rewrites completions."""
    closing: tuple[int, ...]
    """Token ids of the end of turn."""


def _read_markup(tokenizer: PreTrainedTokenizerBase, template: str | None) -> _Markup:
    text = render(tokenizer, conversation("0", _STAND_IN), template)
    _, separator, after = text.rpartition(_STAND_IN)
    special = {*tokenizer.all_special_ids, *(i for i, token in tokenizer.added_tokens_decoder.items() if token.special)}
    tail = bare_ids(tokenizer, after)
    ends = [position for position, token in enumerate(tail, 1) if token in special]
    eos = () if tokenizer.eos_token_id is None else (tokenizer.eos_token_id,)
    return _Markup(after if separator else None, tail[: ends[0]] if ends else eos)


class _Placement(NamedTuple):
    text: str
    """The rendered text up to the completion's end."""
    begin: int = 0
    """Character at which the completion begins."""
    unscored: str = ""


def _locate_completion(text: str, completion: str, after: str | None) -> _Placement:
    """Locate the completion in the rendered text; a template may have trimmed its blanks.

    It is located from the text after it: a search for a short completion may match inside an end-of-turn marker.
    """
    if not completion.strip():
        return _Placement("", unscored="empty completion")
    if after is not None and text.endswith(after):
        text = text[: len(text) - len(after)]
        for candidate in (completion, completion.lstrip(), completion.rstrip(), completion.strip()):
            if text.endswith(candidate):
                return _Placement(text, len(text) - len(candidate))
    return _Placement("", unscored="the chat template rewrites the completion")


def _encode_placed(
    placement: _Placement, ids: Sequence[int], offsets: Sequence[tuple[int, int]], closing: tuple[int, ...]
) -> EncodedCompletion:
    if placement.unscored:
        return EncodedCompletion(unscored=placement.unscored)
    start, (stop,) = step_ranges(offsets, [placement.begin], len(placement.text))
    if start == stop:
        return EncodedCompletion(unscored="the completion has no token of its own")
    if start == 0:
        return EncodedCompletion(unscored="no token comes before the completion")
    closed = (*ids[:stop], *closing)
    return EncodedCompletion(closed, start, len(closed))


def _limit_length(encoded: EncodedCompletion, max_tokens: int | None) -> EncodedCompletion:
    if max_tokens is not None and len(encoded.ids) > max_tokens:
        return EncodedCompletion(unscored=f"longer than {max_tokens} tokens")
    return encoded
