"""Two processes on gloo train the policy that one trains: DDP and FSDP2, full and LoRA, idle processes, checkpoints."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import distrl_runs
import pytest
from forked import run_group
from rl_fixtures import HELD_OUT, SGD, column, distance, lines, options, run, save_policy, save_prompts, weights

from prmbench.config.distrl_options import DistRLConfig

STEADY = {
    **SGD,
    "learning_rate": 0.002,
    "rm_learning_rate": 0.002,
    "steps": 5,
    "prompts": 3,
    "minibatch": 2,
    "rm_minibatch": 1,  # one process has nothing to do then
    "rm_beta": 1.0,
    "rm_margin": 0.5,
    "batch_tokens": 70,
    "preset": "default",
    "truncated": "keep",
    "alpha": 0.1,
    "gae_weight": 0.5,
}
CASES = [(strategy, lora) for strategy in ("ddp", "fsdp") for lora in (0, 2)]
LOSSES = ("loss", "rm_loss", "candidate_loss", "grad_norm", "rm_grad_norm", "sigma_v", "entropy", "candidates")


def drawn(out: Path) -> list[Any]:
    """Completions of the last step, in the order of the prompts."""
    files = sorted((out / "drawn").glob("*.jsonl"))
    rows = [json.loads(line) for file in files for line in file.read_text().splitlines()[1:]]
    return sorted((r["group"], r["rollout"]["id"], r["ids"], r["rollout"]["outcome"]) for r in rows)


@pytest.mark.slow
def test_two_process_runs_give_what_one_gives(tmp_path: Path) -> None:
    start, other = save_policy(tmp_path / "start"), save_policy(tmp_path / "other", 1)
    prompts = save_prompts(tmp_path / "prompts.jsonl")
    held_out = save_prompts(tmp_path / "held_out.jsonl", HELD_OUT[:3])  # shares of two and one

    def config(name: str, **more: Any) -> DistRLConfig:
        usual = {"rm_model": str(other), "validation_data": held_out, "validate_every": 0}
        return options(start, prompts, tmp_path / name, **{**STEADY, **usual, **more})

    many = {"reference": "sft", "preset": "release", "arm": "distrl_dpo_rm", "rm_minibatch": 0, "minibatch": 0}
    few = {"prompts": 1, "minibatch": 0, "draw": 2}  # the other process keeps no group at all
    runs = [(config(f"{strategy}-{lora}", strategy=strategy, lora_rank=lora), 0) for strategy, lora in CASES]
    runs += [(config(f"{s}-few", strategy=s, **few), 0) for s in ("ddp", "fsdp")]
    runs += [(config("ddp-many", **many), 0), (config("fsdp-stopped", strategy="fsdp", save_every=2), 3)]
    runs += [(config("fsdp-stopped", strategy="fsdp", save_every=2), 0)]  # and goes on
    # One pass of the policy a step, and no reward model.
    plain = {"arm": "grpo", "rm_model": "", "minibatch": 0, "alpha": 0.0, "gae_weight": 0.0}
    runs += [(config(f"{s}-plain", strategy=s, **plain), 0) for s in ("ddp", "fsdp")]
    run_group(distrl_runs.together, runs)

    alone = {lora: config(f"alone-{lora}", lora_rank=lora) for lora in (0, 2)}
    more = {"few": config("alone-few", **few), "many": config("alone-many", **many)}
    run(config("alone-plain", **plain))
    for single in (*alone.values(), *more.values()):
        run(single)
    assert distance(start, alone[0].out) > 1e-3
    for strategy, lora in CASES:
        _equal(tmp_path / f"{strategy}-{lora}", alone[lora].out)
    for strategy in ("ddp", "fsdp"):
        _equal(tmp_path / f"{strategy}-few", more["few"].out)
        _equal(tmp_path / f"{strategy}-plain", tmp_path / "alone-plain")
    _equal(tmp_path / "ddp-many", more["many"].out)
    _equal(tmp_path / "fsdp-stopped", alone[0].out)
    shares = [(tmp_path / "ddp-0" / "drawn" / f"{r}.jsonl").read_text().splitlines()[1:] for r in (0, 1)]
    groups = [{json.loads(line)["group"] for line in share} for share in shares]
    assert not groups[0] & groups[1]  # all completions of a prompt are in one process
    few_shares = [(tmp_path / "ddp-few" / "drawn" / f"{r}.jsonl").read_text().splitlines()[1:] for r in (0, 1)]
    assert sorted(map(bool, few_shares)) == [False, True]
    assert json.loads((tmp_path / "ddp-0" / "train.json").read_text())["result"]["processes"] == 2


@pytest.mark.slow
def test_two_processes_without_anything_to_train_on_stop_together(tmp_path: Path) -> None:
    """Both say why, after the same step; the same command with one more option goes on to the end."""
    start, prompts = save_policy(tmp_path / "start"), save_prompts(tmp_path / "prompts.jsonl", answer="7")
    config = options(start, prompts, tmp_path / "out", **{**STEADY, "steps": 4, "rounds": 1})
    run_group(distrl_runs.together, [(config, 0), (replace(config, allow_empty=True), 0)])
    said = [(tmp_path / f"out-{rank}.error").read_text() for rank in (0, 1)]
    assert said[0] == said[1]
    assert "step 3 has nothing to train on: none of 6 prompts" in said[0]
    assert [line["prompts_all_wrong"] for line in lines(tmp_path / "out")] == [6] * 4
    assert distance(start, tmp_path / "out") == 0


def _equal(both: Path, alone: Path) -> None:
    assert drawn(both) == drawn(alone), both.name
    for name in ("reward", "kept", "tokens", "groups", "rounds", "length", "step_count", "rm_accuracy", "skipped"):
        assert column(both, name) == pytest.approx(column(alone, name), abs=1e-9), (both.name, name)
    for name in LOSSES:
        _close(both, alone, name, abs=1e-6, rel=1e-5)
    for name in ("td_outcome_correlation", "rm_score", "gae_outcome_ratio", "kl_old", "clip_fraction", "mismatch_rms"):
        _close(both, alone, name, abs=1e-5)
    found, expected = (lines(out, validations=True) for out in (both, alone))
    assert [line["validation"] for line in found] == [line["validation"] for line in expected]
    assert distance(both, alone) < 1e-5, both.name
    if (alone / "rm").exists():
        assert distance(both / "rm", alone / "rm") < 1e-5, both.name
    assert weights(both).keys() == weights(alone).keys()


def _close(both: Path, alone: Path, name: str, **tolerance: float) -> None:
    """Equal where an arm has no such number."""
    found, expected = column(both, name), column(alone, name)
    assert found == expected or found == pytest.approx(expected, **tolerance), (both.name, name)
