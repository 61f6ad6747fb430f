"""What a policy gains from every reward model of the miniature study: one DistRL arm each, on all of its seeds.

The reward models are the study's own; with its runs, these say whether step F1 predicts what they are good for.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from prmbench.config import Loss
from prmbench.config.distrl_options import Arm
from prmbench.core.progress import Tell
from prmbench.studies.miniature import pool, rl, seeds, world
from prmbench.studies.miniature.recipes import STUDIED
from prmbench.studies.miniature.rl import Runs, Scale, StudyArm
from prmbench.studies.miniature.world import World

BENCHMARK = "miniature_gain"
REWARD_MODELS = {name: recipe for name, recipe in STUDIED.items() if recipe.loss != "q_rm"}
"""Those that DistRL takes: Q-RM is a value model, and did not train here."""


_ARM_OF: dict[Loss, Arm] = {"implicit_prm": "distrl_implicit_prm", "dpo_rm": "distrl_dpo_rm"}
"""Loss -> the arm that goes on with it; weighted IPVRMs go on with the loss of the plain one."""
GAIN_ARMS: dict[str, StudyArm] = {
    "grpo": StudyArm("grpo"),
    **{
        f"distrl_{name}": StudyArm(_ARM_OF.get(recipe.loss, "distrl_ipvrm"), reward_model=name)
        for name, recipe in REWARD_MODELS.items()
    },
}
"""GRPO, and DistRL from every reward model, which it trains on as the arms of the RL study do."""


def gain_runs(
    sft_seeds: Sequence[int],
    rl_seeds: Sequence[int],
    root: Path,
    out: Path,
    tell: Tell | None = None,
    scale: Scale | None = None,
) -> None:
    """Worlds and reward models that are not there yet, then every arm on them; run records into `out`.

    Goes on where an earlier call was interrupted. Raises UserError when a process fails.
    """
    scale = scale or Scale()
    jobs = {f"seed {seed}": partial(seed_gains, seeds.made(root, seed), rl_seeds, out, scale) for seed in sft_seeds}
    pool.run(jobs, tell)


def seed_gains(made: World, rl_seeds: Sequence[int], out: Path, scale: Scale, tell: world.Tell) -> None:
    """Everything of one world."""
    rl.reward_models(made, REWARD_MODELS, scale.sizes, tell)
    for seed in rl_seeds:
        rl.run(Runs(made, seed, GAIN_ARMS, scale, BENCHMARK), out, tell)
