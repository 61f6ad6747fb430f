"""Mistyped models are refused at once, with what was meant; names that may be on the hub are not."""

from __future__ import annotations

from pathlib import Path

import pytest
from cli_calls import refused

from prmbench import config
from prmbench.backends import BASELINES, cards
from prmbench.config import check_model_path
from prmbench.config.model_names import nearest_model
from prmbench.core import hub_access
from prmbench.core.records import UserError

KNOWN = (*BASELINES, *cards.MODELS)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with some models; a question to the hub is an error."""
    for name in ("runs/ipvrm", "runs/dpo-rm", "models/final"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "config.json").write_text("{}")
    (tmp_path / "Qwen").mkdir()
    (tmp_path / "small.gguf").write_bytes(b"")
    (tmp_path / "random-notes").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(hub_access, "_answers", lambda *_: pytest.fail("asked the hub"))
    return tmp_path


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("runs/ipvrn", "runs/ipvrm"),
        ("runs/IPVRM", "runs/ipvrm"),
        ("./runs/ipvrm2", "runs/ipvrm"),
        ("rnus/dpo_rm/", "runs/dpo-rm"),
        ("runs\\ipvrm", "runs/ipvrm"),
        ("ipvrm", "runs/ipvrm"),
        ("ipvrn", "runs/ipvrm"),
        ("finall", "models/final"),
        ("smal.gguf", "small.gguf"),
        ("randon", "random"),
        ("step_length", "step-length"),
        ("Random", "random"),
        ("Qwen2.5-Math-PRM-7B", "Qwen/Qwen2.5-Math-PRM-7B"),
        ("qwen/qwen2.5-math-prm-7b", "Qwen/Qwen2.5-Math-PRM-7B"),
        ("xyzzy", None),
        ("runs/xyzzy", None),
        ("/no/such/place", None),
        ("./xyzzy", None),
        ("~/xyzzy", None),
        ("xyzzy.gguf", None),
    ],
)
def test_a_mistyped_model_is_refused_with_the_nearest(folder: Path, name: str, meant: str | None) -> None:
    line = refused("eval", "--model", name, "--data", "x.json")
    assert f"--model {name}: " in line
    assert (f"did you mean {meant}?" in line) if meant else ("did you mean" not in line)
    assert "random, step-length" in line or name != "xyzzy"


@pytest.mark.parametrize(
    ("name", "meant"), [("run/ipvrm", "runs/ipvrm"), ("Qwem/Qwen2.5-Math-PRM-7B", "Qwen/Qwen2.5-Math-PRM-7B")]
)
def test_a_name_that_may_be_on_the_hub_is_asked_for_and_then_explained(folder: Path, name: str, meant: str) -> None:
    line = refused("eval", "--model", name, "--data", "x.json")  # HF_HUB_OFFLINE is set
    assert "HF_HUB_OFFLINE forbids to ask the hub" in line
    assert line.endswith(f"did you mean {meant}?")


def test_the_home_folder_in_quotes_is_found(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(folder))
    assert nearest_model("~/runs/ipvrm") == f"{folder}/runs/ipvrm"


@pytest.mark.parametrize(
    "name", [*KNOWN, "runs/ipvrm", "small.gguf", "org/name", "org/runs", "Qwen/Qwen2.5-Math-PRM-7B"]
)
def test_what_exists_is_known_or_may_be_on_the_hub_passes(folder: Path, name: str) -> None:
    check_model_path(name, KNOWN)


def test_a_cached_hub_model_passes_without_a_slash(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="no hub id"):
        check_model_path("gpt2")
    monkeypatch.setattr(hub_access, "cached_path", lambda *_: Path("config.json"))
    for name in ("gpt2", "runs/elsewhere"):
        check_model_path(name)


@pytest.mark.parametrize("command", ["rollout", "train-rm", "score"])
def test_other_commands_refuse_it_too(folder: Path, command: str) -> None:
    (folder / "x.jsonl").write_text('{"prompt": "1 + 1?", "answer": "2", "steps": ["2"]}\n')
    line = refused(command, "--model", "runs/ipvrn", "--data", "x.jsonl", "--out", "out.jsonl")
    assert "did you mean runs/ipvrm?" in line


def test_a_mistyped_reference_names_its_option(folder: Path) -> None:
    line = refused("eval", "--model", "runs/ipvrm", "--backend", "implicit", "--ref-model", "runs/ipvrn", "--data", "x")
    assert line == (
        "error: --ref-model runs/ipvrn: the folder runs is here, and ipvrn is not in it; did you mean runs/ipvrm? "
        "(for a hub id of that name, start in another folder)"
    )


@pytest.mark.parametrize(
    ("written", "text"),
    [(r"\n\n", "\n\n"), ("\n\n", "\n\n"), (r"\t", "\t"), (r"\r\n", "\r\n"), (r"\\n", r"\n"), (r"\boxed", r"\boxed"),
     ("ки", "ки"), ("\\", "\\"), (r" \n", " \n")],
)  # fmt: skip
def test_escapes_of_a_shell(written: str, text: str) -> None:
    assert config.unescape(written) == text


def test_texts_of_options_are_no_paths(folder: Path) -> None:
    values = config.to_json(config.EvalConfig("random", separator=r"\n", tag=".", name="./runs/ipvrm"))
    assert (values["separator"], values["tag"], values["name"]) == (r"\n", ".", "./runs/ipvrm")
    assert config.to_json(config.EvalConfig("random", separator="\n"))["separator"] == r"\n"
