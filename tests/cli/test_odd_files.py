"""Every command that reads a file, with every kind of odd file: one line and exit code 2, or an ordinary end."""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from cli_calls import call
from odd_files import CONTENTS, DEEP, PATHS, ROW, TEXTS

from prmbench import evaluation, tasks
from prmbench.config import EvalConfig
from prmbench.engines import chat_templates

Arguments = Callable[[Path, Path], list[object]]
"""Given the odd file and a fresh folder."""


def evaluate(benchmark: str) -> Arguments:
    return lambda file, new: [
        *("eval", "--model", "random", "--benchmark", benchmark, "--data", file, "--out", new / "runs")
    ]


READERS: dict[str, Arguments] = {
    **{name: evaluate(name) for name in ("processbench", "prmbench_preview", "best_of_n", "calibration")},
    "drawn before": lambda file, new: ["eval", "--benchmark", "policy", "--data", file, "--out", new / "runs"],
    "score": lambda file, new: ["score", "--model", "random", "--data", file, "--out", new / "s.jsonl"],
    "convert": lambda file, new: ["convert", file, "--out", new / "c.jsonl"],
    "verify": lambda file, new: ["verify", file, "--out", new / "v.jsonl", "--verifier", "exact"],
    "contamination": lambda file, new: ["contamination", "--data", file, "--against", file, "--out", new / "m.json"],
    "config": lambda file, new: ["score", "--config", file, "--out", new / "s.jsonl"],
    "compare": lambda file, _: ["compare", file, file],
    "card": lambda file, new: ["card", file, "--out", new / "c.md"],
    "push": lambda file, _: ["push", file, "--repo", "org/name"],
    "report": lambda file, new: ["report", "--results", new, "--data", file, "--out", new / "report"],
    "prompts": lambda file, new: [
        *("rollout", "--model", new.parent / "model", "--data", file, "--out", new / "r.jsonl", "--dry-run")
    ],
    "rollouts": lambda file, new: [
        *("train-rm", "--model", new.parent / "model", "--data", file, "--out", new / "run", "--dry-run")
    ],
    "validation prompts": lambda file, new: [
        *("train-distrl", "--model", new.parent / "model", "--data", new.parent / "prompts.jsonl"),
        *("--validation-data", file, "--out", new / "run", "--dry-run"),
    ],
    "template": lambda file, new: [
        *("rollout", "--model", new.parent / "model", "--data", new.parent / "prompts.jsonl"),
        *("--template", file, "--out", new / "r.jsonl", "--dry-run"),
    ],
}


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A template of ten thousand brackets is given up sooner."""
    monkeypatch.setattr(chat_templates, "RENDER_TIMEOUT", 0.5)


@pytest.fixture
def new(tmp_path: Path, policy: Path) -> Path:
    """A fresh folder, with a model and prompts beside it."""
    (tmp_path / "model").symlink_to(policy)
    (tmp_path / "prompts.jsonl").write_text(json.dumps({"id": "p", "prompt": "What is 2 plus 2?", "answer": "4"}))
    (tmp_path / "new").mkdir()
    return tmp_path / "new"


def ended(arguments: list[object]) -> int:
    """The exit code, after a check that the end is an orderly one."""
    result = call(*arguments)
    assert result.exception is None or isinstance(result.exception, SystemExit), repr(result.exception)
    assert result.exit_code in (0, 2)
    lines = [line for line in result.stderr.splitlines() if not line.startswith("note:")]
    if result.exit_code == 2:
        (line,) = lines
        assert line.startswith("error: ")
        assert len(line) < 1000 + 2 * max(len(str(a)) for a in arguments)
    return result.exit_code


KINDS = [(reader, kind, ".jsonl") for reader in READERS for kind in CONTENTS]
KINDS += [("processbench", kind, suffix) for kind in CONTENTS for suffix in (".json", ".parquet")]


@pytest.mark.parametrize(("reader", "kind", "suffix"), KINDS)
def test_odd_contents(new: Path, reader: str, kind: str, suffix: str) -> None:
    file = new.parent / f"odd{suffix}"
    raw = CONTENTS[kind]
    file.write_bytes(b"[" + raw + b"]" if suffix == ".json" and raw.startswith(b'{"id"') else raw)
    code = ended(READERS[reader](file, new))
    if reader != "template":  # which may say anything
        assert code == 2
    made = [path for path in new.rglob("*") if path.is_file() and not path.is_relative_to(new / "report")]
    assert made == [] or code == 0


@pytest.mark.parametrize("kind", TEXTS)
@pytest.mark.parametrize("reader", READERS)
def test_odd_texts(new: Path, reader: str, kind: str) -> None:
    file = new.parent / "odd.jsonl"
    raw = TEXTS[kind]
    if reader in ("prompts", "validation prompts"):
        row = json.loads(raw)
        raw = json.dumps({name: row[name] for name in row if name not in ("completion", "outcome", "steps")}).encode()
    file.write_bytes(raw)
    ended(READERS[reader](file, new))


@pytest.mark.parametrize("kind", PATHS)
@pytest.mark.parametrize("reader", READERS)
def test_odd_paths(new: Path, reader: str, kind: str) -> None:
    assert ended(READERS[reader](PATHS[kind](new.parent / "odd.jsonl"), new)) == 2


@pytest.mark.parametrize("kind", [kind for kind in PATHS if kind not in ("a device", "a long name", "a long path")])
def test_odd_members_of_a_folder(new: Path, kind: str) -> None:
    folder = new.parent / "many"
    folder.mkdir()
    (folder / "a.jsonl").write_text(json.dumps(ROW))
    odd = PATHS[kind](folder / "b.jsonl")
    if kind == "a name that is not UTF-8":
        odd.write_text(json.dumps(ROW))
    code = ended(READERS["processbench"](folder, new))
    assert code == (0 if kind == "below a file" else 2)  # `plain` has no suffix of data


def test_a_time_zone_that_nobody_knows(new: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    seen = pyarrow.array([0], pyarrow.timestamp("ms", tz="Mars/Phobos"))
    table = pyarrow.Table.from_pylist([ROW]).append_column("seen", seen)
    pyarrow.parquet.write_table(table, new.parent / "odd.parquet")
    assert ended(READERS["processbench"](new.parent / "odd.parquet", new)) == 2


UNREADABLE = {
    "a terminal's commands": "\x1b[2J",
    "another direction of writing": "rtl\u202e",
    "a line separator alone": "\u2028",
}
"""Names of files that a result may not hold."""


@pytest.mark.parametrize("kind", UNREADABLE)
@pytest.mark.parametrize("role", ["model", "data"])
def test_no_run_is_scored_that_could_not_be_read_again(new: Path, policy: Path, role: str, kind: str) -> None:
    paths = {"model": policy, "data": new.parent / "good.jsonl"}
    paths["data"].write_text(json.dumps(ROW))
    name = UNREADABLE[kind] + (".jsonl" if role == "data" else "")
    (new.parent / name).symlink_to(paths[role])
    paths[role] = new.parent / name
    arguments = ["eval", "--backend", "endo", "--model", paths["model"], "--data", paths["data"], "--out", new / "runs"]
    code = ended(arguments)
    for run in (new / "runs").glob("*.json"):
        tasks.read_run(run)
    assert code == 2 or (role, kind) == ("data", "a line separator alone")


@pytest.mark.parametrize(
    "odd",
    [{"beta": -1.0}, {"beta": 0.0}, {"beta": 1e300}, {"trained_on": ["x" * 2000]}, {"trained_on": ["x"] * 2000}],
    ids=lambda odd: str(odd)[:24],
)
def test_no_run_is_scored_of_a_card_that_could_not_be_read_again(
    new: Path, policy: Path, reference: Path, odd: dict[str, object]
) -> None:
    folder = shutil.copytree(policy, new.parent / "odd")
    (folder / "prm.json").write_text(json.dumps({"backend": "implicit", "ref_model": str(reference), **odd}))
    (new.parent / "good.jsonl").write_text(json.dumps(ROW))
    assert ended(["eval", "--model", folder, "--data", new.parent / "good.jsonl", "--out", new / "runs"]) == 2
    assert not list((new / "runs").glob("*.json"))


@pytest.mark.parametrize("option", [("--calibrate-on", "nowhere"), ("--protocol", "vote/best")])
def test_a_dry_run_refuses_what_a_run_does(new: Path, option: tuple[str, str]) -> None:
    (new.parent / "good.jsonl").write_text(json.dumps(ROW))
    assert ended([*READERS["processbench"](new.parent / "good.jsonl", new), *option, "--dry-run"]) == 2


# --- files of a model -------------------------------------------------------------------------------------------------

CARDS: dict[str, bytes] = {
    "a list": b"[1]",
    "null": b"null",
    "no backend": b"{}",
    "a backend that is a number": b'{"backend": 7}',
    "deep": b'{"backend": ' + b"[" * DEEP,
    "an infinite beta": b'{"backend": "endo", "beta": 1e999}',
    "a beta beyond floats": b'{"backend": "endo", "beta": 1' + b"0" * 400 + b"}",
    "a beta that is a list": b'{"backend": "endo", "beta": ' + b"[" * 500 + b"]" * 500 + b"}",
    "half a character": b'{"backend": "endo", "signal": "\\ud800"}',
    "half a character in a key": b'{"backend": "endo", "\\ud800": 1}',
    "NUL in a path": b'{"backend": "implicit", "ref_model": "a\\u0000b"}',
    "a long path": b'{"backend": "implicit", "ref_model": "' + b"x/" * 300 + b'"}',
    "a key twice": b'{"backend": "endo", "backend": "implicit"}',
    "an unknown key": b'{"backend": "token_cls", "separator": "\\n", "positiv_class": 0}',
}


@pytest.mark.parametrize("kind", CARDS)
def test_odd_cards(new: Path, kind: str) -> None:
    folder = new.parent / "odd"
    folder.mkdir()
    (folder / "prm.json").write_bytes(CARDS[kind])
    (new.parent / "good.jsonl").write_text(json.dumps(ROW))
    assert ended(["eval", "--model", folder, "--data", new.parent / "good.jsonl", "--out", new / "runs"]) == 2
    common = ("--model", new.parent / "model", "--data", new.parent / "prompts.jsonl", "--out", new / "run")
    assert ended(["train-distrl", "--rm-model", folder, *common, "--dry-run"]) == 2


@pytest.mark.parametrize(
    ("key", "nearest"),
    [("separater", "separator"), ("activaton", "activation"), ("Backend", "backend"), ("ref-model", "ref_model")],
)
def test_an_unknown_key_is_told_the_nearest(tmp_path: Path, key: str, nearest: str) -> None:
    (tmp_path / "prm.json").write_text(json.dumps({"backend": "endo", key: 0}))
    line = call("eval", "--model", tmp_path, "--data", tmp_path).stderr
    assert f"unknown key '{key}'; the nearest is '{nearest}'" in line


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "generation_config.json", "model.safetensors"])
@pytest.mark.parametrize("kind", ["empty", "binary", "deep lists", "a list", "too many digits"])
def test_odd_files_of_a_model(new: Path, policy: Path, name: str, kind: str) -> None:
    folder = shutil.copytree(policy, new.parent / "odd")
    (folder / name).write_bytes(CONTENTS[kind])
    (new.parent / "good.jsonl").write_text(json.dumps(ROW))
    common = ("--backend", "endo", "--data", new.parent / "good.jsonl", "--out", new / "runs")
    code = ended(["eval", "--model", folder, *common])
    assert code == 2 or name == "generation_config.json"  # which reading scores has no use for


@pytest.mark.parametrize(
    "odd",
    [
        *({"vocab_size": value} for value in (-1, 0, "x", None, [1])),
        *({"num_attention_heads": value} for value in (0, 3, -4, "x", None)),
        *({"model_type": value} for value in ("no-such", ["llama"], None, 1)),
        *({"rope_parameters": "x"}, {"quantization_config": "x"}, {"rms_norm_eps": "x"}, {"dtype": "float3"}),
    ],
    ids=str,
)
def test_odd_shapes_of_a_model(new: Path, policy: Path, odd: dict[str, object]) -> None:
    folder = shutil.copytree(policy, new.parent / "odd")
    shape = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**shape, **odd}))
    (new.parent / "good.jsonl").write_text(json.dumps(ROW))
    ended(["score", "--model", folder, "--backend", "endo", "--data", new.parent / "good.jsonl", "--out", new / "s"])


PATHS_HERE = ("a folder", "a pipe", "a link to itself")
"""Kinds that can lie at a name that is given."""


# --- files of a run that is under way -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["run.json", "0.jsonl", "0.lock"])
@pytest.mark.parametrize(
    "kind", ["empty", "binary", "deep lists", "a list", "NaN", "a folder", "a pipe", "a link to itself"]
)
def test_odd_files_of_a_journal(new: Path, name: str, kind: str) -> None:
    (new.parent / "good.jsonl").write_text(json.dumps(ROW))
    common = ["eval", "--model", "random", "--data", new.parent / "good.jsonl", "--out", new / "runs"]
    run = evaluation.evaluate(EvalConfig("random", data=new.parent / "good.jsonl", out=new / "first"))
    assert run is not None
    journal = new / "runs" / f"{run.path.stem}.journal"
    journal.mkdir(parents=True)
    if kind in CONTENTS:
        (journal / name).write_bytes(CONTENTS[kind])
    else:
        PATHS[kind](journal / name)
    code = ended(common)
    assert (code == 0) == bool(list((new / "runs").glob("*.json")))
    if code == 0:
        assert tasks.read_run(new / "runs" / run.path.name).scores == run.scores


def test_a_journal_of_another_making_is_refused(new: Path) -> None:
    (new.parent / "good.jsonl").write_text(json.dumps(ROW))
    common = ["eval", "--model", "random", "--data", new.parent / "good.jsonl", "--out", new / "runs"]
    run = evaluation.evaluate(EvalConfig("random", data=new.parent / "good.jsonl", out=new / "first"))
    assert run is not None
    journal = new / "runs" / f"{run.path.stem}.journal"
    facts = {"batch": 0, "process": 0, "seconds": 0.0, "commit": None, "dirty": None}
    for entry in ({"batch": 0}, facts, {**facts, "scores": 5}, {**facts, "scores": [{}]}, {**facts, "scores": [[1]]}):
        journal.mkdir(parents=True)
        (journal / "0.jsonl").write_text(json.dumps(entry) + "\n")
        assert ended(common) == 2
        shutil.rmtree(journal)
    assert ended(common) == 0


# --- folders that may not be searched -------------------------------------------------------------------------------

CAPABILITIES, DROP = 64, 24
"""Numbers of capabilities, more than there are, and PR_CAPBSET_DROP of prctl(2): root then asks like anybody."""


def as_anybody() -> None:
    libc = ctypes.CDLL(None)
    for number in range(CAPABILITIES):
        libc.prctl(DROP, number, 0, 0, 0)


LOCKED = """
import sys
from pathlib import Path
from typer.testing import CliRunner
from prmbench.cli import app
from prmbench.core import progress
progress.FIRST_SECONDS = 1e9  # a slow machine prints no line of progress
folder, new = Path(sys.argv[1]), Path(sys.argv[2])
good, run = new / "good.jsonl", ["eval", "--model", "random"]
for place in (folder, folder / "sub" / "a.jsonl"):
    for command in (
        [*run, "--data", place, "--out", new / "runs"],
        [*run, "--data", good, "--out", place],
        ["score", "--model", "random", "--data", place, "--out", new / "s.jsonl"],
        ["score", "--model", "random", "--data", good, "--out", place],
        ["score", "--config", place],
        ["convert", place, "--out", new / "c.jsonl"],
        ["contamination", "--data", place, "--against", good],
        ["contamination", "--data", good, "--against", place],
        ["contamination", "--data", good, "--against", good, "--out", place],
        ["compare", place, place],
        ["card", place],
        ["report", "--results", place, "--out", new / "report"],
        ["eval", "--model", place, "--data", good],
    ):
        result = CliRunner().invoke(app, [str(part) for part in command])
        lines = result.stderr.splitlines()
        fine = result.exit_code == 2 and len(lines) == 1 and lines[0].startswith("error: ")
        if not fine:
            print(command, result.exit_code, repr(result.exception), lines)
"""


def test_a_folder_that_may_not_be_searched(tmp_path: Path) -> None:
    folder, new = tmp_path / "locked", tmp_path / "new"
    (folder / "sub").mkdir(parents=True)
    new.mkdir()
    for path in (folder / "a.jsonl", folder / "sub" / "a.jsonl", new / "good.jsonl"):
        path.write_text(json.dumps(ROW))
    folder.chmod(0)
    try:
        done = subprocess.run(
            [sys.executable, "-c", LOCKED, str(folder), str(new)],
            preexec_fn=as_anybody,
            env={**os.environ, "HF_HUB_OFFLINE": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
    finally:
        folder.chmod(0o700)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr[-2000:]
