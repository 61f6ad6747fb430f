"""Options of train-distrl: every value of presets and arms as documented, TOML tables, bad input."""

from __future__ import annotations

import json
import math
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import transformers
from rl_fixtures import column, lines, options, run, save_policy, save_prompts, weights

from prmbench.config import from_mapping, read_toml
from prmbench.config.distrl_options import ARMS, PRESETS, DistRLConfig, resolve
from prmbench.core.records import RunManifest, UserError
from prmbench.rl import distrl

SHARED = {
    "alpha": 0.1,
    "p_min": 0.1,
    "credit": "gae",
    "gamma": 1.0,
    "lam": 1.0,
    "clip_low": 0.2,
    "clip_high": 0.28,
    "rm_loss": "ipvrm",
    "rm_beta": 10.0,
    "rm_margin": 5.0,
    "rm_update": "online",
    "reference": "behaviour",
    "reward": "both",
    "adb": True,
    "dlw": True,
    "optimizer": "adamw",
    "warmup": 0,
    "step_values": "none",
    "step_weight": 1.0,
    "continuations": 4,
    "answer_text": "\n\nThe final answer is \\boxed{{gold}}",
}
OF_PRESET: dict[str, dict[str, Any]] = {
    "paper": {
        "gae_weight": 1.0,
        "td_normalize": "group",
        "whiten": False,
        "zero_terminal": False,
        "clip_candidates": 0.0,
        "dual_clip": 0.0,
        "reduction": "sequence",
        "candidate_normalize": "length",
        "dlw_normalize": False,
        "group_size": 4,
        "prompts": 256,
        "draw": 512,
        "rounds": 1,
        "truncated": "keep",
        "minibatch": 64,
        "rm_minibatch": 32,
        "lora_rank": 128,
        "learning_rate": 3e-5,
        "rm_learning_rate": 1e-4,
    },
    "release": {
        "gae_weight": 0.05,
        "td_normalize": "batch",
        "whiten": True,
        "zero_terminal": True,
        "clip_candidates": 0.2,
        "dual_clip": 3.0,
        "reduction": "token",
        "candidate_normalize": "mass",
        "dlw_normalize": True,
        "group_size": 16,
        "prompts": 512,
        "draw": 1024,
        "rounds": 1,
        "truncated": "drop",
        "minibatch": 128,
        "rm_minibatch": 8,
        "lora_rank": 0,
        "learning_rate": 2e-5,
        "rm_learning_rate": 2e-6,
    },
    "default": {
        "gae_weight": 0.05,
        "td_normalize": "group",
        "whiten": True,
        "zero_terminal": True,
        "clip_candidates": 0.0,
        "dual_clip": 3.0,
        "reduction": "sequence",
        "candidate_normalize": "length",
        "dlw_normalize": False,
        "group_size": 4,
        "prompts": 256,
        "draw": 512,
        "rounds": 3,
        "truncated": "drop",
        "minibatch": 64,
        "rm_minibatch": 32,
        "lora_rank": 128,
        "learning_rate": 3e-5,
        "rm_learning_rate": 1e-4,
    },
}
NAMES = ("reward", "rm_loss", "rm_beta", "rm_margin", "rm_update", "reference", "credit", "gae_weight", "alpha")
OF_ARM: dict[str, tuple[Any, ...]] = {
    # Under the preset `default`.
    "grpo": ("verifier", None, 10.0, 5.0, "online", "behaviour", "gae", 0.0, 0.0),
    "grpo_ipvrm": ("both", "ipvrm", 10.0, 5.0, "online", "behaviour", "gae", 0.05, 0.0),
    "grpo_implicit_prm": ("both", "implicit_prm", 0.05, 0.0, "online", "behaviour", "gae", 0.05, 0.0),
    "grpo_dpo_rm": ("both", "dpo_rm", 0.05, 0.0, "online", "behaviour", "gae", 0.05, 0.0),
    "distrl_ipvrm": ("both", "ipvrm", 10.0, 5.0, "online", "behaviour", "gae", 0.05, 0.1),
    "distrl_implicit_prm": ("both", "implicit_prm", 0.05, 0.0, "online", "behaviour", "gae", 0.05, 0.1),
    "distrl_dpo_rm": ("both", "dpo_rm", 0.05, 0.0, "online", "behaviour", "gae", 0.05, 0.1),
    "distrl_ipvrm_frozen": ("both", "ipvrm", 10.0, 5.0, "frozen", "behaviour", "gae", 0.05, 0.1),
    "prime": ("both", "implicit_prm", 0.05, 0.0, "online", "sft", "rloo", 1.0, 0.0),
    "spro": ("both", "implicit_prm", 0.05, 0.0, "frozen", "sft", "masked_step", 1.0, 0.0),
    "reinforce_q_rm": ("rm", "q_rm", 0.2, 2.0, "frozen", "behaviour", "score", 1.0, 0.0),
    "vineppo": ("verifier", None, 10.0, 5.0, "online", "behaviour", "gae", 0.0, 0.0),
    "grpo_vps": ("verifier", None, 10.0, 5.0, "online", "behaviour", "gae", 0.0, 0.0),
}


# --- presets and arms ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", OF_PRESET)
def test_every_value_of_a_preset(preset: Any) -> None:
    config = resolve(DistRLConfig(preset=preset))
    expected = {**SHARED, **OF_PRESET[preset]}
    assert {name: getattr(config, name) for name in expected} == expected
    assert PRESETS[preset].keys() - expected.keys() == set()  # nothing that is not listed here


@pytest.mark.parametrize("arm", ARMS)
def test_every_value_of_an_arm(arm: Any) -> None:
    config = resolve(DistRLConfig(arm=arm))
    assert tuple(getattr(config, name) for name in NAMES) == OF_ARM[arm]
    assert (config.adb, config.dlw) == ((False, False) if arm == "prime" else (True, True))
    assert config.whiten is (arm not in ("spro", "reinforce_q_rm"))  # the preset's, and PRIME's own
    assert config.zero_terminal is (arm not in ("prime", "spro", "reinforce_q_rm"))
    assert resolve(DistRLConfig(arm=arm, preset="paper")).whiten is (arm in ("prime", "vineppo", "grpo_vps"))
    values = {"vineppo": "continuations", "grpo_vps": "answer"}
    assert (config.step_values, config.step_weight, config.continuations) == (values.get(arm, "none"), 1.0, 4)
    assert config.minibatch == (0 if arm == "reinforce_q_rm" else 64)
    assert (config.rm_model == "self") == (arm == "spro")


def test_no_arm_is_left_over() -> None:
    assert OF_ARM.keys() == ARMS.keys()


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("arm", ARMS)
def test_every_arm_goes_with_every_preset(arm: Any, preset: Any) -> None:
    config = resolve(DistRLConfig(arm=arm, preset=preset))
    unset = {f.name for f in fields(config) if getattr(config, f.name) is None}
    assert unset <= {
        "data",
        "revision",
        "template",
        "fields",
        "limit",
        "batch_tokens",
        "draw_tokens",
        "first_rollouts",
        "validation_data",
    } | ({"rm_loss"} if arm in ("grpo", "vineppo", "grpo_vps") else set())


def test_a_flag_wins_over_the_arm_and_the_arm_over_the_preset() -> None:
    assert resolve(DistRLConfig(arm="prime")).gae_weight == 1.0
    assert resolve(DistRLConfig(arm="prime", gae_weight=0.3)).gae_weight == 0.3
    assert resolve(DistRLConfig(alpha=0.0)).alpha == 0.0  # 0 is an answer, too
    assert resolve(DistRLConfig(adb=False)).adb is False


def test_learning_rates_go_with_lora_or_without() -> None:
    for preset in ("paper", "release", "default"):
        with_lora, full = (resolve(DistRLConfig(preset=preset, lora_rank=rank)) for rank in (8, 0))
        assert (with_lora.learning_rate, with_lora.rm_learning_rate) == (3e-5, 1e-4)
        assert (full.learning_rate, full.rm_learning_rate) == (2e-5, 2e-6)
    assert resolve(DistRLConfig(preset="miniature", lora_rank=8)).learning_rate == 3e-4


@pytest.mark.parametrize("arm", ARMS)
def test_every_arm_trains_a_step(arm: Any, start: Path, prompts: Path, held_out: Path, tmp_path: Path) -> None:
    more: dict[str, Any] = {"preset": "default", "truncated": "keep", "steps": 1, "whiten": None, "minibatch": None}
    if arm == "reinforce_q_rm":
        more["rm_model"] = str(save_policy(tmp_path / "head", 3, "AutoModelForTokenClassification", num_labels=1))
    if arm == "distrl_ipvrm_frozen":
        more["rm_model"] = str(start)
    run(options(start, prompts, tmp_path / "out", arm=arm, validation_data=held_out, **more))
    (line,) = lines(tmp_path / "out")
    assert math.isfinite(line["loss"])
    assert line["grad_norm"] > 0
    assert ("candidates" in line) == arm.startswith("distrl")
    assert ("rm_loss" in line) == (OF_ARM[arm][0] != "verifier" and OF_ARM[arm][4] == "online")
    assert ("rm_accuracy" in line) == (OF_ARM[arm][0] == "both")
    assert (tmp_path / "out" / "rm" / "prm.json").exists() == ("rm_loss" in line)
    (file,) = (tmp_path / "out" / "result").glob("*[0-9a-f].json")
    manifest = json.loads(file.read_text())["manifest"]
    assert (manifest["task"], manifest["model"], manifest["config"]["arm"]) == ("distrl", arm, arm)
    assert {f.name for f in fields(RunManifest)} >= set(manifest)
    end = weights(tmp_path / "out")
    assert any(not (end[k] == w).all() for k, w in weights(start).items() if k in end)


# --- TOML -----------------------------------------------------------------------------------------------------------


def test_tables_of_a_toml_file_are_prefixes(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text('arm = "grpo_ipvrm"\ngroup-size = 8\n[rm]\nloss = "dpo_rm"\nlearning-rate = 1e-3\n')
    config = from_mapping(DistRLConfig, read_toml(file), str(file))
    assert (config.arm, config.group_size, config.rm_loss, config.rm_learning_rate) == ("grpo_ipvrm", 8, "dpo_rm", 1e-3)
    assert config.learning_rate is None


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('preset = "best"', "preset"),
        ('arm = "ppo"', "arm"),
        ("[rm]\nbetta = 10.0", "rm_betta"),
        ("aplha = 0.1", "aplha"),
        ('alpha = "much"', "alpha"),
    ],
)
def test_an_unknown_key_or_value_of_a_toml_file_is_named(text: str, says: str, tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text(text)
    with pytest.raises(UserError, match=says) as caught:
        from_mapping(DistRLConfig, read_toml(file), str(file))
    assert "\n" not in str(caught.value)


# --- bad input ------------------------------------------------------------------------------------------------------

NAN = math.nan


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"model": ""}, "--model is missing"),
        ({"data": None}, "--data is missing"),
        ({"group_size": 1}, "--group-size is 1: advantages are relative"),
        ({"group_size": 0}, "--group-size is 0"),
        ({"alpha": -0.1}, "--alpha is -0.1"),
        ({"alpha": NAN}, "--alpha is nan"),
        ({"alpha": math.inf}, "--alpha is inf"),
        ({"p_min": 0.0}, "--p-min is 0.0"),
        ({"p_min": 1.5}, "--p-min is 1.5"),
        ({"p_min": NAN}, "--p-min is nan"),
        ({"lam": 1.1}, "--lam is 1.1"),
        ({"lam": NAN}, "--lam is nan"),
        ({"gamma": -0.5}, "--gamma is -0.5"),
        ({"clip_low": 1.5}, "--clip-low is 1.5"),
        ({"clip_high": -0.1}, "--clip-high is -0.1"),
        ({"dual_clip": 0.5}, "--dual-clip is 0.5"),
        ({"learning_rate": 0.0}, "--learning-rate is 0.0"),
        ({"rm_learning_rate": NAN}, "--rm-learning-rate is nan"),
        ({"rm_beta": 0.0}, "--rm-beta is 0.0"),
        ({"steps": -1}, "--steps is -1"),
        ({"prompts": 0}, "--prompts is 0"),
        ({"rounds": 0}, "--rounds is 0"),
        ({"validation_samples": 0}, "--validation-samples is 0"),
        ({"lora_rank": -1}, "--lora-rank is -1"),
        ({"batch_tokens": 0}, "--batch-tokens is 0"),
        ({"max_new_tokens": 0}, "--max-new-tokens is 0"),
        ({"limit": 0}, "--limit is 0"),
        ({"engine": "server"}, "--engine server and --server URL go together"),
        ({"server": ("http://localhost:1",)}, "--engine server and --server URL go together"),
        ({"device": "balanced"}, "--device balanced"),
        ({"dtype": "float16"}, "use bfloat16 or float32"),
        ({"model": "no/such/model"}, "no such file or folder"),
        ({"reward": "verifier"}, "--alpha 0.1: --reward verifier has no process reward"),
        ({"reward": "verifier", "alpha": 0.0}, "--gae-weight 1: --reward verifier has no process reward"),
        ({"alpha": 0.0, "gae_weight": 0.0}, "--alpha and --gae-weight are both 0"),
        ({"rm_model": "self"}, "--rm-model self: is 0 against itself"),
        ({"rm_model": "self", "reference": "sft"}, "--rm-model self: is 0 against itself"),
        ({"rm_loss": "q_rm"}, "--rm-loss q_rm: scores tokens that were drawn"),
        ({"arm": "reinforce_q_rm", "alpha": 0.1}, "--rm-loss q_rm: scores tokens that were drawn"),
        ({"arm": "reinforce_q_rm", "rm_update": "online"}, "--rm-loss q_rm: has no online update"),
        ({"arm": "reinforce_q_rm"}, "--rm-loss q_rm: needs a trained reward model"),
        ({"arm": "grpo", "rm_model": "gpt2"}, "--reward verifier uses no reward model"),
        ({"max_new_tokens": 8, "first_rollouts": Path("no/rollouts.jsonl")}, "no such file"),
    ],
)
def test_bad_input_is_one_clear_line(
    more: dict[str, Any], says: str, start: Path, prompts: Path, tmp_path: Path
) -> None:
    config = replace(options(start, prompts, tmp_path / "out"), **more)
    with pytest.raises(UserError) as caught:
        distrl.train_distrl(config)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def refused(config: DistRLConfig, says: str) -> None:
    with pytest.raises(UserError, match=says) as caught:
        distrl.train_distrl(config)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"prompt": "xx"}, "answer"),
        ({"prompt": "xx", "answer": ""}, "answer"),
        ({"answer": "1"}, "no field 'prompt'"),
        (
            {"prompt": "x" * 70, "answer": "1"},
            r"--data: prompt p has 7\d tokens, which fill the context of 64 \(1 such",
        ),
    ],
)
def test_prompts_that_cannot_be_used(row: dict[str, str], says: str, start: Path, tmp_path: Path) -> None:
    file = tmp_path / "p.jsonl"
    file.write_text(json.dumps({"id": "p", **row}) + "\n")
    refused(options(start, file, tmp_path / "out"), says)
    assert not (tmp_path / "out").exists()


def test_long_validation_prompts_are_refused_too(start: Path, prompts: Path, tmp_path: Path) -> None:
    file = tmp_path / "v.jsonl"
    file.write_text(json.dumps({"id": "v", "prompt": "y" * 70, "answer": "1"}) + "\n")
    refused(options(start, prompts, tmp_path / "out", validation_data=file), "--validation-data: prompt v has")
    refused(options(start, prompts, tmp_path / "out", validation_data=prompts), "prompt p0 is in --data, too")


def test_another_tokenizer_is_refused(start: Path, prompts: Path, tmp_path: Path) -> None:
    other = save_policy(tmp_path / "other", 1)
    tokenizer = transformers.AutoTokenizer.from_pretrained(other)
    tokenizer.add_tokens(["z"])
    tokenizer.save_pretrained(other)
    refused(options(start, prompts, tmp_path / "out", rm_model=str(other)), "its vocabulary is not that of")
    assert not (tmp_path / "out").exists()


def test_the_models_to_start_from_are_not_written_over(start: Path, prompts: Path, tmp_path: Path) -> None:
    refused(options(start, prompts, start), "is a model to start from")
    other = save_policy(tmp_path / "rm", 1)
    refused(options(start, prompts, other, rm_model=str(other)), "is a model to start from")
    refused(options(start, prompts, other), "holds a model that was not trained here")


def test_a_reward_model_of_another_loss_is_refused(start: Path, prompts: Path, tmp_path: Path) -> None:
    rm = save_policy(tmp_path / "rm", 1)
    (rm / "prm.json").write_text(json.dumps({"backend": "implicit", "loss": "dpo_rm", "beta": 0.7, "margin": 0.1}))
    config = options(start, prompts, tmp_path / "out", rm_model=str(rm))
    refused(config, "was trained as dpo_rm, and arm distrl_ipvrm goes on as ipvrm")
    assert not (tmp_path / "out").exists()
    for ok in ({"arm": "distrl_dpo_rm"}, {"rm_loss": "ipvrm"}):
        resolved = distrl.resolved(replace(config, **ok))
        assert (resolved.rm_beta, resolved.rm_margin) == (0.7, 0.1)  # as it was trained, not the preset's
    assert distrl.resolved(replace(config, arm="distrl_dpo_rm", rm_beta=2.0)).rm_beta == 2.0
    (rm / "prm.json").write_text("[]")
    refused(config, "not a model card; it needs an object")
    (rm / "prm.json").write_text(json.dumps({"loss": "ipvrm_late", "beta": 3.0}))
    assert distrl.resolved(config).rm_beta == 3.0


def test_a_reward_model_without_a_head_is_no_q_rm(start: Path, prompts: Path, tmp_path: Path) -> None:
    """A new random head would be used as it is, since it is never trained."""
    rm = save_policy(tmp_path / "rm", 1)
    refused(options(start, prompts, tmp_path / "out", arm="reinforce_q_rm", rm_model=str(rm)), "has no scalar head")


def test_lora_leaves_a_frozen_scalar_head_alone(start: Path, prompts: Path, tmp_path: Path) -> None:
    rm = save_policy(tmp_path / "head", 3, "AutoModelForTokenClassification", num_labels=1)
    more = {"arm": "reinforce_q_rm", "rm_model": str(rm), "lora_rank": 2, "steps": 1}
    run(options(start, prompts, tmp_path / "out", **more))
    assert (tmp_path / "out" / "adapter" / "adapter_config.json").exists()
    assert column(tmp_path / "out", "grad_norm")[0] > 0


def test_another_run_in_the_folder_is_refused(start: Path, prompts: Path, held_out: Path, tmp_path: Path) -> None:
    config = options(start, prompts, tmp_path / "out", steps=1)
    run(config)
    for changed, name in (
        ({"alpha": 0.2}, "alpha"),
        ({"lora_rank": 2}, "lora_rank"),  # LoRA flags on a full run
        ({"seed": 1}, "seed"),
        ({"rm_model": str(save_policy(tmp_path / "rm", 1))}, "rm_weights"),
        ({"data": save_prompts(tmp_path / "q.jsonl", ("x", "y"))}, "prompts_hash"),
        ({"validation_data": held_out}, "validation_hash"),
    ):
        refused(replace(config, **changed), f"holds a run with another .*{name}")
    assert run(replace(config, batch_tokens=64, save_every=1)).fresh is False  # which move nothing
    refused(replace(config, resume="never"), "holds a run, and --resume is never")


def test_a_dry_run_counts_and_writes_nothing(start: Path, prompts: Path, held_out: Path, tmp_path: Path) -> None:
    (start / "model.safetensors").rename(start / "hidden")  # weights are not looked at
    try:
        more = {"steps": 7, "validate_every": 3, "validation_data": held_out, "minibatch": 2}
        plan = distrl.dry_run(options(start, prompts, tmp_path / "out", **more))
        never = distrl.dry_run(options(start, prompts, tmp_path / "out", **more | {"validate_every": 0}))
        grpo = distrl.dry_run(options(start, prompts, tmp_path / "out", arm="grpo", **more))
    finally:
        (start / "hidden").rename(start / "model.safetensors")
    assert (plan.prompts, plan.validation_prompts, plan.completions_a_step, plan.trained_on_a_step) == (6, 4, 24, 12)
    assert (plan.policy_updates_a_step, plan.rm_updates_a_step, plan.completions) == (2, 1, 168)
    assert plan.validation_completions == 4 * 4 * 8  # before step 1, after 3 and 6, and at the end
    assert never.validation_completions == 2 * 4 * 8
    assert grpo.rm_updates_a_step == 0
    assert list(plan.peak_gib) == ["load", "draw", "score", "update_rm", "update_policy", "save"]
    assert list(grpo.peak_gib) == ["load", "draw", "score", "update_policy", "save"]
    assert not (tmp_path / "out").exists()
