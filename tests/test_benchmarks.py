"""Every benchmark runs at toy size, and its last line of output is one JSON object with the agreed fields."""

from __future__ import annotations

import importlib
import json
import os
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
TOY_ARGUMENTS = {
    "candidate_head": "--rows 8 --rounds 1",
    "distrl_step": "--prompts 2 --length 16 --rounds 1",
    "grpo_step": "--prompts 4 --length 16 --steps 1 --warmup 1",
    "score_throughput": "--traces 1 --rounds 1 --model {model}",
    "serve_load": "--requests 8 --rounds 1 --memory-requests 10 --clients 4 --rows 4 --width 16",
    "train_throughput": "--rows 1 --rounds 1 --model {model}",
}
WITHOUT_RESULT = {"fuzz", "measure", "rl_setup"}
"""tests/cli/test_fuzz.py runs the first; the others import the last two."""


def test_every_benchmark_has_a_toy_size() -> None:
    assert {path.stem for path in BENCHMARKS.glob("*.py")} == {*TOY_ARGUMENTS, *WITHOUT_RESULT}


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(TOY_ARGUMENTS))
def test_the_last_line_of_a_benchmark_is_its_result(
    name: str, policy: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The processes in which memory is measured are calls here, since starting them costs most of a toy benchmark."""
    if name == "grpo_step":
        pytest.importorskip("trl", reason="needs trl")
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    benchmark = importlib.import_module(name)

    def last_line(*arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", [*command, *arguments])
        benchmark.main()
        return capsys.readouterr().out.splitlines()[-1]

    command = [f"{name}.py", *TOY_ARGUMENTS[name].format(model=policy).split()]
    monkeypatch.setattr(benchmark, "last_line_of_new_process", last_line, raising=False)  # serve_load starts servers
    result = json.loads(last_line())
    assert result["benchmark"] == name
    assert {"ratio", "ours", "peer", "unit"} <= result.keys()


def test_a_peak_is_measured_in_a_new_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    script = tmp_path / "script.py"
    script.write_text("import os, sys\nprint('a line before')\nprint(os.getppid(), *sys.argv[1:])\n", encoding="utf-8")
    monkeypatch.setattr(sys, "argv", [str(script), "--rows", "8"])
    line = importlib.import_module("measure").last_line_of_new_process("--only", "ours")
    assert line == f"{os.getpid()} --rows 8 --only ours"
