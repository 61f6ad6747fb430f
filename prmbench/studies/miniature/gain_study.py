"""The study of what a policy gains from each reward model of the miniature: one DistRL arm per model and seed.

The reward models are those of the reward model study. Together with its runs, these show whether a reward model's step
F1 predicts what a policy gains from it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from prmbench.config import Loss
from prmbench.config.distrl_options import Arm
from prmbench.core.progress import JobProgress
from prmbench.studies.miniature.recipes import STUDY_METHODS
from prmbench.studies.miniature.rl_study import ArmRuns, Scale, StudyArm, run_missing
from prmbench.studies.miniature.world import Sizes, seed_world

BENCHMARK = "miniature_gain"
REWARD_MODELS = {name: recipe for name, recipe in STUDY_METHODS.items() if recipe.loss != "q_rm"}
"""Methods that DistRL can use. Q-RM is a value model, and did not learn this task."""
_ARM_OF_LOSS: dict[Loss, Arm] = {"implicit_prm": "distrl_implicit_prm", "dpo_rm": "distrl_dpo_rm"}
"""Arm that trains a reward model further; models of other losses, all IPVRM's, are trained with plain IPVRM's loss."""
GAIN_ARMS: dict[str, StudyArm] = {
    "grpo": StudyArm("grpo"),
    **{
        f"distrl_{name}": StudyArm(
            _ARM_OF_LOSS.get(recipe.loss, "distrl_ipvrm"),
            reward_model=name,
            tuned_as=_ARM_OF_LOSS.get(recipe.loss, "distrl_ipvrm"),
        )
        for name, recipe in REWARD_MODELS.items()
    },
}
"""GRPO, and DistRL from every reward model, which is trained further as in the arms of the RL study."""
RL_SEEDS = 5
"""RL seeds of every arm: with one, a gain's reliability is near 0.1 and cannot be computed."""
SCALE = Scale(world_sizes=Sizes(), validate_every=0)
"""The worlds are those of the reward model study, whose policies are trained further than the RL study's."""


def run_study(
    sft_seeds: Sequence[int],
    rl_seeds: Sequence[int],
    root: Path,
    out: Path,
    progress: JobProgress | None = None,
    scale: Scale | None = None,
    tuned: Mapping[str, Mapping[str, float]] | None = None,
) -> None:
    """Makes missing worlds and reward models, then runs every arm; continues where an earlier call was interrupted.

    Runs that `out` has already, packed ones included, are not made again.

    Args:
        sft_seeds: seeds of worlds.
        rl_seeds: seeds of RL training in each world.
        root: folder of the worlds.
        out: folder of the runs.
        progress: receives the progress of every job.
        scale: length of the runs and sizes of their data.
        tuned: chosen options by arm of the RL study; every reward model takes those of the arm that trains it further.

    Raises:
        UserError: a process failed.
    """
    # Seed by seed, so that a study that is stopped has complete pairs.
    pairs = [(seed_world(root, seed), rl_seed) for rl_seed in rl_seeds for seed in sft_seeds]
    run_missing([ArmRuns(*pair, GAIN_ARMS, scale or SCALE, BENCHMARK, tuned or {}) for pair in pairs], out, progress)
