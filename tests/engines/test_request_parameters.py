"""Parameters that servers refuse: dropped, renamed or lowered once, for all requests, and said."""

from __future__ import annotations

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from chat_server import Reply, failed, said, serving

from prmbench.core.records import Notice, UserError
from prmbench.engines.chat import ChatRequest, WordComparison
from prmbench.engines.cost_budget import Budget
from prmbench.engines.generation import Sampling
from prmbench.engines.openai import HttpChat

HELLO = ChatRequest(({"role": "user", "content": "Hello"},), 7)
DRAWN = Sampling(temperature=0.6, top_p=0.9, top_k=20, max_new_tokens=8192)
SENT = {"temperature": 0.6, "top_p": 0.9, "top_k": 20, "seed": 7, "max_tokens": 8192}


def unsupported(name: str) -> str:
    return f"Unsupported parameter: '{name}' is not supported with this model."


def parameters(body: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in body.items() if name not in ("model", "messages")}


SHAPES = [
    lambda name: failed(400, unsupported(name), param=name, code="unsupported_parameter"),
    lambda name: failed(400, unsupported(name)),
    lambda name: Reply({"detail": [{"loc": ["body", name], "msg": "Extra inputs are not permitted"}]}, 422),
    lambda name: Reply({"detail": unsupported(name)}, 400),
    lambda name: Reply({"object": "error", "message": unsupported(name)}, 400),
    lambda name: Reply({"type": "error", "error": {"message": f"{name}: Extra inputs are not permitted"}}, 400),
    lambda name: Reply([{"error": {"message": f"Unknown name '{name}': Cannot find field."}}], 400),
    lambda name: Reply({"error": f"{name} does not support 0.6 with this model. Only the default (1) is"}, 400),
    lambda name: Reply(f"unknown argument: {name}".encode(), 400, {"Content-Type": "text/plain"}),
    lambda name: Reply(f"<html><p>bad field {name}</p></html>".encode(), 400, {"Content-Type": "text/html"}),
    lambda name: failed(400, "Provider returned error", metadata={"raw": json.dumps({"message": unsupported(name)})}),
    lambda name: failed(400, f"{name.replace('_', '-').capitalize()} is not supported with this model"),
    lambda name: Reply(f"unknown field {name.title().replace('_', '')}".encode(), 400),
    lambda name: Reply({"__type": "ValidationException", "Message": f"extraneous key [{name}]"}, 400),
    lambda name: Reply(f"unknown argument: {name}".encode("utf-16"), 400),
    lambda name: failed(200, unsupported(name), code=400),
    lambda name: failed(200, unsupported(name)),
    lambda name: failed(403, f"the parameter {name} is not allowed on this plan"),
    lambda name: failed(404, f"No endpoints found that support the parameter {name}"),
    lambda name: failed(500, f"UnsupportedParamsError: m does not support parameters: ['{name}']"),
    lambda name: failed(501, f"{name}: not implemented"),
]


@pytest.mark.parametrize("shape", range(len(SHAPES)))
@pytest.mark.parametrize("name", ["temperature", "top_p", "top_k", "seed"])
def test_a_refused_parameter_is_left_out_once_and_said(name: str, shape: int) -> None:
    def script(body: dict[str, Any], n: int) -> Reply:
        return SHAPES[shape](name) if name in body else said("ok")

    with serving(script) as server:
        chat = HttpChat(server.url, "m")
        with pytest.warns(Notice, match=f"^--base-url {server.url} refuses a parameter: {name} left out$") as notices:
            answers = chat.answer([HELLO, HELLO, HELLO], DRAWN)
    assert len(notices) == 1
    assert [a.text for a in answers] == ["ok"] * 3
    assert [a.changes for a in answers] == [(f"{name} left out",)] * 3
    assert [name in body for body in server.asked] == [True, False, False, False]
    assert parameters(server.asked[-1]) == {k: v for k, v in SENT.items() if k != name}


def test_several_refused_parameters_end_in_a_bare_request() -> None:
    order = ["seed", "top_k", "temperature", "top_p"]

    def script(body: dict[str, Any], n: int) -> Reply:
        refused = next((name for name in order if name in body), None)
        return said("ok") if refused is None else failed(400, unsupported(refused), param=refused)

    with serving(script) as server, pytest.warns(Notice):
        (answer,) = HttpChat(server.url, "m").answer([HELLO], DRAWN)
    assert answer.changes == tuple(f"{name} left out" for name in order)
    assert parameters(server.asked[-1]) == {"max_tokens": 8192}
    assert len(server.asked) == 5


def test_one_refusal_may_name_several() -> None:
    def script(body: dict[str, Any], n: int) -> Reply:
        return failed(400, "unsupported parameters: temperature, seed") if "seed" in body else said("ok")

    with serving(script) as server, pytest.warns(Notice):
        HttpChat(server.url, "m").answer([HELLO], DRAWN)
    assert parameters(server.asked[-1]) == {"top_p": 0.9, "top_k": 20, "max_tokens": 8192}


@pytest.mark.parametrize(
    "message",
    [
        "`temperature` and `top_p` cannot both be specified for this model. Please use only one.",
        "temperature and top_p may not be used together",
        "specify either temperature or top_p",
    ],
)
def test_of_two_that_do_not_go_together_top_p_is_left_out(message: str) -> None:
    def script(body: dict[str, Any], n: int) -> Reply:
        return failed(400, message) if {"temperature", "top_p"} <= set(body) else said("ok")

    with serving(script) as server, pytest.warns(Notice, match="top_p left out"):
        HttpChat(server.url, "m").answer([HELLO], DRAWN)
    assert parameters(server.asked[-1]) == {k: v for k, v in SENT.items() if k != "top_p"}


@pytest.mark.parametrize(
    ("message", "more", "change", "sent"),
    [
        (
            "Unsupported parameter: 'max_tokens' is not supported. Use 'max_completion_tokens' instead.",
            {"param": "max_tokens", "code": "unsupported_parameter"},
            "max_tokens sent as max_completion_tokens",
            ("max_completion_tokens", 8192),
        ),
        (unsupported("max_tokens"), {}, "max_tokens sent as max_completion_tokens", ("max_completion_tokens", 8192)),
        (
            "max_tokens is too large: 8192. This model supports at most 4096 completion tokens, whereas you gave 8192.",
            {"param": "max_tokens"},
            "max_tokens lowered from 8192 to 4096",
            ("max_tokens", 4096),
        ),
        (
            "max_tokens: 8192 > 4096, which is the maximum allowed number of output tokens for m-3-20240307",
            {},
            "max_tokens lowered from 8192 to 4096",
            ("max_tokens", 4096),
        ),
        (
            "Invalid max_tokens value, the valid range of max_tokens is [1,4096]",
            {},
            "max_tokens lowered from 8192 to 4096",
            ("max_tokens", 4096),
        ),
        (
            "maxOutputTokens value of 8192 but the supported range is from 1 (inclusive) to 4097 (exclusive)",
            {},
            "max_tokens lowered from 8192 to 4096",
            ("max_tokens", 4096),
        ),
        (
            "The maximum tokens you requested exceeds the model limit of 4,096",
            {},
            "max_tokens lowered from 8192 to 4096",
            ("max_tokens", 4096),
        ),
        (
            "Invalid max_tokens value, the valid range of max_tokens is [1, 4,000]",
            {},
            "max_tokens lowered from 8192 to 4000",
            ("max_tokens", 4000),
        ),
    ],
)
def test_the_limit_is_renamed_or_lowered(message: str, more: Any, change: str, sent: tuple[str, int]) -> None:
    def script(body: dict[str, Any], n: int) -> Reply:
        return failed(400, message, **more) if body.get("max_tokens") == 8192 else said("ok")

    with serving(script) as server, pytest.warns(Notice, match=change) as notices:
        first, second = HttpChat(server.url, "m").answer([HELLO, HELLO], DRAWN)
    assert len(notices) == 1
    assert first.changes == second.changes == (change,)
    assert len(server.asked) == 3
    assert parameters(server.asked[-1]) == {k: v for k, v in SENT.items() if k != "max_tokens"} | {sent[0]: sent[1]}


@pytest.mark.parametrize(
    "reply",
    [
        failed(400, "the prompt about temperature was filtered", code="content_filter"),
        Reply(b'{"choices": [{"message": {"content": "an unsupported temperature'),  # half an answer
        failed(503, "the seed node is busy"),
        failed(429, "too many tokens a minute; send fewer max_tokens"),
    ],
)
def test_a_parameter_that_nobody_refuses_stays(reply: Reply, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prmbench.engines.openai.FIRST_PAUSE", 0.001)
    with serving(lambda body, n: said("ok") if n else reply) as server:
        chat = HttpChat(server.url, "m")
        chat.answer([HELLO, HELLO], DRAWN)
    assert chat.parameters.changes == ()
    assert parameters(server.asked[-1]) == SENT


def no_limit(body: dict[str, Any], n: int) -> Reply:
    refused = next((name for name in ("max_tokens", "max_completion_tokens") if name in body), None)
    return said("ok") if refused is None else failed(400, unsupported(refused), param=refused)


def test_a_server_without_any_limit() -> None:
    with serving(no_limit) as server, pytest.warns(Notice):
        (answer,) = HttpChat(server.url, "m").answer([HELLO], DRAWN)
    assert answer.changes == ("max_tokens sent as max_completion_tokens", "max_tokens left out")
    assert len(server.asked) == 3


def test_without_a_limit_nothing_is_asked_under_a_cap() -> None:
    budget = Budget((1.0, 1.0))
    budget.open(1.0, 0.0)
    line = r"--max-cost: .* takes no limit for an answer"
    with serving(no_limit) as server, pytest.warns(Notice), pytest.raises(UserError, match=line):
        HttpChat(server.url, "m", budget=budget).answer([HELLO], DRAWN)
    assert all({"max_tokens", "max_completion_tokens"} & set(body) for body in server.asked)


def test_fewer_log_probabilities() -> None:
    def script(body: dict[str, Any], n: int) -> Reply:
        if body["top_logprobs"] > 5:
            return failed(400, "top_logprobs must be less than or equal to 5", param="top_logprobs")
        listed = {"content": [{"token": "yes", "top_logprobs": [{"token": "yes", "logprob": -0.1}]}]}
        return said("yes", logprobs=listed)

    with serving(script) as server, pytest.warns(Notice, match="top_logprobs lowered from 20 to 5"):
        (answer,) = HttpChat(server.url, "m").choose_word([HELLO], ("yes", "no"))
    assert answer.good_probability == 1


@pytest.mark.parametrize(
    ("reply", "line"),
    [
        (failed(400, "logprobs is not supported"), "refuses the request (logprobs is not supported)"),
        (failed(400, "temperature is hot, all the same"), "refuses the request (temperature is hot, all the same)"),
        (failed(400, "max_tokens is too large for m-4"), "refuses the request (max_tokens is too large for m-4)"),
        (Reply(b"Bad Request", 400), "refuses the request (Bad Request)"),
        (Reply(b"", 400), "refuses the request (status 400, no reason given)"),
    ],
)
@pytest.mark.filterwarnings("ignore::prmbench.core.records.Notice")
def test_a_refusal_that_nothing_mends_ends(reply: Reply, line: str) -> None:
    with serving(lambda body, n: reply) as server:
        with pytest.raises(UserError) as caught:
            HttpChat(server.url, "m").answer([HELLO], DRAWN, WordComparison(("Yes", "No"), lambda text: None))
        assert line in str(caught.value)
        assert len(server.asked) <= 3


@pytest.mark.parametrize(
    "message",
    [
        "This model's maximum context length is 80 tokens. However, you requested 99 tokens",
        "'max_tokens' or 'max_completion_tokens' is too large: 8192. This model's maximum context length is 4096",
        "input length and `max_tokens` exceed context limit: 190000 + 8192 > 200000",
        "`inputs` tokens + `max_new_tokens` must be <= 4096. Given: 35 `inputs` tokens and 8192 `max_new_tokens`",
        "the request exceeds the available context size",
        "Please reduce the length of the messages or completion",
    ],
)
def test_a_conversation_that_does_not_fit_is_no_refused_parameter(message: str) -> None:
    with serving(lambda body, n: failed(400, message) if "max_tokens" in body else said("ok", "length")) as server:
        chat = HttpChat(server.url, "m")
        assert [a.text for a in chat.answer([HELLO, HELLO], DRAWN)] == ["ok", "ok"]
    assert chat.parameters.changes == ()  # another conversation may fit with the limit
    assert ["max_tokens" in body for body in server.asked] == [True, False] * 2
    with serving(lambda body, n: failed(400, message)) as server:
        (answer,) = HttpChat(server.url, "m").answer([HELLO], DRAWN)
    assert answer.refused.startswith("the server: ")


def test_threads_that_are_refused_at_once_say_it_once() -> None:
    together = threading.Barrier(4, timeout=30)

    def script(body: dict[str, Any], n: int) -> Reply:
        if n < 4:
            together.wait()
        return failed(400, unsupported("seed")) if "seed" in body else said("ok")

    with serving(script) as server, ThreadPoolExecutor(4) as pool:
        chat = HttpChat(server.url, "m")
        with pytest.warns(Notice) as notices:
            list(pool.map(lambda _: chat.answer([HELLO], DRAWN), range(4)))
    assert len(notices) == 1
    assert len(server.asked) == 8
