"""Input conventions of single PRM families: tagged plain text, one turn per step with verdicts, separated pieces.

Score positions follow from how the text is assembled, so a tag or a "+" inside a problem or a step never counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import TYPE_CHECKING

from prmbench.core.records import Trace, UserError
from prmbench.engines.encoding import (
    Encoded,
    bare_ids,
    number_steps,
    render,
    step_ranges,
    tokenise,
    unusable_reason,
    validate_lengths,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_STAND_IN = "0verdict0"
"""Rendered in a verdict's place, to find where a template puts it."""


def encode_tagged_text(
    tokenizer: PreTrainedTokenizerBase, trace: Trace, tag: str, max_tokens: int | None = None
) -> Encoded:
    r"""Encode the problem, a blank, then "Step i: ... tag\n" for every step, without chat markup (Math-Shepherd).

    `score_positions[k]` is the k-th tag. Blanks around a step are dropped, since one before the tag could change its
    token. A step that already begins with "Step i:" has it twice, as ProcessBench's steps always do in this format.

    Raises:
        UserError: The tag is not one token of this tokenizer.
    """
    tag_id = text_token(tokenizer, tag)
    reason = unusable_reason(trace)
    if reason:
        return Encoded(trace.id, unscored=reason)
    lines = [f"{part} {tag}\n" for part in number_steps([step.strip() for step in trace.steps])]
    opening = f"{trace.prompt} "
    text = opening + "".join(lines)
    ids, offsets = tokenise(tokenizer, text, special=True)
    stops = list(accumulate(map(len, lines), initial=len(opening)))[1:]
    tag_positions = [_only_token(text, offsets, stop - 1 - len(tag), stop - 1) for stop in stops]
    if any(position is None or ids[position] != tag_id for position in tag_positions):
        return Encoded(trace.id, unscored="a tag is not a token of its own")
    start, _ = step_ranges(offsets, [len(opening)], len(text))
    score_positions = tuple(position for position in tag_positions if position is not None)
    return validate_lengths(
        Encoded(trace.id, ids, start, tuple(position + 1 for position in score_positions), score_positions), max_tokens
    )


def text_token(tokenizer: PreTrainedTokenizerBase, text: str) -> int:
    """Return the token id of a tag or a verdict after a blank, as at the end of a step.

    SentencePiece makes the blank part of the token.

    Raises:
        UserError: It is not one token.
    """
    text_with_blank = f"0 {text}"
    ids, offsets = tokenise(tokenizer, text_with_blank)
    return _check_single(tokenizer, ids, _only_token(text_with_blank, offsets, 2, len(text_with_blank)), text)


def encode_turns(
    tokenizer: PreTrainedTokenizerBase,
    trace: Trace,
    joint: str,
    good: str,
    template: str | None = None,
    max_tokens: int | None = None,
) -> Encoded:
    """Encode one user turn per step, each answered by the verdict `good` (RLHFlow).

    The first turn is problem + `joint` + step 1. `score_positions[k]` is the position before the k-th verdict. Every
    step sees `good` after all earlier ones, so one pass gives what the authors compute turn by turn.

    Raises:
        UserError: `good` is not one token as an assistant's turn.
    """
    verdict_id = turn_token(tokenizer, good, template)
    reason = unusable_reason(trace)
    if reason:
        return Encoded(trace.id, unscored=reason)
    text, verdict_starts = _render_turns(
        tokenizer, [trace.prompt + joint + trace.steps[0], *trace.steps[1:]], good, template
    )
    step_spans = zip((0, *(begin + len(good) for begin in verdict_starts)), verdict_starts, strict=False)
    step_starts = [text.rfind(step.strip(), *span) for step, span in zip(trace.steps, step_spans, strict=False)]
    if len(verdict_starts) != len(trace.steps) or min(step_starts) < 0:
        return Encoded(trace.id, unscored="the chat template rewrites the solution")
    ids, offsets = tokenise(tokenizer, text)
    verdict_positions = [_only_token(text, offsets, begin, begin + len(good)) for begin in verdict_starts]
    if any(position is None or ids[position] != verdict_id for position in verdict_positions):
        return Encoded(trace.id, unscored="a verdict is not a token of its own")
    start, _ = step_ranges(offsets, step_starts[:1], verdict_starts[0])
    positions = tuple(position for position in verdict_positions if position is not None)
    ends, score_positions = tuple(position + 1 for position in positions), tuple(position - 1 for position in positions)
    return validate_lengths(Encoded(trace.id, ids, start, ends, score_positions), max_tokens)


def turn_token(tokenizer: PreTrainedTokenizerBase, verdict: str, template: str | None = None) -> int:
    """Return the token id of a verdict as the assistant's whole turn. Raises UserError when it is not one token."""
    text, verdict_starts = _render_turns(tokenizer, ["0"], verdict, template)
    if not verdict_starts:
        raise UserError(f"the chat template does not keep the answer {verdict!r} as it is; pass --template FILE")
    ids, offsets = tokenise(tokenizer, text)
    return _check_single(
        tokenizer, ids, _only_token(text, offsets, verdict_starts[0], verdict_starts[0] + len(verdict)), verdict
    )


def encode_pieces(
    tokenizer: PreTrainedTokenizerBase, trace: Trace, separator: str, max_tokens: int | None = None
) -> Encoded:
    r"""Encode beginning of sequence + problem + "\n", then pieces and separators, each tokenised by itself (Skywork).

    The solution is cut at every separator, also inside steps. `score_positions[k]` is the separator that closes the
    last piece of step k.

    Raises:
        UserError: The separator has no token.
    """
    closing = bare_ids(tokenizer, separator)[-1:]
    if not closing:
        raise UserError(f"separator {separator!r}: leaves no token in this tokenizer; put another into prm.json")
    reason = unusable_reason(trace)
    if reason:
        return Encoded(trace.id, unscored=reason)
    opening = bare_ids(tokenizer, f"{tokenizer.bos_token or ''}{trace.prompt}\n")
    steps = [
        tuple(token for piece in step.split(separator) for token in bare_ids(tokenizer, piece) + closing)
        for step in trace.steps
    ]
    ends = tuple(accumulate(map(len, steps), initial=len(opening)))[1:]
    ids = opening + tuple(token for step in steps for token in step)
    return validate_lengths(Encoded(trace.id, ids, len(opening), ends, tuple(end - 1 for end in ends)), max_tokens)


def _render_turns(
    tokenizer: PreTrainedTokenizerBase, turns: Sequence[str], verdict: str, template: str | None
) -> tuple[str, list[int]]:
    """Return a conversation that answers all turns by `verdict`, and where its answers begin; [] if rewritten."""

    def render_with(answer: str) -> str:
        roles = [({"role": "user", "content": turn}, {"role": "assistant", "content": answer}) for turn in turns]
        return render(tokenizer, [message for pair in roles for message in pair], template)

    text, parts = render_with(verdict), render_with(_STAND_IN).split(_STAND_IN)
    if text != verdict.join(parts) or len(parts) != len(turns) + 1:
        return text, []
    return text, list(accumulate((len(verdict) + len(piece) for piece in parts[1:-1]), initial=len(parts[0])))


def _only_token(text: str, offsets: Sequence[tuple[int, int]], begin: int, end: int) -> int | None:
    """Return the index of the token that covers text[begin:end] and at most the blank before it; None without one."""
    overlapping = [i for i, (first, last) in enumerate(offsets) if first < end and last > begin]
    if len(overlapping) != 1:
        return None
    first, last = offsets[overlapping[0]]
    return overlapping[0] if last == end and text[first:begin] in ("", " ") else None


def _check_single(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], position: int | None, text: str) -> int:
    if position is None or (ids[position] == tokenizer.unk_token_id and text != tokenizer.unk_token):
        raise UserError(f"tag {text!r}: not a single token of this tokenizer; use a tag that it knows as one token")
    return ids[position]
