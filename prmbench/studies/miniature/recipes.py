"""What sets the reward models of the miniature study apart: a row of values each."""

from __future__ import annotations

from dataclasses import dataclass

from prmbench.config import Loss

TRAINING = "training"
"""The world's own completions: right and wrong ones of mixed prompts, as the policy drew them."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a method is trained; None = the value of the preset `miniature`."""

    loss: Loss
    beta: float | None = None
    margin: float | None = None
    learning_rate: float | None = None
    data: str = TRAINING
    """The completions that it learns from: the world's, or one of experiments.VARIANTS."""


METHODS: dict[str, Recipe] = {
    "ipvrm": Recipe("ipvrm"),
    "implicit_prm": Recipe("implicit_prm"),
    "dpo_rm": Recipe("dpo_rm"),
    "q_rm": Recipe("q_rm"),
}
"""What the demo trains."""
STUDIED: dict[str, Recipe] = {
    **METHODS,
    "ipvrm_early": Recipe("ipvrm_early"),
    "ipvrm_late": Recipe("ipvrm_late"),
    "ipvrm_m0": Recipe("ipvrm", margin=0.0),
    "ipvrm_paper": Recipe("ipvrm", beta=10.0, margin=5.0),
    "implicit_prm_paper": Recipe("implicit_prm", beta=0.05),
    "dpo_rm_paper": Recipe("dpo_rm", beta=0.05),
    "q_rm_paper": Recipe("q_rm", beta=0.2, margin=2.0),
}
"""And what the study adds; `_paper`: the paper's beta and margin (METHOD: appendix C), at the tuned learning rate."""
