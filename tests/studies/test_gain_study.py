"""The gain study: its arms and their folders; (slow) one seed from world to result."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from small_world import SIZES, copy_world

from prmbench import tasks
from prmbench.config import distrl_options
from prmbench.core.provenance import weights_hash
from prmbench.studies.miniature import gain_study, reward_model_study, rl_study
from prmbench.studies.miniature.recipes import STUDY_METHODS, chosen_recipes
from prmbench.studies.miniature.rl_study import ArmRuns, Scale
from prmbench.studies.miniature.world import World
from prmbench.studies.reporting.checkpoint_rows import checkpoints

RUNS = ArmRuns(World(Path("w"), 4), 1, gain_study.GAIN_ARMS, benchmark=gain_study.BENCHMARK)
BEST = chosen_recipes(Path("leaderboards/results/miniature/tuning.json"))
CONSTANTS = {
    **{name: ("ipvrm", BEST[name].beta, BEST[name].margin) for name in ("ipvrm", "ipvrm_early", "ipvrm_late")},
    "ipvrm_m0": ("ipvrm", BEST["ipvrm"].beta, 0.0),
    "ipvrm_paper": ("ipvrm", 10.0, 5.0),
    "implicit_prm": ("implicit_prm", BEST["implicit_prm"].beta),
    "implicit_prm_paper": ("implicit_prm", 0.05),
    "implicit_prm_slow": ("implicit_prm", BEST["implicit_prm"].beta),
    "dpo_rm": ("dpo_rm", BEST["dpo_rm"].beta),
    "dpo_rm_paper": ("dpo_rm", 0.05),
}


def test_every_log_ratio_model_of_the_study_has_an_arm() -> None:
    assert set(CONSTANTS) == {name for name in STUDY_METHODS if not name.startswith("q_rm")}
    assert list(gain_study.GAIN_ARMS) == ["grpo", *(f"distrl_{name}" for name in gain_study.REWARD_MODELS)]


@pytest.mark.parametrize("name", CONSTANTS)
def test_an_arm_starts_from_its_reward_model_with_the_constants_of_its_training(name: str) -> None:
    config = rl_study.distrl_config(RUNS, f"distrl_{name}")
    resolved = distrl_options.resolve(config)
    assert config.rm_model == str(Path("w") / name)
    assert (resolved.rm_loss, resolved.rm_beta, resolved.rm_margin)[: len(CONSTANTS[name])] == CONSTANTS[name]
    assert (resolved.reward, resolved.rm_update, resolved.adb, resolved.dlw) == ("both", "online", True, True)


def test_arms_share_all_other_options_and_have_separate_folders() -> None:
    configs = {name: rl_study.distrl_config(RUNS, name) for name in gain_study.GAIN_ARMS}
    other = rl_study.distrl_config(ArmRuns(RUNS.world, 1, rl_study.STUDY_ARMS["plain"]), "distrl_ipvrm")
    assert len({config.out for config in (*configs.values(), other)}) == len(configs) + 1
    assert replace(configs["distrl_ipvrm"], out=other.out) == other  # the RL study's own arm
    without_differences = {
        replace(c, out=other.out, rm_model="", rm_beta=1, rm_margin=1, arm="grpo") for c in configs.values()
    }
    assert len(without_differences) == 1


@pytest.mark.slow
def test_an_arm_of_a_variant_reward_model_from_world_to_result(
    trained_world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reward_model_study, "UPDATES", 4)  # it need not be good
    scale = Scale(steps=1, validate_every=1, validation_prompts=10, world_sizes=SIZES)
    world, name = copy_world(trained_world, tmp_path), "ipvrm_early"
    rl_study.train_reward_models(world, {name: gain_study.REWARD_MODELS[name]}, scale.world_sizes, lambda *_: None)
    arm = f"distrl_{name}"
    rl_study.run_arms(
        ArmRuns(world, 0, {arm: gain_study.GAIN_ARMS[arm]}, scale, gain_study.BENCHMARK),
        tmp_path / "results",
        lambda *_: None,
    )
    runs = list(tasks.read_runs(tmp_path / "results"))
    (manifest,) = (run.result.manifest for run in runs)
    assert (manifest.model, manifest.benchmark, manifest.weights) == (
        arm,
        gain_study.BENCHMARK,
        weights_hash(world.policy),
    )
    assert (manifest.config["rm_model"], manifest.config["panel"]) == (name, "plain")
    assert checkpoints(runs) == ()  # a reward model that was not judged has no row
