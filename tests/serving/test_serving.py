"""`prmbench serve` over HTTP: the numbers of `score`, refusals of one line, limits, tokens, draining."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from cli_calls import call, fine, refused
from family_checkpoints import llama_tokens, mistral_tokens, qwen_tokens, row_of, save
from safetensors.torch import load_file, save_file
from score_server import JSON, Latch, LengthBackend, Running, eventually, running, service_of

from prmbench import serving
from prmbench.backends import Facts, ModelBackend
from prmbench.config import ServeConfig
from prmbench.core.records import Notice, StepScores
from prmbench.core.redaction import SERVER_TOKEN, one_line
from prmbench.serving import answers, app, connections, request_bodies, uvicorn_server

ONE = {"problem": "1 + 1?", "steps": ["We add.", "It is 2."]}


# --- the numbers of `score` -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def families(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("families")
    tag, turns = row_of("peiyi9979/math-shepherd-mistral-7b-prm"), row_of("RLHFlow/Llama3.1-8B-PRM-Mistral-Data")
    save(root / "tag", "LlamaForCausalLM", mistral_tokens(), 1, **tag)
    save(root / "turns", "LlamaForCausalLM", llama_tokens(), 2, **turns)
    save(root / "separator", "Qwen2ForTokenClassification", qwen_tokens(), 4, **row_of("jinachris/PURE-PRM-7B"))
    value_row = row_of("Skywork/Skywork-o1-Open-PRM-Qwen-2.5-1.5B")
    value = save(root / "value", "Qwen2ForCausalLM", qwen_tokens(), 3, **value_row)
    head = {"v_head.summary.weight": torch.randn(1, 32), "v_head.summary.bias": torch.tensor([0.3])}
    save_file(load_file(value / "model.safetensors") | head, value / "model.safetensors", {"format": "pt"})
    save(root / "reference", "Qwen2ForCausalLM", qwen_tokens(), 7)
    implicit = row_of("PRIME-RL/EurusPRM-Stage1") | {"ref_model": "../reference"}
    save(root / "implicit", "Qwen2ForCausalLM", qwen_tokens(), 8, **implicit)
    save(root / "endo", "Qwen2ForCausalLM", qwen_tokens(), 9, backend="endo")
    for file in root.glob("*/config.json"):
        file.write_text(json.dumps(json.loads(file.read_text()) | {"max_position_embeddings": 400}))
    return {folder.name: folder for folder in root.iterdir() if folder.name != "reference"}


ROWS: list[dict[str, Any]] = [
    {"id": f"sum-{n}", "problem": f"What is {n} + {n}?", "steps": [f"We add {n} and {n}."] * (n + 1)} for n in range(6)
]
ROWS += [
    {"id": 7, "problem": "Half of 18?", "solution": "18 / 2\n\n= 8.\r\n\r\nSo 8."},
    {"id": "é", "problem": "Ünïcode \U0001f600?", "steps": ["x\u2028y", "\u0000z"]},
    {"id": "long", "problem": "Too long?", "steps": ["We add 2 and 3."] * 90},
]
FAMILIES = ("tag", "turns", "separator", "value", "implicit", "endo")


@pytest.mark.parametrize("family", FAMILIES)
def test_the_numbers_are_those_of_score_to_the_last_bit(family: str, families: dict[str, Path], tmp_path: Path) -> None:
    data, out = tmp_path / "rows.jsonl", tmp_path / "scores.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    fine("score", "--model", families[family], "--data", data, "--out", out)
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert [bool(line["unscored"]) for line in lines] == [False] * (len(ROWS) - 1) + [True]
    service = serving.open_service(ServeConfig(model=str(families[family])))
    with running(service) as server:
        status, answer, _ = server.ask("/v1/score", {"solutions": ROWS})
        assert status == 200
        with ThreadPoolExecutor(8) as pool:  # under load, each by itself
            alone = list(pool.map(lambda row: server.ask("/v1/score", row)[1]["results"][0], ROWS))
    assert (answer["model"], answer["kind"]) == (family, service.backend.facts.kind)
    for result, line, other in zip(answer["results"], lines, alone, strict=True):
        assert {key: result[key] for key in answers.RESULT_KEYS} == {key: line[key] for key in answers.RESULT_KEYS}
        assert tuple(result["also"]) == (() if line["unscored"] else tuple(sorted(service.backend.facts.series)))
        for numbers, prefixes in [(result["values"], result["prefix_values"])] + [
            (result["also"][name], result["also_prefix_values"][name]) for name in result["also"]
        ]:
            summed = [sum(numbers[: k + 1]) for k in range(len(numbers))]
            wanted = summed if service.backend.facts.kind == "logratio" else numbers
            assert prefixes == pytest.approx(wanted, rel=1e-6, abs=1e-9)
        assert other["values"] == pytest.approx(result["values"], rel=1e-4, abs=1e-5)
        assert other["tokens"] == result["tokens"]
    unscored = answer["results"][-1]
    assert (unscored["values"], unscored["prefix_values"], unscored["tokens"]) == ([], [], [])
    assert "the model takes 400" in unscored["unscored"]
    assert answer["usage"] == {"input_tokens": sum(r["input_tokens"] for r in answer["results"])}
    assert isinstance(service.backend, ModelBackend)
    assert service.backend.encode.cache_info().currsize == 0, "no trace stays in memory"  # type: ignore[attr-defined]


def test_batches_of_a_request_give_the_same_bits_at_any_load(families: dict[str, Path]) -> None:
    service = serving.open_service(ServeConfig(model=str(families["turns"]), batching="request"))
    with running(service) as server, ThreadPoolExecutor(8) as pool:
        idle = [server.ask("/v1/score", row)[1]["results"] for row in ROWS]
        assert list(pool.map(lambda row: server.ask("/v1/score", row)[1]["results"], ROWS)) == idle


def test_the_random_baseline_depends_on_the_id_as_in_score(tmp_path: Path) -> None:
    data, out = tmp_path / "rows.jsonl", tmp_path / "scores.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in ROWS[:3]))
    fine("score", "--model", "random", "--data", data, "--out", out, "--seed", 3)
    wanted = [json.loads(line)["values"] for line in out.read_text().splitlines()]
    with running(serving.open_service(ServeConfig(model="random", seed=3))) as server:
        assert [server.ask("/v1/score", row)[1]["results"][0]["values"] for row in ROWS[:3]] == wanted


def test_numbers_that_are_not_finite_are_a_reason_and_no_score() -> None:
    class Infinite(LengthBackend):
        def score(self, traces: Any) -> Iterator[StepScores]:
            return iter([StepScores(t.id, (float("nan"),) * len(t.steps), (1,) * len(t.steps)) for t in traces])

    with running(service_of(Infinite())) as server:
        (result,) = server.ask("/v1/score", ONE)[1]["results"]
        (row,) = server.ask("/pooling", {"input": ONE})[1]["data"]
    assert (result["values"], result["prefix_values"], result["unscored"]) == ([], [], "non-finite")
    assert (row["data"], row["unscored"]) == ([], "non-finite")


# --- requests ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    limits = {"max_solutions": 3, "max_steps": 4, "max_characters": 100, "max_body": 2000}
    with running(service_of(LengthBackend(), **limits)) as handle:
        yield handle


@pytest.mark.parametrize(
    ("body", "values"),
    [
        (ONE, [[7, 8]]),
        ({"prompt": "p", "steps": ["a", "bb"], "id": 3, "split": None, "text": None}, [[1, 2]]),
        ({"problem": "p", "text": "a\n\nbb\nc"}, [[1, 4]]),
        ({"problem": "p", "text": "a\n\nbb\nc", "split": "line", "model": "lengths"}, [[1, 2, 1]]),
        ({"problem": "p", "solution": "Step 1: a\nStep 2: bb", "split": "numbered"}, [[9, 10]]),
        ({"problem": "p", "split": "line", "solutions": [{"text": "a\nb"}, {"steps": ["ccc"]}]}, [[1, 1], [3]]),
        (
            {"solutions": [{"problem": "p", "text": "a\nb", "split": "line"}, {"problem": "q", "text": "a\nb"}]},
            [[1, 1], [3]],
        ),
        ({"problem": "é\U0001f600", "steps": ["\u2028\u200b", "\u0000"]}, [[2, 1]]),
    ],
)
def test_solutions_in_every_shape(server: Running, body: dict[str, Any], values: list[list[float]]) -> None:
    status, answer, headers = server.ask("/v1/score", body)
    assert status == 200
    assert [result["values"] for result in answer["results"]] == values
    assert headers["content-type"] == "application/json"
    assert "access-control-allow-origin" not in headers


DEEP = b"[" * 900
BAD_BODIES: list[tuple[Any, int, str]] = [
    (b"", 400, "not valid JSON"),
    (b"{", 400, "not valid JSON"),
    (b"[]", 400, "expected a JSON object"),
    (b"3", 400, "expected a JSON object"),
    (b"null", 400, "expected a JSON object"),
    (b'{"problem": "\xff"}', 400, "not UTF-8 at byte 13"),
    ("{}".encode("utf-16"), 400, "not UTF-8"),
    (b'{"problem": "p", "problem": "q"}', 400, "occurs twice"),
    (b'{"id": NaN}', 400, "NaN is not a number"),
    (b'{"id": -Infinity}', 400, "is not a number"),
    (b'{"id": 1e999}', 400, "too large"),
    (b'{"id": ' + b"1" * 1500 + b', "problem": "p", "text": "t"}', 422, "at most 200 characters"),
    (b'{"id": 1.5, "problem": "p", "text": "t"}', 422, "'id' is 1.5"),
    (b'{"id": true, "problem": "p", "text": "t"}', 422, "'id' is True"),
    (b'{"id": "\\ud800", "problem": "p", "text": "t"}', 422, "valid Unicode"),
    (b'{"problem": "\\udc00", "text": "t"}', 422, "valid Unicode"),
    (b'{"problem": "p", "steps": ["\\ud83d"]}', 422, "valid Unicode"),
    (DEEP, 400, "not valid JSON"),
    (b'{"a":' * 390, 400, "not valid JSON"),
    ({}, 422, "has no solution"),
    ({"problem": "p"}, 422, "has no solution"),
    ({"steps": ["a"]}, 422, "'problem' is missing"),
    ({"problem": " ", "text": "t"}, 422, "not blank"),
    ({"problem": 3, "text": "t"}, 422, "'problem' is 3"),
    ({"problem": "p", "steps": []}, 422, "at least one step"),
    ({"problem": "p", "steps": "a"}, 422, "expected a list"),
    ({"problem": "p", "steps": ["a", ""]}, 422, "step 1"),
    ({"problem": "p", "steps": ["a", None]}, 422, "step 1"),
    ({"problem": "p", "steps": {"a": 1}}, 422, "expected a list"),
    ({"problem": "p", "text": "\n \n"}, 422, "not blank"),
    ({"problem": "p", "text": ["a"]}, 422, "'text' is ['a']"),
    ({"problem": "p", "text": "t", "steps": ["t"]}, 422, "either `steps` or `text`"),
    ({"problem": "p", "prompt": "p", "text": "t"}, 422, "give one of them"),
    ({"problem": "p", "text": "t", "split": "word"}, 422, "choose from paragraph, line, numbered"),
    ({"problem": "p", "text": "t", "split": ["line"]}, 422, "choose from paragraph"),
    ({"problem": "p", "txt": "t"}, 422, "unknown key 'txt'; the nearest is 'text'"),
    ({"k" * 900: 1}, 422, "unknown key"),
    ({"problem": "p", "text": "t", "model": "other"}, 404, "not served here; 'lengths' is"),
    ({"problem": "p", "text": "t", "model": ["lengths"]}, 404, "not served here"),
    ({"solutions": []}, 422, "at least one object"),
    ({"solutions": {"text": "t"}}, 422, "expected a list"),
    ({"problem": "p", "solutions": ["t"]}, 422, "solutions 0"),
    ({"problem": "p", "solutions": [{"text": "t", "model": "lengths"}]}, 422, "unknown key 'model'"),
    ({"problem": "p", "text": "t", "solutions": [{"text": "t"}]}, 422, "both `solutions` and `text`"),
    ({"problem": "p", "solutions": [{"id": 1, "text": "t"}, {"id": "1", "text": "u"}]}, 422, "occurs twice"),
    ({"problem": "p", "solutions": [{"text": "t"}] * 4}, 413, "4 solutions; at most 3 are allowed (--max-solutions)"),
    ({"problem": "p", "steps": ["s"] * 5}, 413, "5 steps; at most 4 are allowed (--max-steps)"),
    ({"problem": "p", "text": "a\n\nb\n\nc\n\nd\n\ne"}, 413, "(--max-steps)"),
    ({"problem": "p" * 60, "text": "t" * 60}, 413, "120 characters; at most 100 are allowed (--max-characters)"),
    ({"problem": "p", "text": "t" * 3000}, 413, "more than 2,000 bytes (--max-body)"),
]


@pytest.mark.parametrize(("body", "status", "says"), BAD_BODIES)
def test_bad_bodies_are_refused_in_one_line(server: Running, body: Any, status: int, says: str) -> None:
    got, answer, _ = server.ask("/v1/score", body)
    assert got == status, answer
    assert set(answer) == {"error"}
    assert set(answer["error"]) == {"message", "type", "code"}
    assert says in answer["error"]["message"]
    assert len(answer["error"]["message"]) <= answers.MAX_MESSAGE
    assert answer["error"]["code"] == status
    assert server.ask("/v1/score", ONE)[0] == 200


def test_a_body_without_a_length_is_limited_while_it_is_read(server: Running) -> None:
    with server.connect() as client:
        client.sendall(b"POST /v1/score HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n")
        client.sendall(b"Transfer-Encoding: chunked\r\n\r\n")
        for _ in range(20):
            client.sendall(b"3e8\r\n" + b" " * 1000 + b"\r\n")
        reply = client.recv(4096)
    assert reply.startswith(b"HTTP/1.1 413 ")
    assert server.service.buffered == 0


@pytest.mark.parametrize(
    ("path", "method", "body", "headers", "status"),
    [
        ("/", "GET", None, {}, 404),
        ("/docs", "GET", None, {}, 404),
        ("/redoc", "GET", None, {}, 404),
        ("/openapi.json", "GET", None, {}, 404),
        ("/v1/score/", "POST", b"{}", JSON, 404),
        ("/v1/score", "GET", None, {}, 405),
        ("/v1/score", "OPTIONS", None, {"access-control-request-method": "POST"}, 405),
        ("/v1/score", "POST", b"{}", {}, 415),
        ("/v1/score", "POST", b"{}", {"content-type": "text/plain"}, 415),
        ("/v1/score", "POST", b"{}", {**JSON, "content-encoding": "gzip"}, 415),
        ("/v1/score", "POST", b"{}", {"content-type": "application/json; charset=utf-8"}, 422),
        ("/v1/models", "GET", None, {"host": "evil.example"}, 421),
        ("/v1/models", "GET", None, {"host": "127.0.0.1.evil.example:8000"}, 421),
        ("/v1/models", "GET", None, {"host": "[::1"}, 421),
        ("/v1/models", "GET", None, {"host": "[::1]:9"}, 200),
        ("/v1/models", "GET", None, {"host": "LOCALHOST:9"}, 200),
        ("/v1/models", "GET", None, {"origin": "http://localhost:3000"}, 403),
        ("/v1/models", "GET", None, {"origin": "null"}, 403),
        ("/health", "GET", None, {"host": "evil.example"}, 421),
        ("/health", "POST", b"", {}, 405),
    ],
)
def test_routes_and_headers(
    server: Running, path: str, method: str, body: bytes | None, headers: dict[str, str], status: int
) -> None:
    got, answer, _ = server.ask(path, body, headers, method)
    assert got == status
    assert ("error" in answer) == (status != 200)


def test_what_is_no_http_is_refused_in_json(server: Running) -> None:
    with server.connect() as client:
        client.sendall(b"\x16\x03\x01 nonsense\r\n\r\n")
        head, _, body = client.makefile("rb").read().partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 ")
    assert json.loads(body)["error"]["code"] == 400


def test_models_says_how_the_model_is_read(families: dict[str, Path]) -> None:
    with running(serving.open_service(ServeConfig(model=str(families["separator"])))) as handle:
        status, answer, _ = handle.ask("/v1/models")
        assert handle.ask("/health")[:2] == (200, {"status": "ok"})
        scored = handle.ask("/pooling", {"input": [ONE, {"problem": "p", "text": "a\n\nb"}]})[1]
        chat = [
            {"role": "user", "content": ONE["problem"]},
            {"role": "assistant", "content": "We add.\n\nIt is 2.\n\n"},
        ]
        asked = handle.ask("/pooling", {"messages": chat, "encoding_format": "float", "task": "token_classify"})[1]
        values = handle.ask("/v1/score", ONE)[1]["results"][0]["values"]
    (model,) = answer["data"]
    assert (status, model["id"], model["backend"], model["separator"]) == (200, "separator", "token_cls", "\n\n")
    assert (model["dtype"], model["input_format"], model["tag"]) == ("float32", "separator '\\n\\n'", None)
    assert set(model["code"]) == {"prmbench", "commit", "dirty"}
    assert model["limits"]["max_steps"] == ServeConfig.max_steps
    assert str(families["separator"].parent) not in json.dumps(model), "no path of this machine"
    rows = asked["data"][0]["data"]
    assert [row[1] for row in rows] == values, "P(right) is the last column, as in vLLM"
    assert [sum(row) for row in rows] == pytest.approx([1, 1])
    assert [(row["index"], row["object"], len(row["data"])) for row in scored["data"]] == [
        (0, "pooling", 2),
        (1, "pooling", 2),
    ]
    assert scored["usage"]["total_tokens"] == scored["usage"]["prompt_tokens"] > 0


def test_a_conversation_is_cut_at_the_models_own_mark() -> None:
    model = request_bodies.Reading(("m",), mark="<extra_0>", system_prompt="Be good.")
    turns = [("system", "Be good."), ("user", "p"), ("assistant", "a\n\nb<extra_0>c<extra_0>")]
    messages = [{"role": role, "content": content} for role, content in turns]
    (trace,) = request_bodies.parse_pooling({"messages": messages}, ServeConfig(), model)
    assert (trace.prompt, trace.steps) == ("p", ("a\n\nb", "c"))


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({"input": "a rendered text"}, "texts and token ids are not supported"),
        ({"input": ["a", "b"]}, "texts and token ids are not supported"),
        ({"input": [[1, 2]]}, "texts and token ids are not supported"),
        ({"input": [1, 2]}, "texts and token ids are not supported"),
        ({"input": []}, "at least one object"),
        ({"input": None}, "either `input` or `messages`"),
        ({"input": ONE, "messages": []}, "either `input` or `messages`"),
        ({"input": ONE, "encoding_format": "base64"}, "only 'float'"),
        ({"input": ONE, "task": "embed"}, "only 'token_classify'"),
        ({"input": ONE, "truncate_prompt_tokens": 5}, "unsupported key 'truncate_prompt_tokens'"),
        ({"messages": "hello"}, "expected a list of objects"),
        ({"messages": [{"role": "user", "content": "p"}]}, "expected user"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "field 'content'"),
        (
            {"messages": [{"role": r, "content": "x"} for r in ("system", "user", "assistant")]},
            "the system prompt is not the one",
        ),
    ],
)
def test_pooling_refuses_what_it_does_not_support(server: Running, body: dict[str, Any], says: str) -> None:
    status, answer, _ = server.ask("/pooling", body)
    assert status == 422
    assert says in answer["error"]["message"]


def test_pooling_needs_step_scores() -> None:
    backend = LengthBackend(facts=Facts("verdict", "none", engine="none", backend="baseline"))
    with running(service_of(backend)) as handle:
        assert "gives verdicts" in handle.ask("/pooling", {"input": ONE})[1]["error"]["message"]


# --- limits under load ------------------------------------------------------------------------------------------------


def test_a_full_queue_is_429_and_a_gone_client_frees_its_place() -> None:
    latch = Latch()
    backend = LengthBackend(before=latch)
    with running(service_of(backend, max_pending=2)) as handle, ThreadPoolExecutor(2) as pool:
        first = pool.submit(handle.ask, "/v1/score", ONE)
        latch.reached.wait(20)
        gone = handle.connect()
        body = json.dumps(ONE | {"problem": "gone"}).encode()
        head = b"POST /v1/score HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        gone.sendall(head + f"Content-Length: {len(body)}\r\n\r\n".encode() + body)
        eventually(lambda: handle.service.scheduler.is_full)
        status, answer, headers = handle.ask("/v1/score", ONE)
        assert (status, headers["retry-after"]) == (429, "1")
        assert "--max-pending" in answer["error"]["message"]
        assert handle.ask("/health")[0] == 200
        gone.close()
        eventually(lambda: not handle.service.scheduler.is_full)
        second = pool.submit(handle.ask, "/v1/score", ONE | {"problem": "second"})
        eventually(lambda: handle.service.scheduler.is_full)
        latch.open.set()
        assert (first.result()[0], second.result()[0]) == (200, 200)
        eventually(lambda: handle.service.buffered == 0)
    assert backend.batches == [["1 + 1?"], ["second"]]


def test_a_request_that_takes_too_long_is_504_and_shows_in_the_health() -> None:
    latch = Latch()
    with running(service_of(LengthBackend(before=latch), timeout=0.2)) as handle:
        status, answer, _ = handle.ask("/v1/score", ONE)
        assert (status, answer["error"]["type"]) == (504, "timeout")
        assert "--timeout" in answer["error"]["message"]
        eventually(lambda: handle.ask("/health")[0] == 503)
        latch.open.set()
        eventually(lambda: handle.ask("/health")[0] == 200)


def test_slow_and_half_closed_clients_are_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "REQUEST_SECONDS", 0.3)
    monkeypatch.setattr(app, "BODY_SECONDS", 0.3)
    head = b"POST /v1/score HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 90\r\n\r\n"
    with running(service_of(LengthBackend())) as handle, contextlib.ExitStack() as stack:
        silent, partial, slow_body, half = (stack.enter_context(handle.connect()) for _ in range(4))
        partial.sendall(b"POST /v1/score HTTP/1.1\r\nHost: lo")
        slow_body.sendall(head + b"{")
        half.sendall(head + b"{")
        half.shutdown(socket.SHUT_WR)
        crowd = [stack.enter_context(handle.connect()) for _ in range(200)]
        assert handle.ask("/v1/score", ONE)[0] == 200, "others are served meanwhile"
        assert slow_body.recv(4096).startswith(b"HTTP/1.1 408 ")
        for client in (silent, partial, half, *crowd):
            with contextlib.suppress(ConnectionResetError):
                assert client.recv(4096) == b""
        eventually(lambda: handle.service.buffered == 0)


def test_buffered_bodies_have_a_limit_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app, "MAX_BUFFERED_BYTES", 50)
    with running(service_of(LengthBackend())) as handle:
        status, _, headers = handle.ask("/v1/score", ONE)
        assert (status, headers["retry-after"]) == (429, "1")
        assert handle.service.buffered == 0


def test_a_poisoned_request_fails_alone_over_http(capsys: pytest.CaptureFixture[str]) -> None:
    latch = Latch()
    with running(service_of(LengthBackend(before=latch), batch_tokens=1000)) as handle, ThreadPoolExecutor(4) as pool:
        first = pool.submit(handle.ask, "/v1/score", ONE)
        latch.reached.wait(20)
        bodies = [{"problem": name, "steps": ["xx", name]} for name in ("a", "poison", "b")]
        others = [pool.submit(handle.ask, "/v1/score", body) for body in bodies]
        eventually(lambda: len(handle.service.scheduler._pending) == 4)
        latch.open.set()
        statuses = [f.result()[0] for f in (first, *others)]
        assert statuses == [200, 200, 500, 200]
        assert others[2].result()[1]["results"][0]["values"] == [2, 1]
        assert "a kernel failed" not in others[1].result()[1]["error"]["message"]
    assert "a kernel failed" in capsys.readouterr().err, "who runs the server sees why"


# --- tokens -----------------------------------------------------------------------------------------------------------


def test_a_token_is_needed_everywhere_but_for_health() -> None:
    with running(service_of(LengthBackend()), token="correct-horse") as handle:
        assert handle.ask("/health")[0] == 200
        for wrong in (
            "",
            "Bearer",
            "Bearer correct-hors",
            "Bearer correct-horse2",
            "Basic correct-horse",
            "correct-horse",
        ):
            for path, body in (("/v1/models", None), ("/v1/score", ONE), ("/nothing", None)):
                status, answer, headers = handle.ask(path, body, {**JSON, "authorization": wrong})
                assert (status, headers["www-authenticate"]) == (401, "Bearer")
                assert "correct" not in json.dumps(answer)
                assert (
                    "send one header Authorization, whose value is Bearer and the token" in answer["error"]["message"]
                )
        for right in ("Bearer correct-horse", "bearer  correct-horse "):
            assert handle.ask("/v1/models", None, {"authorization": right})[0] == 200
            assert handle.ask("/v1/score", ONE, {**JSON, "authorization": right})[0] == 200


@pytest.mark.parametrize("second", ["Bearer wrong", "Bearer correct-horse"])
def test_two_authorization_headers_are_refused_whichever_is_right(second: str) -> None:
    lines = [
        "GET /v1/models HTTP/1.1",
        "Host: localhost",
        f"Authorization: {second}",
        "Authorization: Bearer correct-horse",
    ]
    with (
        running(service_of(LengthBackend()), token="correct-horse") as handle,
        socket.create_connection(("127.0.0.1", handle.port)) as client,
    ):
        client.sendall("\r\n".join([*lines, "", ""]).encode())
        assert client.recv(1000).startswith(b"HTTP/1.1 401 ")


def test_a_token_comes_from_a_file_or_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "token"
    file.write_text("from-a-file\n")
    file.chmod(0o644)
    with pytest.warns(Notice, match="chmod 600"):
        assert serving.read_token(ServeConfig(token_file=file)) == "from-a-file"
    assert serving.read_token(ServeConfig()) is None
    assert serving.read_token(ServeConfig(host="0.0.0.0", no_token=True)) is None
    monkeypatch.setenv(SERVER_TOKEN, "from-outside")
    assert serving.read_token(ServeConfig(host="0.0.0.0")) == "from-outside"
    assert one_line("x from-outside y") == "x *** y"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--host", "0.0.0.0"), "others can reach it"),
        (("--host", "192.0.2.1"), "others can reach it"),
        (("--token-file", "missing"), "--token-file missing: cannot be read"),
        (("--token-file", "."), "it is a folder"),
        (("--token-file", "empty"), "at least 8 characters"),
        (("--token-file", "blank"), "no blanks"),
        (("--token-file", "good", "--no-token"), "drop one of them"),
        (("--host", "no.such.host.invalid", "--no-token"), "cannot be resolved"),
        (("--host", "192.0.2.1", "--no-token"), "cannot be listened on"),
        (("--port", "TAKEN"), "Address already in use"),
        (("--port", "70000"), "expected 0 to 65535"),
        (("--model", "./nothing"), "no such file or folder"),
        (("--model", "gold"), "reads labels"),
        (("--data", "x.jsonl"), "takes its solutions from requests"),
        (("--ref-cache", "cache"), "would grow with every request"),
        (("--engine", "openai", "--backend", "critic"), "behind a server already"),
        (("--batching", "both"), "choose from shared, request"),
    ],
)
def test_a_server_that_cannot_start_says_why_in_one_line(
    arguments: tuple[str, ...], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, text in {"empty": "", "blank": "two words", "good": "good-token"}.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o600)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert says in refused("serve", "--model", "random", *(port if a == "TAKEN" else a for a in arguments))


@pytest.mark.parametrize(("host", "shown"), [("::1", "[::1]"), ("127.0.0.2", "127.0.0.2"), ("localhost", "")])
def test_every_loopback_address_is_served_without_a_token(host: str, shown: str) -> None:
    with serving.bind(host, 0) as listener:
        config = ServeConfig(model="random", host=host)
        assert serving.read_token(config) is None
        line = uvicorn_server._startup_line(serving.open_service(config), listener, None)
        assert f"random at http://{shown}" in line


def test_the_documented_client_runs(families: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    page = (Path(serving.__file__).parents[2] / "docs" / "serving.md").read_text(encoding="utf-8")
    (snippet,) = re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    with running(serving.open_service(ServeConfig(model=str(families["turns"])))) as handle:
        exec(snippet.replace(":8000", f":{handle.port}"), {})
    first, *others = capsys.readouterr().out.splitlines()
    assert len(json.loads("[" + first.replace("] [", "], [") + "]")) == 2
    assert [line.split()[0] for line in others] == ["solution-0", "solution-1"]


def test_a_missing_package_is_named_with_its_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *_: None)
    assert "needs fastapi, which is not installed; pip install 'prmbench[serve]'" in refused(
        "serve", "--model", "random"
    )


def test_a_dry_run_describes_the_model(families: dict[str, Path]) -> None:
    text = json.loads(fine("serve", "--model", families["tag"], "--dry-run"))
    assert (text["backend"], text["tag"], text["kind"]) == ("tag_lm", "ки", "prob")


# --- stopping ---------------------------------------------------------------------------------------------------------


def test_draining_answers_what_was_taken_and_refuses_the_rest() -> None:
    latch = Latch()
    with running(service_of(LengthBackend(before=latch))) as handle, ThreadPoolExecutor(2) as pool:
        taken = [pool.submit(handle.ask, "/v1/score", ONE | {"problem": str(n)}) for n in range(2)]
        eventually(lambda: len(handle.service.scheduler._pending) == 2)
        handle.stop()
        eventually(lambda: handle.ask("/health")[0] == 503)
        status, answer, headers = handle.ask("/v1/score", ONE)
        assert (status, answer["error"]["type"], headers["connection"]) == (503, "stopping", "close")
        latch.open.set()
        assert [f.result()[0] for f in taken] == [200, 200]
    assert handle.in_time == [True]


def test_draining_does_not_wait_for_a_body_that_never_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app, "LAST_BODY_SECONDS", 0.1)
    with running(service_of(LengthBackend())) as handle, handle.connect() as client:
        head = b"POST /v1/score HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        client.sendall(head + b"Content-Length: 90\r\n\r\n{")
        eventually(lambda: handle.service.buffered == 1)
        handle.stop()
        assert client.recv(4096).startswith(b"HTTP/1.1 408 ")
    assert handle.in_time == [True]


def test_an_error_in_the_queue_itself_ends_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    service = service_of(LengthBackend())

    def fail(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(service.scheduler, "_batches", fail)
    listener = serving.bind("127.0.0.1", 0)
    serving.listen(listener, service.config)
    handle = Running(listener.getsockname()[1], service, lambda: None)
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(handle.ask, "/v1/score", ONE)
        with pytest.raises(ZeroDivisionError):
            asyncio.run(uvicorn_server.run(service, listener, None, quiet=True))
        assert answer.result()[0] == 503


def test_draining_has_a_time_limit() -> None:
    latch = Latch()
    with running(service_of(LengthBackend(before=latch), drain=0.1)) as handle, ThreadPoolExecutor(2) as pool:
        taken = pool.submit(handle.ask, "/v1/score", ONE)
        assert latch.reached.wait(20)
        handle.stop()
        status, answer, _ = taken.result()
        assert (status, "stopped before" in answer["error"]["message"]) == (503, True)
        eventually(lambda: handle.in_time == [False])
        latch.open.set()


SLOW = """
import time
from prmbench import StepScores
from prmbench.backends import Facts

class Slow:
    def __init__(self, config):
        self.facts = Facts(kind="value", input_format="none")
    def cost(self, trace):
        return 1
    def score(self, traces):
        time.sleep(float(traces[0].steps[0]))
        return iter([StepScores(t.id, (1.0,) * len(t.steps), (1,) * len(t.steps)) for t in traces])
"""


@contextlib.contextmanager
def process(tmp_path: Path, *arguments: str) -> Iterator[tuple[subprocess.Popen[str], Running]]:
    """The command itself, whose backend takes as many seconds as the first step says."""
    (tmp_path / "slow_backend.py").write_text(SLOW)
    command = [sys.executable, "-m", "prmbench", "serve", "--backend", "slow_backend:Slow", "--model", "slow"]
    path = os.pathsep.join([str(Path(serving.__file__).parents[2]), str(tmp_path)])
    environment = {**os.environ, "PYTHONPATH": path}
    with subprocess.Popen(
        [*command, "--port", "0", *arguments], stderr=subprocess.PIPE, text=True, env=environment, cwd=tmp_path
    ) as started:
        try:
            assert started.stderr is not None
            line = started.stderr.readline()
            assert line.startswith("serving: slow at http://127.0.0.1:"), line
            yield started, Running(port_in(line), None, lambda: None)  # type: ignore[arg-type]
        finally:
            started.kill()


def port_in(line: str) -> int:
    """The port in the line that names the address."""
    return int(line.partition("127.0.0.1:")[2].partition(",")[0])


def ask_slowly(server: Running, pool: ThreadPoolExecutor, seconds: str) -> Any:
    return pool.submit(server.ask, "/v1/score", {"problem": "p", "steps": [seconds]})


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_drains_and_the_command_ends_with_zero(
    number: signal.Signals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command itself in this thread, which is the one that signals reach."""
    assert threading.current_thread() is threading.main_thread()
    (tmp_path / "slow_backend.py").write_text(SLOW)
    monkeypatch.syspath_prepend(str(tmp_path))
    statuses: list[int] = []

    def ask(line: str) -> None:
        server = Running(port_in(line), None, lambda: None)  # type: ignore[arg-type]
        with ThreadPoolExecutor(1) as pool:
            answer = ask_slowly(server, pool, "0.5")
            time.sleep(0.1)
            os.kill(os.getpid(), number)
            statuses.append(answer.result()[0])

    asking: list[threading.Thread] = []

    def say(kind: str, message: object) -> None:
        if kind == "serving":
            asking.append(threading.Thread(target=ask, args=(str(message),)))
            asking[0].start()

    monkeypatch.setattr("prmbench.serving.uvicorn_server.say", say)
    result = call("serve", "--backend", "slow_backend:Slow", "--model", "slow", "--port", "0", "--access-log")
    asking[0].join(20)
    assert (statuses, result.exit_code) == ([200], 0)
    assert "request: POST /v1/score 200 " in result.stderr


def test_a_drain_that_took_too_long_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "serve", lambda *_: False)
    monkeypatch.setattr(os, "_exit", sys.exit)
    result = call("serve", "--model", "random")
    assert result.exit_code == 143
    assert result.stderr == "error: stopped before every request was answered; use a longer --drain\n"


def test_a_second_signal_ends_at_once(tmp_path: Path) -> None:
    with process(tmp_path) as (started, server), ThreadPoolExecutor(1) as pool:
        answer = ask_slowly(server, pool, "60")
        time.sleep(0.3)
        started.send_signal(signal.SIGINT)
        eventually(lambda: server.ask("/health")[0] == 503)
        started.send_signal(signal.SIGTERM)
        assert started.wait(20) == 143, "not after the minute that the model is busy for"
        with pytest.raises((ConnectionError, OSError)):
            answer.result()
