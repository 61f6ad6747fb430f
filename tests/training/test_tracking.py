"""`--tracker`: what metrics.jsonl holds is also sent to another program, and the file stays the record."""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path
from typing import Any

import pytest
from cli_calls import fine, refused
from train_runs import data

from prmbench.core.records import UserError
from prmbench.training.tracking import tracker


@pytest.mark.parametrize("command", ["train-rm", "train-sft"])
def test_the_numbers_of_metrics_jsonl_are_sent_and_the_run_is_the_same(
    policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    sent: list[tuple[int, dict[str, float]]] = []
    started: list[dict[str, Any]] = []
    fake = types.ModuleType("trackio")
    fake.init = lambda **facts: started.append(facts)  # type: ignore[attr-defined]
    fake.log = lambda numbers, step: sent.append((step, numbers))  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "trackio", fake)
    train = [command, "--model", policy, "--data", data(tmp_path), "--preset", "miniature", "--steps", 3]
    train += ["--device", "cpu", "--validation", 0.25]
    fine(*train, "--out", tmp_path / "a", "--tracker", "trackio")
    lines = [json.loads(line) for line in (tmp_path / "a" / "metrics.jsonl").read_text().splitlines()]
    assert any("validation_loss" in line for line in lines)
    expected = [{k: v for k, v in line.items() if k != "update" and v is not None} for line in lines]
    assert sent == [(line["update"], numbers) for line, numbers in zip(lines, expected, strict=True)]
    assert [facts["name"] for facts in started] == ["a"]
    assert started[0]["config"]["steps"] == 3
    fine(*train, "--out", tmp_path / "a")  # the same run without a tracker: finished before
    assert len(sent) == len(lines)
    identity = json.loads((tmp_path / "a" / "train.json").read_text())["identity"]
    assert "tracker" not in identity


@pytest.mark.parametrize("command", ["train-rm", "train-sft", "train-distrl"])
@pytest.mark.parametrize("name", ["tensorboard", "wandb", "trackio"])
def test_a_tracker_that_is_not_installed_is_one_line_before_the_training(
    policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str, name: str
) -> None:
    for module in (name, "torch.utils.tensorboard"):
        monkeypatch.setitem(sys.modules, module, None)
    facts = ("--model", policy, "--data", data(tmp_path), "--preset", "miniature", "--device", "cpu")
    message = refused(command, *facts, "--out", tmp_path / "out", "--tracker", name)
    assert message.startswith(f"error: --tracker {name}: needs {name}, which is not installed (")
    assert f"pip install {name}" in message
    assert not (tmp_path / "out").exists()


def test_a_run_that_is_refused_before_its_first_update_is_taken_back(
    policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise UserError("the tracker refuses the run")

    facts = ("--model", policy, "--data", data(tmp_path), "--preset", "miniature", "--device", "cpu", "--steps", 2)
    out = tmp_path / "out"
    with monkeypatch.context() as patched:
        patched.setattr("prmbench.training.train.tracker", refuse)
        assert "the tracker refuses" in refused("train-rm", *facts, "--out", out)
    assert [path.name for path in out.iterdir()] == [".lock"]
    fine("train-rm", *facts, "--out", out, "--seed", 7)  # other options: the folder is free


def test_a_run_that_has_trained_is_kept_when_it_is_refused(
    policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise UserError("the disk is full")

    facts = ("--model", policy, "--data", data(tmp_path), "--preset", "miniature", "--device", "cpu", "--steps", 2)
    out = tmp_path / "out"
    with monkeypatch.context() as patched:
        patched.setattr("prmbench.training.train._save", refuse)
        refused("train-rm", *facts, "--out", out)
    assert (out / "train.json").exists()
    fine("train-rm", *facts, "--out", out)


def test_no_tracker_sends_nothing(tmp_path: Path) -> None:
    assert tracker("none", tmp_path, {}) is None
