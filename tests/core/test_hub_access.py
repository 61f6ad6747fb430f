"""A hub that cannot be reached is found out at once, aloud, and by one question."""

from __future__ import annotations

import http.server
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import pytest
from cli_calls import call

from prmbench.core import hub_access
from prmbench.core.records import Notice, UserError
from prmbench.engines.hf import hub_options


@pytest.fixture(autouse=True)
def online(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As if the hub could be asked, at an address where nobody listens."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    hub_access._answers.cache_clear()
    yield
    hub_access._answers.cache_clear()


@pytest.fixture
def questions(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The paths that a hub which only says `not found` is asked for."""
    paths: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            paths.append(self.path)
            self.send_error(404)

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    yield paths
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.mark.parametrize("command", ["eval", "score"])
def test_a_hub_that_is_not_there_is_one_line_and_said_before(command: str, tmp_path: Path) -> None:
    data = tmp_path / "x.jsonl"
    data.write_text('{"prompt": "1 + 1?", "steps": ["2"], "label": -1}\n')
    result = call(command, "--model", "org/name", "--data", data, "--out", tmp_path / "out")
    assert result.exit_code == 2
    asked, refused = result.stderr.splitlines()
    assert asked == "note: asking 127.0.0.1 for org/name"
    assert refused.startswith("error: --model org/name: no card and no prm.json")
    assert "cannot be loaded (127.0.0.1 cannot be reached, and its cache here does not hold it)" in refused


def test_a_known_model_is_refused_before_the_data_is_read(tmp_path: Path) -> None:
    result = call("eval", "--model", "jinachris/PURE-PRM-7B", "--out", tmp_path / "out")  # its data is on the hub, too
    assert (result.exit_code, len(result.stderr.splitlines())) == (2, 2)
    assert "model jinachris/PURE-PRM-7B: cannot be loaded (127.0.0.1 cannot be reached" in result.stderr


def test_the_cache_is_used_where_the_hub_cannot_be_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_access, "cached_path", lambda *_: Path("config.json"))
    with pytest.warns(Notice, match=r"127\.0\.0\.1 cannot be reached; org/name is read from the cache"):
        assert hub_options("org/name") == {"local_files_only": True}


def test_a_hub_that_answers_is_asked_once(questions: list[str]) -> None:
    with pytest.warns(Notice, match="asking 127.0.0.1 for org/name"):
        assert hub_options("org/name") == {}
    assert hub_options("org/name") == {}
    assert len(questions) == 1


def test_local_models_and_an_offline_hub_are_not_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert hub_options(str(tmp_path)) == {}
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
        with pytest.raises(UserError, match="HF_HUB_OFFLINE forbids"):
            hub_options("org/name")
