"""What is read in a chat completion: content of any shape, thoughts, usage, log-probabilities."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from chat_server import part
from hypothesis import given, settings
from hypothesis import strategies as st

from prmbench.backends.critic import answer_parser
from prmbench.engines.chat import Answer
from prmbench.engines.openai_answers import first_word_probability, read_answer, read_usage, repair_surrogates
from prmbench.verification.answer_region import answer_region

THOUGHT = r"Maybe \boxed{0}."
ANSWER = r"All good. \boxed{-1}"
WHOLE = f"<think>\n{THOUGHT}\n</think>\n{ANSWER}"
OPEN = f"<think>\n{THOUGHT}"


def answer(message: Any, finish: Any = "stop") -> Answer:
    return read_answer({"choices": [{"message": message, "finish_reason": finish}]}, (0, 0))


@pytest.mark.parametrize(
    "message",
    [
        {"content": ANSWER},
        {"content": [part("text", ANSWER)]},
        {"content": part("text", ANSWER)},
        {"content": [part("text", "All good. "), part("text", r"\boxed{-1}")]},
        {"content": [{"text": ANSWER}]},
        {"content": [part("output_text", ANSWER)]},
        {"content": [part("text", {"value": ANSWER, "annotations": []})]},
        {"content": [part("text", ANSWER), {"type": "image_url", "image_url": {"url": "x"}}]},
        {"content": [part("text", ANSWER), part("text", None), part("text", 3)]},
        {"content": ANSWER, "reasoning_content": None, "reasoning": "", "refusal": None},
        {"content": ANSWER, "reasoning": 7, "refusal": "no"},
    ],
)
def test_an_answer_is_what_its_parts_join_to(message: Any) -> None:
    assert answer(message) == Answer(ANSWER, "stop")


@pytest.mark.parametrize(
    "message",
    [
        {"content": ANSWER, "reasoning_content": THOUGHT},
        {"content": ANSWER, "reasoning": THOUGHT},
        {"content": ANSWER, "reasoning_content": "", "reasoning": THOUGHT},
        {"content": [part("text", ANSWER)], "reasoning_content": THOUGHT},
        {"content": ANSWER, "reasoning": {"content": THOUGHT}},
        {"content": ANSWER, "reasoning_details": [{"type": "reasoning.text", "text": THOUGHT}]},
        {"content": ANSWER, "thinking": THOUGHT},
        {"content": [part("thinking", THOUGHT), part("text", ANSWER)]},
        {"content": [part("text", ANSWER), part("thinking", THOUGHT)]},
        {"content": [part("thinking", [part("text", THOUGHT)]), part("text", ANSWER)]},
        {"content": [part("reasoning", THOUGHT), part("text", ANSWER)]},
        {"content": [{"type": "reasoning", "summary": [part("summary_text", THOUGHT)]}, part("text", ANSWER)]},
        {"content": [{"text": ANSWER}, {"text": THOUGHT, "thought": True}]},
        {"content": [{"text": THOUGHT, "type": "text", "thought": True}, part("text", ANSWER)]},
        {"content": [{"text": ANSWER}, {"thinking": THOUGHT}]},
        {"content": [{"thinking": THOUGHT, "signature": "x"}, {"text": ANSWER, "thought": False}]},
        {"content": [part("text", ANSWER), {"type": "reasoning_content", "reasoning_content": THOUGHT}]},
        {"content": [{"type": "reasoning.text", "text": THOUGHT}, {"type": "TEXT", "text": ANSWER}]},
        {"content": [{"type": None, "text": ANSWER}, {"type": "Thinking", "thinking": THOUGHT}]},
        {"content": ANSWER, "reasoning_content": THOUGHT + "</think>"},
        {"content": ANSWER, "reasoning_content": "<think>" + THOUGHT},
    ],
)
def test_a_thought_is_kept_apart_from_the_answer(message: Any) -> None:
    result = answer(message).text
    assert "".join(result.split()) == "".join(WHOLE.split())
    assert answer_parser.parse_index(result, 3) == -1


@pytest.mark.parametrize("finish", ["length", "max_tokens", "MAX_TOKENS", "model_length", "max_output_tokens"])
def test_a_cut_answer_by_any_name(finish: str) -> None:
    assert answer({"content": ANSWER}, finish).finish == "length"


@pytest.mark.parametrize("finish", ["stop", None, 3, ["end"], {"why": "eos"}, "tool_calls", ""])
def test_an_answer_that_ended_by_itself(finish: Any) -> None:
    assert answer({"content": ANSWER}, finish).finish == "stop"


@pytest.mark.parametrize("finish", ["length", "stop"])
@pytest.mark.parametrize(
    "message",
    [
        {"content": None, "reasoning_content": THOUGHT},
        {"content": " ", "reasoning": THOUGHT},
        {"content": [part("thinking", THOUGHT)]},
        {"content": [], "reasoning_content": THOUGHT + " </think> " + THOUGHT},
        {"content": OPEN},
        {"content": f"<THINK> {THOUGHT}"},
    ],
)
def test_nothing_is_read_in_a_thought_that_no_answer_follows(message: Any, finish: str) -> None:
    result = answer(message, finish)
    assert (result.unreadable, result.finish) == ("", finish)
    assert THOUGHT in result.text  # it is paid for, and stored
    assert answer_region(result.text) is None
    assert answer_parser.parse_index(result.text, 3) is None
    assert answer_parser.parse_decisions(result.text.replace(r"\boxed{0}", r"\boxed{incorrect}")) == []
    assert answer_parser.judgement(result.text.replace(r"\boxed{0}", r"\boxed{Yes}")) is None


@pytest.mark.parametrize(
    ("message", "finish", "lost"),
    [
        ({"content": None}, "stop", "empty answer"),
        ({"content": ""}, "stop", "empty answer"),
        ({"content": []}, "stop", "empty answer"),
        ({}, None, "empty answer"),
        ({"content": [{"type": "image_url"}]}, "stop", "empty answer"),
        ({"content": None, "refusal": "I can't\nhelp."}, "stop", "the model refuses: I can't help."),
        ({"content": None}, "content_filter", "held back by a content filter"),
        ({"content": ["a"]}, "stop", "malformed answer: its content is no text"),
        ({"content": 5}, "stop", "malformed answer: its content is no text"),
        ({"content": True}, "stop", "malformed answer: its content is no text"),
        (None, "stop", "malformed answer: no choice in it"),
        ("text", "stop", "malformed answer: no choice in it"),
        ([1], "stop", "malformed answer: no choice in it"),
    ],
)
def test_an_answer_that_is_none_has_one_reason(message: Any, finish: Any, lost: str) -> None:
    assert answer(message, finish).unreadable == lost


KEYS = ["type", "text", "content", "message", "reasoning", "thinking"]
FIELDS = ["content", "reasoning", "reasoning_content", "refusal"]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=3),
    max_leaves=8,
)


@given(
    message=st.dictionaries(st.sampled_from(FIELDS), JSON),
    choices=JSON,
)
@settings(max_examples=300, deadline=None)
def test_no_shape_of_a_message_is_a_traceback(message: Any, choices: Any) -> None:
    for body in ({"choices": [{"message": message}]}, {"choices": choices}, {"choices": [choices]}):
        result = read_answer(body, (0, 0))
        assert result.text.strip() or result.unreadable
        result.text.encode()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a\ud800b", "a\ufffdb"),
        ("\udc00", "\ufffd"),
        ("a\ud83d", "a\ufffd"),
        ("\ud83d\ude00", "\U0001f600"),
        ("\ude00\ud83d", "\ufffd\ufffd"),
        ("plain \U0001f600 é", "plain \U0001f600 é"),
    ],
)
def test_half_surrogate_pairs_are_replaced(text: str, expected: str) -> None:
    assert repair_surrogates(text) == expected
    for message in (
        {"content": text + "."},
        {"content": [part("text", text), part("text", ".")]},
        {"content": ".", "reasoning": text},
    ):
        result = answer(json.loads(json.dumps(message))).text
        result.encode()
        assert expected in result


@pytest.mark.parametrize(
    "usage",
    [None, 3, "x", [], {}, {"prompt_tokens": 5}, {"prompt_tokens": None, "completion_tokens": 4}, {"total_tokens": 9}],
)
def test_usage_that_is_not_told(usage: Any) -> None:
    assert read_usage({"usage": usage}) is None
    assert read_usage({}) is None


@pytest.mark.parametrize("count", [-1, -0.5, 1.5, math.nan, math.inf, -math.inf, True, False, "7", "", [], {}])
@pytest.mark.parametrize("name", ["prompt_tokens", "completion_tokens"])
def test_usage_that_is_no_count_is_refused(name: str, count: Any) -> None:
    with pytest.raises(ValueError, match=f"^{name} is "):
        read_usage({"usage": {"prompt_tokens": 5, "completion_tokens": 5, name: count}})


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ({"total_tokens": 12}, (5, 7)),
        ({"total_tokens": 3}, (5, 7)),
        ({"total_tokens": 512}, (5, 507)),  # thoughts are counted in the total alone
        ({"completion_tokens_details": {"reasoning_tokens": 7}}, (5, 7)),
        ({"completion_tokens_details": {"reasoning_tokens": 500}}, (5, 507)),
        ({"completion_tokens_details": {"reasoning_tokens": 500}, "total_tokens": 512}, (5, 507)),
        ({"prompt_tokens_details": {"cached_tokens": 5}}, (5, 7)),
        ({"prompt_tokens_details": {"cached_tokens": 300}, "total_tokens": 312}, (305, 7)),
        ({"prompt_tokens_details": None, "completion_tokens_details": [1]}, (5, 7)),
    ],
)
def test_nothing_that_is_billed_is_left_out(more: Any, expected: tuple[int, int]) -> None:
    assert read_usage({"usage": {"prompt_tokens": 5, "completion_tokens": 7, **more}}) == expected


@pytest.mark.parametrize("count", [-1, math.nan, math.inf, True, "7"])
def test_a_part_of_the_usage_that_is_no_count_is_refused(count: Any) -> None:
    for more in (
        {"total_tokens": count},
        {"completion_tokens_details": {"reasoning_tokens": count}},
        {"prompt_tokens_details": {"cached_tokens": count}},
    ):
        with pytest.raises(ValueError, match="_tokens is "):
            read_usage({"usage": {"prompt_tokens": 5, "completion_tokens": 7, **more}})


def test_usage() -> None:
    assert read_usage({"usage": {"prompt_tokens": 5, "completion_tokens": 7.0, "total_tokens": 12}}) == (5, 7)


@pytest.mark.parametrize("logprob", [math.nan, math.inf, 3, "x", "-1", None, True, [], -(10**400), 10**400])
def test_a_log_probability_that_is_none(logprob: Any) -> None:
    listed = [{"token": "yes", "top_logprobs": [{"token": "yes", "logprob": logprob}]}]
    if logprob == -(10**400):
        assert first_word_probability(listed, ("yes", "no")) is None  # exp of it is 0
        return
    with pytest.raises(ValueError, match="no log-probability"):
        first_word_probability(listed, ("yes", "no"))
