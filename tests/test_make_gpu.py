"""The blocks of `make gpu` on a CPU at toy size, and what becomes of those that fail or lack a package."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from paths import ROOT

NAMES = ("ceilings", "tests", "decoding", "memory", "scoring", "step", "resume", "checkpoint")


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("gpu")


def record(out: Path, name: str, card: str = "cpu") -> dict[str, Any]:
    return json.loads((out / card / f"{name}.json").read_text(encoding="utf-8"))


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_every_block_runs_at_toy_size(gpu: ModuleType, name: str) -> None:
    assert tuple(gpu.BLOCKS) == NAMES
    (result,) = gpu.run_here(name, gpu.Place("cpu", True)).values()
    json.dumps(result)
    if name == "tests":
        assert result["skipped"] >= 8  # without a GPU
    if name == "scoring":
        variants = [value for value in result["7B"].values() if isinstance(value, dict) and "skipped" not in value]
        assert len(variants) >= 5
        assert all(value["rms_to_masked_nats"] < 0.1 for value in variants)
    if name == "memory":
        assert result["7B LoRA-128, checkpointing"]["counted_gib"] is None
    if name == "step":
        assert len(result["distrl_ipvrm"]["top_15_ms"]) == 15
        assert result["grpo"]["policy_tokens_read"] <= result["grpo, two updates"]["policy_tokens_read"]


@pytest.mark.slow
def test_a_block_writes_a_file_once_and_a_failing_one_leaves_a_line_and_the_exit_code(
    gpu: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["ceilings", "--toy", "--out", str(tmp_path)]
    assert gpu.main([*arguments, "--device", "cpu"]) == 0
    written = record(tmp_path, "ceilings")
    assert written["result"]["product"]["tflops"] > 0
    assert {"card", "torch", "transformers", "commit", "seconds"} <= written.keys()
    assert written["card"] == "cpu"
    capsys.readouterr()
    assert gpu.main([*arguments, "--device", "cpu"]) == 0
    assert "has a result" in capsys.readouterr().out
    assert gpu.main([*arguments, "--device", "nosuch:0"]) == 1
    assert record(tmp_path, "ceilings", "nosuch")["error"].startswith("exit code 1: RuntimeError")


def test_the_blocks_after_a_failing_one_run_and_it_is_run_again(
    gpu: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outcomes = {"ceilings": {"error": "no luck"}, "memory": {"skipped": "needs peft"}, "scoring": {"result": {"x": 1}}}
    calls: list[str] = []
    monkeypatch.setattr(gpu, "run_apart", lambda name, _: calls.append(name) or outcomes[name])
    arguments = [*outcomes, "--toy", "--device", "cpu", "--out", str(tmp_path)]
    assert gpu.main(arguments) == 1
    assert calls == list(outcomes)
    assert record(tmp_path, "memory")["skipped"] == "needs peft"
    outcomes["ceilings"] = {"result": {}}
    assert gpu.main(arguments) == 0
    assert calls[3:] == ["ceilings", "memory"]
    assert gpu.main([*arguments, "--force"]) == 0
    assert calls[5:] == list(outcomes)


def test_a_block_that_hangs_is_stopped(gpu: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "LIMIT", 0.05)
    assert gpu.run_apart("ceilings", gpu.Place("cpu", True)) == {"error": "was not done after 0.05 s and was stopped"}


def test_a_missing_package_skips_a_block_with_a_word(gpu: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = importlib.import_module("gpu_blocks")
    monkeypatch.setattr(blocks.importlib.util, "find_spec", lambda name: None if name == "scipy" else name)
    assert gpu.run_here("step", gpu.Place("cpu", True)) == {"skipped": "needs scipy, which is not installed"}


def test_without_a_gpu_only_toy_sizes_run(gpu: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, words in ((["--device", "cpu"], "--toy"), (["--toy", "sizes"], "there is no block sizes")):
        with pytest.raises(SystemExit) as stop:
            gpu.main(arguments)
        assert stop.value.code == 2
        assert words in capsys.readouterr().err
