"""`prmbench rollout`: what is written, that it is written again bit for bit, and what is refused."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import save_model
from forked import Child, prmbench, run_group

from prmbench.config import RolloutConfig
from prmbench.core.records import Notice, UserError
from prmbench.data import prompts as prompt_files
from prmbench.data import rollouts as rollout_files
from prmbench.data.rollouts import Rollout
from prmbench.engines.completion_encoding import encode_completion
from prmbench.sampling import completions as policies
from prmbench.sampling import rollout as rollouts
from prmbench.sampling.rollout import run_rollout
from prmbench.verification.verifiers import Verifier

N = 3


@pytest.fixture
def config(policy: Path, tmp_path: Path) -> RolloutConfig:
    """14 prompts in two subsets, whose answers are a letter that a random model may well end on."""
    rows = [
        {"id": f"p{i}", "prompt": f"Which letter? {'a' * i}", "answer": "e", "subset": "ab"[i % 2], "verifier": "exact"}
        for i in range(14)
    ]
    data = tmp_path / "prompts.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    own = {"group_size": N, "max_new_tokens": 12, "batch_tokens": 300, "split": "line", "model": str(policy)}
    return RolloutConfig(data=data, out=tmp_path / "out" / "r.jsonl", **own)  # type: ignore[arg-type]


def run(config: RolloutConfig) -> list[Rollout]:
    path = run_rollout(config)
    assert path == config.out
    return rollout_files.read(path)


# --- what is written --------------------------------------------------------------------------------------


def test_every_prompt_has_its_completions_in_order(config: RolloutConfig) -> None:
    rows = run(config)
    prompts = prompt_files.load(config.data)  # type: ignore[arg-type]
    assert [r.id for r in rows] == [f"{p.id}/{k}" for p in prompts for k in range(N)]
    assert [(r.group, r.prompt, r.gold, r.subset) for r in rows] == [
        (p.id, p.text, p.gold, p.subset) for p in prompts for _ in range(N)
    ]
    assert len({r.completion for r in rows}) > 2 * len(prompts)  # seeds differ between and within prompts
    for r in rows:
        assert 1 <= (r.tokens or 0) <= 12
        assert r.finish == "stop" or r.tokens == 12
        assert r.steps == rollout_files.split_completion(r.completion, "line")
        assert r.outcome == (1 if r.verdict == "right" else 0)
    assert sorted(p.name for p in config.out.parent.iterdir()) == ["r.jsonl", "r.jsonl.json"]


def test_the_summary_counts_the_file(config: RolloutConfig) -> None:
    rows = run(config)
    counts = rollouts.read_counts(config.out)
    assert counts["prompts"] == 14
    assert counts["completions"] == 14 * N
    assert counts["verdicts"] == dict(Counter(r.verdict for r in rows))
    assert counts["truncated"] == sum(r.finish == "length" for r in rows) > 0
    assert counts["tokens"] == sum(r.tokens or 0 for r in rows)
    assert counts["accuracy"] == pytest.approx(sum(r.outcome or 0 for r in rows) / len(rows), abs=1e-6)
    assert json.loads(rollouts.sidecar_path(config.out).read_text())["config"]["model"] == "policy"
    assert str(config.out.parent) not in rollouts.sidecar_path(config.out).read_text()


def test_summarise_by_hand() -> None:
    def row(group: str, outcome: int | None, verdict: str, **more: object) -> Rollout:
        return Rollout("", "p", group=group, outcome=outcome, verdict=verdict, tokens=2, **more)  # type: ignore[arg-type]

    rows = [
        row("a", 1, "right", completion="Answer: 3", answer="3"),
        row("a", 0, "wrong", completion="so\n4", answer="4", finish="length"),
        row("b", None, "timeout", completion="Answer: 9^9"),
        row("b", 1, "right", completion="Answer: 1", answer="1"),
        row("c", 0, "no answer", completion=" "),
        row("d", None, "refused"),
    ]
    assert rollouts.summarise(rows) == {
        "prompts": 4,
        "completions": 5,
        "refused": 1,
        "tokens": 10,
        "verdicts": {"no answer": 1, "right": 2, "timeout": 1, "wrong": 1},
        "unverified": 1,
        "truncated": 1,
        "empty": 1,
        "unannounced": 1,
        "accuracy": 0.5,
        "mixed_prompts": 1,
        "all_right_prompts": 1,
        "all_wrong_prompts": 1,
    }
    assert rollouts.summarise(rows[2:3])["accuracy"] is None


def test_parquet_holds_the_same(config: RolloutConfig) -> None:
    assert run(config) == run(replace(config, out=config.out.with_suffix(".parquet")))


def test_limit_and_subset(config: RolloutConfig) -> None:
    whole = {r.id: r for r in run(config)}
    some = run(replace(config, out=config.out.with_name("s.jsonl"), subset=("b",), limit=2))
    assert [r.id for r in some] == [f"{p}/{k}" for p in ("p1", "p7") for k in range(N)]
    assert all(whole[r.id] == r for r in some)  # a prompt's completions do not depend on the other prompts


def test_more_completions_keep_the_first_ones(config: RolloutConfig) -> None:
    whole = {r.id: r for r in run(config)}
    more = {r.id: r for r in run(replace(config, out=config.out.with_name("s.jsonl"), group_size=N + 2))}
    assert len(more) == 14 * (N + 2)
    assert {name: more[name] for name in whole} == whole
    other = {r.id: r for r in run(replace(config, out=config.out.with_name("t.jsonl"), seed=1))}
    assert sum(other[name].completion == r.completion for name, r in whole.items()) < 5


def test_sample_needs_no_journal(config: RolloutConfig) -> None:
    rows = run(config)
    engine = policies.open_policy(config)
    with Verifier() as verifier:
        resampled = list(policies.sample_completions(engine, prompt_files.load(config.data), config, verifier))  # type: ignore[arg-type]
    assert resampled == rows


def test_training_reads_back_what_was_sampled(config: RolloutConfig) -> None:
    """Completions that tokenise as they were sampled: the same prompt, and the end of turn behind."""
    engine = policies.open_policy(config)
    work = policies.prepare(engine, prompt_files.load(config.data), config)  # type: ignore[arg-type]
    prompt = work.prompts[0]
    trained = encode_completion(engine.tokenizer, prompt.text, "Answer: e")
    assert trained.ids[: trained.start] == work.prompt_ids[0]
    assert trained.ids[-1] in work.stop_ids


# --- interrupted, repeated, shared ------------------------------------------------------------------------


class PowerCutError(Exception):
    pass


def cut_after(batches: int) -> policies.Progress:
    def progress(done: int, _total: int, _speed: float) -> None:
        if done == batches:
            raise PowerCutError

    return progress


def test_an_interrupted_run_goes_on_and_writes_the_same_bytes(config: RolloutConfig) -> None:
    run(config)
    again = replace(config, out=config.out.with_name("again.jsonl"))
    with pytest.raises(PowerCutError):
        run_rollout(again, cut_after(2))
    assert not again.out.exists()
    (journal,) = again.out.parent.glob("again.jsonl.journal/*.jsonl")
    with journal.open("a") as file:
        file.write('{"batch": 2, "rollouts": [{"id')  # torn by a kill
    seen: list[int] = []
    run_rollout(again, lambda done, total, _: seen.append(total - done))
    assert seen[0] == told_batches(config) - 3  # the two on disk were not drawn again
    assert again.out.read_bytes() == config.out.read_bytes()
    assert not list(again.out.parent.glob("*.journal"))


def told_batches(config: RolloutConfig) -> int:
    engine = policies.open_policy(config)
    return len(policies.prepare(engine, prompt_files.load(config.data), config).batches)  # type: ignore[arg-type]


def command(config: RolloutConfig) -> list[str]:
    names = ("model", "data", "out", "group_size", "max_new_tokens", "batch_tokens", "split")
    flags = [f"--{name.replace('_', '-')}={getattr(config, name)}" for name in names]
    return ["rollout", "--quiet", *flags]


@pytest.mark.slow
def test_kill_9_loses_nothing(config: RolloutConfig) -> None:
    run(config)
    again = replace(config, out=config.out.with_name("again.jsonl"))
    with Child(prmbench, *command(again)) as process:  # killed once it has recorded a batch
        process.wait_for(lambda: list(again.out.parent.glob("again.jsonl.journal/*.jsonl")))
    run_rollout(again)
    assert again.out.read_bytes() == config.out.read_bytes()


@pytest.mark.slow
def test_two_processes_write_the_same_bytes(config: RolloutConfig) -> None:
    run(config)
    again = replace(config, out=config.out.with_name("again.jsonl"))
    run_group(prmbench, *command(again))
    assert again.out.read_bytes() == config.out.read_bytes()


def test_a_finished_run_is_not_drawn_again(config: RolloutConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    run(config)
    before = config.out.stat().st_mtime_ns
    monkeypatch.setattr(policies, "sample_batches", None)
    assert run_rollout(config) == config.out
    assert config.out.stat().st_mtime_ns == before


def test_another_run_does_not_overwrite(config: RolloutConfig) -> None:
    run(config)
    with pytest.raises(UserError, match=r"exists, from a run that differs in sampling; name another file"):
        run_rollout(replace(config, temperature=0.5))
    rollouts.sidecar_path(config.out).unlink()
    with pytest.raises(UserError, match="exists, and this command did not write it"):
        run_rollout(config)


def test_a_journal_of_other_options_is_refused(config: RolloutConfig) -> None:
    with pytest.raises(PowerCutError):
        run_rollout(config, cut_after(1))
    with pytest.raises(UserError, match="begun with another seed"):
        run_rollout(replace(config, seed=3))


# --- what cannot be drawn ---------------------------------------------------------------------------------


def test_prompts_without_room_are_counted_not_cut(config: RolloutConfig, tmp_path: Path) -> None:
    model = save_model(tmp_path / "short", 0)
    shape = json.loads((model / "config.json").read_text())
    ids = policies.prepare(policies.open_policy(config), prompt_files.load(config.data), config).prompt_ids  # type: ignore[arg-type]
    longest = max(map(len, ids))
    (model / "config.json").write_text(json.dumps({**shape, "max_position_embeddings": longest}))
    small = replace(config, model=str(model))
    rows = run(small)
    full = sum(len(i) == longest for i in ids)
    assert len(rows) == (14 - full) * N
    assert rollouts.read_counts(config.out)["refused"] == full * N > 0
    room = {p.id: longest - len(i) for p, i in zip(prompt_files.load(config.data), ids, strict=True)}  # type: ignore[arg-type]
    assert all((r.tokens or 0) <= room[r.group] for r in rows)
    (model / "config.json").write_text(json.dumps({**shape, "max_position_embeddings": min(map(len, ids))}))
    with pytest.raises(UserError, match="no prompt leaves room for a completion"):
        run_rollout(replace(small, out=config.out.with_name("none.jsonl")))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"model": ""}, "--model is missing"),
        ({"model": "random"}, "--model random: a baseline writes nothing"),
        ({"data": None}, "--data is missing"),
        ({"group_size": 0}, "--group-size is 0"),
        ({"temperature": 0.0}, "greedy completions are all alike"),
        ({"temperature": -1.0}, "--temperature is -1.0"),
        ({"top_p": 2.0}, "--top-p is 2.0"),
        ({"batch_tokens": 0}, "--batch-tokens is 0"),
        ({"out": Path("r.csv")}, "written as .jsonl or .parquet"),
        ({"trust_remote_code": True}, "--trust-remote-code"),
        ({"verifier": "sympy"}, "choose from auto, math, exact, gym"),
        ({"subset": ("c",)}, "--subset c"),
    ],
)
def test_bad_input(config: RolloutConfig, changed: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        run_rollout(replace(config, **changed))  # type: ignore[arg-type]


def test_a_row_does_not_choose_that_a_scorer_runs(config: RolloutConfig, tmp_path: Path) -> None:
    data = tmp_path / "gym.jsonl"
    row = {"id": "a", "prompt": "P", "answer": "3", "verifier": "gym", "metadata": {"source_dataset": "chain_sum"}}
    data.write_text(json.dumps(row), encoding="utf-8")
    with pytest.raises(
        UserError, match="prompt a: asks for the verifier gym; give --verifier gym if you trust its file"
    ):
        run_rollout(replace(config, data=data))
    for metadata, reason in (
        ({"source_dataset": "n_queens"}, "evaluates the answer or the data as Python"),
        ({}, "no `source_dataset`"),
        ({"source_dataset": ["chain_sum"]}, "no `source_dataset`"),
    ):
        data.write_text(json.dumps({**row, "metadata": metadata}), encoding="utf-8")
        with pytest.raises(UserError, match=reason):
            run_rollout(replace(config, data=data, verifier="gym"))


def test_golds_that_cannot_be_read_are_counted_in_one_line(config: RolloutConfig, tmp_path: Path) -> None:
    data = tmp_path / "solutions.jsonl"
    golds = ["She keeps 2 of the 5 apples that were in the box on Monday.", "#### 6", "\\frac{1}{2}"]
    data.write_text("\n".join(json.dumps({"prompt": "P", "answer": gold}) for gold in golds), encoding="utf-8")
    with pytest.warns(Notice, match="1 of 3 prompts have a gold answer that cannot be read .first: solutions-0"):
        path = run_rollout(replace(config, data=data, verifier="math"))
    assert path is not None
    verdicts = rollouts.read_counts(path)["verdicts"]
    assert verdicts["no gold"] == config.group_size
    data.write_text(json.dumps({"prompt": "P", "answer": golds[0]}), encoding="utf-8")
    message = rf"c.jsonl: none of {config.group_size} completions could be verified \({config.group_size} no gold\)"
    with pytest.warns(Notice, match=message):
        run_rollout(replace(config, data=data, verifier="math", out=tmp_path / "c.jsonl"))


def test_the_output_is_neither_input_nor_folder(config: RolloutConfig) -> None:
    assert config.data is not None
    with pytest.raises(UserError, match="is a file that is read"):
        run_rollout(replace(config, out=config.data))
    (config.data.parent / "d.jsonl").mkdir()
    with pytest.raises(UserError, match="is a folder"):
        run_rollout(replace(config, out=config.data.parent / "d.jsonl"))


def test_dry_run_loads_no_weights(config: RolloutConfig, tmp_path: Path) -> None:
    model = shutil.copytree(config.model, tmp_path / "empty")
    (model / "model.safetensors").unlink()
    plan = rollouts.dry_run(replace(config, model=str(model), dry_run=True))
    assert (plan.prompts, plan.completions, plan.refused) == (14, 14 * N, 0)
    assert plan.most_new_tokens == 14 * N * 12
    assert plan.batches == told_batches(config) > 3
    assert not config.out.exists()


# --- real -------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.real_model
def test_a_real_model_on_real_prompts(shared_data: Path, smollm2_model: Path, tmp_path: Path) -> None:
    pytest.importorskip("math_verify", reason="needs math-verify (extra verify)")
    config = RolloutConfig(
        model=str(smollm2_model),
        data=shared_data / "policy_eval" / "math_benchmarks.parquet",
        subset=("amc83",),
        limit=4,
        group_size=2,
        max_new_tokens=24,
        temperature=0.6,
        top_p=0.95,
        out=tmp_path / "r.parquet",
    )
    rows = run(config)
    assert len(rows) == 8
    assert {r.verdict for r in rows} <= {"right", "wrong", "no answer"}
    assert all(r.completion.isprintable() or "\n" in r.completion for r in rows)
    assert sum(r.finish == "length" for r in rows) >= 4
