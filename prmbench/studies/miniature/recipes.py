"""Recipes of the miniature study's reward models: loss, constants and training data of each method."""

from __future__ import annotations

from dataclasses import dataclass

from prmbench.config import Loss

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


DEMO_METHODS: dict[str, Recipe] = {
    "ipvrm": Recipe("ipvrm"),
    "implicit_prm": Recipe("implicit_prm"),
    "dpo_rm": Recipe("dpo_rm"),
    "q_rm": Recipe("q_rm"),
}
"""Methods that the demo trains."""
STUDY_METHODS: dict[str, Recipe] = {
    **DEMO_METHODS,
    "ipvrm_early": Recipe("ipvrm_early"),
    "ipvrm_late": Recipe("ipvrm_late"),
    "ipvrm_m0": Recipe("ipvrm", margin=0.0),
    "ipvrm_paper": Recipe("ipvrm", beta=10.0, margin=5.0),
    "implicit_prm_paper": Recipe("implicit_prm", beta=0.05),
    "dpo_rm_paper": Recipe("dpo_rm", beta=0.05),
    "q_rm_paper": Recipe("q_rm", beta=0.2, margin=2.0),
}
"""Methods of the study. `_paper`: the paper's beta and margin (IPVRM, appendix C) at the tuned learning rate."""
