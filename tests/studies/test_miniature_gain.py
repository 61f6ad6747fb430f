"""The study of what policies gain from reward models: its arms, their folders; (slow) one seed to records."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from random import Random

import pytest

from prmbench.config import distrl_options
from prmbench.core import result_files
from prmbench.core.provenance import weights_hash
from prmbench.studies.miniature import gain, rl, seeds
from prmbench.studies.miniature.recipes import STUDIED
from prmbench.studies.miniature.rl import Runs, Scale
from prmbench.studies.miniature.world import Sizes, World
from prmbench.studies.reporting.checkpoint_rows import checkpoints

GIVEN = Runs(World(Path("w"), 4), 1, gain.GAIN_ARMS, benchmark=gain.BENCHMARK)
CONSTANTS = {
    "ipvrm": ("ipvrm", 10.0, 0.5),
    "ipvrm_early": ("ipvrm", 10.0, 0.5),
    "ipvrm_late": ("ipvrm", 10.0, 0.5),
    "ipvrm_m0": ("ipvrm", 10.0, 0.0),
    "ipvrm_paper": ("ipvrm", 10.0, 5.0),
    "implicit_prm": ("implicit_prm", 0.2),
    "implicit_prm_paper": ("implicit_prm", 0.05),
    "dpo_rm": ("dpo_rm", 1.0),
    "dpo_rm_paper": ("dpo_rm", 0.05),
}


def test_every_log_ratio_model_of_the_study_has_an_arm() -> None:
    assert set(CONSTANTS) == {name for name in STUDIED if not name.startswith("q_rm")}
    assert list(gain.GAIN_ARMS) == ["grpo", *(f"distrl_{name}" for name in gain.REWARD_MODELS)]


@pytest.mark.parametrize("name", CONSTANTS)
def test_an_arm_starts_from_its_model_with_the_constants_that_it_was_trained_with(name: str) -> None:
    config = rl.options_of(GIVEN, f"distrl_{name}")
    resolved = distrl_options.resolve(config)
    assert config.rm_model == str(Path("w") / name)
    assert (resolved.rm_loss, resolved.rm_beta, resolved.rm_margin)[: len(CONSTANTS[name])] == CONSTANTS[name]
    assert (resolved.reward, resolved.rm_update, resolved.adb, resolved.dlw) == ("both", "online", True, True)


def test_arms_share_the_rest_and_have_folders_of_their_own() -> None:
    found = {name: rl.options_of(GIVEN, name) for name in gain.GAIN_ARMS}
    other = rl.options_of(Runs(GIVEN.world, 1, rl.STUDY_ARMS["plain"]), "distrl_ipvrm")
    assert len({config.out for config in (*found.values(), other)}) == len(found) + 1
    assert replace(found["distrl_ipvrm"], out=other.out) == other  # the RL study's own arm
    alike = {replace(c, out=other.out, rm_model="", rm_beta=1, rm_margin=1, arm="grpo") for c in found.values()}
    assert len(alike) == 1


@pytest.mark.slow
def test_a_reward_model_of_other_constants_from_world_to_record(tmp_path: Path) -> None:
    scale = Scale(steps=1, validate_every=1, prompts=10, sizes=Sizes(prompts=300))
    made, name = seeds.made(tmp_path, Random().randrange(10_000, 10**6)), "ipvrm_early"
    rl.reward_models(made, {name: gain.REWARD_MODELS[name]}, scale.sizes, lambda *_: None)
    arm = f"distrl_{name}"
    rl.run(Runs(made, 0, {arm: gain.GAIN_ARMS[arm]}, scale, gain.BENCHMARK), tmp_path / "results", lambda *_: None)
    runs = list(result_files.read_runs(tmp_path / "results"))
    (manifest,) = (run.result.manifest for run in runs)
    assert (manifest.model, manifest.benchmark, manifest.weights) == (arm, gain.BENCHMARK, weights_hash(made.policy))
    assert (manifest.config["rm_model"], manifest.config["panel"]) == (name, "plain")
    assert checkpoints(runs) == ()  # a reward model that nobody has judged has no row
