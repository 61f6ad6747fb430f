"""Presets of the reward-model trainers: one row of values per loss, each with its source.

`resolve` fills in the options that were left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, TypeVar

from prmbench.config import Loss, Preset, TrainConfig, TrainRMConfig
from prmbench.core.records import UserError

T = TypeVar("T", bound=TrainConfig)


@dataclass(frozen=True, slots=True)
class Values:
    """The values that a preset sets, named like the options. None: the loss has no such option."""

    learning_rate: float
    batch_size: int
    epochs: float = 1.0
    warmup: float = 0.1
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    beta: float | None = None
    margin: float | None = None
    reduction: Literal["sequence", "token"] | None = "sequence"
    pairs: Literal["one", "all", "random"] | None = None
    """None: every verified completion is an example by itself."""


# Learning rate and batch: IPVRM paper, appendix C ("lr 5e-7, global batch 64"), for every reward model. Epochs, warm-up
# and schedule are not in it: one epoch, a tenth, cosine are our choice, as usual in preference training at that rate.
_PAPER = Values(5e-7, 64)
# beta 10, margin 5: IPVRM paper, appendix C; the early and late variants (Eqs. 16-18) "as IPVRM".
# Pointwise losses take the two halves of one pair a prompt (4.1): 32 pairs are the batch of 64.
_IPVRM = replace(_PAPER, beta=10.0, margin=5.0, pairs="one", batch_size=32)
# beta 0.05: IPVRM paper, appendix C, for Implicit PRM and DPO-RM alike.
_DPO_RM = replace(_PAPER, beta=0.05, reduction=None, pairs="one")
_IMPLICIT_PRM = replace(_DPO_RM, batch_size=32)
# beta 0.2, margin 2: IPVRM paper, appendix C.
_Q_RM = replace(_PAPER, beta=0.2, margin=2.0, reduction=None, pairs="one")
# Not in the paper; all of it is our choice. Reductions as SFT and TRL's stepwise trainer have them: over all tokens.
_STEPS = replace(_PAPER, learning_rate=1e-5, reduction="token")
_SFT = Values(1e-5, 64, epochs=2.0, warmup=0.03, reduction="token")

POINTWISE: tuple[Loss, ...] = ("ipvrm", "ipvrm_early", "ipvrm_late", "implicit_prm")
PAPER: dict[Loss, Values] = {
    "sft": _SFT,
    "ipvrm": _IPVRM,
    "ipvrm_early": _IPVRM,
    "ipvrm_late": _IPVRM,
    "implicit_prm": _IMPLICIT_PRM,
    "dpo_rm": _DPO_RM,
    "q_rm": _Q_RM,
    "step_bce": _STEPS,
    "value_bce": _STEPS,
}

# The authors' offline trainer (train_rm_with_accelerate.py): the mean over t runs over all tokens of the batch, and the
# margin (--gamma) is 0 unless given, which the command in their README does not do. The rest as in the paper.
RELEASE: dict[Loss, Values] = {
    loss: replace(values, reduction=values.reduction and "token", margin=None if values.margin is None else 0.0)
    for loss, values in PAPER.items()
}

# The paper wherever it is explicit, but for one thing: pointwise losses take every verified completion, since most data
# is not made of pairs.
DEFAULT: dict[Loss, Values] = {
    loss: replace(values, pairs=None, batch_size=64) if loss in POINTWISE else values for loss, values in PAPER.items()
}

# A policy of 0.1 M parameters whose solutions have some forty tokens: the paper's rate and constants do not carry over
# (a sum over 40 tokens needs a larger beta than one over hundreds, and a margin of 5 is out of reach). Rates, betas and
# margins of reward models are those that tuning chose on validation worlds: leaderboards/results/miniature/tuning.json.
_SMALL = Values(1e-3, 64, epochs=2.0, warmup=0.0)
MINIATURE: dict[Loss, Values] = {
    "sft": Values(4e-3, 32, epochs=1.0, warmup=0.1, schedule="constant", reduction="token"),
    "ipvrm": replace(_SMALL, learning_rate=6.77e-4, beta=10.3, margin=1.01),
    "ipvrm_early": replace(_SMALL, learning_rate=6.77e-4, beta=10.3, margin=1.01),
    "ipvrm_late": replace(_SMALL, learning_rate=2.08e-3, beta=21.6, margin=0.291),
    "implicit_prm": replace(_SMALL, learning_rate=4.41e-3, beta=0.345, reduction=None),
    "dpo_rm": replace(_SMALL, learning_rate=1.68e-4, beta=0.783, reduction=None, pairs="one"),
    "q_rm": replace(_SMALL, learning_rate=3.6e-4, beta=0.189, margin=1.67, reduction=None, pairs="one"),
    "step_bce": replace(_SMALL, reduction="token"),
    "value_bce": replace(_SMALL, reduction="token"),
}

PRESETS: dict[Preset, Mapping[Loss, Values]] = {
    "paper": PAPER,
    "release": RELEASE,
    "default": DEFAULT,
    "miniature": MINIATURE,
}


def loss_of(config: TrainConfig) -> Loss:
    """Return the objective that a command trains with."""
    return config.loss if isinstance(config, TrainRMConfig) else "sft"


def resolve(config: T) -> T:
    """Return the config with the preset's value wherever an option is None.

    None stays where the loss has no such option.

    Raises:
        UserError: An option is set that the loss does not have.
    """
    loss = loss_of(config)
    values = PRESETS[config.preset][loss]
    resolved: dict[str, Any] = {}
    for f in fields(Values):
        if not hasattr(config, f.name):
            continue  # train-sft has no beta
        user_value, preset_value = getattr(config, f.name), getattr(values, f.name)
        if user_value is not None and preset_value is None and not (f.name == "pairs" and loss in POINTWISE):
            raise UserError(f"--{f.name}: loss {loss} has none; drop it")
        resolved[f.name] = preset_value if user_value is None else user_value
    return replace(config, **resolved)


@dataclass(frozen=True, slots=True)
class Settings:
    """What a training run computes with: every option that a preset or a loss may leave out has its value."""

    loss: Loss
    learning_rate: float
    batch_size: int
    epochs: float
    warmup: float
    schedule: Literal["cosine", "linear", "constant"]
    beta: float
    """1 where the loss has none."""
    margin: float
    """0 where the loss has none."""
    reduction: Literal["sequence", "token"]
    """Of no effect where the loss has none."""
    pairs: Literal["one", "all", "random"] | None
    """None = every verified completion by itself."""
    ref_model: str
    """Empty = the model to start from is its own reference."""


def settings(config: TrainConfig) -> Settings:
    """Return the settings of a config that `resolve` has filled."""
    preset = PRESETS[config.preset][loss_of(config)]
    values: dict[str, Any] = {"beta": 1.0, "margin": 0.0, "reduction": "sequence"}
    for f in fields(Values):
        value = getattr(config, f.name, None)
        value = getattr(preset, f.name) if value is None else value
        values[f.name] = values.get(f.name) if value is None else value
    return Settings(loss=loss_of(config), ref_model=getattr(config, "ref_model", None) or "", **values)
