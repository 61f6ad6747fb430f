"""Secrets reach no terminal and no file: the one function that takes them out, and whole runs through every failure."""

from __future__ import annotations

import html
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from chat_server import Reply, failed, listed, part, said, serving
from typer.testing import CliRunner, Result

from prmbench import config as options
from prmbench.cli import app
from prmbench.config.distrl_options import DistRLConfig
from prmbench.core.redaction import first_line, has_secrets, host_of, one_line, origin, scrub, written_origin
from prmbench.engines.openai import HttpChat

KEY = 'sk-test/0123+456"789&abcdef'
PLAIN = "".join(c for c in KEY if c.isalnum())[4:]


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"key {KEY}!", "key ***!"),
        (f"{KEY}{KEY}", "******"),
        (f"?x={quote(KEY, safe='')}", "?x=***"),
        (json.dumps({"key": KEY}), '{"key": "***"}'),
        (json.dumps(KEY).replace("/", "\\/"), '"***"'),
        (f"<p>{html.escape(KEY)}</p>", "<p>***</p>"),
        (f"/{quote(KEY)}", "/***"),
        ("://a://b@c://d", "://***@c://d"),
        ("://" * 200_000, "://" * 200_000),  # in no time
        ("http://me:pw@host/v1", "http://***@host/v1"),
        ("https://me:p@ss:w@host:8000", "https://***@host:8000"),
        ("https://token@host", "https://***@host"),
        ("['http://me:pw@host', 'http://host']", "['http://***@host', 'http://host']"),
        ("http://host/v1?api_key=abc&model=m", "http://host/v1?api_key=***&model=m"),
        ("http://host/v1?model=m&access_token=abc", "http://host/v1?model=m&access_token=***"),
        ("Authorization: Bearer abcdef", "Authorization: ***"),
        ('{"authorization": "Basic bWU6cHc="}', '{"authorization": "***"}'),
        (r"2 @ 3: see https://host/a?b=c, \boxed{1}", r"2 @ 3: see https://host/a?b=c, \boxed{1}"),
        ("", ""),
    ],
)
def test_scrub(text: str, expected: str) -> None:
    assert scrub(text) == expected


@pytest.mark.parametrize("key", ["", " ", "none", "EMPTY", "1"])
def test_a_key_that_is_a_common_word_is_no_secret(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", key)
    text = r"none of 1 is EMPTY: \boxed{1}"
    assert scrub(text) == text


def test_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret-1")
    assert one_line("a\r\n b\tc \x1b[2J \u2028 sk-secret-1 \ud800 \u202e") == "a b c [2J ***"
    assert one_line(ValueError("x\ny")) == "x y"
    assert one_line("") == ""


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("One of:\n (1) this\n (2) that", "One of: (1) this"),
        ("\n\nplain\nmore", "plain"),
        ("ends with:", "ends with:"),
        ("", "ValueError"),
    ],
)
def test_a_message_is_not_cut_at_a_colon(text: str, line: str) -> None:
    assert first_line(ValueError(text)) == line


def test_addresses() -> None:
    assert [has_secrets(f"http://{u}") for u in ("h", "u@h", "h/?a=b", "h/#a")] == [False, True, True, True]
    assert [host_of(u) for u in ("http://me:pw@h:1/v1", "http://[x", "x")] == ["h", "", ""]
    assert origin("HTTPS://Host/a") == ("https", "host", 443)
    assert [origin(u) for u in ("http://h:x", "http://[x", "/a")] == [None, None, None]
    assert written_origin("http://me:pw@[::1]:8000/v1?key=x") == "http://[::1]:8000"
    assert "pw" not in written_origin("http://me:pw@[x")


def test_manifests_hold_no_password() -> None:
    told = options.to_json(DistRLConfig(server=("http://me:pw9@host:8000",)))
    assert "pw9" not in json.dumps(told)
    for url in ("http://me:pw9@host/v1?key=pw9", "http://[pw9"):
        assert "pw9" not in json.dumps(options.to_json(options.EvalConfig(base_url=url)))


# --- whole runs -----------------------------------------------------------------------------------------------------


def verdict(text: str, **more: Any) -> Reply:
    return said(rf"{text} \boxed{{-1}}", **more)


ECHOES: dict[str, Callable[[str], Reply]] = {
    "an answer": verdict,
    "a part": lambda k: said([part("text", k[:9]), part("text", k[9:] + r" \boxed{-1}")]),
    "a thought": lambda k: verdict("x", reasoning_content=k),
    "a thinking part": lambda k: said([part("thinking", k), part("text", r"\boxed{-1}")]),
    "an answer in HTML": lambda k: verdict(html.escape(k)),
    "an answer in PHP's JSON": lambda k: verdict(json.dumps(k).replace("/", "\\/")),
    "a refusal": lambda k: said(None, refusal=k),
    "other fields": lambda k: verdict("x", name=k, logprobs=listed(k)),
    "a filter": lambda k: failed(400, f"filtered {k}", code="content_filter"),
    "a length": lambda k: failed(400, f"{k} exceeds the maximum context length"),
    "a refused parameter": lambda k: failed(400, f"temperature {k}", param="temperature"),
    "bad input": lambda k: failed(400, f"bad {k}"),
    "bad input, nested": lambda k: Reply({"detail": [{"loc": ["body"], "msg": k, "input": k}]}, 422),
    "a key that is wrong": lambda k: failed(401, f"Incorrect API key provided: {k}"),
    "no permission": lambda k: Reply({"detail": k}, 403),
    "no model": lambda k: Reply({"message": k}, 404),
    "text": lambda k: Reply(f"Bearer {k}".encode(), 402, {"Content-Type": "text/plain"}),
    "HTML": lambda k: Reply(f"<p>{html.escape(k)}</p>".encode(), 403, {"Content-Type": "text/html"}),
    "URL": lambda k: failed(400, f"http://127.0.0.1/?q={quote(k, safe='')}"),
    "JSON in text": lambda k: failed(400, json.dumps({"error": json.dumps({"message": k})})),
    "no reason at all": lambda k: Reply({"status": [{"x": k}]}, 400),
    "clipped": lambda k: failed(400, "x" * (200 - len(k) // 2) + k),
    "too many": lambda k: failed(429, k),
    "broken": lambda k: failed(500, k),
    "a gateway": lambda k: failed(200, k),
    "no JSON": lambda k: Reply(f'{{"choices": "{k}'.encode()),
    "no such server": lambda k: Reply(k.encode(), headers={"Content-Type": "text/html"}),
    "usage": lambda k: Reply({**said("x").body, "usage": {"prompt_tokens": k, "completion_tokens": 1}}),
    "a redirect": lambda k: Reply({}, 307, {"Location": f"http://me:{quote(k, safe='')}@other/?key={quote(k)}"}),
    "a host": lambda k: Reply({}, 307, {"Location": f"http://{PLAIN}.example/"}),
}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.jsonl"
    row = {"problem": "1 + 1?", "steps": ["Add.", "2."], "final_answer_correct": True, "label": -1}
    path.write_text("".join(json.dumps({"id": f"t-{n}", **row}) + "\n" for n in range(2)))
    return path


def run(*arguments: object) -> Result:
    return CliRunner(env={"COLUMNS": "200", "NO_COLOR": "1"}).invoke(app, [str(a) for a in arguments])


@pytest.mark.parametrize("echo", ECHOES)
def test_a_key_that_a_server_repeats_reaches_no_terminal_and_no_file(
    echo: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("prmbench.engines.openai.FIRST_PAUSE", 0.001)
    out = tmp_path / "out"
    how = ["--backend", "critic", "--engine", "openai", "--model", "m", "--requests", "1", "--json"]
    with serving(lambda body, n: ECHOES[echo](KEY)) as server:
        done = run("eval", *how, "--base-url", server.url, "--data", data, "--out", out)
    assert server.headers[0]["authorization"] == f"Bearer {KEY}"
    assert done.exception is None or isinstance(done.exception, SystemExit)
    assert done.exit_code in (0, 2, 75)
    if done.exit_code:
        assert len(done.stderr.splitlines()) <= 2  # a note that a parameter is refused comes first
    files = [path for path in tmp_path.rglob("*") if path.is_file() and path != data]
    everything = [done.stdout, done.stderr, *(path.read_bytes().decode("utf-8", "replace") for path in files)]
    assert len(files) >= 2 or done.exit_code
    for spelled in (KEY, quote(KEY, safe=""), quote(KEY), json.dumps(KEY)[1:-1], html.escape(KEY)):
        assert not [text for text in everything if spelled in text]
    if echo != "a host":  # which is no key, and said
        assert not [text for text in everything if KEY[:12] in text]


def test_no_key_in_the_exceptions_of_the_library() -> None:
    from prmbench.core.records import UserError
    from prmbench.engines.chat import ChatRequest
    from prmbench.engines.generation import Sampling

    with serving(lambda body, n: failed(401, f"wrong: {KEY}")) as server, pytest.raises(UserError) as caught:
        HttpChat(server.url, "m").answer([ChatRequest(({"role": "user", "content": "x"},))], Sampling())
    error: BaseException | None = caught.value
    while error is not None:
        assert KEY not in str(error)
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


@pytest.mark.parametrize(
    "arguments",
    [
        ("eval", "--backend", "critic", "--engine", "openai", "--model", "m", "--base-url", "http://me:pw9word@h/v1"),
        ("eval", "--backend", "critic", "--engine", "openai", "--model", "m", "--base-url", "https://h/v1?key=pw9word"),
        ("train-distrl", "--model", "m", "--engine", "server", "--server", "http://me:pw9word@127.0.0.1:8000"),
        ("train-distrl", "--model", "m", "--engine", "server", "--server", "http://127.0.0.1:8000/?key=pw9word"),
        ("train-distrl", "--model", "m", "--engine", "hf", "--server", "http://me:pw9word@127.0.0.1:8000"),
        ("train-distrl", "--model", "m", "--engine", "server", "--server", "http://[pw9word"),
        ("train-distrl", "--model", "m", "--engine", "server", "--server", "ftp://pw9word"),
    ],
)
def test_a_password_in_an_address_is_refused_and_not_repeated(
    arguments: tuple[str, ...], data: Path, tmp_path: Path
) -> None:
    done = run(*arguments, "--data", data, "--out", tmp_path / "out")
    assert done.exit_code == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith(("error: --base-url: ", "error: --server: ", "error: --engine server and"))
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and b"pw9word" in path.read_bytes()]
    assert "pw9word" not in done.stdout + done.stderr


def test_a_value_of_the_wrong_type_is_not_repeated_with_its_password(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text('base-url = ["http://me:pw9word@host/v1"]\n')
    done = run("eval", "--config", file)
    assert done.exit_code == 2
    assert "http://***@host/v1" in done.stderr
