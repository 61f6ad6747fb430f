"""What single families of PRMs are fed: tagged plain text, a turn a step with verdicts, pieces closed by a token.

Where a score is read follows from how the text is put together: a tag or a "+" inside a problem or a step never counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import TYPE_CHECKING

from prmbench.core.records import Trace, UserError
from prmbench.engines.encoding import Encoded, bare_ids, checked, numbered, render, step_ranges, tokenise, unusable

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_STAND_IN = "0verdict0"
"""Rendered in a verdict's place, to see where a template puts it."""


def encode_tagged_text(
    tokenizer: PreTrainedTokenizerBase, trace: Trace, tag: str, max_tokens: int | None = None
) -> Encoded:
    r"""Problem, blank, then "Step i: ... tag\n" for every step, no chat markup (Math-Shepherd).

    `reads[k]` is the k-th tag. Blanks around a step are dropped: one before the tag could make other tokens of it. A
    step that brings its own "Step i:" has it twice, as ProcessBench's steps do under this convention everywhere.
    Raises UserError when the tag is not one token of this tokenizer.
    """
    known = text_token(tokenizer, tag)
    reason = unusable(trace)
    if reason:
        return Encoded(trace.id, unscored=reason)
    lines = [f"{part} {tag}\n" for part in numbered([step.strip() for step in trace.steps])]
    opening = f"{trace.prompt} "
    text = opening + "".join(lines)
    ids, offsets = tokenise(tokenizer, text, special=True)
    stops = list(accumulate(map(len, lines), initial=len(opening)))[1:]
    reads = [_only_token(text, offsets, stop - 1 - len(tag), stop - 1) for stop in stops]
    if any(at is None or ids[at] != known for at in reads):
        return Encoded(trace.id, unscored="a tag is not a token of its own")
    start, _ = step_ranges(offsets, [len(opening)], len(text))
    found = tuple(at for at in reads if at is not None)
    return checked(Encoded(trace.id, ids, start, tuple(at + 1 for at in found), found), max_tokens)


def text_token(tokenizer: PreTrainedTokenizerBase, text: str) -> int:
    """The id of a tag or a verdict behind a blank, as it stands at the end of a step.

    SentencePiece makes the blank part of the token. Raises UserError when it is not one token.
    """
    probe = f"0 {text}"
    ids, offsets = tokenise(tokenizer, probe)
    return _single(tokenizer, ids, _only_token(probe, offsets, 2, len(probe)), text)


def encode_turns(
    tokenizer: PreTrainedTokenizerBase,
    trace: Trace,
    joint: str,
    good: str,
    template: str | None = None,
    max_tokens: int | None = None,
) -> Encoded:
    """One user turn a step, each answered by the verdict `good`; the first turn is problem + `joint` + step (RLHFlow).

    `reads[k]` is the position before the k-th verdict. Every step sees `good` behind all earlier ones, so one pass
    gives what the authors compute turn by turn. Raises UserError as `turn_token` does.
    """
    known = turn_token(tokenizer, good, template)
    reason = unusable(trace)
    if reason:
        return Encoded(trace.id, unscored=reason)
    text, verdicts = _answered(tokenizer, [trace.prompt + joint + trace.steps[0], *trace.steps[1:]], good, template)
    between = zip((0, *(at + len(good) for at in verdicts)), verdicts, strict=False)
    at = [text.rfind(step.strip(), *span) for step, span in zip(trace.steps, between, strict=False)]
    if len(verdicts) != len(trace.steps) or min(at) < 0:
        return Encoded(trace.id, unscored="the chat template rewrites the solution")
    ids, offsets = tokenise(tokenizer, text)
    answers = [_only_token(text, offsets, begin, begin + len(good)) for begin in verdicts]
    if any(answer is None or ids[answer] != known for answer in answers):
        return Encoded(trace.id, unscored="a verdict is not a token of its own")
    start, _ = step_ranges(offsets, at[:1], verdicts[0])
    found = tuple(answer for answer in answers if answer is not None)
    ends, reads = tuple(answer + 1 for answer in found), tuple(answer - 1 for answer in found)
    return checked(Encoded(trace.id, ids, start, ends, reads), max_tokens)


def turn_token(tokenizer: PreTrainedTokenizerBase, verdict: str, template: str | None = None) -> int:
    """The id of a verdict as the assistant's whole turn. Raises UserError when it is not one token there."""
    text, found = _answered(tokenizer, ["0"], verdict, template)
    if not found:
        raise UserError(f"the chat template does not keep the answer {verdict!r} as it is; pass --template FILE")
    ids, offsets = tokenise(tokenizer, text)
    return _single(tokenizer, ids, _only_token(text, offsets, found[0], found[0] + len(verdict)), verdict)


def encode_pieces(
    tokenizer: PreTrainedTokenizerBase, trace: Trace, separator: str, max_tokens: int | None = None
) -> Encoded:
    r"""Beginning of sequence + problem + "\n", then pieces and separators, all tokenised apart (Skywork).

    The solution is cut at every separator, inside steps too; `reads[k]` is the separator that closes step k's last
    piece. Raises UserError when the separator leaves no token.
    """
    closing = bare_ids(tokenizer, separator)[-1:]
    if not closing:
        raise UserError(f"separator {separator!r}: leaves no token in this tokenizer; put another into prm.json")
    reason = unusable(trace)
    if reason:
        return Encoded(trace.id, unscored=reason)
    opening = bare_ids(tokenizer, f"{tokenizer.bos_token or ''}{trace.prompt}\n")
    steps = [
        tuple(token for piece in step.split(separator) for token in bare_ids(tokenizer, piece) + closing)
        for step in trace.steps
    ]
    ends = tuple(accumulate(map(len, steps), initial=len(opening)))[1:]
    ids = opening + tuple(token for step in steps for token in step)
    return checked(Encoded(trace.id, ids, len(opening), ends, tuple(end - 1 for end in ends)), max_tokens)


def _answered(
    tokenizer: PreTrainedTokenizerBase, turns: Sequence[str], verdict: str, template: str | None
) -> tuple[str, list[int]]:
    """A conversation with one answer to all turns, and where those answers begin; nowhere if they are rewritten."""

    def rendered(answer: str) -> str:
        roles = [({"role": "user", "content": turn}, {"role": "assistant", "content": answer}) for turn in turns]
        return render(tokenizer, [message for pair in roles for message in pair], template)

    text, pieces = rendered(verdict), rendered(_STAND_IN).split(_STAND_IN)
    if text != verdict.join(pieces) or len(pieces) != len(turns) + 1:
        return text, []
    return text, list(accumulate((len(verdict) + len(piece) for piece in pieces[1:-1]), initial=len(pieces[0])))


def _only_token(text: str, offsets: Sequence[tuple[int, int]], begin: int, end: int) -> int | None:
    """The token that covers text[begin:end] and at most the blank before it; None where there is no such token."""
    touching = [i for i, (first, last) in enumerate(offsets) if first < end and last > begin]
    if len(touching) != 1:
        return None
    first, last = offsets[touching[0]]
    return touching[0] if last == end and text[first:begin] in ("", " ") else None


def _single(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], at: int | None, text: str) -> int:
    if at is None or (ids[at] == tokenizer.unk_token_id and text != tokenizer.unk_token):
        raise UserError(f"tag {text!r}: not a single token of this tokenizer; use a tag that it knows as one token")
    return ids[at]
