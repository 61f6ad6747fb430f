"""An OpenAI-compatible server as engine, against a stand-in: what is sent, what is read, and every way it can fail."""

from __future__ import annotations

import gzip
import json
import math
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import zlib
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from chat_server import DROP, Reply, Script, failed, listed, part, said, serving
from forked import Child, prmbench
from typer.testing import CliRunner, Result

from prmbench.backends import load_backend
from prmbench.backends.critic.answer_parser import judgement
from prmbench.cli import app
from prmbench.config import ModelConfig
from prmbench.core.records import RetryError, UserError
from prmbench.engines import http_replies
from prmbench.engines.chat import Answer, ChatRequest, WordComparison
from prmbench.engines.generation import Sampling
from prmbench.engines.openai import (
    HttpChat,
    RateLimiter,
    api_key,
    first_word_probability,
    is_local,
    located_word_probability,
    server_host,
)

GREEDY = Sampling(temperature=0.0, max_new_tokens=64)
HELLO = ChatRequest(({"role": "user", "content": "Hello {you}"},), 7)
JUDGE = WordComparison(("Yes", "No"), judgement)
KEY = "sk-test-0123456789abcdef"
ROWS = [
    {"id": f"t-{n}", "problem": f"{n} + {n}?", "steps": [f"We add {n}.", f"So {2 * n}."], "label": n % 3 - 1,
     "final_answer_correct": n % 3 == 0}
    for n in range(6)
]  # fmt: skip


def answered(
    script: Script, requests: list[ChatRequest] | None = None, sampling: Sampling = GREEDY, tries: int = 3, **more: Any
) -> list[Answer]:
    with serving(script) as server:
        return HttpChat(server.url, "m", tries=tries).answer(requests or [HELLO], sampling, **more)


# --- one request --------------------------------------------------------------------------------------------------


def test_what_is_sent() -> None:
    with serving(lambda body, n: said(f"Hi {n}", used=(11, 3))) as server:
        chat = HttpChat(server.url + "/", "m")
        drawn = Sampling(temperature=0.6, top_p=0.95, top_k=20, max_new_tokens=99)
        assert chat.answer([HELLO, ChatRequest(HELLO.messages, 8)], drawn) == [
            Answer("Hi 0", "stop", 11, 3),
            Answer("Hi 1", "stop", 11, 3),
        ]
        chat.answer([HELLO], GREEDY)
    told = {"model": "m", "messages": [{"role": "user", "content": "Hello {you}"}], "seed": 7}
    assert server.asked[0] == {**told, "temperature": 0.6, "top_p": 0.95, "max_tokens": 99, "top_k": 20}
    assert server.asked[1]["seed"] == 8
    assert server.asked[2] == {**told, "temperature": 0.0, "max_tokens": 64}  # what is off is not sent


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        (said("cut", "length"), Answer("cut", "length", 100, 20)),
        (said("x", "content_filter"), Answer("x", "stop", 100, 20)),
        (said("so 2", reasoning_content="hm"), Answer("<think>\nhm\n</think>\nso 2", "stop", 100, 20)),
        (said(None, "length", reasoning="hm"), Answer("<think>\nhm", "length", 100, 20)),
        (said(""), Answer("", "stop", 100, 20, unreadable="empty answer")),
        (said(None), Answer("", "stop", 100, 20, unreadable="empty answer")),
        (said(["a"]), Answer("", "", 100, 20, unreadable="malformed answer: its content is no text")),
        (Reply({"choices": [{"message": None}], "usage": 3}), Answer(unreadable="malformed answer: no choice in it")),
        (Reply({"choices": [{"message": {"content": "ok"}}]}), Answer("ok", "stop")),
        (failed(400, "filtered", code="content_filter"), Answer(unreadable="the server: filtered")),
    ],
)
def test_what_is_read(reply: Reply, expected: Answer) -> None:
    assert answered(lambda body, n: reply) == [expected]


@pytest.mark.parametrize(
    "first",
    [
        failed(429, "slow down", {"retry-after-ms": "5"}),
        failed(500, "oops"),
        failed(503, "x"),
        failed(200, "Provider returned error", code=429),  # as a gateway tells it
        DROP,
        Reply({"choices": []}),
        Reply([1]),
        Reply(b'{"choices": [{"message": {"con'),
        Reply(b""),
        Reply({"choices": None}),
        Reply({"choices": {}, "usage": {"prompt_tokens": 1, "completion_tokens": 1}}),
        Reply({"error": {"message": "x"}, "choices": ""}),
        Reply(b"[" * 100_000),
        Reply(b"\xff\xfe"),
        Reply(b"null"),
        failed(408, "too slow"),
        failed(409, "busy"),
        failed(529, "overloaded"),
        failed(200, "busy", code="503"),
        Reply({"base_resp": {"status_code": 1002, "status_msg": "busy"}, "choices": None}),
    ],
)
def test_what_passes_is_asked_again(first: Reply | str) -> None:
    assert answered(lambda body, n: first if n == 0 else said("ok"))[0].text == "ok"


def test_a_body_that_breaks_off_is_asked_for_again() -> None:
    short = Reply(b'{"choices"', headers={"Content-Length": "400", "Connection": "close"})
    assert answered(lambda body, n: short if n == 0 else said("ok"))[0].text == "ok"


@pytest.mark.parametrize("status", [200, 400, 503])
@pytest.mark.parametrize("packed", [True, False])
def test_a_body_without_end_is_not_read(status: int, packed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prmbench.engines.http_bodies.MAX_BODY_BYTES", 2**20)
    raw = b" " * 2**21
    body = Reply(gzip.compress(raw), status, {"Content-Encoding": "gzip"}) if packed else Reply(raw, status)
    with pytest.raises(RetryError, match="its answer has more than 64 MiB"):
        answered(lambda _, n: body, tries=1)


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "GZIP", "identity", "made-up"])
def test_a_packed_body_is_unpacked(encoding: str) -> None:
    raw = json.dumps(said("ok").body).encode()
    pack = {"gzip": gzip.compress, "deflate": zlib.compress}.get(encoding.lower(), bytes)
    with serving(lambda body, n: Reply(pack(raw), headers={"Content-Encoding": encoding})) as server:
        assert HttpChat(server.url, "m").answer([HELLO], GREEDY)[0].text == "ok"
    assert server.headers[0]["accept-encoding"] == "gzip"  # of others nobody knows how much they unpack to
    with pytest.raises(RetryError, match="while decompressing"):
        answered(lambda body, n: Reply(raw, headers={"Content-Encoding": "gzip"}), tries=1)


def test_bytes_that_are_no_utf8_are_replaced() -> None:
    raw = b'\xef\xbb\xbf{"choices": [{"message": {"content": "a\xff\xc3\xa9"}}]}'
    assert answered(lambda body, n: Reply(raw))[0].text == "a\ufffd\u00e9"


def test_a_conversation_with_half_a_surrogate_pair_is_asked() -> None:
    request = ChatRequest(({"role": "user", "content": "a\ud800b"},), 7)
    with serving(lambda body, n: said("ok")) as server:
        assert HttpChat(server.url, "m").answer([request], GREEDY)[0].text == "ok"
    assert server.asked[0]["messages"][0]["content"] == "a\ufffdb"


def test_a_server_that_asks_for_a_long_pause_is_not_waited_for() -> None:
    with serving(lambda body, n: failed(429, "come back tomorrow", {"Retry-After": "86400"})) as server:
        with pytest.raises(RetryError, match="come back tomorrow"):
            HttpChat(server.url, "m").answer([HELLO], GREEDY)
        assert len(server.asked) == 1


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, 0),
        ({"retry-after": "3"}, 3),
        ({"retry-after": "2.5"}, 2.5),
        ({"retry-after-ms": "250", "retry-after": "3"}, 0.25),
        ({"retry-after-ms": "soon", "retry-after": "3"}, 3),
        ({"retry-after": "-3"}, 0),
        ({"retry-after": "nan"}, 0),
        ({"retry-after": "inf"}, 0),
        ({"retry-after": "soon"}, 0),
        ({"retry-after": "Fri, 31 Dec 1999 23:59:59 GMT"}, 0),
    ],
)
def test_the_pause_that_a_server_asks_for(headers: dict[str, str], seconds: float) -> None:
    assert http_replies.Reply(429, headers=headers).retry_after == seconds
    day = Reply(headers={"retry-after": "Fri, 31 Dec 2199 23:59:59 GMT"}).headers
    assert http_replies.Reply(429, headers=day).retry_after > 1e9


def test_a_server_that_sends_a_byte_now_and_then_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each read succeeds in time, in the headers too; the answer as a whole does not."""
    monkeypatch.setattr("prmbench.engines.openai.TIMEOUT", 0.3)
    with pytest.raises(RetryError, match=r"timed out: no whole answer within 0\.3 seconds"):
        answered(lambda body, n: Reply(trickle=0.02), tries=1)


# --- redirects ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("other", ["host", "port", "scheme", "relative"])
def test_a_redirect_to_another_server_is_not_followed(status: int, other: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with serving(lambda body, n: said("stolen")) as thief, serving(lambda body, n: away) as server:
        port = thief.url.split(":")[2].removesuffix("/v1")
        location = {
            "host": f"http://localhost:{port}/v1/chat/completions?key={KEY}",
            "port": f"{thief.url}/chat/completions",
            "scheme": server.url.replace("http", "https") + "/chat/completions",
            "relative": f"//localhost:{port}/v1/chat/completions",
        }[other]
        away = Reply({}, status, {"Location": location})
        with pytest.raises(UserError, match=r"redirects to https?://\S+, which is not followed") as caught:
            HttpChat(server.url, "m").answer([HELLO], GREEDY)
    assert thief.asked == []
    assert len(server.asked) == 1  # it is not asked again either
    assert KEY not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_redirect_within_the_server_is_followed() -> None:
    def script(body: dict[str, Any], n: int) -> Reply:
        return said("ok") if n else Reply({}, 307, {"Location": "/v1/chat/completions"})

    with serving(script) as server:
        assert HttpChat(server.url, "m").answer([HELLO], GREEDY)[0].text == "ok"


@pytest.mark.parametrize("location", ["http://[x", "ftp://127.0.0.1/", "http://127.0.0.1:99999/", "http:///", "http:"])
def test_a_redirect_to_nowhere(location: str) -> None:
    with pytest.raises((UserError, RetryError), match=r"which is not followed|Invalid URL in location header"):
        answered(lambda body, n: Reply({}, 307, {"Location": location}), tries=1)


@pytest.mark.parametrize(
    "variables",
    [
        {"ALL_PROXY": "socks5://127.0.0.1:1"},
        {"HTTPS_PROXY": "http://me:pw9word@host:port"},
        {"HTTPS_PROXY": "ftp://me:pw9word@host"},
        {"SSL_CERT_FILE": "/nonexistent"},
    ],
)
def test_proxies_and_certificates_that_cannot_be_used(
    variables: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=r"^the proxies .* that the environment names cannot be used") as caught:
        HttpChat("https://host.invalid/v1", "m")
    assert "pw9word" not in str(caught.value)


# --- what a server says that it used ------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [-1, 1.5, float("nan"), float("inf"), True, "7", [], 10**12, 10**400])
@pytest.mark.parametrize("name", ["prompt_tokens", "completion_tokens"])
def test_usage_that_cannot_be_ends_the_run(name: str, count: Any) -> None:
    reply = said("ok")
    reply.body["usage"][name] = count
    with pytest.raises(UserError, match="says that it used") as caught:
        answered(lambda body, n: reply)
    assert len(str(caught.value)) < 1000
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("count", [10**8, 1e300, 10**400])
def test_without_a_limit_an_answer_has_an_end_too(count: Any) -> None:
    """A server that takes no limit could say anything."""

    def script(body: dict[str, Any], n: int) -> Reply:
        return failed(400, "maximum context length") if "max_tokens" in body else said("ok", used=(100, count))

    with pytest.raises(UserError, match="says that it used"):
        answered(script)


def test_retry_after_is_honoured() -> None:
    with serving(lambda body, n: failed(429, "slow down", {"Retry-After": "2"}) if n == 0 else said("ok")) as server:
        assert HttpChat(server.url, "m").answer([HELLO], GREEDY)[0].text == "ok"
    assert server.times[1] - server.times[0] > 1.5  # the SDK's own first pause is half a second


def test_what_is_asked_again_is_paced_too() -> None:
    with serving(lambda body, n: failed(429, "slow down", {"retry-after-ms": "5"}) if n == 0 else said("ok")) as server:
        assert HttpChat(server.url, "m", rate=60).answer([HELLO], GREEDY)[0].text == "ok"
    assert server.times[1] - server.times[0] > 0.8  # of the second that a rate of 60 asks for


def test_a_connection_that_nobody_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its queue is full, so that no refusal comes back either."""
    monkeypatch.setattr("prmbench.engines.openai.CONNECT_TIMEOUT", 0.2)
    with socket.socket() as deaf, ExitStack() as held:
        deaf.bind(("127.0.0.1", 0))
        deaf.listen(0)
        for _ in range(4):
            waiting = held.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(deaf.getsockname())
        with pytest.raises(RetryError, match="timed out"):
            HttpChat(f"http://127.0.0.1:{deaf.getsockname()[1]}/v1", "m", tries=1).answer([HELLO], GREEDY)


@pytest.mark.parametrize("reply", [failed(429, "quota used up"), failed(502, "bad gateway"), failed(200, "x"), DROP])
def test_a_server_that_stays_away(reply: Reply | str) -> None:
    with pytest.raises(RetryError, match=r"--base-url http://127.*: no answer from the server \(.+\)"):
        answered(lambda body, n: reply, tries=1)
    with pytest.raises(RetryError, match="refused"):
        HttpChat("http://127.0.0.1:9/v1", "m", tries=1).answer([HELLO], GREEDY)


@pytest.mark.parametrize(
    ("reply", "line"),
    [
        (failed(401, "Incorrect API key"), "status 401 for m .Incorrect API key.; check OPENAI_API_KEY"),
        (failed(404, "none of ours"), "status 404 for m .none of ours.; check --model"),
        (failed(404, "no model m"), "status 404 for m .no model m.; check --model, and that the address is complete"),
        (failed(400, "unknown argument:\n top_k"), "refuses the request .unknown argument: top_k."),
        (Reply(b"<html>", headers={"Content-Type": "text/html"}), "what answers is no such server"),
    ],
)
def test_a_refusal_is_one_line(reply: Reply, line: str) -> None:
    with pytest.raises(UserError, match=line) as caught:
        answered(lambda body, n: reply)
    assert "\n" not in str(caught.value)


def test_a_limit_beyond_the_context_is_left_out() -> None:
    long = "This model's maximum context length is 80 tokens. However, you requested 99 tokens"
    with serving(lambda body, n: failed(400, long) if "max_tokens" in body else said("ok", "length")) as server:
        assert HttpChat(server.url, "m").answer([HELLO], GREEDY)[0].text == "ok"
    assert len(server.asked) == 2
    (refused,) = answered(lambda body, n: failed(400, long, code="context_length_exceeded"))
    assert refused.refused.startswith("the server: This model's maximum context length is 80")


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "prmbench.engines.openai")
    monkeypatch.setitem(sys.modules, "openai", None)
    config = ModelConfig(model="m", backend="critic", engine="openai", base_url="http://localhost/v1")
    with pytest.raises(UserError, match=r"engine openai: cannot be imported .+; pip install 'prmbench\[openai\]'"):
        load_backend(config)


def test_pace(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr(time, "sleep", slept.append)
    monkeypatch.setattr(time, "monotonic", iter([100.0, 100.0, 100.0, 101.0, 109.0]).__next__)
    pace = RateLimiter(120)  # one each half a second
    for _ in range(5):
        pace.wait()
    assert slept == [0, 0.5, 1.0, 0.5, 0]
    RateLimiter(None).wait()


# --- probabilities ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        (["It", " is", r" \boxed", "{", ("Yes", {"Yes": math.log(0.6), "No": math.log(0.2)}), "}"], 0.75),
        ([r"\boxed{", ("No", {"No": math.log(0.6), "Yes": math.log(0.2)}), "}."], 0.25),
        ([r"\boxed", ("{Yes", {"{Yes": math.log(0.5), "{No": math.log(0.3), "{Not": -9}), "}"], 0.625),
        # two judgements: the last one
        ([r"\boxed{", ("Yes", {"Yes": -1, "No": -5}), "}", r"\boxed{", ("No", {"No": -1, "Yes": -3}), "}"], 0.119203),
        # the other word is not listed: it has what the last one listed has
        ([r"\boxed{", ("Yes", {"Yes": math.log(0.9), "Maybe": math.log(0.05), "Si": math.log(0.03)}), "}"], 0.9 / 0.93),
        ([r"\boxed{", ("yes", {"yes": math.log(0.6), "no": math.log(0.2), "No": math.log(0.1)}), "}"], 0.75),
        ([r"\boxed{", "Y", "es", "}"], None),
        (["Yes", " or", " No"], None),
        ([], None),
    ],
)
def test_weighing(tokens: list[Any], expected: float | None) -> None:
    found = located_word_probability(listed(*tokens)["content"], JUDGE)
    assert found == (None if expected is None else pytest.approx(expected, rel=1e-5))


def test_choice() -> None:
    first = listed(("Yes", {"Yes": math.log(0.4), " yes": math.log(0.2), "no": math.log(0.2), "Maybe": -1}))["content"]
    assert first_word_probability(first, ("yes", "no")) == pytest.approx(0.75)
    assert first_word_probability(listed("Well")["content"], ("yes", "no")) is None


def test_a_decision_is_one_token() -> None:
    odds = listed(("No", {"No": math.log(0.75), "Yes": math.log(0.25)}))
    with serving(lambda body, n: said("No", "length", (50, 1), logprobs=odds)) as server:
        (answer,) = HttpChat(server.url, "m").choose_word([HELLO], ("yes", "no"))
    assert answer == Answer("", "length", 50, 1, good_probability=pytest.approx(0.25))
    sent = server.asked[0]
    assert (sent["max_tokens"], sent["logprobs"], sent["top_logprobs"]) == (1, True, 20)


@pytest.mark.parametrize("logprobs", [None, {"content": []}, {"content": [{"token": "a", "top_logprobs": []}]}])
def test_a_server_without_probabilities(logprobs: Any) -> None:
    with pytest.raises(UserError, match="gives no top_logprobs"):
        answered(lambda body, n: said(r"\boxed{Yes}", logprobs=logprobs), comparison=JUDGE)


@pytest.mark.parametrize(
    "logprobs",
    [
        [1],
        {"content": [3]},
        {"content": [{"top_logprobs": [1]}]},
        {"content": [{"token": r"\boxed{", "logprob": -1, "top_logprobs": [{}]}, {"token": "Yes}", "logprob": -1}]},
    ],
)
def test_malformed_probabilities(logprobs: Any) -> None:
    (answer,) = answered(lambda body, n: said(r"\boxed{Yes}", logprobs=logprobs), comparison=JUDGE)
    assert (answer.good_probability, answer.unreadable) == (None, "malformed answer: its log-probabilities are none")


# --- addresses and keys -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url",
    [
        "https://me:secret7@host/v1",
        "https://host/v1?key=secret7",
        "https://secret7@host/v1",
        "ftp://secret7",
        "secret7",
        "http://[secret7/v1",
        "https://host/v1#secret7",
    ],
)
def test_addresses_with_secrets(url: str) -> None:
    with pytest.raises(UserError, match=r"^--base-url: ") as caught:
        server_host(url)
    assert "secret7" not in str(caught.value)


def test_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    assert [is_local(server_host(f"http://{h}:1/v1")) for h in ("localhost", "127.0.0.9", "10.1.2.3", "[::1]")] == [
        True
    ] * 4
    assert not is_local("api.openai.com")
    assert api_key("localhost") == "no-key-needed"
    with pytest.raises(UserError, match=r"OPENAI_API_KEY is not set, and api.openai.com is no local server"):
        api_key("api.openai.com")
    monkeypatch.setenv("OPENAI_API_KEY", f" {KEY}\n")
    assert api_key("api.openai.com") == KEY
    monkeypatch.setenv("OPENAI_API_KEY", "sk-\n-7")
    with pytest.raises(UserError, match="holds characters that no key has") as caught:
        api_key("localhost")
    assert "sk-" not in str(caught.value)


# --- through the command line ---------------------------------------------------------------------------------------


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


def command(server: str, data: Path, out: Path, *more: object) -> list[str]:
    how = ["--backend", "critic", "--engine", "openai", "--base-url", server, "--model", "m"]
    return ["eval", *how, "--data", str(data), "--out", str(out), *map(str, more)]


def call(*arguments: object) -> Result:
    return CliRunner(env={"COLUMNS": "200", "TERM": "dumb", "NO_COLOR": "1"}).invoke(app, [str(a) for a in arguments])


def number(body: dict[str, Any]) -> int:
    """Which trace a request is about."""
    return int(body["messages"][0]["content"].split("[Math Problem]\n\n")[1].split(" ")[0])


def gold(body: dict[str, Any], n: int) -> Reply:
    return said(rf"So \boxed{{{number(body) % 3 - 1}}}")


def test_end_to_end(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with serving(gold) as server:
        result = call(*command(server.url, data, tmp_path / "out", "--input-price", 2, "--output-price", 10), "--json")
        assert result.exit_code == 0, result.output
        again = call(*command(server.url, data, tmp_path / "out", "--input-price", 2, "--output-price", 10), "--json")
    assert len(server.asked) == 6  # the second time nothing was asked
    found, repeated = json.loads(result.stdout), json.loads(again.stdout)
    assert found["rows"] == repeated["rows"]
    (f1,) = {r["value"] for r in found["rows"] if (r["protocol"], r["metric"]) == ("vote/native", "f1")}
    assert f1 == 1
    manifest = found["manifest"]
    assert (manifest["kind"], manifest["input_format"], manifest["engine"]) == (
        "verdict",
        "critic/processbench",
        "openai",
    )
    assert (manifest["tokens"], manifest["completion_tokens"]) == (6 * 120, 6 * 20)
    assert manifest["cost"] == pytest.approx(6 * (100 * 2 + 20 * 10) / 1e6)
    assert manifest["config"]["base_url"] == "127.0.0.1"
    (texts,) = (tmp_path / "out").glob("*.critiques.jsonl")
    assert json.loads(texts.read_text().splitlines()[0]) == {"id": "t-0", "said": [r"So \boxed{-1}"]}
    assert all(h["authorization"] == f"Bearer {KEY}" for h in server.headers)
    leaks(KEY, tmp_path, result)


def leaks(key: str, folder: Path, *results: Result) -> None:
    for path in folder.rglob("*"):
        assert path.is_dir() or key.encode() not in path.read_bytes(), path
    for result in results:
        assert key not in result.stdout + result.stderr


def test_no_key_in_errors(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with serving(lambda body, n: failed(401, f"Incorrect API key provided: {KEY}")) as server:
        result = call(*command(server.url, data, tmp_path / "out"))
    assert result.exit_code == 2
    assert "Incorrect API key provided: ***" in result.stderr
    leaks(KEY, tmp_path, result)


def test_votes_malformed_ones_among_them(data: Path, tmp_path: Path) -> None:
    seen: dict[int, int] = {}
    together = threading.Barrier(3)

    def script(body: dict[str, Any], n: int) -> Reply:
        if n < 3:
            together.wait(60)  # fails unless three are under way at once
        trace = number(body)
        seen[trace] = seen.get(trace, 0) + 1
        return said(["no text"]) if seen[trace] == 1 else gold(body, n)

    with serving(script) as server:
        more = ("--votes", 3, "--json", "--requests", 3)
        result = call(*command(server.url, data, tmp_path / "out", *more))
    assert result.exit_code == 0, result.output
    assert (len(server.asked), server.most) == (18, 3)
    assert len({body["seed"] for body in server.asked}) == 18
    assert {(body["temperature"], body["top_p"]) for body in server.asked} == {(1.0, 0.9)}
    assert json.loads(result.stdout)["manifest"]["input_format"] == "critic/processbench votes=3"
    out = tmp_path / "out"
    (texts,) = out.glob("*.critiques.jsonl")
    row = json.loads(texts.read_text().splitlines()[2])
    assert row == {"id": "t-2", "said": ["malformed answer: its content is no text", r"So \boxed{1}", r"So \boxed{1}"]}


def test_a_run_is_finished_whatever_the_shape_of_its_answers(data: Path, tmp_path: Path) -> None:
    """Parts, thoughts, half a surrogate pair, no answer; a server that wants other parameters; what is told of it."""
    content: dict[int, Any] = {
        0: [part("thinking", r"\boxed{1}?"), part("text", r"So \boxed"), part("text", "{-1}")],
        1: "\ud83d \\boxed{0}",
        2: r"<think>Maybe \boxed{1}. Hmm",
        3: None,
        4: [part("text", "\ud83d"), part("text", "\ude00 \\boxed{\uff10}")],
        5: r"\boxed{+1}",
    }

    def script(body: dict[str, Any], n: int) -> Reply:
        if {"temperature", "max_tokens"} & set(body):
            return failed(400, "use max_completion_tokens, not max_tokens, and no temperature")
        return said(content[number(body)])

    with serving(script) as server:
        result = call(*command(server.url, data, tmp_path / "out"), "--requests", 1, "--json")
    assert result.exit_code == 0, result.output
    changes = ["max_tokens sent as max_completion_tokens", "temperature left out"]
    assert result.stderr.splitlines() == [
        f"note: --base-url {server.url} refuses a parameter: {change}" for change in changes
    ]
    assert json.loads(result.stdout)["manifest"]["request_changes"] == changes
    (texts,) = (tmp_path / "out").glob("*.critiques.jsonl")
    stored = {row["id"]: row["said"][0] for row in map(json.loads, texts.read_text("utf-8").splitlines())}
    assert stored["t-0"] == "<think>\n\\boxed{1}?\n</think>\nSo \\boxed{-1}"
    assert (stored["t-1"], stored["t-4"]) == ("\ufffd \\boxed{0}", "\U0001f600 \\boxed{\uff10}")
    assert (stored["t-2"], stored["t-3"]) == (content[2], "empty answer")
    (scores,) = (tmp_path / "out").glob("*.scores.jsonl.gz")
    rows = map(json.loads, gzip.decompress(scores.read_bytes()).splitlines())
    verdicts = {row["id"]: row["verdicts"] for row in rows}
    assert verdicts == {"t-0": [-1], "t-1": [0], "t-2": [None], "t-3": [None], "t-4": [0], "t-5": [1]}


@pytest.mark.parametrize("used", [(0, 0), (100, 0), (0, 20), (None, 20), (100, None)])
def test_prices_need_counts(used: Any, data: Path, tmp_path: Path) -> None:
    prices = ("--input-price", 2, "--output-price", 10)
    with serving(lambda body, n: said("x", used=used)) as server:
        result = call(*command(server.url, data, tmp_path, *prices))
    assert result.exit_code == 2
    assert "the server does not tell what it used" in result.stderr


@pytest.mark.slow
def test_a_server_that_goes_away_for_a_while(data: Path, tmp_path: Path) -> None:
    with serving(lambda body, n: gold(body, n) if n < 4 else failed(503, "restarting")) as server:
        more = ("--requests", 2)
        result = call(*command(server.url, data, tmp_path / "out", *more))
        assert result.exit_code == 75, result.output
        assert "no answer from the server (restarting)" in result.stderr
        answered = {number(body) for body in server.asked[:4]}
    with serving(gold) as other:  # at another address
        finished = call(*command(other.url, data, tmp_path / "out", *more, "--json"))
        assert finished.exit_code == 0, finished.output
    assert {number(body) for body in other.asked} == set(range(6)) - answered


@pytest.mark.slow
def test_killed_and_resumed(data: Path, tmp_path: Path) -> None:
    seen = threading.Event()

    def script(body: dict[str, Any], n: int) -> Reply:
        if n < 3:
            return gold(body, n)
        seen.set()
        return Reply(gold(body, n).body, wait=60)

    with serving(script) as server:
        arguments = command(server.url, data, tmp_path / "out", "--requests", 1)
        with Child(prmbench, *arguments):
            assert seen.wait(120)
        done = {number(body) for body in server.asked[:3]}
    with serving(gold) as other:
        more = ("--requests", 1, "--json")
        finished = call(*command(other.url, data, tmp_path / "out", *more))
    assert finished.exit_code == 0, finished.output
    assert {number(body) for body in other.asked} == set(range(6)) - done
    assert json.loads(finished.stdout)["manifest"]["tokens"] == 6 * 120
    assert not list((tmp_path / "out").glob("*.journal"))


@pytest.mark.slow
def test_ctrl_c_waits_for_no_request(data: Path, tmp_path: Path) -> None:
    """The server answers two traces and then nobody until the process has ended."""
    stuck, ended = threading.Event(), threading.Event()

    def script(body: dict[str, Any], n: int) -> Reply:
        if n >= 2:
            stuck.set()
            ended.wait(300)
        return gold(body, n)

    with serving(script) as server:
        arguments = command(server.url, data, tmp_path / "out", "--requests", 2)
        written = partial((tmp_path / "out").glob, "*.journal/0.jsonl")
        try:
            with Child(prmbench, *arguments) as process:
                assert stuck.wait(120)
                process.wait_for(lambda: any(path.stat().st_size for path in written()))  # on its way to disk
                process.send(signal.SIGTERM)  # as Ctrl-C, and not ignored in the background
                assert process.wait(240) == 143
        finally:
            ended.set()
    assert process.stderr.splitlines()[-1].startswith("stopped; what was finished is kept")
    (journal,) = (tmp_path / "out").glob("*.journal/0.jsonl")
    assert len(journal.read_text().splitlines()) >= 1


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (["--base-url", "http://me:pw9@127.0.0.1/v1"], "--base-url: holds a user, a password or a query"),
        (["--votes", 0], "--votes is 0"),
        (["--votes", 4, "--critic-temperature", 0], "--votes 4: at temperature 0 all votes are the same"),
        (["--rate", 0], "--rate is 0"),
        (["--requests", 0], "--requests is 0"),
        (["--max-cost", 1], "--max-cost: needs --input-price and --output-price"),
        (["--input-price", -1], "--input-price is -1"),
        (["--input-price", 1e300], "--input-price is 1e+300; expected at most"),
        (["--output-price", 1e7], "--output-price is 10000000.0; expected 0 to 1e+06"),
        (["--rate", 1e-300], "--rate is 1e-300; expected at least 0.001"),
        (["--input-price", "nan"], "--input-price is nan"),
        (["--output-price", "inf"], "--output-price is inf"),
        (["--input-price", 1, "--output-price", 1, "--max-cost", "nan"], "--max-cost is nan"),
        (["--input-price", 1, "--output-price", 1, "--max-cost", "inf"], "--max-cost is inf"),
        (["--rate", "nan"], "--rate is nan"),
        (["--rate", "inf"], "--rate is inf"),
        (["--critic-temperature", "nan"], "--critic-temperature is nan"),
        (["--critic-temperature", "inf"], "--critic-temperature is inf"),
        (["--critic-top-p", 0], "--critic-top-p is 0"),
        (["--critic-tokens", 0], "--critic-tokens is 0"),
        (["--template", "plain"], "--template: the server renders its own chat template"),
    ],
)
def test_bad_options(options: list[object], line: str, data: Path, tmp_path: Path) -> None:
    result = call(*command("http://127.0.0.1:9/v1", data, tmp_path / "out", *options))
    assert result.exit_code == 2
    (said_line,) = result.stderr.splitlines()
    assert line in said_line
    assert "pw9" not in said_line


def test_dry_run_asks_nobody(data: Path, tmp_path: Path) -> None:
    more = ("--dry-run", "--critic-tokens", 100, "--input-price", 2, "--output-price", 10, "--json")
    result = call(*command("http://127.0.0.1:9/v1", data, tmp_path / "out", *more))
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["batches"] == 6
    assert 6 * 100 < found["tokens"] < 6 * 1000  # a token is a byte at least


def test_no_torch_for_a_server(data: Path) -> None:
    code = "import sys, prmbench.engines.openai, prmbench.backends.critic; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], env=os.environ, check=False).returncode == 0
