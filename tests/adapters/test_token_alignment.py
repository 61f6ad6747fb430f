"""Steps and the tokens that end them: found in the decoded text, against a slow search over all prefixes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from token_kinds import KINDS, byte_bpe, sentencepiece_bpe

from prmbench.adapters.token_alignment import content_length, decode, find_steps, token_ends
from prmbench.core.records import UserError
from prmbench.data.rollouts import split_completion

UNDECODED = "\N{REPLACEMENT CHARACTER}"
PIECES = [
    *("Step 1: add.", "So x = 2", "∠ABC = 90°", "答案是", " 😀", "é", "  ", "\n", "\n\n", "\r\n\r\n", "\n \n", "\r"),
    *("Step 2:", "\nStep 3: it is", "4.", "\n5. five", "(", "a", "\N{NO-BREAK SPACE}", "Let me", UNDECODED),
]
texts = st.lists(st.sampled_from(PIECES), max_size=14).map("".join)


def slow_ends(tokenizer: Any, ids: list[int], text: str, ends: list[int]) -> list[int]:
    """For each end the first prefix of the tokens whose text, as far as it is whole, reaches it; all tokens else."""

    def first(end: int) -> int:
        for count in range(len(ids)):
            whole = decode(tokenizer, ids[:count]).rstrip(UNDECODED)
            if whole[:end] == text[:end]:
                return count - 1
        return len(ids) - 1

    return [first(end) for end in ends]


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=25, deadline=None, derandomize=True)
@given(text=texts, split=st.sampled_from(["paragraph", "line", "numbered"]), cut=st.integers(0, 3))
def test_step_ends_equal_a_search_over_all_prefixes(kind: str, text: str, split: str, cut: int) -> None:
    tokenizer = KINDS[kind]()
    ids = tokenizer.encode(text, add_special_tokens=False)
    ids = ids[: len(ids) - cut]  # cut by length, perhaps inside a character
    decoded = decode(tokenizer, ids)
    ends = [step.end for step in find_steps(decoded, split)]
    if ids:
        assert token_ends(tokenizer, ids, decoded, ends) == slow_ends(tokenizer, ids, decoded, ends)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=25, deadline=None, derandomize=True)
@given(data=st.data())
def test_any_sequence_of_tokens_is_aligned(kind: str, data: st.DataObject) -> None:
    """Tokens that no tokenizer would make of their text, with special ones and broken characters among them."""
    tokenizer = KINDS[kind]()
    ids = data.draw(st.lists(st.integers(0, len(tokenizer) - 1), min_size=1, max_size=25))
    text = decode(tokenizer, ids)
    ends = [step.end for step in find_steps(text, "paragraph")]
    assert token_ends(tokenizer, ids, text, ends) == slow_ends(tokenizer, ids, text, ends)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(text=texts, split=st.sampled_from(["paragraph", "line", "numbered"]))
def test_steps_are_those_of_the_library_and_end_where_they_end(text: str, split: str) -> None:
    steps = find_steps(text, split)
    assert tuple(step.text for step in steps) == split_completion(text, split)
    for step in steps:
        lines = text[: step.end].replace("\r\n", "\n").replace("\r", "\n")
        assert lines.endswith(step.text)
    assert [step.end for step in steps] == sorted({step.end for step in steps})


@pytest.mark.parametrize("tokenizer", [byte_bpe, sentencepiece_bpe])
def test_a_step_ends_in_the_token_that_holds_its_last_character(tokenizer: Callable[[], Any]) -> None:
    t = tokenizer()
    ids = [token for part in ("We add", ".\n\n", "It is 9", "°", ".") for token in t.encode(part)]
    text = decode(t, ids)
    first, second = token_ends(t, ids, text, [step.end for step in find_steps(text, "paragraph")])
    assert decode(t, ids[: first + 1]).strip().endswith(".")
    assert not decode(t, ids[:first]).strip().endswith(".")
    assert second == len(ids) - 1


@pytest.mark.parametrize("tokenizer", [byte_bpe, sentencepiece_bpe])
@pytest.mark.parametrize("text", ["答案是四十二。\n\n是的答案是四十二。", "∑∫√\n\n😀😀😀😀\n\n≤≥"])
def test_long_runs_of_single_bytes_are_searched_too(tokenizer: Callable[[], Any], text: str) -> None:
    """Byte by byte, a decoder shows nothing of such a run between two characters, and all of it at the next."""
    t = tokenizer()
    ids = t.encode(text, add_special_tokens=False)
    ends = list(range(1, len(text) + 1))
    assert token_ends(t, ids, text, ends) == slow_ends(t, ids, text, ends)


def test_a_tokenizer_without_a_fast_backend_is_searched() -> None:
    class Slow:
        """Only `decode`, as slow tokenizers have."""

        def decode(self, ids: list[int], **_: Any) -> str:
            return bytes(ids).decode(errors="replace")

    ids = list("é.\n\nüü ok".encode())
    assert token_ends(Slow(), ids, decode(Slow(), ids), [2, 9]) == [2, 11]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("ids", "length"),
    [
        ("ab", 2),
        ("abE", 3),
        ("abEcdP", 3),  # what a trainer left behind the end
        ("aEbE", 2),
        ("abPP", 2),
        ("aPbP", 3),  # a pad that was sampled is no end
        ("E", 1),
        ("PP", 0),
        ("", 0),
    ],
)
def test_content_ends_with_the_first_end_of_sequence_or_before_padding(ids: str, length: int) -> None:
    t = byte_bpe()
    numbers = {"a": 20, "b": 21, "c": 22, "d": 23, "E": t.eos_token_id, "P": t.pad_token_id}
    assert content_length(t, [numbers[i] for i in ids]) == length


def test_a_masked_label_is_refused() -> None:
    with pytest.raises(UserError, match="-100 is no token"):
        decode(byte_bpe(), [20, -100])
