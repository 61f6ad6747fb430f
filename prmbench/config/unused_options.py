"""Says which options a user set that do nothing for this model and benchmark, instead of ignoring them silently."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import Any

from prmbench.core.records import Notice

SAMPLING = ("group_size", "temperature", "top_p", "top_k", "max_new_tokens", "verifier")
"""Options that say how completions are sampled and verified."""
CRITIC = (
    *("critic", "votes", "critic_temperature", "critic_top_p", "critic_top_k", "critic_tokens"),
    *("base_url", "requests", "rate", "input_price", "output_price", "max_cost"),
)
"""Options that only a critic has."""
REFERENCE = ("ref_model", "ref_revision", "ref_cache")
STEP_SCORES = ("backend", *REFERENCE, "boundary", "decay", *CRITIC)
"""Options that say how a reward model scores steps."""
DATA = ("data", "fields", "limit")
"""Options that say which rows are read."""
HF_FORWARD = ("kernels", "compile")
"""Options that make a forward pass of the engine hf faster."""
PLACEMENT = ("device", "dtype", *HF_FORWARD)
FORWARD_PASS = ("revision", "template", "engine", *PLACEMENT, "tensor_parallel")
"""Options that say how a model is run."""


def changed(config: Any, names: Iterable[str]) -> list[str]:
    """Return those of the named options whose values are not the command's defaults."""
    defaults = type(config)()
    return [name for name in names if getattr(config, name, None) != getattr(defaults, name, None)]


def flags(names: Iterable[str]) -> str:
    """Return options as a user writes them: `--top-p, --votes`."""
    return ", ".join(f"--{name.replace('_', '-')}" for name in names)


def warn_of_unused(config: Any, names: Iterable[str], reason: str) -> None:
    """Give a Notice that names the options that the user changed and that have no effect.

    Args:
        config: The options.
        names: Those without an effect.
        reason: Why, as the end of the sentence `--top-p: no effect, since ...`.
    """
    if unused := changed(config, names):
        warnings.warn(f"{flags(unused)}: no effect, since {reason}", Notice, stacklevel=2)
