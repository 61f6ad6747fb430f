"""Runs of the tasks beyond step F1, from files to rows: best_of_n, calibration, policy, and traces at hand."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from prmbench import data, evaluation, tasks
from prmbench.backends import load_backend
from prmbench.config import EvalConfig, ModelConfig, RolloutConfig
from prmbench.core import result_files
from prmbench.core.records import MetricRow, StepScores, Trace, UserError
from prmbench.core.result_files import Run
from prmbench.report.load import load as load_results
from prmbench.sampling import completions as policy
from prmbench.sampling.rollout import run_rollout, sidecar_path


def rollout_rows(subset: str = "sums", prompts: int = 6, n: int = 4) -> list[dict[str, Any]]:
    """Completions of two lines; every second one is right, one says nothing, one could not be verified."""
    rows = [
        {
            "id": f"{subset}-{p}/{k}",
            "prompt": f"What is {p} plus {p}?",
            "completion": f"We add {p} and {p}.\n\nThe answer is {2 * p + k % 2 * (p + 1)}.",
            "outcome": 1 - k % 2,
            "answer": str(2 * p + k % 2 * (p + 1)),
            "finish": "stop",
            "group": f"{subset}-{p}",
            "subset": subset,
        }
        for p in range(prompts)
        for k in range(n)
    ]
    rows[1] |= {"completion": "", "answer": ""}
    del rows[2]["outcome"]
    return rows


def write(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def rollouts(tmp_path: Path) -> Path:
    return write(tmp_path / "rollouts.jsonl", rollout_rows())


@pytest.fixture
def prefixes(tmp_path: Path) -> Path:
    """ProcessBench's schema with Monte-Carlo labels."""
    rows = [
        {
            "id": f"p{i}",
            "problem": f"What is {i // 2} plus one?",
            "steps": ["We add.", f"It is {i}.", "Done."][: 2 + i % 2],
            "label": -1 if i % 2 else 1,
            "step_labels": [0.5, 0.25 + i % 3 / 4, float(i % 2)][: 2 + i % 2],
        }
        for i in range(12)
    ]
    return write(tmp_path / "prefixes.jsonl", rows)


def run(config: EvalConfig, **changed: Any) -> Run:
    result = evaluation.evaluate(replace(config, **changed))
    assert result is not None
    return result


def value(run: Run, protocol: str, metric: str, subset: str = "sums") -> MetricRow:
    rows = [r for r in run.result.rows if (r.subset, r.protocol, r.metric) == (subset, protocol, metric)]
    assert len(rows) == 1, (subset, protocol, metric)
    return rows[0]


def sound(found: Run) -> None:
    """It reads back, and its rows follow from its scores."""
    assert tasks.read_run(found.path).result.rows == found.result.rows
    loaded = load_results(found.path.parent, recompute=True)
    assert (loaded.broken, loaded.differing) == ((), ())


# --- best_of_n ---------------------------------------------------------------------------------------------------


@pytest.fixture
def best(rollouts: Path, tmp_path: Path) -> EvalConfig:
    return EvalConfig("random", benchmark="best_of_n", data=rollouts, out=tmp_path / "out")


def test_knowing_the_outcome_reaches_the_ceiling(best: EvalConfig) -> None:
    found = run(best, model="outcome-oracle")
    sound(found)
    assert (found.result.manifest.task, found.result.manifest.benchmark) == ("best_of_n", "best_of_n")
    assert (found.result.manifest.n, found.result.manifest.subsets) == (24, ("sums",))
    for n in (2, 4):
        ceiling = value(found, "floor/pass", f"pass@{n}")
        assert value(found, "vote/mean", f"best_of@{n}").value == pytest.approx(ceiling.value)
    assert value(found, "floor/random", "accuracy").value == pytest.approx((1 / 3 + 5 * 0.5) / 6)
    assert value(found, "floor/pass", "pass@4").note.startswith("5 of 6 problems")


def test_a_reward_model_scores_completions_as_it_scores_solutions(best: EvalConfig, policy: Path) -> None:
    found = run(best, model=str(policy), backend="endo")
    sound(found)
    scores = {s.id: s for s in found.scores}
    assert scores["sums-0/1"].unscored
    assert scores["sums-0/2"].outcome is None
    assert scores["sums-3/0"].steps == len(scores["sums-3/0"].values) == 2
    assert scores["sums-3/0"].cluster == "sums-3"
    assert scores["sums-3/0"].answer == scores["sums-3/2"].answer != scores["sums-3/1"].answer
    assert "The answer" not in json.dumps([s.to_json() for s in found.scores])
    keys = tasks.protocol_keys(found.result.manifest)
    assert {"step_sum/min", "logprob.prefix_mean/last"} <= set(keys)
    assert set(keys) < {r.protocol for r in found.result.rows}
    line = run(best, model=str(policy), backend="endo", split="line", out=best.out / "line")
    assert line.result.manifest.run_id == found.result.manifest.run_id  # here both splitters find the same steps


def test_limits_keep_groups_whole(rollouts: Path) -> None:
    kept = data.load("best_of_n", rollouts, limit=3).traces
    assert [t.group for t in kept] == [f"sums-{p}" for p in (0, 2, 4) for _ in range(4)]
    folder = rollouts.parent / "both"
    folder.mkdir()
    rows = [{k: v for k, v in row.items() if k != "subset"} for row in rollout_rows("other")]
    write(folder / "aaa.jsonl", rollout_rows())
    write(folder / "other.jsonl", rows)
    loaded = data.load("best_of_n", folder)
    assert loaded.subsets == ("other", "sums")
    assert data.load("best_of_n", folder, ("sums",)).subsets == ("sums",)


def test_the_run_id_follows_answers_and_labels(best: EvalConfig, prefixes: Path, tmp_path: Path) -> None:
    own = run(best).result.manifest
    rows = rollout_rows()
    rows[5]["answer"] = "another"
    other = run(best, data=write(tmp_path / "other.jsonl", rows)).result.manifest
    assert (own.run_id, own.benchmark_hash) != (other.run_id, other.benchmark_hash)
    assert run(best, data=write(tmp_path / "same.jsonl", rollout_rows()), out=tmp_path / "b").path.stem == own.run_id
    config = replace(best, benchmark="calibration", data=prefixes)
    one = run(config).result.manifest
    text = prefixes.read_text()
    two = run(config, data=write(tmp_path / "x.jsonl", [json.loads(line) for line in text.splitlines()]))
    assert two.result.manifest.run_id != one.run_id  # another file name, another subset name
    prefixes.write_text(text.replace("0.25", "0.3"))
    assert run(config).result.manifest.run_id != one.run_id
    as_best = {json.loads(line)["id"] for line in text.splitlines()}
    assert as_best == {s.id for s in two.scores}


def test_protocols_are_checked_before_the_scoring(best: EvalConfig) -> None:
    with pytest.raises(UserError, match=r"as_is/last, as_is/min"):
        evaluation.evaluate(replace(best, protocol=("as_is/oracle",)))
    assert not list(best.out.glob("*.json*"))
    assert run(best, protocol=("as_is/min",)).result.rows == run(best).result.rows


@pytest.mark.parametrize("model", ["outcome-oracle", "gold"])
def test_verdicts_are_no_probabilities(best: EvalConfig, prefixes: Path, model: str) -> None:
    with pytest.raises(UserError, match="needs a score for every step"):
        evaluation.evaluate(replace(best, model=model, benchmark="calibration", data=prefixes))


@pytest.mark.parametrize(
    ("benchmark", "rows", "says"),
    [
        ("best_of_n", [{"prompt": "p", "completion": "c"}], "no completion has an outcome"),
        ("best_of_n", [{"prompt": "p", "completion": "c", "outcome": 1}], "one verified completion a prompt"),
        ("calibration", [{"prompt": "p", "steps": ["a"]}], "no trace has step_labels or an outcome"),
        ("calibration", [{"prompt": "p", "steps": ["a"], "step_labels": [2]}], "between 0 and 1"),
        ("best_of_n", None, "--data is missing"),
        ("calibration", None, "--data is missing"),
        ("policy", None, "--data is missing"),
    ],
)
def test_data_that_can_give_no_number(
    best: EvalConfig, tmp_path: Path, benchmark: str, rows: list[dict[str, Any]] | None, says: str
) -> None:
    path = None if rows is None else write(tmp_path / "bad.jsonl", rows)
    with pytest.raises(UserError, match=says):
        evaluation.evaluate(replace(best, benchmark=benchmark, data=path))  # type: ignore[arg-type]


def test_a_dry_run_of_each(best: EvalConfig, prefixes: Path, policy: Path, prompts: Path) -> None:
    model = replace(best, model=str(policy), backend="endo", dry_run=True)
    plan = evaluation.dry_run(model)
    assert plan.traces == 24  # type: ignore[union-attr]
    assert evaluation.dry_run(replace(model, benchmark="calibration", data=prefixes)).traces == 12  # type: ignore[union-attr]
    policy_config = replace(model, benchmark="policy", data=prompts, group_size=2, max_new_tokens=8)
    found = evaluation.dry_run(policy_config)
    assert (found.prompts, found.completions, found.most_new_tokens) == (4, 8, 64)  # type: ignore[union-attr]
    assert not best.out.exists()


# --- calibration -------------------------------------------------------------------------------------------------


def test_calibration_carries_its_labels(best: EvalConfig, prefixes: Path, policy: Path) -> None:
    config = replace(best, benchmark="calibration", data=prefixes)
    found = run(config, model=str(policy), backend="endo")
    sound(found)
    assert next(s for s in found.scores if s.id == "p1").step_labels == (0.5, 0.5, 1.0)
    assert tasks.protocol_keys(found.result.manifest)[0] == "prefix_sum/sigmoid"
    assert 0 < value(found, "prefix_mean/platt", "brier", "prefixes").value < 1  # type: ignore[operator]
    chance = run(config)
    sound(chance)
    assert {r.protocol for r in chance.result.rows} == {"floor/constant", "as_is/identity", "as_is/platt"}


# --- traces at hand ------------------------------------------------------------------------------------------------


class Counted:
    """The baseline random, which says how often it is asked."""

    def __init__(self) -> None:
        self.inner = load_backend(ModelConfig("random"))
        self.facts, self.cost, self.asked = self.inner.facts, self.inner.cost, 0

    def score(self, traces: Sequence[Trace]) -> Iterator[StepScores]:
        self.asked += 1
        yield from self.inner.score(traces)


def test_one_backend_serves_three_tasks(tmp_path: Path) -> None:
    traces = [
        Trace(
            f"{s}-{i}",
            f"problem {i // 4}",
            ("a", "b"),
            first_error=i % 2 - 1,
            step_labels=(0.5, (i % 4) / 4),
            outcome=i % 2,
            group=f"g{i // 4}",
            subset=s,
            answer=str(i % 3),
        )
        for s in ("val", "test")
        for i in range(16)
    ]
    backend, config = Counted(), EvalConfig("random", calibrate_on="val", out=tmp_path / "out")
    manifest_fields = {"model": "ipvrm", "config": {"seed": 3, "recipe": {"beta": 10}}, "signal": "outcome"}
    runs = {}
    for task in ("steps", "best_of_n", "calibration"):
        made = evaluation.evaluate_traces(config, traces, "miniature", task, backend, manifest_fields=manifest_fields)  # type: ignore[arg-type]
        assert made is not None
        runs[task] = made
    assert backend.asked == 3
    assert len({r.path.name for r in runs.values()}) == 3
    assert all(r.path.name.startswith("ipvrm-") for r in runs.values())
    loaded = load_results(config.out, recompute=True)
    assert (loaded.broken, loaded.differing) == ((), ())
    for task, made in runs.items():
        facts = made.result.manifest
        assert (facts.task, facts.benchmark, facts.subsets) == (task, "miniature", ("val", "test"))
        assert (facts.model, facts.signal, facts.config["seed"]) == ("ipvrm", "outcome", 3)
        assert (facts.config["recipe"], facts.config["calibrate_on"]) == ({"beta": 10}, "val")
    assert value(runs["steps"], "as_is/calibrated:val", "f1", "test").value is not None
    assert value(runs["best_of_n"], "as_is/last", "best_of@4", "avg[val,test]").value is not None
    again = evaluation.evaluate_traces(config, traces, "miniature", "steps", backend, manifest_fields=manifest_fields)  # type: ignore[arg-type]
    assert again is not None
    assert again.result == runs["steps"].result
    assert backend.asked == 3


# --- policy ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    rows = [
        {"id": f"q{i}", "prompt": f"Say {i}.", "answer": str(i), "subset": "ab"[i % 2], "verifier": "exact"}
        for i in range(4)
    ]
    return write(tmp_path / "prompts.jsonl", rows)


@pytest.fixture
def policy_config(policy: Path, prompts: Path, tmp_path: Path) -> EvalConfig:
    own = {"group_size": 4, "max_new_tokens": 12, "temperature": 1.0, "top_p": 1.0}
    return EvalConfig(str(policy), benchmark="policy", data=prompts, out=tmp_path / "out", **own)  # type: ignore[arg-type]


def test_a_policy_is_sampled_verified_and_counted(policy_config: EvalConfig) -> None:
    found = run(policy_config)
    sound(found)
    facts = found.result.manifest
    assert (facts.task, facts.kind, facts.backend, facts.model) == ("policy", "outcome", "policy", "policy")
    assert (facts.n, facts.subsets, facts.series) == (16, ("a", "b"), ())
    assert facts.tokens == sum(s.tokens[0] for s in found.scores) > 16
    assert facts.weights
    assert tasks.protocol_keys(facts) == ("sampled/t1,p1,n4",)
    assert {r.subset for r in found.result.rows} == {"a", "b", "avg[a,b]", "micro[a,b]"}
    texts = [
        json.loads(line) for line in (policy_config.out / f"{facts.run_id}.rollouts.jsonl").read_text().splitlines()
    ]
    assert sorted(t["id"] for t in texts) == [s.id for s in found.scores]
    by_id = {s.id: s for s in found.scores}
    for text in texts:
        assert by_id[text["id"]].outcome == text["outcome"]
        assert by_id[text["id"]].finish == text["finish"]
        assert by_id[text["id"]].cluster == text["group"]
    cut = [s for s in found.scores if s.finish == "length"]
    assert cut
    assert all(s.tokens == (12,) for s in cut)
    assert value(found, "sampled/t1,p1,n4", "truncated", "micro[a,b]").value == pytest.approx(len(cut) / 16)
    right = sum(s.outcome or 0 for s in found.scores)
    assert value(found, "sampled/t1,p1,n4", "avg@4", "micro[a,b]").value == pytest.approx(right / 16)
    assert not list(policy_config.out.glob("*.journal"))


def test_a_policy_run_goes_on_where_it_was(
    policy_config: EvalConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = replace(policy_config, batch_tokens=64)
    whole = run(small, out=tmp_path / "whole")
    append, entries = result_files.Journal.append, []

    class PowerCutError(Exception):
        pass

    def cut_off(*entry: Any) -> None:
        if len(entries) == 3:
            raise PowerCutError
        entries.append(entry)
        append(*entry)

    monkeypatch.setattr(result_files.Journal, "append", cut_off)
    with pytest.raises(PowerCutError):
        evaluation.evaluate(small)
    monkeypatch.setattr(result_files.Journal, "append", append)
    assert list(policy_config.out.glob("*.journal"))
    resumed = run(small)
    assert result_files.scores_path(resumed.path).read_bytes() == result_files.scores_path(whole.path).read_bytes()
    assert resumed.path.name == whole.path.name
    before = resumed.path.read_bytes()
    monkeypatch.setattr(policy, "sample_batches", None)  # a finished run draws nothing
    assert run(small).result == resumed.result
    assert resumed.path.read_bytes() == before


def test_a_rollouts_file_is_judged_as_it_is(policy_config: EvalConfig, prompts: Path, tmp_path: Path) -> None:
    drawn = {
        name: getattr(policy_config, name) for name in ("model", "group_size", "max_new_tokens", "temperature", "top_p")
    }
    file = run_rollout(RolloutConfig(data=prompts, out=tmp_path / "drawn.jsonl", **drawn))
    assert file is not None
    sampled, read = run(policy_config), run(EvalConfig(benchmark="policy", data=file, out=tmp_path / "read"))
    sound(read)
    assert read.scores == sampled.scores
    assert read.result.rows == sampled.result.rows  # the same completions, drawn once and judged twice
    facts = read.result.manifest
    assert (facts.model, facts.weights, facts.n) == ("policy", sampled.result.manifest.weights, 16)
    assert facts.commit == sampled.result.manifest.commit
    assert facts.benchmark_hash == sampled.result.manifest.benchmark_hash  # so that `compare` takes them
    part = run(EvalConfig(benchmark="policy", data=file, out=tmp_path / "part", subset=("b",), limit=1))
    assert {s.cluster for s in part.scores} == {"q1"}
    lines = file.read_text().splitlines(keepends=True)
    altered = [json.dumps({**json.loads(lines[0]), "outcome": 1 - (json.loads(lines[0])["outcome"] or 0)}) + "\n"]
    file.write_text("".join([*altered, *lines[1:]]))
    with pytest.raises(UserError, match="is not what `prmbench rollout` wrote any more"):
        evaluation.evaluate(EvalConfig(benchmark="policy", data=file, out=tmp_path / "altered"))
    sidecar_path(file).unlink()
    with pytest.raises(UserError, match="says who wrote these completions"):
        evaluation.evaluate(EvalConfig(benchmark="policy", data=file, out=tmp_path / "lost"))


def test_a_policys_run_id_follows_what_moves_a_completion(policy_config: EvalConfig, tmp_path: Path) -> None:
    def planned(**changed: Any) -> str:
        return run(policy_config, out=tmp_path / "runs", **changed).result.manifest.run_id

    own = planned()
    changes: list[dict[str, Any]] = [{"temperature": 0.5}, {"seed": 1}, {"group_size": 2}, {"max_new_tokens": 6}]
    changes += [{"top_k": 5}, {"top_p": 0.5}, {"limit": 1}, {"temperature": 0.0, "group_size": 1}]
    assert len({own, *(planned(**c) for c in changes)}) == 1 + len(changes)
    greedy = run(policy_config, temperature=0.0, group_size=1, out=tmp_path / "runs")
    assert value(greedy, "greedy", "pass@1", "a").value == value(greedy, "greedy", "avg@1", "a").value


def test_two_policies_are_compared_on_the_same_prompts(policy_config: EvalConfig, reference: Path) -> None:
    one, two = run(policy_config), run(policy_config, model=str(reference))
    assert one.result.manifest.benchmark_hash == two.result.manifest.benchmark_hash
    wanted = tasks.pairs(one.result.manifest, two.result.manifest)
    rows = tasks.compare((one.result, one.scores), (two.result, two.scores), wanted)
    name = "sampled/t1,p1,n4 truncated"
    (found,) = [r for r in rows if (r.subset, r.protocol, r.metric) == ("a", name, "truncated_difference")]
    shares = [value(r, "sampled/t1,p1,n4", "truncated", "a").value for r in (one, two)]
    assert found.value == pytest.approx(shares[1] - shares[0])  # type: ignore[operator]


def test_a_policy_that_cannot_write_is_refused(policy_config: EvalConfig) -> None:
    with pytest.raises(UserError, match="a baseline writes nothing"):
        evaluation.evaluate(replace(policy_config, model="random"))
    with pytest.raises(UserError, match="has sampled/t1,p1,n4"):
        evaluation.evaluate(replace(policy_config, protocol=("greedy",)))
    assert not list(policy_config.out.glob("*.json*"))
