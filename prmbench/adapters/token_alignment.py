"""Finds the steps of a completion, and the token of the policy at which each ends, by character spans.

A reward model and the policy may have different tokenizers: what they share is the text.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Callable, Sequence
from functools import cache
from typing import TYPE_CHECKING, NamedTuple

from tokenizers.decoders import DecodeStream

from prmbench.core.reading import normalise_line_ends
from prmbench.core.records import UserError
from prmbench.data.rollouts import split_completion
from prmbench.data.solutions import SPLITTERS

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_UNDECODED = "\N{REPLACEMENT CHARACTER}"
"""What a decoder shows for bytes that are no character, or not one yet."""
_MOST_BYTES = 4
"""Bytes of the longest character in UTF-8."""


class Step(NamedTuple):
    """A step as the reward model reads it."""

    text: str
    end: int
    """One past its last character, in the text that was split."""


def find_steps(text: str, split: str) -> list[Step]:
    """Return the steps of a text, as `split_completion` gives them, each with the place where it ends.

    Args:
        text: A completion.
        split: Name of a splitter.
    """
    line_breaks = [match.start() for match in re.finditer("\r\n", text)]
    normalised = normalise_line_ends(text)
    steps, position = [], 0
    for piece in SPLITTERS[split](normalised):
        if not piece.strip():
            continue
        # Only blanks lie between two pieces, so that the first occurrence is the piece itself.
        position = normalised.index(piece, position) + len(piece)
        for step in split_completion(piece, split):  # none where the piece is only a heading
            end = position - len(piece) + len(piece.rstrip())
            steps.append(Step(step, _original_position(end, line_breaks)))
    return steps


def _original_position(position: int, line_breaks: Sequence[int]) -> int:
    """Return the position in the text of a position after CR LF became LF; `line_breaks`: where each CR LF begins."""
    for start in line_breaks:
        if start >= position:
            break
        position += 1
    return position


def content_length(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> int:
    """Return the number of a completion's tokens up to its first end of sequence, and without padding at its end."""
    if tokenizer.eos_token_id in ids:
        return list(ids).index(tokenizer.eos_token_id) + 1
    length = len(ids)
    while length and ids[length - 1] == tokenizer.pad_token_id:
        length -= 1
    return length


def decode(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], special: bool = False) -> str:
    """Return the text of tokens as they are: no blank is cleaned up.

    Args:
        tokenizer: The policy's tokenizer.
        ids: Token ids.
        special: Whether special tokens are shown.

    Raises:
        UserError: An id is negative, as those that a trainer masks are.
    """
    if ids and min(ids) < 0:
        raise UserError(f"token id {min(ids)} is no token; give the ids as sampled, not the labels of a loss")
    return str(tokenizer.decode(list(ids), skip_special_tokens=not special, clean_up_tokenization_spaces=False))


def token_ends(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], text: str, ends: Sequence[int]) -> list[int]:
    """Return the index of the token with which each of some character ranges of the text is complete.

    A token that is only a part of a character completes nothing; the last token completes everything.

    Args:
        tokenizer: The policy's tokenizer, fast or slow.
        ids: The completion's tokens, at least one where there are ends.
        text: What `decode` makes of them.
        ends: Ends of the ranges, which begin at 0: at least 1, rising.
    """
    reach = _streamed_reach(tokenizer, ids, text) or _searched_reach(tokenizer, ids, text)
    counts = range(len(ids) + 1)
    return [bisect_left(counts, end, key=reach) - 1 for end in ends]


Reach = Callable[[int], int]
"""Number of tokens -> number of characters of the text that they complete; it never falls."""


def _streamed_reach(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], text: str) -> Reach | None:
    """Decode token by token, where the decoder is one for which this cannot fail; None for others."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or type(backend.decoder).__name__ != "ByteLevel":
        return None
    stream = DecodeStream(skip_special_tokens=True)
    reached, streamed = [0], ""
    for token in ids:
        streamed += stream.step(backend, token) or ""
        reached.append(len(streamed))
    reached[-1] = len(text)
    return reached.__getitem__ if text.startswith(streamed) else None


def _searched_reach(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], text: str) -> Reach:
    """Decode the prefixes that a search asks for: some decoders give a character's bytes one by one."""

    @cache
    def common(count: int) -> int:
        return _common_length(decode(tokenizer, ids[:count]).rstrip(_UNDECODED), text)

    def reach(count: int) -> int:
        if count == len(ids):
            return len(text)
        # Between two whole characters, such a decoder shows also those before as undecoded.
        return max(common(earlier) for earlier in range(max(count - _MOST_BYTES + 1, 0), count + 1))

    return reach


def _common_length(prefix: str, text: str) -> int:
    """Return the number of characters at their beginning that two texts share."""
    if text.startswith(prefix):
        return len(prefix)
    return next((i for i, (one, other) in enumerate(zip(prefix, text, strict=False)) if one != other), len(text))
