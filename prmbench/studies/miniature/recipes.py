"""Recipes of the miniature study's reward models: loss, constants and training data of each method."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from prmbench.config import Loss
from prmbench.config.presets import PRESETS
from prmbench.core.records import UserError

TRAINING = "training"
"""Name of the world's unaltered training data: right and wrong completions as the policy sampled them."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """Options that differ between methods; None stands for the value of the preset `miniature`."""

    loss: Loss
    beta: float | None = None
    margin: float | None = None
    learning_rate: float | None = None
    data: str = TRAINING
    """Training data: the world's, or one of data_ablations.VARIANTS."""


CONSTANTS = ("beta", "margin", "learning_rate")
"""Fields of a recipe that tuning chooses."""
DEMO_METHODS: dict[str, Recipe] = {
    "ipvrm": Recipe("ipvrm"),
    "implicit_prm": Recipe("implicit_prm"),
    "dpo_rm": Recipe("dpo_rm"),
    "q_rm": Recipe("q_rm"),
}
"""Methods that the demo trains."""
LOSSES: tuple[Loss, ...] = ("ipvrm", "ipvrm_early", "ipvrm_late", "implicit_prm", "dpo_rm", "q_rm")
"""Losses of the study, each with constants of its own."""


def study_methods(tuned: Mapping[Loss, Recipe]) -> dict[str, Recipe]:
    """Returns the methods of the study, from the recipe of each loss.

    `_paper`: the paper's beta and margin (IPVRM, appendix C) at the loss's own learning rate. `ipvrm_m0`: IPVRM's
    recipe without its margin. `implicit_prm_slow`: Implicit PRM at IPVRM's learning rate, to tell what the loss
    does from what the rate does.
    """
    return {
        **{loss: tuned[loss] for loss in LOSSES},
        "ipvrm_m0": replace(tuned["ipvrm"], margin=0.0),
        "implicit_prm_slow": replace(tuned["implicit_prm"], learning_rate=tuned["ipvrm"].learning_rate),
        "ipvrm_paper": replace(tuned["ipvrm"], beta=10.0, margin=5.0),
        "implicit_prm_paper": replace(tuned["implicit_prm"], beta=0.05),
        "dpo_rm_paper": replace(tuned["dpo_rm"], beta=0.05),
        "q_rm_paper": replace(tuned["q_rm"], beta=0.2, margin=2.0),
    }


_PRESET = PRESETS["miniature"]
STUDY_METHODS = study_methods(
    {loss: Recipe(loss, *(getattr(_PRESET[loss], name) for name in CONSTANTS)) for loss in LOSSES}
)
"""Methods of the study with the constants of the preset `miniature`, which are those that tuning chose."""


def chosen_recipes(table: Path) -> dict[Loss, Recipe]:
    """Returns the recipe that a table of tuning chose for each loss.

    Raises:
        UserError: the file is no such table, or tuning has not ended.
    """
    try:
        tuning = json.loads(table.read_text(encoding="utf-8"))
        best = tuning["chosen"] if tuning["stopped"] else {}
        return {loss: Recipe(loss, *(best[loss][name] for name in CONSTANTS)) for loss in LOSSES}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{table}: has no recipe of every loss ({error!r}); "
            "make it with `python -m prmbench.studies.miniature tune`"
        ) from error
