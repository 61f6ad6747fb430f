"""Encodes a trace as token ids with one token range per step: chat text, tagged steps, separated steps.

family_encodings.py holds the conventions of single PRM families. No text is ever truncated.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING

from prmbench.core.records import Boundary, Trace, UserError
from prmbench.core.redaction import one_line
from prmbench.engines import chat_templates

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PLAIN = "plain"
"""Template name for text without chat markup: problem, blank line, solution."""
_DATE = "26 Jul 2024"
"""The date for templates that print one: the constant to which Llama 3.2's own template falls back. With the real date
the same model would score the same trace differently on another day."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """One trace as token ids and one token range per step; scores are sums over the ranges in `spans`."""

    id: str
    ids: tuple[int, ...] = ()
    start: int = 0
    """Index of the first token that belongs to a step. At least 1 in chat text: token 0 has no log-probability."""
    ends: tuple[int, ...] = ()
    """One past the last token of each step; ranges are contiguous and never empty."""
    score_positions: tuple[int, ...] = ()
    """Position of each step whose output is its score. Empty for chat text, where a score is a sum over tokens."""
    masked_positions: tuple[int, ...] = ()
    """Release boundary: positions hidden from attention. Position numbers still count them."""
    release_counts: tuple[int, ...] = ()
    """Release boundary: the counts by which the authors divide. Empty when they equal the lengths of `spans`."""
    unscored: str = ""
    """Why the trace cannot be scored; all other fields but `id` are then empty."""

    @property
    def spans(self) -> tuple[tuple[int, int], ...]:
        """Half-open token range of each step, as indices into `ids`."""
        return tuple(pairwise((self.start, *self.ends)))

    @property
    def counts(self) -> tuple[int, ...]:
        """Tokens per step, by which the mean readouts divide."""
        return self.release_counts or tuple(end - begin for begin, end in self.spans)


def encode_chat(
    tokenizer: PreTrainedTokenizerBase,
    trace: Trace,
    template: str | None = None,
    boundary: Boundary = "exact",
    max_tokens: int | None = None,
) -> Encoded:
    r"""Encode the problem as user turn and "Step 1: ...\n\nStep 2: ..." as assistant turn, as implicit PRMs read it.

    Args:
        tokenizer: A fast tokenizer.
        trace: The trace.
        template: None = the tokenizer's own, "plain" = no chat markup, anything else = Jinja source.
        boundary: "exact" assigns the tokens of one tokenisation by `step_ranges`, "release" as the authors' script.
        max_tokens: Longest input of the model; None = no limit.

    Raises:
        UserError: The tokenizer or the template cannot be used for any trace.
    """
    reason = unusable_reason(trace)
    if reason:
        return Encoded(trace.id, unscored=reason)
    encode = _encode_release if boundary == "release" else _encode_exact
    return validate_lengths(encode(tokenizer, trace, template), max_tokens)


def _encode_exact(tokenizer: PreTrainedTokenizerBase, trace: Trace, template: str | None) -> Encoded:
    parts = number_steps(trace.steps)
    response = "\n\n".join(parts)
    text = render(tokenizer, conversation(trace.prompt, response), template)
    begin, stop = _locate(text, response)
    if begin < 0:
        return Encoded(trace.id, unscored="the chat template rewrites the solution")
    ids, offsets = tokenise(tokenizer, text)
    starts = list(accumulate((len(part) + 2 for part in parts[:-1]), initial=begin))
    start, ends = step_ranges(offsets, starts, stop)
    if start == 0:
        return Encoded(trace.id, unscored="no token comes before step 1")
    return Encoded(trace.id, ids, start, ends)


def _encode_release(tokenizer: PreTrainedTokenizerBase, trace: Trace, template: str | None) -> Encoded:
    r"""Encode with the authors' step boundaries: each prefix of the steps is rendered and tokenised by itself.

    Their r_j scores token j+1, and reward_k sums r_j over first <= j <= e_k, where a boundary is the length of the
    stripped prefix (with "\n\n" unless it is empty or whole) minus 2. Hence tokens first+1 .. e_k+1 here, which
    runs into the next step's header. They divide by e_k - first, one less than the number of terms.
    Source: IPVRM process_bench/process_eval.py.
    """
    if template == PLAIN:
        raise UserError("boundary release: the authors' positions need a chat template; drop --template plain")
    parts = number_steps(trace.steps)

    def text(k: int) -> str:
        return render(tokenizer, conversation(trace.prompt, "\n\n".join(parts[:k])), template)

    def boundary(k: int) -> int:
        gap = "\n\n" if 0 < k < len(parts) else ""
        return len(bare_ids(tokenizer, text(k).strip() + gap)) - 2

    ids = bare_ids(tokenizer, text(len(parts)))
    first_boundary, *step_boundaries = (boundary(k) for k in range(len(parts) + 1))
    start, ends = first_boundary + 1, tuple(min(e + 2, len(ids)) for e in step_boundaries)
    lengths = [end - begin for begin, end in pairwise((start, *ends))]
    # With no pad token their script pads with end-of-sequence, and so hides that one too.
    pad = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    masked = tuple(i for i, token in enumerate(ids) if token == pad)
    return Encoded(trace.id, ids, start, ends, masked_positions=masked, release_counts=(lengths[0] - 1, *lengths[1:]))


def encode_tagged(
    tokenizer: PreTrainedTokenizerBase,
    trace: Trace,
    tag: str,
    system: str | None = None,
    template: str | None = None,
    max_tokens: int | None = None,
) -> Encoded:
    """Encode a chat in which a tag token closes every step; the output at the tag is the score (Qwen2.5-Math-PRM).

    The assistant turn is the bare steps, each followed by `tag`. `score_positions[k]` is the k-th tag, which is the
    last token of step k.

    Args:
        tokenizer: A fast tokenizer.
        trace: The trace.
        tag: Text of the tag.
        system: System prompt; None = no system turn.
        template: Chat template, as `encode_chat` takes it.
        max_tokens: Longest input of the model; None = no limit.

    Raises:
        UserError: `tag` is not one token of this tokenizer, or the template cannot be used.
    """
    tag_ids = tokenizer.encode(tag, add_special_tokens=False)
    if len(tag_ids) != 1 or (tag_ids[0] == tokenizer.unk_token_id and tag != tokenizer.unk_token):
        raise UserError(f"tag {tag!r}: not a single token of this tokenizer; use a tag that it knows as one token")
    reason = unusable_reason(trace)
    if reason:
        return Encoded(trace.id, unscored=reason)
    response = "".join(step + tag for step in trace.steps)
    text = render(tokenizer, conversation(trace.prompt, response, system), template)
    begin, stop = _locate(text, response)
    if begin < 0:
        return Encoded(trace.id, unscored="the chat template rewrites the solution")
    ids, offsets = tokenise(tokenizer, text)
    start, (end_token,) = step_ranges(offsets, [begin], stop)
    score_positions = tuple(i for i in range(start, end_token) if ids[i] == tag_ids[0])
    if len(score_positions) != len(trace.steps):
        return Encoded(trace.id, unscored=f"{len(score_positions)} tags for {len(trace.steps)} steps")
    # Measured from the end, since a template may trim the blanks before the first step.
    suffix_lengths = list(accumulate((len(step + tag) for step in reversed(trace.steps[1:])), initial=0))
    if [offsets[i][1] for i in score_positions] != [stop - suffix_length for suffix_length in reversed(suffix_lengths)]:
        return Encoded(trace.id, unscored="a tag is not where its step ends")
    return validate_lengths(
        Encoded(trace.id, ids, start, tuple(i + 1 for i in score_positions), score_positions), max_tokens
    )


def encode_separated(
    tokenizer: PreTrainedTokenizerBase, trace: Trace, separator: str, max_tokens: int | None = None
) -> Encoded:
    """Encode prompt, steps and separators each by itself and concatenate them, without chat markup (as TRL trains).

    `score_positions[k]` is the last token of the k-th separator. Joining the strings first would give other tokens and
    other scores.

    Raises:
        UserError: The separator has no token.
    """
    closing = bare_ids(tokenizer, separator)
    if not closing:
        raise UserError(f"separator {separator!r}: leaves no token in this tokenizer; put another into prm.json")
    reason = unusable_reason(trace)
    if reason:
        return Encoded(trace.id, unscored=reason)
    bos = () if tokenizer.bos_token_id is None else (tokenizer.bos_token_id,)
    opening = bos + bare_ids(tokenizer, trace.prompt)
    steps = [bare_ids(tokenizer, step) for step in trace.steps]
    empty = [k for k, step in enumerate(steps, 1) if not step]
    if empty:
        return Encoded(trace.id, unscored=_no_token_reason(empty[0]))
    ends = tuple(accumulate((len(step) + len(closing) for step in steps), initial=len(opening)))[1:]
    ids = opening + tuple(token for step in steps for token in step + closing)
    return validate_lengths(Encoded(trace.id, ids, len(opening), ends, tuple(end - 1 for end in ends)), max_tokens)


def step_ranges(offsets: Sequence[tuple[int, int]], starts: Sequence[int], stop: int) -> tuple[int, tuple[int, ...]]:
    """Assign tokens to steps: a token belongs to the last step whose text starts before the token's end.

    A token that begins at or after the end of the last step's text belongs to none. Offsets may be empty or go back
    (trimmed blanks, bytes of one character), so a token counts with the furthest offsets so far: step numbers never
    decrease, and ranges stay contiguous.

    Args:
        offsets: Start and end character of each token.
        starts: Character at which each step's text starts.
        stop: Character at which the last step's text ends.

    Returns:
        Index of the first step token, and for each step the index after its last token.
    """
    token_counts = [0] * (len(starts) + 1)  # [0] counts the prompt's tokens
    begin_reached = end_reached = 0
    for begin, end in offsets:
        begin_reached, end_reached = max(begin_reached, begin), max(end_reached, end)
        if begin_reached < stop:
            token_counts[bisect_left(starts, end_reached)] += 1
    start, *ends = accumulate(token_counts)
    return start, tuple(ends)


def render(tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, str]], template: str | None) -> str:
    """Return the text of a conversation without a generation prompt, with the template's special tokens in it.

    Args:
        tokenizer: The tokenizer.
        messages: Turns with `role` and `content`.
        template: None = the tokenizer's own, "plain" = no chat markup, anything else = Jinja source.

    Raises:
        UserError: There is no template, or it fails.
    """
    if template == PLAIN:
        return (tokenizer.bos_token or "") + "\n\n".join(message["content"] for message in messages)
    if template is None and not tokenizer.chat_template:
        raise UserError("the tokenizer has no chat template; pass --template plain or --template FILE")
    try:
        source = str(tokenizer.get_chat_template(template))
    except (TypeError, ValueError) as error:
        raise UserError(f"chat template: {one_line(error)}; pass --template plain or --template FILE") from error
    if "strftime_now" in source:  # shadows the clock; the newline keeps the template's blank stripping
        source = f"{{% macro strftime_now(format) %}}{_DATE}{{% endmacro %}}\n{source}"
    return chat_templates.render(source, messages, {**tokenizer.special_tokens_map, "date_string": _DATE})


def conversation(prompt: str, response: str, system: str | None = None) -> list[dict[str, str]]:
    """Return a prompt and its response as messages for a chat template."""
    opening = [] if system is None else [{"role": "system", "content": system}]
    return [*opening, {"role": "user", "content": prompt}, {"role": "assistant", "content": response}]


def number_steps(steps: Sequence[str]) -> list[str]:
    """Return the steps with headers "Step 1: ", "Step 2: " and so on."""
    return [f"Step {k}: {step}" for k, step in enumerate(steps, 1)]


def _locate(text: str, response: str) -> tuple[int, int]:
    """Return the start and end of the response in the rendered text, or (-1, -1); templates may trim its blanks."""
    for candidate in (response, response.strip()):
        begin = text.rfind(candidate)
        if begin >= 0:
            return begin, begin + len(candidate)
    return -1, -1


def tokenise(
    tokenizer: PreTrainedTokenizerBase, text: str, special: bool = False
) -> tuple[tuple[int, ...], list[tuple[int, int]]]:
    """Return the token ids of a text and their character offsets.

    Args:
        tokenizer: A fast tokenizer.
        text: The text.
        special: Whether the tokenizer adds its special tokens, whose offsets are (0, 0).

    Raises:
        UserError: The tokenizer gives no offsets.
    """
    if not tokenizer.is_fast:
        raise UserError("the tokenizer gives no character offsets (a slow one); use a model that has a tokenizer.json")
    encoding = tokenizer(text, add_special_tokens=special, return_offsets_mapping=True, verbose=False)
    return tuple(encoding["input_ids"]), encoding["offset_mapping"]


def bare_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> tuple[int, ...]:
    """Return the token ids of a text without added special tokens."""
    return tuple(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


def unusable_reason(trace: Trace) -> str:
    """Return why the trace cannot be encoded in any convention; empty when it can."""
    blank = [k for k, step in enumerate(trace.steps, 1) if not step.strip()]
    if blank:
        return f"step {blank[0]} is blank"
    return "" if trace.steps else "no steps"


def _no_token_reason(step: int) -> str:
    return f"step {step} has no token of its own"


def validate_lengths(encoded: Encoded, max_tokens: int | None) -> Encoded:
    """Return the encoding, or one that is unscored when a step has no token or the input exceeds `max_tokens`."""
    if encoded.unscored:
        return encoded
    empty = [k for k, (begin, end) in enumerate(encoded.spans, 1) if end <= begin]
    if empty:
        return Encoded(encoded.id, unscored=_no_token_reason(empty[0]))
    if max_tokens is not None and len(encoded.ids) > max_tokens:
        return Encoded(encoded.id, unscored=f"{len(encoded.ids)} tokens, the model takes {max_tokens}")
    return encoded
