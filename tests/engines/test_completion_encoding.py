"""Completions as token ids: by hand and as properties, on every kind of tokenizer; steps as evaluation encodes them."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from step_texts import PIECES, STEPS
from token_kinds import KINDS, TEMPLATE, byte_bpe, smollm2
from transformers import ByT5Tokenizer

from prmbench.core.records import Trace, UserError
from prmbench.data.rollouts import read
from prmbench.engines.completion_encoding import (
    EncodedCompletion,
    PromptCompletion,
    encode_completion,
    encode_completions,
    encode_steps,
    render_steps,
)
from prmbench.engines.encoding import PLAIN, encode_chat, encode_separated

OPENING = ["<|user|>", "Ċ", "Q", "<|end|>", "Ċ", "<|assistant|>", "Ċ"]
WORDS = ["I", "t", "Ġis", "Ġ", "1", "."]
TEXTS = st.one_of(st.lists(PIECES, max_size=8).map("".join), st.text(max_size=12)).filter(str.strip)
CUT = TEMPLATE.replace("<|end|>", "\n")
"""A template that marks no end of turn."""
# How Qwen3's template treats the last assistant turn: thoughts are taken out and written again, empty where none are.
THINKING = (
    "{% for m in messages %}<|{{ m['role'] }}|>\n{% if m['role'] == 'assistant' %}"
    "{% set thought, text = '', m['content'] %}{% if '</think>' in text %}"
    "{% set thought = text.split('</think>')[0].split('<think>')[-1].strip('\n') %}"
    "{% set text = text.split('</think>')[-1].lstrip('\n') %}{% endif %}"
    "<think>\n{{ thought }}\n</think>\n\n{{ text.lstrip('\n') }}{% else %}{{ m['content'] }}{% endif %}<|end|>\n"
    "{% endfor %}"
)


def names(result: EncodedCompletion) -> tuple[list[str], list[str]]:
    """Tokens before the response, and the response's."""
    words = byte_bpe().convert_ids_to_tokens(list(result.ids))
    assert result.stop == len(words)
    return words[: result.start], words[result.start :]


def decoded(result: EncodedCompletion) -> str:
    return byte_bpe().decode(result.ids[result.start : result.stop])


def test_by_hand() -> None:
    assert names(encode_completion(byte_bpe(), "Q", "It is 1.")) == (OPENING, [*WORDS, "<|end|>"])


def test_a_cut_completion_has_no_end_of_turn() -> None:
    assert names(encode_completion(byte_bpe(), "Q", "It is 1.", finished=False)) == (OPENING, WORDS)


@pytest.mark.parametrize("template", [PLAIN, CUT])
def test_where_the_template_marks_no_end_the_tokenizers_is_put(template: str) -> None:
    _, response = names(encode_completion(byte_bpe(), "Q", "It is 1.", template))
    assert response == [*WORDS, "<|end|>"]
    _, response = names(encode_completion(byte_bpe(), "Q", "It is 1.", template, finished=False))
    assert response == WORDS


def test_a_marker_that_is_no_special_token_does_not_merge_with_the_completion() -> None:
    before, response = names(encode_completion(byte_bpe(), "Q", "It is 1", CUT.replace("}}\n", "}}.\n")))
    assert response == [*WORDS[:-1], "<|end|>"]
    assert before[-1] == "Ċ"


def test_without_any_end_of_sequence() -> None:
    endless = copy.deepcopy(byte_bpe())
    endless.eos_token = None
    assert names(encode_completion(endless, "Q", "It is 1.", CUT))[1] == WORDS


def test_blanks_before_the_end_marker_are_the_models_to_write() -> None:
    spaced = TEMPLATE.replace("<|end|>", " <|end|><pad>")
    assert names(encode_completion(byte_bpe(), "Q", "It is 1.", spaced))[1] == [*WORDS, "Ġ", "<|end|>"]


def test_plain_text() -> None:
    before, response = names(encode_completion(byte_bpe(), "Q", "It is 1.", PLAIN))
    assert before == ["<s>", "Q", "ĊĊ"]
    assert response == [*WORDS, "<|end|>"]


@pytest.mark.parametrize("completion", ["end", "|", "<|end|>", "nd|>\n", "Q", "assistant", ">"])
def test_a_completion_that_the_markup_contains(completion: str) -> None:
    result = encode_completion(byte_bpe(), "Q", completion, finished=False)
    assert result.ids[: result.start] == encode_completion(byte_bpe(), "Q", "x").ids[: len(OPENING)]
    assert decoded(result) == completion


@pytest.mark.parametrize("kind", KINDS)
@given(prompt=st.one_of(st.just("Find x."), st.text(max_size=12)), completion=TEXTS, finished=st.booleans())
@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_the_response_is_what_the_completion_owns(kind: str, prompt: str, completion: str, finished: bool) -> None:
    tokenizer = KINDS[kind]()
    mark = tokenizer.eos_token
    result = encode_completion(tokenizer, prompt, completion, TEMPLATE.replace("<|end|>", mark), finished)
    opening = f"<|user|>\n{prompt}{mark}\n<|assistant|>\n"
    again = tokenizer(opening + completion + f"{mark}\n", add_special_tokens=False, return_offsets_mapping=True)
    if result.unscored:
        assert result == EncodedCompletion(unscored="the completion has no token of its own")
        return
    assert list(result.ids) == again["input_ids"][: len(result.ids)]
    assert 1 <= result.start < result.stop == len(result.ids)
    end = len(opening + completion)
    for position, (begin, stop) in enumerate(again["offset_mapping"]):
        if begin == stop:
            continue
        if stop <= len(opening):
            assert position < result.start
        elif begin < end:
            assert result.start <= position < result.stop
        elif begin == end:  # the end of turn
            assert (position < result.stop) == finished
        else:
            assert position >= result.stop


@pytest.mark.parametrize("kind", KINDS)
@given(steps=STEPS)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_bare_steps_train_on_what_evaluation_reads(kind: str, steps: list[str]) -> None:
    tokenizer = KINDS[kind]()
    template = TEMPLATE.replace("<|end|>", tokenizer.eos_token)
    trace = Trace("t", "Find x.", tuple(steps))
    encoded = encode_chat(tokenizer, trace, template)
    result = encode_completion(tokenizer, trace.prompt, render_steps(trace.steps), template, finished=False)
    assert (result.ids, result.start) == (encoded.ids[: encoded.ends[-1]], encoded.start)
    chat = encode_steps(tokenizer, trace, "chat", template)
    assert (chat.ids, chat.start, chat.stop) == (result.ids, result.start, result.stop)
    assert chat.score_positions == tuple(end - 1 for end in encoded.ends)


@pytest.mark.parametrize("kind", KINDS)
@given(steps=STEPS)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_separated_steps_are_those_of_evaluation(kind: str, steps: list[str]) -> None:
    tokenizer = KINDS[kind]()
    trace = Trace("t", "Find x.", tuple(steps))
    encoded = encode_separated(tokenizer, trace, ";")
    result = encode_steps(tokenizer, trace, "separated", separator=";")
    assert result.unscored == encoded.unscored
    if not encoded.unscored:
        assert (result.ids, result.start, result.score_positions) == (
            encoded.ids,
            encoded.start,
            encoded.score_positions,
        )


def test_steps_by_hand() -> None:
    trace = Trace("t", "Q", ("a", "b"))
    result = encode_steps(byte_bpe(), trace, "separated")
    assert byte_bpe().convert_ids_to_tokens(list(result.ids)) == ["<s>", "Q", "a", "ĊĊ", "b", "ĊĊ"]
    assert (result.start, result.stop, result.score_positions) == (2, 6, (3, 5))
    assert encode_steps(byte_bpe(), Trace("t", "Q", ("a", " ")), "chat") == EncodedCompletion(
        unscored="step 2 is blank"
    )


def test_an_empty_think_block_belongs_to_the_prompt() -> None:
    result = encode_completion(byte_bpe(), "Q", "It is 1.", THINKING)
    assert decoded(result) == "It is 1.<|end|>"
    assert byte_bpe().decode(result.ids[: result.start]).endswith("<|assistant|>\n<think>\n\n</think>\n\n")


def test_a_thought_that_the_template_writes_as_it_was_is_trained_on() -> None:
    said = "<think>\nAdd.\n</think>\n\nIt is 1."
    assert decoded(encode_completion(byte_bpe(), "Q", said, THINKING)) == said + "<|end|>"


@pytest.mark.parametrize(
    ("completion", "template"),
    [
        ("<think>Add.</think>It is 1.", THINKING),
        ("It is 1.", TEMPLATE.replace("m['content']", "m['content'] | upper")),
        ("It is 1.", TEMPLATE.replace("m['content']", "m['content'][:4]")),
        ("It is 1.", "{% for m in messages %}x{% endfor %}"),
    ],
)
def test_a_template_that_rewrites_the_completion(completion: str, template: str) -> None:
    result = encode_completion(byte_bpe(), "Q", completion, template)
    assert result == EncodedCompletion(unscored="the chat template rewrites the completion")


@pytest.mark.parametrize("trim", ["| trim", ".lstrip()", ".rstrip()"])
def test_a_template_may_trim_the_completion(trim: str) -> None:
    template = TEMPLATE.replace("m['content']", f"m['content']{trim}")
    result = encode_completion(byte_bpe(), "Q", "  It is 1. ", template)
    kept = {"| trim": "It is 1.", ".lstrip()": "It is 1. ", ".rstrip()": "  It is 1."}[trim]
    assert decoded(result) == kept + "<|end|>"


@pytest.mark.parametrize("completion", ["", " \n"])
def test_nothing_said(completion: str) -> None:
    assert encode_completion(byte_bpe(), "Q", completion) == EncodedCompletion(unscored="empty completion")


def test_no_token_before_the_completion() -> None:
    bare = "{{ messages[1]['content'] }}"
    assert encode_completion(byte_bpe(), "Q", "It", bare).unscored == "no token comes before the completion"


def test_nothing_is_cut_off() -> None:
    whole = encode_completion(byte_bpe(), "Q", "It is 1.")
    assert encode_completion(byte_bpe(), "Q", "It is 1.", max_tokens=len(whole.ids)) == whole
    short = encode_completion(byte_bpe(), "Q", "It is 1.", max_tokens=len(whole.ids) - 1)
    assert short == EncodedCompletion(unscored="longer than 13 tokens")
    trace = Trace("t", "Q", ("a", "b"))
    assert encode_steps(byte_bpe(), trace, "separated", max_tokens=5).unscored == "longer than 5 tokens"


def test_a_batch_is_its_rows() -> None:
    rows = [
        PromptCompletion("Q", "It is 1."),
        PromptCompletion("R", "", True),
        PromptCompletion("Find x.", "So 2", False),
    ]
    alone = [encode_completion(byte_bpe(), e.prompt, e.completion, finished=e.finished) for e in rows]
    assert encode_completions(byte_bpe(), rows) == alone
    assert encode_completions(byte_bpe(), []) == []


def test_tokenizers_that_cannot_be_used() -> None:
    with pytest.raises(UserError, match="offsets"):
        encode_completion(ByT5Tokenizer(), "Q", "It is 1.", PLAIN)
    bare = copy.deepcopy(byte_bpe())
    bare.chat_template = None
    with pytest.raises(UserError, match="--template plain"):
        encode_completion(bare, "Q", "It is 1.")


def test_published_rollouts_and_how_long_they_are(shared_data: Path) -> None:
    data = read(shared_data / "reward_model" / "pointwise_val.parquet")
    tokenizer = smollm2()
    result = encode_completions(tokenizer, [PromptCompletion(r.prompt, r.completion) for r in data])
    assert {e.unscored for e in result} == {""}
    for rollout, encoded in zip(data[:40], result[:40], strict=True):
        response = tokenizer.decode(encoded.ids[encoded.start : encoded.stop])
        assert response == rollout.completion + "<|im_end|>"
        assert tokenizer.decode(encoded.ids[: encoded.start]).endswith(
            f"{rollout.prompt}<|im_end|>\n<|im_start|>assistant\n"
        )
    # Chat markup included: without it, prompt + completion, 572 rows of at most 768 tokens make 295,450.
    short = [len(e.ids) for e in result if len(e.ids) <= 768]
    assert (len(short), sum(short)) == (533, 282_527)
    bare = tokenizer([r.prompt for r in data], add_special_tokens=False)["input_ids"]
    said = tokenizer([r.completion for r in data], add_special_tokens=False)["input_ids"]
    both = [len(p) + len(c) for p, c in zip(bare, said, strict=True)]
    assert (sum(n <= 768 for n in both), sum(n for n in both if n <= 768)) == (572, 295_450)
