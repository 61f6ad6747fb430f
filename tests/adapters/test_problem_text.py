"""The problem in what a trainer calls a prompt: a text, a conversation, tokens of a rendered conversation."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from length_prm import length_prm
from token_kinds import byte_bpe, sentencepiece_bpe

from prmbench.adapters.problem_text import problem_of
from prmbench.core.records import UserError

PROBLEM = "Find $x$.\n\nGive a number."
SYSTEM = {"role": "system", "content": "Reason step by step."}
USER = {"role": "user", "content": PROBLEM}
EARLIER = [{"role": "user", "content": "Hi!"}, {"role": "assistant", "content": "Ask."}]
CHATML = (
    "{% if messages[0]['role'] != 'system' %}<|system|>\nYou help.<|end|>\n{% endif %}"
    "{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n<think>\n{% endif %}"
)
BRACKETS = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no system turns') }}"
    "{% elif m['role'] == 'user' %}[INST] {{ m['content'] }} [/INST]{% else %} {{ m['content'] }}</s>{% endif %}"
    "{% endfor %}"
)


def with_template(template: str | None) -> Any:
    tokenizer = copy.deepcopy(byte_bpe())
    tokenizer.chat_template = template
    return tokenizer


@pytest.mark.parametrize("generation_prompt", [True, False])
@pytest.mark.parametrize(
    ("tokenizer", "messages"),
    [
        (byte_bpe(), [USER]),
        (byte_bpe(), [SYSTEM, USER]),
        (byte_bpe(), [SYSTEM, *EARLIER, USER]),
        (sentencepiece_bpe(), [SYSTEM, USER]),
        (with_template(CHATML), [USER]),  # the template adds a system turn
        (with_template(CHATML), [SYSTEM, USER]),
        (with_template(CHATML), [*EARLIER, USER]),
        (with_template(BRACKETS), [USER]),
    ],
)
def test_the_last_user_turn_of_rendered_tokens(tokenizer: Any, messages: list[Any], generation_prompt: bool) -> None:
    ids = tokenizer.apply_chat_template(messages, return_dict=False, add_generation_prompt=generation_prompt)
    assert problem_of(ids, tokenizer) == PROBLEM
    assert problem_of([tokenizer.pad_token_id] * 3 + ids, tokenizer) == PROBLEM
    assert problem_of(messages, None) == PROBLEM


@pytest.mark.parametrize("template", [None, CHATML])
def test_a_prompt_without_markup_is_the_problem(template: str | None) -> None:
    tokenizer = with_template(template)
    ids = [tokenizer.bos_token_id, *tokenizer.encode(PROBLEM)]
    assert problem_of(ids, tokenizer) == problem_of([tokenizer.pad_token_id] * 2 + ids, tokenizer) == PROBLEM
    assert problem_of(PROBLEM, None) == PROBLEM


def test_content_in_parts() -> None:
    parts = [{"type": "image", "image": 0}, {"type": "text", "text": "Find x."}, "Now."]
    assert problem_of([{"role": "user", "content": parts}], None) == "Find x.\nNow."


def test_what_has_no_problem_is_one_line() -> None:
    tokenizer = with_template(CHATML)
    with pytest.raises(UserError, match="has no user turn of the policy's chat template; give the problem"):
        problem_of(tokenizer.encode("<|assistant|>\nSo 4.<|assistant|>"), tokenizer)
    with pytest.raises(UserError, match="a conversation without a user turn"):
        problem_of([SYSTEM], None)
    with pytest.raises(UserError, match="give the policy's tokenizer"):
        problem_of([1, 2], None)


def test_a_function_of_the_decoded_prompt_takes_over() -> None:
    tokenizer = byte_bpe()
    prm = length_prm(tokenizer, problem=lambda text: text.partition("Q: ")[2].partition(" A:")[0])
    assert prm.problem_text(tokenizer.encode("<|system|>Q: 2 + 2? A:")) == "2 + 2?"
    assert (
        prm.problem_text("Q: 2 + 2? A:") == prm.problem_text([{"role": "user", "content": "Q: 2 + 2? A:"}]) == "2 + 2?"
    )
