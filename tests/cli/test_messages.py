"""What commands say besides their numbers: options without an effect, reuse, cost, footnotes, and ways out."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from chat_server import said, serving
from cli_calls import call, fine, refused

from prmbench.config import EvalConfig, unused_options
from prmbench.core.records import Notice
from prmbench.tasks.wording import usage


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--temperature", 1), "--temperature: no effect, since benchmark processbench samples nothing"),
        (("--group-size", 2, "--verifier", "math"), "--group-size, --verifier: no effect"),
        (("--decay", 0.5), "--decay: no effect, since backend baseline reads random"),
        (("--ref-cache", "x"), "--ref-cache: no effect"),
        (("--device", "cpu", "--dtype", "float32"), "--device, --dtype: no effect, since random is a baseline"),
        (("--tensor-parallel", 2), "--tensor-parallel: no effect"),
        (("--template", "plain"), "--template: no effect"),
    ],
)
def test_options_without_an_effect_are_named(
    options: tuple[object, ...], says: str, benchmark_folder: Path, tmp_path: Path
) -> None:
    result = call("eval", "--model", "random", "--data", benchmark_folder, "--out", tmp_path, *options)
    assert result.exit_code == 0, result.output
    assert f"note: {says}" in result.stderr


@pytest.mark.parametrize("name", unused_options.CRITIC)
def test_options_of_critics_are_refused_elsewhere(name: str, benchmark_folder: Path, tmp_path: Path) -> None:
    values = {"critic": "stepwise", "base_url": "http://127.0.0.1:1/v1", "critic_top_p": 0.5, "critic_temperature": 0.5}
    flag = f"--{name.replace('_', '-')}"
    where = ("--data", benchmark_folder, "--out", tmp_path)
    assert f"{flag}: is of critics" in refused("eval", "--model", "random", *where, flag, values.get(name, 3))


def test_calibration_of_a_task_without_a_threshold_is_named(tmp_path: Path) -> None:
    rows = [
        {
            "id": f"{p}-{k}",
            "group": p,
            "subset": "a",
            "prompt": p,
            "steps": ["x"],
            "outcome": k % 2 == 0,
            "answer": str(k),
        }
        for p in ("p", "q")
        for k in range(4)
    ]
    data = tmp_path / "rollouts.jsonl"
    data.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    common = ("--model", "random", "--benchmark", "best_of_n", "--data", data, "--out", tmp_path)
    assert "--calibrate-on: no effect" in call("eval", *common, "--calibrate-on", "a").stderr
    assert "no effect" not in call("eval", *common, "--force").stderr


def test_options_that_are_not_changed_are_not_named() -> None:
    assert unused_options.changed(EvalConfig(temperature=0.6, votes=2), ("temperature", "votes")) == ["votes"]
    with pytest.warns(Notice, match=r"^--votes, --top-p: no effect, since because$"):
        unused_options.warn_of_unused(EvalConfig(votes=2, top_p=0.5), ("votes", "top_k", "top_p"), "because")


def test_reuse_of_stored_scores_names_force(benchmark_folder: Path, tmp_path: Path) -> None:
    common = ("eval", "--model", "random", "--data", benchmark_folder, "--out", tmp_path, "--quiet")
    assert call(*common).stderr == ""
    again = call(*common).stderr
    assert "stored scores are judged again; --force makes them anew" in again
    assert call(*common, "--force").stderr == ""


def test_a_floor_that_cannot_be_computed_has_a_footnote(tmp_path: Path) -> None:
    rows = [{"id": f"a-{n}", "problem": f"p{n}", "steps": ["x", "y"], "label": n % 2 - 1} for n in range(6)]
    data = tmp_path / "a.json"
    data.write_text(json.dumps(rows))
    table = fine("eval", "--model", "random", "--data", data, "--out", tmp_path)
    assert re.search(r"floor/outcome_oracle +–", table)
    assert "– final answers are not labelled" in table


def test_floors_are_explained(benchmark_folder: Path, tmp_path: Path) -> None:
    table = fine("eval", "--model", "random", "--data", benchmark_folder, "--out", tmp_path)
    assert "outcome_oracle: knows the final answer only" in " ".join(table.split())


def test_one_problem_has_no_interval(tmp_path: Path) -> None:
    rows = [
        {
            "id": f"p-{k}",
            "group": "p",
            "subset": "a",
            "prompt": "p",
            "steps": ["x"],
            "outcome": k % 2 == 0,
            "answer": "1",
        }
        for k in range(4)
    ]
    for subsets in (("a",), ("a", "b")):
        data = tmp_path / f"{len(subsets)}.jsonl"
        lines = [json.dumps({**row, "id": f"{s}{row['id']}", "subset": s}) for s in subsets for row in rows]
        lines += [json.dumps({**rows[0], "id": "q0", "group": "q", "prompt": "q", "subset": "b"})] * (len(subsets) > 1)
        data.write_text("\n".join(lines))
        common = ("eval", "--model", "random", "--benchmark", "best_of_n", "--data", data, "--out", tmp_path)
        result = json.loads(fine(*common, "--json"))
        gains = [row for row in result["rows"] if row["metric"].startswith("gain@") and row["value"] is not None]
        assert gains
        assert all(row["lo"] is None for row in gains if row["subset"] == "a" or "[" in row["subset"])


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ((1290, 56, 24, 0.0012), "24 answers, 1,234 prompt and 56 answer tokens, cost 0.0012"),
        ((90, 30, 0, None), "60 prompt and 30 answer tokens, no price known"),
    ],
)
def test_usage_of_a_critic(arguments: tuple[int, int, int, float | None], text: str) -> None:
    assert usage(*arguments) == text


# --- critics ------------------------------------------------------------------------------------------------------


@pytest.fixture
def critic_data(tmp_path: Path) -> Path:
    rows = [
        {
            "id": f"t-{n}",
            "problem": f"{n}?",
            "steps": ["a", "b"],
            "label": n % 2 - 1,
            "final_answer_correct": n % 2 == 0,
        }
        for n in range(4)
    ]
    path = tmp_path / "tiny.jsonl"
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


def critic(url: str, data: Path, out: Path) -> tuple[object, ...]:
    how = ("--model", "m", "--backend", "critic", "--engine", "openai", "--base-url", url)
    return ("eval", *how, "--data", data, "--out", out)


def test_a_critics_tokens_answers_and_cost_are_printed(critic_data: Path, tmp_path: Path) -> None:
    prices = ("--input-price", 2, "--output-price", 10)
    with serving(lambda body, n: said(r"\boxed{-1}", used=(100, 20))) as server:
        priced = call(*critic(server.url, critic_data, tmp_path / "a"), *prices)
        assert "the critic: 4 answers, 400 prompt and 80 answer tokens, cost 0.0016" in priced.stdout, priced.output
        unpriced = fine(*critic(server.url, critic_data, tmp_path / "b"), "--votes", 2)
        assert "the critic: 8 answers, 800 prompt and 160 answer tokens, no price known" in unpriced
        result = json.loads(fine(*critic(server.url, critic_data, tmp_path / "a"), *prices, "--json"))
        assert result["usage"] == {"tokens": 480, "completion_tokens": 80, "answers": 4, "cost": 0.0016}
        scored = call("score", *critic(server.url, critic_data, tmp_path / "s.jsonl")[1:], *prices)
        assert "note: the critic: 4 answers, 400 prompt and 80 answer tokens, cost 0.0016" in scored.stderr


def test_what_a_server_makes_without_effect_is_named(critic_data: Path, tmp_path: Path) -> None:
    with serving(lambda body, n: said(r"\boxed{-1}")) as server:
        more = ("--device", "cpu", "--revision", "abc", "--decay", 0.5)
        result = call(*critic(server.url, critic_data, tmp_path), *more)
    assert "--revision, --device: no effect, since the server runs the model" in result.stderr
    assert "--decay: no effect, since backend critic reads m" in result.stderr


def test_a_server_that_is_down_has_a_way_out(
    critic_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("prmbench.engines.openai.FIRST_PAUSE", 0.0)
    result = call(*critic("http://127.0.0.1:9/v1", critic_data, tmp_path))
    assert result.exit_code == 75
    (line,) = result.stderr.splitlines()
    assert "no answer from the server" in line
    assert "check that it runs, that address and port are right" in line
    assert "the same command then goes on from there" in line


# --- benchmark policy ---------------------------------------------------------------------------------------------


def test_what_stored_completions_make_without_effect_is_named(
    policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    rows = [{"id": f"p{n}", "prompt": f"{n}?", "answer": str(n), "subset": "a"} for n in range(2)]
    Path("prompts.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    sampling = ("--group-size", 2, "--max-new-tokens", 4)
    fine("rollout", "--model", policy, "--data", "prompts.jsonl", *sampling, "--out", "r.jsonl")
    common = ("eval", "--benchmark", "policy", "--data", "r.jsonl", "--out", "runs")
    line = call(*common, *sampling, "--top-p", 0.5, "--seed", 3).stderr
    assert "--group-size, --top-p, --max-new-tokens: no effect, since r.jsonl holds completions" in line
    sampled = call(
        "eval", "--benchmark", "policy", "--model", policy, "--data", "prompts.jsonl", *sampling, "--votes", 3
    )
    assert "--votes: no effect, since benchmark policy samples completions" in sampled.stderr
    again = call("rollout", "--model", policy, "--data", "prompts.jsonl", *sampling, "--out", "r.jsonl")
    assert "holds this very run, and nothing is drawn; --force draws anew" in again.stderr
    before = Path("r.jsonl").stat().st_mtime_ns
    forced = call("rollout", "--model", policy, "--data", "prompts.jsonl", *sampling, "--out", "r.jsonl", "--force")
    assert (forced.exit_code, forced.stderr) == (0, "")
    assert Path("r.jsonl").stat().st_mtime_ns > before
    other = ("rollout", "--model", policy, "--data", "prompts.jsonl", "--group-size", 3, "--max-new-tokens", 4)
    assert "name another file or --force" in refused(*other, "--out", "r.jsonl")
    assert call(*other, "--out", "r.jsonl", "--force").exit_code == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("eval DIR", "error: eval: 'DIR' belongs to no option; did you mean --model DIR; `prmbench eval --help` lists"),
        ("eval x.jsonl", "did you mean --data x.jsonl;"),
        ("eval DIR --model random", "did you mean --data DIR;"),
        ("report DIR", "error: report: 'DIR' belongs to no option; did you mean --results DIR;"),
        ("score DIR", "did you mean --model DIR;"),
        ("serve DIR", "did you mean --model DIR;"),
        ("rollout DIR", "did you mean --model DIR;"),
        ("train-rm rollouts.parquet", "did you mean --data rollouts.parquet;"),
        ("train-sft DIR", "did you mean --model DIR;"),
        ("train-distrl DIR", "did you mean --model DIR;"),
        ("contamination DIR", "did you mean --data DIR;"),
        ("demo DIR", "'DIR' belongs to no option; did you mean --"),
        ("init a b", "error: init: 'b' belongs to no option; the command takes DIR and options;"),
        ("compare a b c", "error: compare: 'c' belongs to no option; the command takes FIRST SECOND and options;"),
        ("compare a", "error: compare: Missing argument 'second'; `prmbench compare --help`"),
        ("card", "error: card: Missing argument 'RUN...';"),
        ("push", "error: push: Missing argument 'RUN...';"),
        ("convert", "error: convert: Missing argument 'data';"),
        ("verify a b", "error: verify: 'b' belongs to no option;"),
        ("evla", "error: prmbench: No such command 'evla'. Did you mean 'eval'?;"),
        ("eval --modle x", "error: eval: No such option: --modle (Possible options: --compile, --model, --ref-model);"),
        ("eval --model", "error: eval: Option '--model' requires an argument;"),
        ("eval --limit x", "error: eval: Invalid value for '--limit':"),
        ("--versio", "error: prmbench: No such option: --versio"),
    ],
)
def test_wrong_words_are_one_line_that_names_the_option(words: str, message: str) -> None:
    assert message in refused(*words.split())


@pytest.mark.parametrize("table", ["[alien]", "[tool.ruff]", "[alien.deep]"])
def test_a_foreign_table_in_the_options_is_named(tmp_path: Path, table: str) -> None:
    (tmp_path / "c.toml").write_text(f"model = 'random'\n{table}\nx = 1\n")
    line = refused("eval", "--config", tmp_path / "c.toml")
    name = table.strip("[]").split(".")[0]
    option = table.strip("[]").replace(".", "_") + "_x"
    assert f"c.toml: unknown option '{option}': table [{name}] is of no command of prmbench" in line
    assert line.endswith(f"or into [eval], and take [{name}] out")
