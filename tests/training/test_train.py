"""Training runs on a tiny model: what they learn, what must not move the result, files, errors."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import torch
import transformers
from conftest import save_model
from train_runs import RM_LOSSES, data, distance, gaps, metrics, options, run, sft_options, traces, weights

from prmbench import evaluation
from prmbench.backends import load_backend
from prmbench.config import EvalConfig, ModelConfig, TrainConfig
from prmbench.core.provenance import weights_hash
from prmbench.core.records import NonFiniteError, StepScores, UserError
from prmbench.data import rollouts, training_data
from prmbench.data.rollouts import Rollout
from prmbench.engines.completion_encoding import encode_completion, render_steps
from prmbench.engines.hf import Placement
from prmbench.training import setup
from prmbench.training.losses import LOSSES
from prmbench.training.reference import _digest as cache_digest
from prmbench.training.train import dry_run, train

SGD = {"optimizer": "sgd", "learning_rate": 0.01, "max_grad_norm": 0.0, "steps": 1}


# --- it learns what it is told ----------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", RM_LOSSES)
def test_overfits_eight_traces_and_swapped_labels_reverse_it(policy: Path, tmp_path: Path, loss: str) -> None:
    more = {"loss": loss, "steps": 40, "learning_rate": 5e-3}
    done = run(options(policy, data(tmp_path), tmp_path / "a", **more))
    assert done.accuracy == 1.0
    assert min(gaps(tmp_path / "a")) > 0  # ranking accuracy 1
    assert metrics(tmp_path / "a")[-1] < metrics(tmp_path / "a")[0]
    run(options(policy, data(tmp_path, traces(swap=True), "swapped.jsonl"), tmp_path / "b", **more))
    assert max(gaps(tmp_path / "b")) < 0


def test_sft_learns_the_text_it_is_shown_and_leaves_wrong_rows_out(policy: Path, tmp_path: Path) -> None:
    done = run(sft_options(policy, data(tmp_path), tmp_path / "out", steps=40))
    assert (done.units, dict(done.left_out), done.accuracy) == (4, {"rollouts with a wrong answer": 4}, None)
    assert metrics(tmp_path / "out")[-1] < 0.05
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    right = next(r for r in traces() if r.outcome == 1)
    encoded = encode_completion(tokenizer, right.prompt, render_steps(right.steps))
    told = model.generate(torch.tensor([encoded.ids[: encoded.start]]), max_new_tokens=80, do_sample=False)
    assert tuple(told[0, : len(encoded.ids)].tolist()) == encoded.ids  # end of turn included
    assert not (tmp_path / "out" / "prm.json").exists()  # a policy is no reward model


# --- the numbers, against plain arithmetic ----------------------------------------------------------------------


def naive_logprobs(model: torch.nn.Module, tokenizer: object, row: Rollout) -> torch.Tensor:
    """Log-probabilities of the completion and its end of turn, one sequence at a time, from all logits."""
    encoded = encode_completion(tokenizer, row.prompt, row.completion or render_steps(row.steps))  # type: ignore[arg-type]
    ids = torch.tensor([encoded.ids])
    logp = model(input_ids=ids).logits[0, :-1].log_softmax(-1)
    return logp.gather(1, ids[0, 1:, None])[encoded.start - 1 :, 0]


@pytest.mark.parametrize(("reduction", "reference_given"), [("sequence", True), ("token", False)])
def test_one_update_is_the_plain_gradient_step(
    policy: Path, reference: Path, tmp_path: Path, reduction: str, reference_given: bool
) -> None:
    """IPVRM at beta 2, margin 0.3 on right and wrong traces of unequal length: w - lr * gradient."""
    rows = traces()
    rows[1] = replace(rows[1], steps=("Well, we could multiply instead.", *rows[1].steps), first_error=None)
    rows[0] = replace(rows[0], steps=(), completion="It is 0.", first_error=None)
    more = {"reduction": reduction, "beta": 2.0, "margin": 0.3, **SGD}
    if reference_given:
        more["ref_model"] = str(reference)
    run(options(policy, data(tmp_path, rows), tmp_path / "out", **more))

    model = transformers.AutoModelForCausalLM.from_pretrained(policy)
    other = transformers.AutoModelForCausalLM.from_pretrained(reference if reference_given else policy)
    tokenizer = transformers.AutoTokenizer.from_pretrained(policy)
    total, count = torch.zeros(()), 0
    for row in rows:
        with torch.no_grad():
            ref = naive_logprobs(other, tokenizer, row)
        ratio = naive_logprobs(model, tokenizer, row) - ref
        t = torch.arange(1, len(ratio) + 1)
        value = 2.0 * ratio.cumsum(0) / t
        terms = torch.nn.functional.softplus(0.3 - value if row.outcome == 1 else 0.3 + value)
        total = total + (terms.mean() if reduction == "sequence" else terms.sum())
        count += 1 if reduction == "sequence" else len(t)
    loss = total / count
    loss.backward()
    assert metrics(tmp_path / "out") == pytest.approx([loss.item()], abs=1e-5)
    moved = weights(tmp_path / "out")
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        expected = parameter.detach() - 0.01 * parameter.grad
        assert torch.allclose(moved[name], expected, atol=2e-6), name
        if "proj" in name:
            assert not torch.equal(moved[name], parameter.detach())
    norm = math.sqrt(sum(float(p.grad.square().sum()) for p in model.parameters() if p.grad is not None))
    assert metrics(tmp_path / "out", "grad_norm") == pytest.approx([norm], rel=1e-4)


def test_sft_loss_is_transformers_own(policy: Path, tmp_path: Path) -> None:
    row = replace(traces()[0], finish="length")  # cut: no end of turn is learnt
    run(sft_options(policy, data(tmp_path, [row]), tmp_path / "out", **SGD))
    model = transformers.AutoModelForCausalLM.from_pretrained(policy)
    tokenizer = transformers.AutoTokenizer.from_pretrained(policy)
    encoded = encode_completion(tokenizer, row.prompt, render_steps(row.steps), finished=False)
    ids = torch.tensor([encoded.ids])
    labels = ids.clone()
    labels[0, : encoded.start] = -100
    assert metrics(tmp_path / "out") == pytest.approx([model(input_ids=ids, labels=labels).loss.item()], abs=1e-5)


def test_a_model_that_is_its_own_reference_starts_at_log_two(policy: Path, tmp_path: Path) -> None:
    run(options(policy, data(tmp_path), tmp_path / "out", margin=0.0, steps=1))
    assert metrics(tmp_path / "out") == pytest.approx([math.log(2)], abs=1e-6)


# --- what must not move the result --------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", ["ipvrm", "dpo_rm", "q_rm", "step_bce"])
def test_micro_batches_do_not_move_an_update(policy: Path, tmp_path: Path, loss: str) -> None:
    """One sequence (or pair) at a time, accumulated, against all at once with their padding; and recomputation."""
    rows = traces(prompts=6)
    rows[3] = replace(rows[3], steps=("Let us see what that may be.", *rows[3].steps), first_error=2)
    file = data(tmp_path, rows)
    for name, more in (
        ("whole", {"batch_tokens": 100_000}),
        ("single", {"batch_tokens": 1}),
        ("recomputed", {"batch_tokens": 150, "gradient_checkpointing": "on"}),
    ):
        reduction = {"reduction": "token"} if LOSSES[loss].per_token else {}
        run(options(policy, file, tmp_path / name, loss=loss, **reduction, **SGD, **more))
    assert metrics(tmp_path / "single") == pytest.approx(metrics(tmp_path / "whole"), abs=1e-6)
    assert distance(tmp_path / "single", tmp_path / "whole") < 1e-6
    assert distance(tmp_path / "recomputed", tmp_path / "whole") < 1e-6
    start = weights(policy)
    moved = weights(tmp_path / "whole")
    assert max(float((moved[k] - start[k]).abs().max()) for k in start if k in moved) > 1e-5


def test_the_order_of_rows_does_not_move_an_update_of_all(policy: Path, tmp_path: Path) -> None:
    run(options(policy, data(tmp_path, traces()), tmp_path / "a", **SGD))
    run(options(policy, data(tmp_path, traces()[::-1], "reversed.jsonl"), tmp_path / "b", **SGD))
    assert distance(tmp_path / "a", tmp_path / "b") < 1e-6


def test_dropout_is_off(tmp_path: Path, policy: Path) -> None:
    """Both are the same model; one asks for attention dropout, which would move even the first loss off log 2."""
    start = save_model(tmp_path / "dropping", 0, attention_dropout=0.5)
    run(options(start, data(tmp_path), tmp_path / "a", steps=2))
    run(options(policy, data(tmp_path), tmp_path / "b", steps=2))
    assert metrics(tmp_path / "a") == metrics(tmp_path / "b")


# --- LoRA, precision ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", ["ipvrm", "step_bce"])
def test_lora_is_merged_and_its_adapter_kept(policy: Path, tmp_path: Path, loss: str) -> None:
    peft = pytest.importorskip("peft")
    out = tmp_path / "out"
    more = {"loss": loss, "steps": 40, "learning_rate": 1e-2, "lora_rank": 4}
    assert run(options(policy, data(tmp_path), out, **more)).accuracy == 1.0
    assert min(gaps(out)) > 0
    start, end = weights(policy), weights(out)
    assert torch.equal(start["model.embed_tokens.weight"], end["model.embed_tokens.weight"])
    delta = end["model.layers.0.mlp.up_proj.weight"] - start["model.layers.0.mlp.up_proj.weight"]
    assert torch.linalg.matrix_rank(delta, rtol=1e-3) == 4
    if loss == "ipvrm":
        base = transformers.AutoModelForCausalLM.from_pretrained(policy)
        adapted = peft.PeftModel.from_pretrained(base, out / "adapter")
        merged = transformers.AutoModelForCausalLM.from_pretrained(out)
        ids = torch.arange(20)[None]
        assert torch.allclose(adapted(input_ids=ids).logits, merged(input_ids=ids).logits, atol=1e-4)


def test_bfloat16_trains_float32_weights(policy: Path, tmp_path: Path) -> None:
    more = {"steps": 40, "learning_rate": 5e-3, "dtype": "bfloat16"}
    assert run(options(policy, data(tmp_path), tmp_path / "out", **more)).accuracy == 1.0
    moved = weights(tmp_path / "out")
    assert {w.dtype for w in moved.values()} == {torch.float32}
    assert not torch.equal(moved["lm_head.weight"], moved["lm_head.weight"].bfloat16().float())


# --- evaluation needs no flags ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("loss", "kind", "signal"),
    [
        ("ipvrm", "logratio", "outcome"),
        ("q_rm", "logratio", "outcome"),
        ("step_bce", "prob", "steps"),
        ("value_bce", "value", "steps"),
    ],
)
def test_eval_reads_the_trained_model_without_flags(
    policy: Path, tmp_path: Path, benchmark_folder: Path, loss: str, kind: str, signal: str
) -> None:
    out = tmp_path / "out"
    run(options(policy, data(tmp_path), out, loss=loss, steps=2))
    done = evaluation.evaluate(EvalConfig(model=str(out), data=benchmark_folder, out=tmp_path / "runs", device="cpu"))
    facts = done.result.manifest
    assert (facts.kind, facts.signal, facts.trained_on) == (kind, signal, ("rollouts.jsonl",))
    assert all(not row.unscored for row in done.scores)
    assert facts.ref_model == ("policy" if loss == "ipvrm" else None)


def test_a_template_given_to_training_is_the_trained_models_own(policy: Path, tmp_path: Path) -> None:
    from prmbench.data.rollouts import to_trace

    out = tmp_path / "out"
    run(options(policy, data(tmp_path), out, steps=2, template="plain"))
    (score,) = load_backend(ModelConfig(model=str(out), device="cpu")).score([to_trace(traces()[0])])
    told = ModelConfig(model=str(out), template="plain", device="cpu")
    (plain,) = load_backend(told).score([to_trace(traces()[0])])
    assert score == plain


def test_a_reference_is_found_when_the_folders_move_together(policy: Path, tmp_path: Path) -> None:
    shutil.copytree(policy, tmp_path / "here" / "policy")
    run(options(tmp_path / "here" / "policy", data(tmp_path), tmp_path / "here" / "rm", steps=1))
    shutil.move(tmp_path / "here", tmp_path / "there")
    assert len(gaps(tmp_path / "there" / "rm")) == 4


# --- files -----------------------------------------------------------------------------------------------------------


def test_the_reference_is_computed_once_and_shared_with_sibling_runs(policy: Path, tmp_path: Path) -> None:
    file = data(tmp_path)
    run(options(policy, file, tmp_path / "a", loss="ipvrm"))
    (cache,) = (tmp_path / "a").glob("reference-*")
    run(options(policy, file, tmp_path / "b", loss="implicit_prm"))
    assert not list((tmp_path / "b").glob("reference-*"))
    from safetensors.numpy import load, save

    table = load(cache.read_bytes())
    table["values"] = table["values"] + np.float32(1.0)  # to see who reads it
    table["sha256"] = np.frombuffer(bytes.fromhex(cache_digest(table)), dtype=np.uint8)
    cache.write_bytes(save(table))
    run(options(policy, file, tmp_path / "c", loss="implicit_prm", steps=1))
    assert metrics(tmp_path / "c")[0] != pytest.approx(math.log(2), abs=1e-3)
    cache.write_bytes(b"not a cache")
    run(options(policy, file, tmp_path / "d", loss="implicit_prm", steps=1))
    assert metrics(tmp_path / "d")[0] == pytest.approx(math.log(2), abs=1e-6)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_processes_on_different_gpus_share_the_reference(
    policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, strategy: str
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    config = setup.resolved(options(policy, data(tmp_path), tmp_path / "out", strategy=strategy))
    job = setup.prepare(config)

    def identity(device: str, dtype: str = "bfloat16") -> str:
        placed = replace(job.setup, placement=Placement(device, dtype).resolve())
        return setup.reference_identity(replace(job, setup=placed))

    found = set()
    for number in range(4):
        monkeypatch.setenv("LOCAL_RANK", str(number))
        found.add(identity("cuda"))
    assert len(found) == 1
    assert len({*found, identity("cpu"), identity("cpu", "float32"), identity("cuda", "float32")}) == 4


def test_a_run_done_twice_gives_one_hash_of_the_model(policy: Path, tmp_path: Path) -> None:
    for out in (tmp_path / "a", tmp_path / "deeper" / "b"):
        run(options(policy, data(tmp_path), out))
    (kept,) = (tmp_path / "a").glob("reference-*.safetensors")
    kept.unlink()  # as in a run that finds its sibling's
    (tmp_path / "a" / "non_finite.json").write_text("{}")
    first, second = tmp_path / "a", tmp_path / "deeper" / "b"
    known = weights_hash(first)
    assert weights_hash(second) == known
    card = json.loads((first / "prm.json").read_text())
    recorded = {"commit": "0" * 40, "dirty": True, "prmbench": "9", "ref_model": "elsewhere", "ref_revision": "0" * 40}
    (second / "prm.json").write_text(json.dumps({**card, **recorded}))
    assert weights_hash(second) == known
    for changed in ({"reading": "cumulative"}, {"beta": 0.3}, {"backend": "endo"}):
        (second / "prm.json").write_text(json.dumps({**card, **changed}))
        assert weights_hash(second) != known
    (second / "prm.json").write_text("not a card")
    assert weights_hash(second) != known
    other = run(options(policy, data(tmp_path), tmp_path / "c", seed=1, batch_size=2))
    assert weights_hash(other.out) != known


def test_a_reference_of_the_hub_is_read_at_the_revision_of_training(
    policy: Path, reference: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hub's main branch holds other weights than the commit that training started from."""
    shas = ["a" * 40, "b" * 40]
    repo = tmp_path / "hub" / "models--someone--policy"
    (repo / "refs").mkdir(parents=True)
    for sha, source in zip(shas, (policy, reference), strict=True):
        shutil.copytree(source, repo / "snapshots" / sha)
    (repo / "refs" / "main").write_text(shas[1])
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    for name, loss in (("rm", "ipvrm"), ("head", "q_rm")):
        config = options(policy, data(tmp_path), tmp_path / name, loss=loss, revision=shas[0], margin=0.0, steps=1)
        run(replace(config, model="someone/policy"))
    assert metrics(tmp_path / "rm") == pytest.approx([math.log(2)], abs=1e-6)  # both sides from the revision given
    cards = [json.loads((tmp_path / name / "prm.json").read_text()) for name in ("rm", "head")]
    assert [card["ref_revision"] for card in cards] == [shas[0], None]  # the second has no reference

    def scores(**more: str) -> list[StepScores]:
        given = ModelConfig(model=str(tmp_path / "rm"), device="cpu", **more)  # type: ignore[arg-type]
        return list(load_backend(given).score([rollouts.to_trace(row) for row in traces()]))

    pinned, main = scores(ref_model=str(policy)), scores(ref_model=str(reference))
    assert pinned != main
    assert scores() == pinned
    assert scores(ref_revision="main") == main
    assert scores(ref_model="someone/policy") == main  # the card's revision is not that of another reference


def test_a_finished_run_is_not_done_again(policy: Path, tmp_path: Path) -> None:
    config = options(policy, data(tmp_path), tmp_path / "out")
    first = run(config)
    stamp = (tmp_path / "out" / "model.safetensors").stat().st_mtime_ns
    again = run(replace(config, batch_tokens=64))  # which moves nothing
    assert again == replace(first, fresh=False)
    assert (tmp_path / "out" / "model.safetensors").stat().st_mtime_ns == stamp


def test_validation_prompts_are_held_out_and_measured_after_each_pass(policy: Path, tmp_path: Path) -> None:
    more = {"validation": 0.25, "steps": None, "epochs": 3.0, "batch_size": 4}
    done = run(options(policy, data(tmp_path), tmp_path / "out", **more))
    assert (done.units, done.updates) == (6, 5)  # 18 rows in fours
    assert len(metrics(tmp_path / "out", "validation_loss")) == 3
    held = json.loads((tmp_path / "out" / "train.json").read_text())["data"]["held_out"]
    assert held["units"] == 2


def test_only_the_training_part_must_be_usable(policy: Path, tmp_path: Path) -> None:
    """The prompt held out has right completions only: a pointwise loss is measured on it, a pairwise one cannot be."""
    held = {r.prompt for r in training_data.split_by_prompt(traces(), 0.25, 0)[1]}
    rows = [replace(r, outcome=1) if r.prompt in held else r for r in traces()]
    file = data(tmp_path, rows)
    run(options(policy, file, tmp_path / "points", validation=0.25, steps=1))
    assert len(metrics(tmp_path / "points", "validation_loss")) == 1
    done = run(options(policy, file, tmp_path / "pairs", loss="dpo_rm", validation=0.25, steps=1))
    assert (done.units, metrics(tmp_path / "pairs", "validation_loss")) == (3, [])
    assert done.left_out["rollouts held out, none of use: no validation"] == 2
    one_sided = data(tmp_path, [replace(r, outcome=1) if r.prompt not in held else r for r in traces()], "turned.jsonl")
    with pytest.raises(UserError, match="every label is 1"):
        run(options(policy, one_sided, tmp_path / "none", validation=0.25))


def test_a_blank_completion_beside_steps_is_those_steps(policy: Path, tmp_path: Path) -> None:
    run(options(policy, data(tmp_path), tmp_path / "steps", steps=1))
    blank = data(tmp_path, [replace(r, completion=" \n") for r in traces()], "blank.jsonl")
    done = run(options(policy, blank, tmp_path / "blank", steps=1))
    assert (done.units, dict(done.left_out)) == (8, {})
    assert distance(tmp_path / "steps", tmp_path / "blank") == 0


def test_fsdp_alone_has_nothing_to_shard(policy: Path, tmp_path: Path) -> None:
    for strategy in ("fsdp", "ddp"):
        run(options(policy, data(tmp_path), tmp_path / strategy, strategy=strategy, steps=2))
    assert distance(tmp_path / "fsdp", tmp_path / "ddp") == 0


def test_long_rows_are_left_out_and_counted(policy: Path, tmp_path: Path) -> None:
    rows = traces()
    rows[2] = replace(rows[2], steps=(" ".join(["and"] * 300),), first_error=None)
    rows[4] = replace(rows[4], steps=(), completion=" ", first_error=None)
    done = run(options(policy, data(tmp_path, rows), tmp_path / "out", max_tokens=200, steps=1))
    assert dict(done.left_out) == {"empty completions": 1, "longer than 200 tokens": 1}
    assert done.units == 6
    pairs = run(options(policy, data(tmp_path, rows), tmp_path / "pairs", loss="dpo_rm", max_tokens=200, steps=1))
    assert pairs.units == 2
    assert pairs.left_out["pairs with a half of which: longer than 200 tokens"] == 1
    assert pairs.left_out["prompts with wrong answers only"] == 1


def test_a_dry_run_loads_no_weights_and_writes_nothing(policy: Path, tmp_path: Path) -> None:
    shutil.copytree(policy, tmp_path / "bare", ignore=shutil.ignore_patterns("*.safetensors"))
    more = {"steps": None, "epochs": 2.0, "batch_size": 3, "validation": 0.25}
    plan = dry_run(options(tmp_path / "bare", data(tmp_path), tmp_path / "out", **more))
    assert (plan.units, plan.held_out, plan.updates, dict(plan.left_out)) == (6, 2, 4, {})
    assert plan.tokens > plan.longest > 0
    assert list(plan.peak_gib) == ["load", "reference", "update", "save"]
    assert plan.memory_gib == max(plan.peak_gib.values())
    assert (plan.device_gib is None) == (not torch.cuda.is_available())
    without = dry_run(options(tmp_path / "bare", data(tmp_path), tmp_path / "out", loss="step_bce"))
    assert list(without.peak_gib) == ["load", "update", "save"]
    assert not (tmp_path / "out").exists()


def test_pointwise_losses_can_take_the_halves_of_the_pairs_that_pairwise_ones_take(
    policy: Path, tmp_path: Path
) -> None:
    extra = Rollout("p0/9", "What is 0 plus 0?", steps=("We look.", "Thus 7."), outcome=0, group="p0")
    file = data(tmp_path, [*traces(), extra])
    pairs, halves = (
        run(options(policy, file, tmp_path / loss, loss=loss, pairs="one", batch_size=2, steps=3))
        for loss in ("dpo_rm", "ipvrm")
    )
    assert (pairs.units, halves.units) == (4, 4)  # the ninth completion is in no first pair
    logs = [[json.loads(line) for line in (t.out / "metrics.jsonl").read_text().splitlines()] for t in (pairs, halves)]
    assert [e["tokens"] for e in logs[0]] == [e["tokens"] for e in logs[1]]  # the same completions in every batch
    every = run(options(policy, file, tmp_path / "all", loss="ipvrm", steps=1))
    assert every.units == 9


def test_limit_takes_whole_prompts(policy: Path, tmp_path: Path) -> None:
    plan = dry_run(options(policy, data(tmp_path), tmp_path / "out", limit=2, loss="dpo_rm"))
    assert plan.units == 2


def test_a_callback_may_end_the_run(policy: Path, tmp_path: Path) -> None:
    seen = []

    def enough(updates: int, engine: object) -> bool:
        seen.append(updates)
        return updates == 3

    done = run(options(policy, data(tmp_path), tmp_path / "out", steps=9), stop=enough)
    assert (done.updates, seen) == (3, [1, 2, 3])
    assert len(metrics(tmp_path / "out")) == 3


# --- bad input -------------------------------------------------------------------------------------------------------


def all_right() -> list[Rollout]:
    return [replace(r, outcome=1, first_error=-1) for r in traces()]


@pytest.mark.parametrize(
    ("rows", "more", "says"),
    [
        (all_right(), {}, "every label is 1"),
        (all_right(), {"loss": "dpo_rm"}, "4 prompts with right answers only"),
        (all_right(), {"loss": "step_bce"}, "every label is 1"),
        ([replace(r, outcome=None) for r in traces()], {}, "8 rollouts not verified"),
        ([replace(r, first_error=None) for r in traces()], {"loss": "value_bce"}, "8 rollouts without step labels"),
        (None, {"max_tokens": 10}, "8 longer than 10 tokens"),
        (None, {"loss": "none"}, "choose from sft, ipvrm"),
        (None, {"loss": "sft"}, "use train-sft"),
        (None, {"loss": "implicit_prm", "margin": 1.0}, "--margin: loss implicit_prm has none"),
        (None, {"loss": "q_rm", "ref_model": "x"}, "loss q_rm has no reference"),
        (None, {"dtype": "float16"}, "use bfloat16 or float32"),
        (None, {"steps": 0}, "--steps is 0"),
        (None, {"learning_rate": 0.0}, "--learning-rate is 0.0"),
        (None, {"learning_rate": math.nan}, "--learning-rate is nan"),
        (None, {"learning_rate": math.inf}, "--learning-rate is inf"),
        (None, {"epochs": math.inf}, "--epochs is inf"),
        (None, {"beta": 0.0}, "--beta is 0.0"),
        (None, {"beta": math.nan}, "--beta is nan"),
        (None, {"margin": -0.5}, "--margin is -0.5"),
        (None, {"warmup": 1.1}, "--warmup is 1.1"),
        (None, {"warmup": -0.1}, "--warmup is -0.1"),
        (None, {"max_grad_norm": -1.0}, "--max-grad-norm is -1.0"),
        (None, {"weight_decay": -0.1}, "--weight-decay is -0.1"),
        (None, {"weight_decay": math.nan}, "--weight-decay is nan"),
        (None, {"seed": -1}, "--seed is -1"),
        (None, {"max_tokens": 0}, "--max-tokens is 0"),
        (None, {"loss": "dpo_rm", "reduction": "token"}, "--reduction: loss dpo_rm has none"),
        (None, {"limit": 0}, "--limit is 0"),
        (None, {"validation": 1.5}, "--validation is 1.5"),
        (None, {"data": None}, "--data is missing"),
        (None, {"model": ""}, "--model is missing"),
        (None, {"model": "no/such/model"}, "no such file or folder"),
    ],
)
def test_bad_input_is_one_clear_line(
    policy: Path, tmp_path: Path, rows: list[Rollout] | None, more: dict[str, object], says: str
) -> None:
    config = replace(options(policy, data(tmp_path, rows), tmp_path / "out"), **more)
    with pytest.raises(UserError) as caught:
        train(config)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_reference_of_another_vocabulary_is_refused(policy: Path, tmp_path: Path) -> None:
    other = save_model(tmp_path / "other", 1)
    tokenizer = transformers.AutoTokenizer.from_pretrained(other)
    tokenizer.add_tokens(["<new>"])
    tokenizer.save_pretrained(other)
    with pytest.raises(UserError, match="its vocabulary is not that of"):
        train(options(policy, data(tmp_path), tmp_path / "out", ref_model=str(other)))


def test_another_run_in_the_folder_is_refused(policy: Path, tmp_path: Path) -> None:
    config = options(policy, data(tmp_path), tmp_path / "out")
    run(config)
    with pytest.raises(UserError, match="holds a run with another learning_rate"):
        train(replace(config, learning_rate=1.0))
    with pytest.raises(UserError, match="holds a run with another data_hash"):
        train(replace(config, data=data(tmp_path, traces()[:6], "other.jsonl")))
    with pytest.raises(UserError, match="is a model to start from"):
        train(replace(config, model=str(tmp_path / "out")))
    with pytest.raises(UserError, match="holds a model that was not trained here"):
        train(replace(config, model=str(save_model(tmp_path / "other", 5)), out=save_model(tmp_path / "alien", 6)))


def test_a_model_that_looks_ahead_is_refused(tmp_path: Path, policy: Path) -> None:
    """Right padding without a mask is exact only where nobody sees later positions."""
    start = tmp_path / "bert"
    tokenizer = transformers.AutoTokenizer.from_pretrained(policy)
    shape = transformers.BertConfig(
        vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    transformers.BertModel(shape).save_pretrained(start)
    tokenizer.save_pretrained(start)
    with pytest.raises(UserError, match="needs a causal model"):
        train(options(start, data(tmp_path), tmp_path / "out", loss="step_bce"))


def test_non_finite_numbers_stop_before_the_update(policy: Path, tmp_path: Path) -> None:
    more = {**SGD, "learning_rate": 1e30, "steps": 6, "save_every": 1, "batch_size": 2}
    config = options(policy, data(tmp_path), tmp_path / "out", **more)
    with pytest.raises(NonFiniteError, match=r"update 2: loss .*non_finite\.json"):
        train(config)
    told = json.loads((tmp_path / "out" / "non_finite.json").read_text())
    assert told["update"] == 2
    assert len(told["ids"]) == 2
    assert set(told["ids"]) <= {r.id for r in traces()}
    assert [p.name for p in (tmp_path / "out" / "checkpoints").iterdir()] == ["00000001"]
    assert not (tmp_path / "out" / "model.safetensors").exists()


def test_a_last_update_that_spoils_the_weights_is_not_kept(policy: Path, tmp_path: Path) -> None:
    """Loss and gradient are finite, and the product with the rate is not."""
    config = options(policy, data(tmp_path), tmp_path / "out", **{**SGD, "learning_rate": 1e38, "beta": 1e4})
    with pytest.raises(NonFiniteError, match="update 1: it leaves weights that are not finite"):
        train(config)
    assert math.isfinite(metrics(tmp_path / "out", "grad_norm")[0])
    assert len(json.loads((tmp_path / "out" / "non_finite.json").read_text())["ids"]) == 8
    assert not (tmp_path / "out" / "checkpoints").exists()
    assert not (tmp_path / "out" / "model.safetensors").exists()
    assert json.loads((tmp_path / "out" / "train.json").read_text())["finished"] is False
    with pytest.raises(NonFiniteError):
        train(replace(config, out=tmp_path / "stopped", steps=9), stop=lambda *_: True)


def test_a_gradient_that_is_not_finite_stops_before_the_update(policy: Path, tmp_path: Path) -> None:
    """A model that is its own reference: the loss is near log 2 whatever beta is, and beta scales the gradient."""
    config = options(policy, data(tmp_path), tmp_path / "out", steps=1, beta=1e30, margin=0.0)
    with pytest.raises(NonFiniteError, match=r"update 1: loss [\d.e+]+, gradient norm inf"):
        train(config)
    assert not (tmp_path / "out" / "model.safetensors").exists()


def test_train_config_alone_is_sft(policy: Path, tmp_path: Path) -> None:
    assert isinstance(sft_options(policy, data(tmp_path), tmp_path), TrainConfig)
    with pytest.raises(UserError, match="no completion to train on"):
        train(sft_options(policy, data(tmp_path, [replace(r, outcome=0) for r in traces()]), tmp_path / "out"))
