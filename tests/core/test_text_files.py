"""A user's text files: with a byte order mark and with any line ends they are read, UTF-16 is one clear line."""

from __future__ import annotations

import gzip
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import ROWS

from prmbench import data, evaluation, tasks
from prmbench.backends import cards, common
from prmbench.config import EvalConfig, ScoreConfig, read_toml
from prmbench.core import result_files
from prmbench.core.reading import normalise_line_ends, read_text, split_json_lines
from prmbench.core.records import UserError
from prmbench.data import converters, processbench, prompts, rollouts, solutions
from prmbench.report import load
from prmbench.rl import result as rl_result
from prmbench.sampling import rollout

BOM = b"\xef\xbb\xbf"
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS[:3])
PROMPTS = '{"prompt": "1 + 1?", "answer": "2"}\n{"prompt": "1 + 2?", "answer": "3"}\n'
TRL = '{"prompt": "P", "completions": ["a", "b"], "labels": [1, 0]}\n'


def template(path: Path) -> object:
    return common.template_source(ScoreConfig(template=str(path)))


READERS: dict[str, tuple[str, str, Callable[[Path], object]]] = {
    "rows of a benchmark, jsonl": ("gsm8k.jsonl", LINES, processbench.from_files),
    "rows of a benchmark, json": ("gsm8k.json", json.dumps(ROWS[:3], indent=1), processbench.from_files),
    "solutions": ("my.jsonl", LINES, lambda path: solutions.from_files(path, "line")),
    "rollouts": ("r.jsonl", LINES, rollouts.read),
    "prompts": ("p.jsonl", PROMPTS, prompts.load),
    "imported rows": ("t.jsonl", TRL, converters.read),
    "options": ("run.toml", 'model = "m"\n[rm]\nloss = "ipvrm"\n', read_toml),
    "a model's card": ("prm.json", '{"backend": "critic"}\n', lambda path: cards.from_folder(path.parent)),
    "what a model was trained on": (
        "prm.json",
        '{"backend": "critic",\n "trained_on": ["x"]}\n',
        lambda path: rl_result._trained_on(str(path.parent)),
    ),
    "a template": ("chat.jinja", "{% for m in messages %}\n{{ m.content }}\n{% endfor %}\n", template),
    "a summary of rollouts": (
        "r.jsonl.json",
        '{"counts":\n {"prompts": 1}}\n',
        lambda path: rollout.read_sidecar(path.with_name("r.jsonl")),
    ),
}
WRITINGS = {
    "with a mark": lambda text: BOM + text.encode(),
    "with two marks": lambda text: BOM + BOM + text.encode(),
    "with CR LF": lambda text: text.replace("\n", "\r\n").encode(),
    "with CR": lambda text: text.replace("\n", "\r").encode(),
    "with a mark and CR LF": lambda text: BOM + text.replace("\n", "\r\n").encode(),
}


@pytest.mark.parametrize("writing", WRITINGS)
@pytest.mark.parametrize("kind", READERS)
def test_files_are_read_alike_however_they_are_written(tmp_path: Path, kind: str, writing: str) -> None:
    name, text, read = READERS[kind]
    (tmp_path / name).write_bytes(text.encode())
    plain = read(tmp_path / name)
    assert plain
    (tmp_path / name).write_bytes(WRITINGS[writing](text))
    assert read(tmp_path / name) == plain


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-be", "utf-16-le", "utf-32"])
@pytest.mark.parametrize("kind", [kind for kind in READERS if kind != "a summary of rollouts"])
def test_utf_16_is_one_clear_line(tmp_path: Path, kind: str, encoding: str) -> None:
    name, text, read = READERS[kind]
    (tmp_path / name).write_bytes(text.encode(encoding))
    with pytest.raises(UserError) as caught:
        read(tmp_path / name)
    told = str(caught.value).removeprefix("--template ")
    assert told.startswith(f"{tmp_path / name}: not ")
    assert "not UTF-8" in told
    assert "looks like UTF-16" in told
    assert "save it as UTF-8" in told
    assert "\n" not in told


def test_big_endian_with_a_mark(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(b"\xfe\xff" + "[]".encode("utf-16-be"))
    with pytest.raises(UserError, match="not UTF-8 at byte 0, looks like UTF-16; save it as UTF-8"):
        data.load("processbench", path)
    path.write_bytes(b'["\xff"]')
    with pytest.raises(UserError, match=r"a\.json: not UTF-8 at byte 2; save it as UTF-8"):
        data.load("processbench", path)


def test_joined_files_have_marks_inside(tmp_path: Path) -> None:
    path = tmp_path / "gsm8k.jsonl"
    path.write_bytes(b"\r\n".join(BOM + json.dumps(row).encode() for row in ROWS[:3]) + b"\r\n" + BOM)
    assert [t.id for t in processbench.from_files(path)] == [row["id"] for row in ROWS[:3]]


def test_a_mark_inside_a_text_is_text(tmp_path: Path) -> None:
    path = tmp_path / "my.jsonl"
    path.write_text(json.dumps({"problem": "\ufeffP", "steps": ["a\ufeffb"]}, ensure_ascii=False), encoding="utf-8")
    (trace,) = solutions.from_files(path, "line")
    assert (trace.prompt, trace.steps) == ("\ufeffP", ("a\ufeffb",))


def test_results_that_an_editor_has_saved(tmp_path: Path, benchmark_folder: Path) -> None:
    run = evaluation.evaluate(EvalConfig("random", data=benchmark_folder, out=tmp_path / "runs"))
    assert run is not None
    shutil.copytree(run.path.parent, tmp_path / "saved")
    saved = tmp_path / "saved" / run.path.name
    saved.write_bytes(BOM + run.path.read_bytes().replace(b"\n", b"\r\n"))
    assert tasks.read_run(saved).result == run.result
    assert len(load.load(saved.parent).refused) + len(load.load(saved.parent).listed) == 1
    saved.write_bytes(run.path.read_text(encoding="utf-8").encode("utf-16"))
    with pytest.raises(UserError, match=r"not UTF-8 at byte 0, looks like UTF-16"):
        tasks.read_run(saved)


def test_scores_of_other_tools_may_hold_line_separators(tmp_path: Path, benchmark_folder: Path) -> None:
    """Our own are escaped; JSON may also have them as they are, and then they do not end a line."""
    run = evaluation.evaluate(EvalConfig("random", data=benchmark_folder, out=tmp_path / "runs"))
    assert run is not None
    line = json.dumps({**run.scores[0].to_json(), "id": "a\u2028b\x85c"}, ensure_ascii=False)
    (read,) = result_files.unpack_scores(gzip.compress(f"{line}\n\n".encode()), run.path)
    assert read.id == "a\u2028b\x85c"


def test_a_file_without_text_is_empty(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"")
    assert read_text(tmp_path / "a") == ""
    (tmp_path / "a").write_bytes(BOM)
    assert read_text(tmp_path / "a") == ""


@pytest.mark.parametrize(
    ("text", "normal"),
    [("a\r\nb\rc\nd", "a\nb\nc\nd"), ("\r\r\n\n\r", "\n\n\n\n"), ("a\x85b\u2028c\x0c", "a\x85b\u2028c\x0c"), ("", "")],
)
def test_line_ends(text: str, normal: str) -> None:
    assert normalise_line_ends(text) == normal
    assert normalise_line_ends(normal) == normal


def test_json_lines() -> None:
    assert split_json_lines('{"a": "\u2028\x85\x0c"}\n\n \n[1]') == ['{"a": "\u2028\x85\x0c"}', "[1]"]
