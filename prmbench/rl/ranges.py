"""What numbers the options of train-distrl may have. Both ends are included, unless it says above."""

from __future__ import annotations

from prmbench.config.distrl_options import DistRLConfig
from prmbench.core.records import UserError
from prmbench.training.setup import FLOAT32

AT_LEAST = {
    "group_size": 1,
    "steps": 0,
    "prompts": 1,
    "draw": 1,
    "rounds": 1,
    "minibatch": 0,
    "rm_minibatch": 0,
    "warmup": 0,
    "lora_rank": 0,
    "validate_every": 0,
    "validation_samples": 1,
    "save_every": 0,
    "seed": 0,
    "max_new_tokens": 1,
    "batch_tokens": 1,
    "draw_tokens": 1,
}
BETWEEN = {
    "p_min": (0.01, 1.0),  # candidates are 1 / p_min columns beside every token
    "alpha": (0.0, FLOAT32),
    "gae_weight": (0.0, FLOAT32),
    "gamma": (0.0, 1.0),
    "lam": (0.0, 1.0),
    "clip_low": (0.0, 1.0),
    "clip_high": (0.0, FLOAT32),
    "clip_candidates": (0.0, 1.0),
    "dual_clip": (0.0, FLOAT32),
    "rm_margin": (0.0, FLOAT32),
    "max_grad_norm": (0.0, FLOAT32),
    "weight_decay": (0.0, FLOAT32),
    "rm_learning_rate": (0.0, FLOAT32),
}
ABOVE_0 = {"learning_rate": FLOAT32, "rm_beta": FLOAT32}


def check(config: DistRLConfig) -> None:
    """Raises UserError on an option beyond its range; written so that NaN passes none of them."""

    def refuse(name: str, expected: str) -> None:
        raise UserError(f"--{name.replace('_', '-')} is {getattr(config, name)}; expected {expected}")

    for name, least in AT_LEAST.items():
        value = getattr(config, name)
        if value is not None and not value >= least:
            refuse(name, f"at least {least}")
    for name, (low, high) in BETWEEN.items():
        value = getattr(config, name)
        if value is not None and not low <= value <= high:
            refuse(name, f"{low:g} to {high:g}")
    if 0 < (config.dual_clip or 0.0) <= 1:
        refuse("dual_clip", "0 (none), or above 1")
    for name, high in ABOVE_0.items():
        value = getattr(config, name)
        if value is not None and not 0 < value <= high:
            refuse(name, f"above 0, at most {high:g}")
