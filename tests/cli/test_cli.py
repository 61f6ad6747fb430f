"""Every command end to end, offline: output, exit codes, TOML files, and one line for every mistake."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tomllib
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from cli_calls import call, fine, refused
from conftest import ROWS
from paths import ROOT
from typer.testing import CliRunner

import prmbench
from prmbench import config as options
from prmbench.backends import cards
from prmbench.cli import app
from prmbench.config import help_panels
from prmbench.config.presets import PRESETS
from prmbench.core.records import UserError

CONFIGS = {
    "eval": options.EvalConfig,
    "score": options.ScoreConfig,
    "rollout": options.RolloutConfig,
    "train-sft": options.TrainConfig,
    "train-rm": options.TrainRMConfig,
    "compare": options.CompareConfig,
    "report": options.ReportConfig,
    "demo": options.DemoConfig,
}


def evaluated(*arguments: object) -> dict[str, Any]:
    result = json.loads(fine("eval", "--json", *arguments))
    assert isinstance(result, dict)
    return result


def value(rows: list[dict[str, Any]], subset: str, protocol: str, metric: str) -> float:
    (row,) = [r for r in rows if (r["subset"], r["protocol"], r["metric"]) == (subset, protocol, metric)]
    assert isinstance(row["value"], float)
    return row["value"]


# --- help and version ------------------------------------------------------------------------------------------


def test_version() -> None:
    assert fine("--version") == f"prmbench {prmbench.__version__}\n"


def test_help_lists_the_commands() -> None:
    assert set(CONFIGS) <= set(fine("--help").split())
    assert "Commands" in call().output  # and so does the bare name


@pytest.mark.parametrize("command", [*CONFIGS, "models"])
def test_help_of_each_command(command: str) -> None:
    text = fine(command, "--help")
    names = [f.name.replace("_", "-") for f in fields(CONFIGS[command])] if command in CONFIGS else []
    shown = [name for name in names if help_panels.is_shown(CONFIGS[command], name.replace("-", "_"))]
    assert [name for name in shown if f"--{name}" not in text] == []


def test_options_are_documented_and_start_with_their_defaults() -> None:
    for config in CONFIGS.values():
        assert all(f.metadata["help"].endswith(".") for f in fields(config))
        assert options.from_mapping(config, {}, "") == config()


# --- eval ------------------------------------------------------------------------------------------------------


def test_eval_on_a_tiny_model(policy: Path, reference: Path, benchmark_folder: Path, tmp_path: Path) -> None:
    common = ("--model", policy, "--ref-model", reference, "--backend", "implicit", "--data", benchmark_folder)
    result = evaluated(*common, "--out", tmp_path / "out")
    assert set(result) == {"manifest", "rows", "path"}
    assert json.loads(Path(result["path"]).read_text()) == {k: result[k] for k in ("manifest", "rows")}
    assert result["manifest"]["backend"] == "implicit"
    floors = {r["protocol"] for r in result["rows"] if r["protocol"].startswith("floor/")}
    by_rule = {"floor/random", "floor/random_calibrated", "floor/random_cross_validated", "floor/random_flags"}
    assert floors == {*by_rule, "floor/position", "floor/outcome_oracle", "floor/ranking"}
    keys = {"subset", "protocol", "metric", "value", "lo", "hi", "n", "unscored", "note"}
    assert all(set(row) == keys for row in result["rows"])
    table = fine("eval", *common, "--out", tmp_path / "out")  # the same run again: judged, not scored
    assert "step_sum/oracle" in table
    assert f"result: {result['path']}" in table.replace("\n", "")
    oracle = value(result["rows"], "gsm8k", "step_sum/oracle", "f1")
    assert oracle >= value(result["rows"], "gsm8k", "step_sum/calibrated_in_sample:gsm8k", "f1")
    assert f"{100 * oracle:.1f}" in table
    quiet = fine("eval", *common, "--out", tmp_path / "out", "--quiet")
    assert quiet.splitlines() == [f"result: {result['path']}"]


def test_protocols_are_a_filter_and_the_floors_stay(benchmark_folder: Path, tmp_path: Path) -> None:
    common = ("--model", "random", "--data", benchmark_folder, "--out", tmp_path)
    all_rows = evaluated(*common)["rows"]
    chosen = evaluated(*common, "--protocol", "as_is/oracle", "--protocol", "as_is/fixed:0.250")["rows"]
    assert {r["protocol"] for r in chosen if not r["protocol"].startswith("floor/")} == {
        "as_is/oracle",
        "as_is/fixed:0.25",
    }
    assert [r for r in chosen if r["protocol"] != "as_is/fixed:0.25"] == [
        r for r in all_rows if r["protocol"].startswith(("floor/", "as_is/oracle"))
    ]
    assert len(json.loads(next(tmp_path.glob("*.json")).read_text())["rows"]) > len(chosen)  # the file has them all


def test_subsets_limit_and_seed(benchmark_folder: Path, tmp_path: Path) -> None:
    common = ("--model", "random", "--data", benchmark_folder, "--out", tmp_path)
    manifest = evaluated(*common, "--subset", "math", "--limit", 4, "--seed", 3)["manifest"]
    assert (manifest["subsets"], manifest["n"], manifest["seed"]) == (["math"], 4, 3)
    assert evaluated(*common, "--subset", "math", "--subset", "gsm8k")["manifest"]["subsets"] == ["gsm8k", "math"]


def test_dry_run_says_what_would_happen_and_writes_nothing(
    policy: Path, benchmark_folder: Path, tmp_path: Path
) -> None:
    own = tmp_path / "policy"
    own.mkdir()
    for file in policy.iterdir():
        if file.suffix != ".safetensors":
            (own / file.name).write_bytes(file.read_bytes())
    (own / "model.safetensors").write_bytes(b"no weights")  # so they cannot have been loaded
    common = ("--model", own, "--backend", "endo", "--data", benchmark_folder, "--out", tmp_path / "out")
    plan = json.loads(fine("eval", *common, "--dry-run", "--json"))
    assert (plan["traces"], plan["unscored"]) == (24, 0)
    assert plan["tokens"] > 24 * 10
    assert 1 < plan["batches"] < 24
    assert plan["longest_batch"] <= 256
    assert f"tokens: {plan['tokens']}" in fine("eval", *common, "--dry-run")
    scored = fine("score", *common[:-1], tmp_path / "out" / "steps.jsonl", "--dry-run")
    assert f"tokens: {plan['tokens']}" in scored
    assert not (tmp_path / "out").exists()
    real = evaluated(*("--model", policy, *common[2:]))
    assert real["manifest"]["tokens"] == plan["tokens"]


# --- score ------------------------------------------------------------------------------------------------------


def test_score_steps_and_free_text(policy: Path, tmp_path: Path) -> None:
    rows = [
        {"id": "one", "problem": "What is 2 plus 3?", "steps": ["We add.", "It is 5."]},
        {"problem": "Half of 8?", "solution": "We halve 8.\n\nIt is 4.\nDone."},
    ]
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    common = ("score", "--model", policy, "--backend", "endo", "--data", tmp_path / "mine.jsonl")
    assert fine(*common, "--out", tmp_path / "a.jsonl") == ""
    first, second = map(json.loads, (tmp_path / "a.jsonl").read_text().splitlines())
    assert (first["id"], second["id"]) == ("one", "mine-1")
    assert [len(row["values"]) for row in (first, second)] == [2, 2]
    fine(*common, "--out", tmp_path / "b.jsonl", "--split", "line")
    again, third = map(json.loads, (tmp_path / "b.jsonl").read_text().splitlines())
    assert len(third["values"]) == len(third["tokens"]) == 3
    assert again["values"] == pytest.approx(first["values"], rel=1e-5)  # another batch, the same scores


# --- compare ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Paths of finished runs on one file, and of one on less of it."""
    folder = tmp_path_factory.mktemp("runs")
    (folder / "gsm8k.json").write_text(json.dumps(ROWS[:12]))
    common = ("--data", folder / "gsm8k.json", "--out", folder / "out")
    started = {
        "random": ("--model", "random"),
        "other": ("--model", "random", "--seed", 1),
        "gold": ("--model", "gold"),
        "all-right": ("--model", "all-right"),
        "short": ("--model", "gold", "--limit", 6),
    }
    return {name: evaluated(*common, *flags)["path"] for name, flags in started.items()}


def test_a_run_against_itself(runs: dict[str, str]) -> None:
    rows = json.loads(fine("compare", runs["random"], runs["random"], "--json"))["rows"]
    assert {r["value"] for r in rows if r["metric"] == "f1_difference"} == {0.0}
    assert {r["value"] for r in rows if r["metric"] == "p_value"} == {1.0}
    assert {(r["lo"], r["hi"]) for r in rows if r["metric"] == "f1_difference"} == {(0.0, 0.0)}
    assert {r["protocol"] for r in rows} >= {"as_is/oracle", "as_is/fixed:0.5", "as_is/cross_validated"}


def test_the_difference_is_second_minus_first(runs: dict[str, str]) -> None:
    rows = json.loads(fine("compare", runs["all-right"], runs["gold"], "--json"))["rows"]
    found = {r["metric"]: r["value"] for r in rows}
    assert (found["f1_a"], found["f1_b"], found["f1_difference"]) == (0.0, 1.0, 1.0)
    assert found["p_value"] < 0.05
    back = json.loads(fine("compare", runs["gold"], runs["all-right"], "--json"))["rows"]
    assert {r["metric"]: r["value"] for r in back}["f1_difference"] == -1.0
    asked = json.loads(fine("compare", runs["random"], runs["other"], "--protocol", "as_is/oracle", "--json"))["rows"]
    assert {r["protocol"] for r in asked} == {"as_is/oracle"}
    for metric, name in (("f1_a", "random"), ("f1_b", "other")):
        own = json.loads(Path(runs[name]).read_text())["rows"]
        assert value(asked, "gsm8k", "as_is/oracle", metric) == value(own, "gsm8k", "as_is/oracle", "f1")


def test_compare_prints_a_table(runs: dict[str, str]) -> None:
    table = fine("compare", runs["all-right"], runs["gold"])
    assert "vote/native" in table
    assert "100.0" in table
    first, second = table.splitlines()[:2]
    assert first.startswith("first: all-right")
    assert first.endswith(f", run {Path(runs['all-right']).stem}")
    assert second.endswith(f", run {Path(runs['gold']).stem}")


def test_compare_ends_in_a_verdict_with_its_margin(runs: dict[str, str]) -> None:
    for pair, expected in (
        (("random", "random"), {"equivalent"}),
        (("all-right", "gold"), {"yes"}),
        (("gold", "all-right"), {"no"}),
    ):
        verdicts = json.loads(fine("compare", *(runs[name] for name in pair), "--json"))["verdicts"]
        assert {v["verdict"] for v in verdicts} == expected
        assert {v["margin"]["value"] for v in verdicts} == {0.02}
    table = fine("compare", runs["all-right"], runs["gold"])
    assert "better?" in table
    assert "a margin of 2 points of f1" in " ".join(table.split())


def test_unlike_runs_are_not_compared(runs: dict[str, str]) -> None:
    assert "benchmark hash" in refused("compare", runs["gold"], runs["short"])
    assert "share no protocol" in refused("compare", runs["gold"], runs["random"])
    unlike = ("--protocol", "as_is/oracle", "--against", "as_is/fixed:0.5")
    assert "unlike threshold rules" in refused("compare", runs["random"], runs["other"], *unlike)
    assert "has prob scores" in refused("compare", runs["random"], runs["other"], "--protocol", "step_sum/oracle")
    assert "no such" in refused("compare", runs["gold"], "missing.json").lower()


# --- report and models --------------------------------------------------------------------------------------------


def test_report_is_checked(runs: dict[str, str], tmp_path: Path) -> None:
    shutil.copytree(Path(runs["gold"]).parent, tmp_path / "results")
    for path in (tmp_path / "results").glob(
        "*.json"
    ):  # as if scored from a clean commit, whatever the tree is like now
        result = json.loads(path.read_text())
        result["manifest"] |= {"commit": "0" * 40, "dirty": False}
        path.write_text(json.dumps(result))
    where = ("--results", tmp_path / "results", "--out", tmp_path / "board")
    fine("report", *where)
    assert fine("report", *where, "--check", "--recompute") == ""
    (page,) = (p for p in (tmp_path / "board").glob("*.md") if p.name != "README.md")
    page.write_text(page.read_text() + "\nmine")
    stale = call("report", *where, "--check")
    assert stale.exit_code == 1
    assert page.name in stale.stdout
    assert page.read_text().endswith("mine")
    fine("report", *where)
    assert fine("report", *where, "--check") == ""


# --- rollout and training --------------------------------------------------------------------------------------------


def test_from_prompts_to_a_reward_model_that_needs_no_flags(policy: Path, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.jsonl"
    rows = [{"id": f"q{n}", "prompt": f"Say {n}.", "answer": str(n), "verifier": "exact"} for n in range(4)]
    prompts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    drawn = ("--model", policy, "--data", prompts, "--group-size", 3, "--max-new-tokens", 6)
    out = tmp_path / "rollouts.jsonl"
    found = json.loads(fine("rollout", *drawn, "--out", out, "--json"))
    assert (found["completions"], found["prompts"]) == (12, 4)
    assert len(out.read_text().splitlines()) == 12
    assert "mixed_prompts" in fine("rollout", *drawn, "--out", out)  # finished: told again, not drawn again
    assert "completions: 12" in fine("rollout", *drawn, "--out", tmp_path / "none.jsonl", "--dry-run")
    assert not (tmp_path / "none.jsonl").exists()

    labelled = [json.loads(line) | {"outcome": n % 2} for n, line in enumerate(out.read_text().splitlines())]
    data = tmp_path / "labelled.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in labelled))
    common = ("--model", policy, "--data", data, "--preset", "miniature", "--steps", 2)
    sft, rm = tmp_path / "sft", tmp_path / "rm"
    assert f"model: {sft}" in fine("train-sft", *common, "--out", sft)
    assert json.loads(fine("train-rm", *common, "--loss", "implicit_prm", "--out", rm, "--json"))["updates"] == 2
    again = fine("train-rm", *common, "--loss", "implicit_prm", "--out", rm)
    assert f"finished before, nothing done: {rm}" in again
    assert "updates: 2" in fine("train-rm", *common, "--loss", "implicit_prm", "--out", tmp_path / "dry", "--dry-run")
    best = ("eval", "--json", "--benchmark", "best_of_n", "--model", rm, "--data", data, "--out", tmp_path / "runs")
    run = json.loads(fine(*best))
    assert run["manifest"]["beta"] == PRESETS["miniature"]["implicit_prm"].beta
    assert {"prefix_sum/last", "floor/random"} <= {row["protocol"] for row in run["rows"]}
    assert "rm on best_of_n" in fine(*(a for a in best if a != "--json"))


def test_non_finite_numbers_have_an_exit_code_of_their_own(policy: Path, tmp_path: Path) -> None:
    rows = [
        {"id": f"q/{n}", "group": "q", "prompt": "Say 3.", "completion": f"It is {3 + n}.", "outcome": 1 - n}
        for n in range(2)
    ]
    data = tmp_path / "rollouts.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    told = ("--model", policy, "--data", data, "--preset", "miniature", "--steps", 3, "--learning-rate", 1e30)
    result = call("train-rm", *told, "--loss", "implicit_prm", "--out", tmp_path / "out")
    assert result.exit_code == 3, result.output
    (line,) = result.stderr.splitlines()
    assert "non_finite.json" in line


def test_models_are_listed() -> None:
    table = CliRunner(env={"COLUMNS": "80", "TERM": "dumb"}).invoke(app, ["models"]).stdout
    assert all(f" {name} " in table for name in cards.MODELS)
    assert max(map(len, table.splitlines())) <= 80
    described = fine("models", "launch/ThinkPRM-14B")
    assert "verdicts of its critique" in described
    assert "the nearest is 'launch/ThinkPRM-14B'" in refused("models", "launch/ThinkPRM-13B")
    rows = [json.loads(line) for line in fine("models", "--json").splitlines()]
    assert [row["model"] for row in rows] == list(cards.MODELS)


# --- TOML files ---------------------------------------------------------------------------------------------------


def test_flags_win_over_the_file_and_the_file_over_defaults(benchmark_folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    paths = f'data = "{benchmark_folder}"\nout = "{tmp_path}"\n'
    file.write_text(f'model = "random"\n{paths}subset = ["math"]\nseed = 7\ncalibrate-on = "math"\n')
    found = evaluated("--config", file)["manifest"]
    assert (found["seed"], found["subsets"], found["calibrate_on"], found["model"]) == (7, ["math"], "math", "random")
    flagged = evaluated("--config", file, "--seed", 0, "--subset", "gsm8k", "--subset", "math", "--model", "gold")[
        "manifest"
    ]
    assert (flagged["seed"], flagged["subsets"], flagged["model"]) == (0, ["gsm8k", "math"], "gold")
    assert flagged["calibrate_on"] == "math"


@pytest.mark.parametrize("table", ["[eval]", "[score]\nmodel = 'nothing'\n[eval]", "[train-rm]\nloss = 'sft'\n[eval]"])
def test_a_table_named_like_the_command_holds_its_options(table: str, benchmark_folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text(f'seed = 7\n{table}\nmodel = "random"\ndata = "{benchmark_folder}"\nout = "{tmp_path}"\n')
    manifest = evaluated("--config", file)["manifest"]
    assert (manifest["model"], manifest["seed"]) == ("random", 7)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("modle = 'x'", "unknown option 'modle'"),
        ("[evel]\nmodel = 'x'", "unknown option 'evel_model'"),
        ("[eval]\nmodle = 'x'", "unknown option 'modle'"),
        ("model = 'x'\n[eval]\nmodel = 'y'", "model is there twice"),
        ("seed = '1'", "seed is '1'; expected int"),
        ("seed = true", "seed is True; expected int"),
        ("limit = 1.5", "limit is 1.5; expected int"),
        ("data = 5", "data is 5; expected Path"),
        ("subset = 5", "subset is 5; expected str"),
        ("subset = ['math', 1]", "subset is 1; expected str"),
        ("dtype = 'float8'", "choose from auto, float32"),
        ("dry_run = 'no'", "expected bool"),
        ("model = ", "not valid TOML"),
        (b"model = '\xff'", "not UTF-8 at byte 9"),
        (None, "cannot be read"),
    ],
)
def test_toml_files_that_are_wrong(tmp_path: Path, text: str | bytes | None, says: str) -> None:
    file = tmp_path / "run.toml"
    if text is not None:
        file.write_bytes(text.encode() if isinstance(text, str) else text)
    line = refused("eval", "--config", file)
    assert str(file) in line
    assert says in line


def test_every_toml_file_of_the_repository_is_valid() -> None:
    found = [
        p for p in ROOT.rglob("*.toml") if not any(part.startswith(".") for part in p.relative_to(ROOT).parts[:-1])
    ]
    assert ROOT / "pyproject.toml" in found
    for path in found:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
        if path.name not in ("pyproject.toml", "ruff.toml"):
            assert any(_accepts(config, path) for config in CONFIGS.values()), path
        assert values


def _accepts(config: type[Any], path: Path) -> bool:
    try:
        options.from_mapping(config, options.read_toml(path), str(path))
    except UserError:
        return False
    return True


# --- mistakes -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((), "--model is missing"),
        (("--model", "nobody/knows-this"), "no card and no prm.json"),
        (("--model", "nobody/knows-this", "--backend", "endo"), "cannot be loaded"),
        (("--model", "nobody/knows-this", "--backend", "value_head"), "cannot be loaded"),
        (("--model", "Qwen/Qwen2.5-Math-PRM-7B"), "cannot be loaded"),
        (("--model", "Qwen/Qwen2.5-Math-PRM-7B", "--trust-remote-code"), "asks for no code"),
        (("--model", "random", "--backend", "other"), "--backend other"),
        (("--model", "random", "--data", "missing.json"), "no such file"),
        (("--model", "random", "--subset", "algebra"), "--subset algebra"),
        (("--model", "random", "--limit", 0), "--limit is 0"),
        (("--model", "random", "--batch-tokens", 0), "--batch-tokens is 0"),
        (("--model", "random", "--protocol", "best"), "protocol 'best'"),
        (("--model", "random", "--protocol", "step_sum/oracle"), "has prob scores"),
        (("--model", "POLICY", "--backend", "implicit"), "--ref-model"),
        (("--model", "POLICY", "--backend", "endo", "--device", "gpu"), "--device gpu"),
        (("--model", "POLICY", "--backend", "endo", "--template", "missing.jinja"), "--template missing.jinja"),
        (
            ("--model", "POLICY", "--backend", "endo", "--boundary", "release", "--template", "plain"),
            "boundary release",
        ),
        (("--model", "POLICY", "--backend", "value_head"), "lacks weights"),
    ],
)
def test_mistakes_are_one_line(
    policy: Path, benchmark_folder: Path, tmp_path: Path, arguments: tuple[object, ...], says: str
) -> None:
    given = [policy if a == "POLICY" else a for a in arguments]
    where = [] if "--data" in given else ["--data", benchmark_folder]
    assert says in refused("eval", *where, "--out", tmp_path / "out", *given)
    assert [path.name for path in (tmp_path / "out").rglob("*") if ".json" in path.name] == []


@pytest.mark.parametrize("command", ["score", "report"])
def test_mistakes_of_the_other_commands(command: str, tmp_path: Path) -> None:
    if command == "score":
        assert "--data is missing" in refused("score", "--model", "random")
    else:
        refused("report", "--results", tmp_path / "missing", "--out", tmp_path / "out")


def test_unknown_flags_and_choices_are_usage_errors(benchmark_folder: Path) -> None:
    for flags in (("--modle", "random"), ("--dtype", "float8"), ("--seed", "x"), ("--engine", "jax")):
        result = call("eval", "--data", benchmark_folder, *flags)
        assert result.exit_code == 2
        assert flags[0] in result.stderr


TWO_RUNS = """
import sys
from prmbench.cli import app
from prmbench.core import progress
progress.FIRST_SECONDS = progress.EVERY_SECONDS = 1e9  # no line of progress, however slow the machine is
for model, backend in (("damaged", "endo"), ("whole", "value_head")):
    try:
        app(["eval", "--model", model, "--backend", backend, "--data", sys.argv[1], "--out", "out"])
    except SystemExit as left:
        print(left.code)
"""


def test_a_process_of_its_own_writes_one_line_too(policy: Path, benchmark_folder: Path, tmp_path: Path) -> None:
    """Libraries log to the real stderr, past what the other tests here can see."""
    for name in ("damaged", "whole"):
        shutil.copytree(policy, tmp_path / name)
    (tmp_path / "damaged" / "model.safetensors").write_bytes(b"cut off")
    done = subprocess.run(
        [sys.executable, "-c", TWO_RUNS, str(benchmark_folder)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.split() == ["2", "2"], done.stderr
    damaged, lacking = done.stderr.splitlines()
    assert damaged.startswith("error: ")
    assert "cannot be loaded" in damaged
    assert lacking.startswith("error: ")
    assert "lacks weights" in lacking
