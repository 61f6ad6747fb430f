"""Every benchmark runs at toy size, and its last line of output is one JSON object with the agreed fields."""

from __future__ import annotations

import importlib.util
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
    "memory": "--models 1.5B --layers 2 --length 1024",
    "score_throughput": "--traces 3 --rounds 1 --shape toy",
    "serve_load": "--requests 8 --rounds 1 --memory-requests 10 --clients 4 --rows 4 --width 16",
    "train_throughput": "--rows 1 --rounds 1 --model {model}",
}
WITHOUT_RESULT = {"coverage", "fuzz", "gpu", "gpu_blocks", "history", "cost_model", "measure", "rl_setup", "shapes"}
"""The first six have tests of their own; the others import the last three."""


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
    assert any("difference" in key for key in result)  # both sides gave the same numbers
    assert result["benchmark"] == name
    assert {"ratio", "ours", "peer", "unit"} <= result.keys()


@pytest.mark.slow
@pytest.mark.parametrize("options", ["--model {model} --traces 1", "--shape toy --traces 3 --dtype bf16-products"])
def test_scoring_is_also_timed_on_a_models_own_tokens_and_with_bfloat16_products(
    options: str, policy: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.setattr("torch.cpu.get_capabilities", lambda: {"avx512_bf16": True})
    benchmark = importlib.import_module("score_throughput")
    monkeypatch.setattr(benchmark, "last_line_of_new_process", lambda *_: "1.0")
    monkeypatch.setattr(sys, "argv", ["x", "--rounds", "1", *options.format(model=policy).split()])
    benchmark.main()
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert set(result["lengths"]) == {"short", "long"}
    difference = result["max_difference_nats_per_token"]
    assert difference < 1e-4 if "--model" in options else 1e-4 < difference < 0.2
    assert (result["rms_error_nats"] > 0) == ("--dtype" in options)


def test_both_sides_of_scoring_must_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    benchmark = importlib.import_module("score_throughput")
    peer = benchmark.peer
    monkeypatch.setattr(sys, "argv", ["x", "--shape", "toy", "--traces", "2", "--device", "cpu"])
    setup = benchmark.make_setup(benchmark.parse_options())
    assert benchmark.largest_difference(setup, "float32") < 1e-5
    monkeypatch.setattr(benchmark, "peer", lambda *a: {k: v + 0.2 for k, v in peer(*a).items()})
    with pytest.raises(SystemExit, match=r"differ by .*nothing was timed"):
        benchmark.largest_difference(setup, "float32")


def test_a_peak_is_measured_in_a_new_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    script = tmp_path / "script.py"
    script.write_text("import os, sys\nprint('a line before')\nprint(os.getppid(), *sys.argv[1:])\n", encoding="utf-8")
    monkeypatch.setattr(sys, "argv", [str(script), "--rows", "8"])
    line = importlib.import_module("measure").last_line_of_new_process("--only", "ours")
    assert line == f"{os.getpid()} --rows 8 --only ours"


def test_fuzz_ends_with_the_number_of_tracebacks(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    with pytest.raises(SystemExit) as stop:
        importlib.import_module("fuzz").main(["--mutations", "40"])
    assert not stop.value.code
    assert capsys.readouterr().out.splitlines()[-1] == "tracebacks: 0"


def test_coverage_goes_on_where_it_was_stopped_and_counts_what_it_saw(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Small samples with fixed seeds: the truth lies in most intervals, and p never contradicts its interval."""
    spec = importlib.util.spec_from_file_location(
        "coverage_study", BENCHMARKS / "coverage.py"
    )  # a package has its name
    assert spec is not None
    assert spec.loader is not None
    coverage = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "coverage_study", coverage)
    spec.loader.exec_module(coverage)
    out = tmp_path / "coverage.jsonl"
    run = lambda sets, only: coverage.main(  # noqa: E731
        ["--out", str(out), "--data-sets", str(sets), "--replicates", "99", "--only", only]
    )
    run(20, "policy/pass@8")
    run(12, "interval/1.5+0/30")
    before = out.read_text(encoding="utf-8")
    out.write_text(before[:-20], encoding="utf-8")  # killed while it wrote
    run(12, "interval/1.5+0/30")
    assert out.read_text(encoding="utf-8").splitlines()[-1] == before.splitlines()[-1]
    run(6, "test/1.5+0/30")
    summary = {(line["condition"], line["number"]): line for line in coverage.summary(out)}
    assert {line["data_sets"] for line in summary.values()} == {20, 12, 6}
    for (condition, _), line in summary.items():
        assert line["covered"] >= (0.5 if condition.startswith("test") else 0.7)
        assert line.get("contradictions", 0) == 0
    oracle, fixed = (summary["interval/1.5+0/30", f"{rule} average"] for rule in ("oracle", "fixed"))
    assert oracle["mean"] > fixed["mean"] + 0.01
    assert oracle["truth"] == fixed["truth"]
    assert "| 30 traces, 1.5+0 | oracle average |" in capsys.readouterr().out
