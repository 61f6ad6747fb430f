"""From a trace to token ids and one token range per step: chat text, tagged text, separated pieces.

What single families want besides: family_encodings.py. No model is run here, and no text is ever truncated.
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
"""The template name that stands for problem, blank line, solution."""
_DATE = "26 Jul 2024"
"""What templates that print the date are given: the constant that Llama 3.2's own template falls back on.
With the real date, the same model would score the same trace differently from one day to the next."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """One trace as token ids and one token range per step; `spans` are what a score sums over."""

    id: str
    ids: tuple[int, ...] = ()
    start: int = 0
    """Index of the first token that belongs to a step. At least 1 in chat text: token 0 has no log-probability."""
    ends: tuple[int, ...] = ()
    """One past the last token of each step; ranges are contiguous and never empty."""
    reads: tuple[int, ...] = ()
    """The position whose output is the step's score. Empty for chat text, where scores belong to the step's tokens."""
    masked: tuple[int, ...] = ()
    """Release boundary: positions that attention must not see. Position numbers still count them."""
    tokens: tuple[int, ...] = ()
    """Release boundary: the counts that the authors divide by. Empty where they are the plain lengths."""
    unscored: str = ""
    """Why there is nothing to score; all other fields but `id` are then empty."""

    @property
    def spans(self) -> tuple[tuple[int, int], ...]:
        """Half-open token range of each step, as indices into `ids`."""
        return tuple(pairwise((self.start, *self.ends)))

    @property
    def counts(self) -> tuple[int, ...]:
        """Tokens per step as the mean readouts use them."""
        return self.tokens or tuple(end - begin for begin, end in self.spans)


def encode_chat(
    tokenizer: PreTrainedTokenizerBase,
    trace: Trace,
    template: str | None = None,
    boundary: Boundary = "exact",
    max_tokens: int | None = None,
) -> Encoded:
    r"""User = the problem, assistant = "Step 1: ...\n\nStep 2: ..." (the input of implicit reward models).

    `template`: None = the tokenizer's own, "plain" = no chat markup, anything else = Jinja source.
    `boundary`: "exact" follows the owner rule on one tokenisation, "release" the authors' script.
    Raises UserError when the tokenizer or the template cannot be used for any trace.
    """
    reason = unusable(trace)
    if reason:
        return Encoded(trace.id, unscored=reason)
    encode = _release if boundary == "release" else _exact
    return checked(encode(tokenizer, trace, template), max_tokens)


def _exact(tokenizer: PreTrainedTokenizerBase, trace: Trace, template: str | None) -> Encoded:
    parts = numbered(trace.steps)
    response = "\n\n".join(parts)
    text = render(tokenizer, conversation(trace.prompt, response), template)
    at, stop = _locate(text, response)
    if at < 0:
        return Encoded(trace.id, unscored="the chat template rewrites the solution")
    ids, offsets = tokenise(tokenizer, text)
    starts = list(accumulate((len(part) + 2 for part in parts[:-1]), initial=at))
    start, ends = step_ranges(offsets, starts, stop)
    if start == 0:
        return Encoded(trace.id, unscored="no token comes before step 1")
    return Encoded(trace.id, ids, start, ends)


def _release(tokenizer: PreTrainedTokenizerBase, trace: Trace, template: str | None) -> Encoded:
    r"""The authors' positions: each prefix of the steps is rendered and tokenised by itself.

    Their r_j scores token j+1, and reward_k sums r_j over first <= j <= e_k, where a boundary is the length of the
    stripped prefix (with "\n\n" unless it is empty or whole) minus 2. Hence tokens first+1 .. e_k+1 here, which
    runs into the next step's header. They divide by e_k - first, one less than the number of terms.
    Source: IPVRM process_bench/process_eval.py.
    """
    if template == PLAIN:
        raise UserError("boundary release: the authors' positions need a chat template; drop --template plain")
    parts = numbered(trace.steps)

    def text(k: int) -> str:
        return render(tokenizer, conversation(trace.prompt, "\n\n".join(parts[:k])), template)

    def boundary(k: int) -> int:
        gap = "\n\n" if 0 < k < len(parts) else ""
        return len(bare_ids(tokenizer, text(k).strip() + gap)) - 2

    ids = bare_ids(tokenizer, text(len(parts)))
    first, *last = (boundary(k) for k in range(len(parts) + 1))
    start, ends = first + 1, tuple(min(e + 2, len(ids)) for e in last)
    lengths = [end - begin for begin, end in pairwise((start, *ends))]
    # With no pad token their script pads with end-of-sequence, and so hides that one too.
    pad = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    masked = tuple(i for i, token in enumerate(ids) if token == pad)
    return Encoded(trace.id, ids, start, ends, masked=masked, tokens=(lengths[0] - 1, *lengths[1:]))


def encode_tagged(
    tokenizer: PreTrainedTokenizerBase,
    trace: Trace,
    tag: str,
    system: str | None = None,
    template: str | None = None,
    max_tokens: int | None = None,
) -> Encoded:
    """A tag token closes every step, and the model's output at the tag is the score (Qwen2.5-Math-PRM).

    Assistant = the bare steps, each followed by `tag`; `reads[k]` is the k-th tag, the last token of step k.
    Raises UserError when `tag` is not one token of this tokenizer.
    """
    known = tokenizer.encode(tag, add_special_tokens=False)
    if len(known) != 1 or (known[0] == tokenizer.unk_token_id and tag != tokenizer.unk_token):
        raise UserError(f"tag {tag!r}: not a single token of this tokenizer; use a tag that it knows as one token")
    reason = unusable(trace)
    if reason:
        return Encoded(trace.id, unscored=reason)
    response = "".join(step + tag for step in trace.steps)
    text = render(tokenizer, conversation(trace.prompt, response, system), template)
    at, stop = _locate(text, response)
    if at < 0:
        return Encoded(trace.id, unscored="the chat template rewrites the solution")
    ids, offsets = tokenise(tokenizer, text)
    start, (stop_token,) = step_ranges(offsets, [at], stop)
    reads = tuple(i for i in range(start, stop_token) if ids[i] == known[0])
    if len(reads) != len(trace.steps):
        return Encoded(trace.id, unscored=f"{len(reads)} tags for {len(trace.steps)} steps")
    # Counted from the end, since a template may trim the blanks before the first step.
    after = list(accumulate((len(step + tag) for step in reversed(trace.steps[1:])), initial=0))
    if [offsets[i][1] for i in reads] != [stop - rest for rest in reversed(after)]:
        return Encoded(trace.id, unscored="a tag is not where its step ends")
    return checked(Encoded(trace.id, ids, start, tuple(i + 1 for i in reads), reads), max_tokens)


def encode_separated(
    tokenizer: PreTrainedTokenizerBase, trace: Trace, separator: str, max_tokens: int | None = None
) -> Encoded:
    """Prompt, steps and separators tokenised apart and put end to end (TRL's stepwise trainer); no chat markup.

    `reads[k]` is the last token of the k-th separator. Joining the strings first would give other tokens, and other
    scores. Raises UserError when the separator leaves no token.
    """
    closing = bare_ids(tokenizer, separator)
    if not closing:
        raise UserError(f"separator {separator!r}: leaves no token in this tokenizer; put another into prm.json")
    reason = unusable(trace)
    if reason:
        return Encoded(trace.id, unscored=reason)
    bos = () if tokenizer.bos_token_id is None else (tokenizer.bos_token_id,)
    opening = bos + bare_ids(tokenizer, trace.prompt)
    steps = [bare_ids(tokenizer, step) for step in trace.steps]
    empty = [k for k, step in enumerate(steps, 1) if not step]
    if empty:
        return Encoded(trace.id, unscored=_no_token(empty[0]))
    ends = tuple(accumulate((len(step) + len(closing) for step in steps), initial=len(opening)))[1:]
    ids = opening + tuple(token for step in steps for token in step + closing)
    return checked(Encoded(trace.id, ids, len(opening), ends, tuple(end - 1 for end in ends)), max_tokens)


def step_ranges(offsets: Sequence[tuple[int, int]], starts: Sequence[int], stop: int) -> tuple[int, tuple[int, ...]]:
    """First step token, and one past the last token of each step, by the owner rule.

    The owner of a token is the last step whose text starts before the token's end; a token that begins at or after
    `stop`, the end of the last step's text, has none. `starts` and `stop` are character positions.
    Offsets may be empty or step back (trimmed blanks, bytes of one character), so what counts is how far the text has
    been read by then: owners never decrease, and ranges stay contiguous.
    """
    owned = [0] * (len(starts) + 1)  # [0] counts the prompt's tokens
    begun = read = 0
    for begin, end in offsets:
        begun, read = max(begun, begin), max(read, end)
        if begun < stop:
            owned[bisect_left(starts, read)] += 1
    start, *ends = accumulate(owned)
    return start, tuple(ends)


def render(tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, str]], template: str | None) -> str:
    """The text of a conversation, without a generation prompt; it carries its own special tokens.

    Raises UserError when there is no template, or when the template fails.
    """
    if template == PLAIN:
        return (tokenizer.bos_token or "") + "\n\n".join(message["content"] for message in messages)
    if template is None and not tokenizer.chat_template:
        raise UserError("the tokenizer has no chat template; pass --template plain or --template FILE")
    try:
        source = str(tokenizer.get_chat_template(template))
    except (TypeError, ValueError) as error:
        raise UserError(f"chat template: {one_line(error)}; pass --template plain or --template FILE") from error
    if "strftime_now" in source:  # shadows the clock; the newline keeps line-based blank stripping as it was
        source = f"{{% macro strftime_now(format) %}}{_DATE}{{% endmacro %}}\n{source}"
    return chat_templates.render(source, messages, {**tokenizer.special_tokens_map, "date_string": _DATE})


def conversation(prompt: str, response: str, system: str | None = None) -> list[dict[str, str]]:
    """Messages as chat templates take them."""
    opening = [] if system is None else [{"role": "system", "content": system}]
    return [*opening, {"role": "user", "content": prompt}, {"role": "assistant", "content": response}]


def numbered(steps: Sequence[str]) -> list[str]:
    """The steps with their headers "Step 1: ", "Step 2: " ..."""
    return [f"Step {k}: {step}" for k, step in enumerate(steps, 1)]


def _locate(text: str, response: str) -> tuple[int, int]:
    """Where the response begins and ends in the rendered text, or (-1, -1). Templates may trim its blanks."""
    for candidate in (response, response.strip()):
        at = text.rfind(candidate)
        if at >= 0:
            return at, at + len(candidate)
    return -1, -1


def tokenise(
    tokenizer: PreTrainedTokenizerBase, text: str, special: bool = False
) -> tuple[tuple[int, ...], list[tuple[int, int]]]:
    """Ids and character offsets of a text; `special`: with the tokens that the tokenizer itself adds, offsets (0, 0).

    Raises UserError when the tokenizer gives no offsets.
    """
    if not tokenizer.is_fast:
        raise UserError("the tokenizer gives no character offsets (a slow one); use a model that has a tokenizer.json")
    out = tokenizer(text, add_special_tokens=special, return_offsets_mapping=True, verbose=False)
    return tuple(out["input_ids"]), out["offset_mapping"]


def bare_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> tuple[int, ...]:
    """Token ids of a text, no special token added."""
    return tuple(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


def unusable(trace: Trace) -> str:
    """Why no convention can encode the trace; empty when one can."""
    blank = [k for k, step in enumerate(trace.steps, 1) if not step.strip()]
    if blank:
        return f"step {blank[0]} is blank"
    return "" if trace.steps else "no steps"


def _no_token(step: int) -> str:
    return f"step {step} has no token of its own"


def checked(encoded: Encoded, max_tokens: int | None) -> Encoded:
    """The same, or the reason why it cannot be scored: a step without a token, or more tokens than the model takes."""
    if encoded.unscored:
        return encoded
    empty = [k for k, (begin, end) in enumerate(encoded.spans, 1) if end <= begin]
    if empty:
        return Encoded(encoded.id, unscored=_no_token(empty[0]))
    if max_tokens is not None and len(encoded.ids) > max_tokens:
        return Encoded(encoded.id, unscored=f"{len(encoded.ids)} tokens, the model takes {max_tokens}")
    return encoded
