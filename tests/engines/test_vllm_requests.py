"""What is asked of vLLM for the log-probabilities of a trace's steps, of a stand-in that notes it."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from prmbench.engines.encoding import Encoded
from prmbench.engines.vllm import VllmEngine

TRACE = Encoded("t", tuple(range(100, 110)), 6, (7, 9))
"""Of ten tokens, steps are 6 to 8; the last is no step's."""


def logprob(token: int) -> float:
    return -token / 10


class Llm:
    """Answers each request with the log-probabilities that it asks for."""

    def __init__(self, second_runner: bool) -> None:
        self.model_config = SimpleNamespace(max_model_len=64)
        self.llm_engine = SimpleNamespace(vllm_config=SimpleNamespace(use_v2_model_runner=second_runner))
        self.numbers = self.tokens = self.requests = 0
        """Log-probabilities that were asked for, tokens of prompts, requests."""

    def generate(self, prompts: Sequence[Any], settings: Sequence[Any], **_: Any) -> list[Any]:
        answers = []
        for prompt, params in zip(prompts, settings, strict=True):
            ids, told = prompt["prompt_token_ids"], params.told
            self.tokens += len(ids)
            self.requests += 1
            if "logprob_token_ids" in told:
                assert told["temperature"] == 1.0
                self.numbers += len(told["logprob_token_ids"])
                words = {token: SimpleNamespace(logprob=logprob(token)) for token in told["logprob_token_ids"]}
                answers.append(SimpleNamespace(outputs=[SimpleNamespace(logprobs=[words])]))
                continue
            if told.get("prompt_logprobs") == 0:
                rows = [None, *({token: SimpleNamespace(logprob=logprob(token))} for token in ids[1:])]
                self.numbers += len(ids) - 1
                answers.append(SimpleNamespace(prompt_logprobs=rows))
            else:
                targets = told["prompt_logprob_token_ids"]
                assert targets.shape == (len(ids) - 1 - told["prompt_logprob_start"], 1)
                assert targets[:, 0].tolist() == ids[told["prompt_logprob_start"] + 1 :]
                self.numbers += targets.size
                answers.append(SimpleNamespace(prompt_token_id_logprobs=np.vectorize(logprob)(targets)))
            assert len(told) == (5 if "prompt_logprobs" in told else 6)
            assert (told["max_tokens"], told["temperature"], told["detokenize"]) == (1, 0.0, False)
        return answers


def vllm(known: bool) -> ModuleType:
    class SamplingParams:
        def __init__(self, **told: Any) -> None:
            self.told = told

    if known:
        SamplingParams.prompt_logprob_token_ids = None  # type: ignore[attr-defined]
        SamplingParams.logprob_token_ids = None  # type: ignore[attr-defined]
    module = ModuleType("vllm")
    module.SamplingParams = SamplingParams  # type: ignore[attr-defined]
    return module


@pytest.mark.parametrize(
    ("known", "second_runner", "numbers"),
    [(True, True, 3), (True, False, 8), (False, True, 8)],
)
def test_only_the_tokens_of_steps_are_asked_for_where_vllm_can(
    known: bool, second_runner: bool, numbers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else every token behind the first; the log-probabilities are the same."""
    monkeypatch.setitem(sys.modules, "vllm", vllm(known))
    llm = Llm(second_runner)
    engine = VllmEngine(llm, None, frozenset())
    (found,) = engine.logprobs([TRACE])
    assert found.logprobs.dtype == np.float32
    assert found.logprobs.tolist() == pytest.approx([logprob(token) for token in (106, 107, 108)])
    assert found.normalisers is None
    assert llm.numbers == numbers


@pytest.mark.parametrize("known", [True, False])
def test_words_after_one_prefix_are_one_request(known: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a critic weighs: 20 tokens and an answer of one more, each of four words, for two questions; a last one has
    a word of two tokens."""
    monkeypatch.setitem(sys.modules, "vllm", vllm(known))
    prefixes = tuple(range(20)), tuple(range(1, 21))
    rows = [Encoded("", (*prefix, word), 20, (21,)) for prefix in prefixes for word in (30, 31, 32, 31)]
    rows.append(Encoded("", (*prefixes[0], 40, 41), 20, (22,)))
    llm = Llm(second_runner=False)
    found = list(VllmEngine(llm, None, frozenset()).logprobs(rows))
    words = [(30,), (31,), (32,), (31,)] * 2 + [(40, 41)]
    assert [row.logprobs.tolist() for row in found] == [pytest.approx([logprob(w) for w in row]) for row in words]
    assert (llm.requests, llm.tokens) == ((3, 20 + 20 + 22) if known else (9, 8 * 21 + 22))
