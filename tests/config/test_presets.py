"""Every value of every preset, with where it comes from; and how options and presets meet."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any, get_args

import pytest

from prmbench.config import Loss, Preset, TrainConfig, TrainRMConfig
from prmbench.config.presets import PRESETS, Values, resolve, settings
from prmbench.core.records import UserError
from prmbench.studies.miniature.recipes import chosen_recipes
from prmbench.training.losses import LOSSES

# (learning rate, batch, epochs, warm-up, schedule, beta, margin, reduction, pairs)
PAPER = {
    # IPVRM paper, appendix C: lr 5e-7, batch 64; beta 10, m 5. Eq. 9: mean over t, then over sequences.
    # One epoch, warm-up 0.1 and cosine are not in the paper: ours, here and below.
    "ipvrm": (5e-7, 32, 1.0, 0.1, "cosine", 10.0, 5.0, "sequence", "one"),
    "ipvrm_early": (5e-7, 32, 1.0, 0.1, "cosine", 10.0, 5.0, "sequence", "one"),
    "ipvrm_late": (5e-7, 32, 1.0, 0.1, "cosine", 10.0, 5.0, "sequence", "one"),
    # The same appendix: beta 0.05 for Implicit PRM and DPO-RM; beta 0.2, m 2 for Q-RM.
    # Their losses are one term a sequence or pair, so there is nothing to reduce.
    "implicit_prm": (5e-7, 32, 1.0, 0.1, "cosine", 0.05, None, None, "one"),
    "dpo_rm": (5e-7, 64, 1.0, 0.1, "cosine", 0.05, None, None, "one"),
    "q_rm": (5e-7, 64, 1.0, 0.1, "cosine", 0.2, 2.0, None, "one"),
    # Not in the paper: ours.
    "step_bce": (1e-5, 64, 1.0, 0.1, "cosine", None, None, "token", None),
    "value_bce": (1e-5, 64, 1.0, 0.1, "cosine", None, None, "token", None),
    "sft": (1e-5, 64, 2.0, 0.03, "cosine", None, None, "token", None),
}
# The authors' offline trainer: the mean runs over all tokens of a batch; --gamma, the margin, is 0 by default.
RELEASE = {
    "ipvrm": (5e-7, 32, 1.0, 0.1, "cosine", 10.0, 0.0, "token", "one"),
    "ipvrm_early": (5e-7, 32, 1.0, 0.1, "cosine", 10.0, 0.0, "token", "one"),
    "ipvrm_late": (5e-7, 32, 1.0, 0.1, "cosine", 10.0, 0.0, "token", "one"),
    "implicit_prm": (5e-7, 32, 1.0, 0.1, "cosine", 0.05, None, None, "one"),
    "dpo_rm": (5e-7, 64, 1.0, 0.1, "cosine", 0.05, None, None, "one"),
    "q_rm": (5e-7, 64, 1.0, 0.1, "cosine", 0.2, 0.0, None, "one"),
    "step_bce": (1e-5, 64, 1.0, 0.1, "cosine", None, None, "token", None),
    "value_bce": (1e-5, 64, 1.0, 0.1, "cosine", None, None, "token", None),
    "sft": (1e-5, 64, 2.0, 0.03, "cosine", None, None, "token", None),
}
# Ours, for a policy of 0.1 M parameters; rate, beta and margin of reward models are those that tuning chose.
MINIATURE = {
    "sft": (4e-3, 32, 1.0, 0.1, "constant", None, None, "token", None),
    "step_bce": (1e-3, 64, 2.0, 0.0, "cosine", None, None, "token", None),
    "value_bce": (1e-3, 64, 2.0, 0.0, "cosine", None, None, "token", None),
    **{
        loss: (
            *(best.learning_rate, 64, 2.0, 0.0, "cosine", best.beta, best.margin),
            *("sequence" if loss.startswith("ipvrm") else None, "one" if loss in ("dpo_rm", "q_rm") else None),
        )
        for loss, best in chosen_recipes(Path("leaderboards/results/miniature/tuning.json")).items()
    },
}
# The paper where it is explicit, but pointwise losses take every completion (paper 4.1: halves of one pair a prompt).
DEFAULT = {
    "ipvrm": (5e-7, 64, 1.0, 0.1, "cosine", 10.0, 5.0, "sequence", None),
    "ipvrm_early": (5e-7, 64, 1.0, 0.1, "cosine", 10.0, 5.0, "sequence", None),
    "ipvrm_late": (5e-7, 64, 1.0, 0.1, "cosine", 10.0, 5.0, "sequence", None),
    "implicit_prm": (5e-7, 64, 1.0, 0.1, "cosine", 0.05, None, None, None),
    "dpo_rm": (5e-7, 64, 1.0, 0.1, "cosine", 0.05, None, None, "one"),
    "q_rm": (5e-7, 64, 1.0, 0.1, "cosine", 0.2, 2.0, None, "one"),
    "step_bce": (1e-5, 64, 1.0, 0.1, "cosine", None, None, "token", None),
    "value_bce": (1e-5, 64, 1.0, 0.1, "cosine", None, None, "token", None),
    "sft": (1e-5, 64, 2.0, 0.03, "cosine", None, None, "token", None),
}
EXPECTED = {"paper": PAPER, "release": RELEASE, "default": DEFAULT, "miniature": MINIATURE}


def row(values: Values) -> tuple[Any, ...]:
    return tuple(getattr(values, f.name) for f in fields(Values))


def test_every_value_of_every_preset() -> None:
    assert {name: {loss: row(v) for loss, v in table.items()} for name, table in PRESETS.items()} == EXPECTED
    assert set(PRESETS) == set(get_args(Preset))
    assert all(set(table) == set(get_args(Loss)) for table in PRESETS.values())


def test_what_is_left_out_comes_from_the_preset_of_the_loss() -> None:
    config = resolve(TrainRMConfig(loss="q_rm", preset="paper", beta=0.7))
    assert (config.learning_rate, config.batch_size, config.beta, config.margin) == (5e-7, 64, 0.7, 2.0)
    assert resolve(config) == config
    assert resolve(TrainRMConfig(margin=0.0)).margin == 0.0  # given, not left out
    policy = resolve(TrainConfig(preset="miniature"))
    assert (type(policy), policy.learning_rate, policy.schedule) == (TrainConfig, 4e-3, "constant")


@pytest.mark.parametrize("preset", get_args(Preset))
def test_an_option_that_the_loss_has_no_use_for_is_refused(preset: Any) -> None:
    useless = {
        ("beta", 1.0): ("step_bce", "value_bce"),
        ("margin", 1.0): ("implicit_prm", "dpo_rm", "step_bce", "value_bce"),
        ("reduction", "token"): tuple(loss for loss, row in LOSSES.items() if not row.per_token),
        ("pairs", "one"): ("step_bce", "value_bce"),
    }
    assert useless["reduction", "token"] == ("implicit_prm", "dpo_rm", "q_rm")
    for loss in LOSSES:
        for (option, value), without in useless.items():
            given = TrainRMConfig(loss=loss, preset=preset, **{option: value})  # type: ignore[arg-type]
            if loss in without:
                with pytest.raises(UserError, match=f"--{option}: loss {loss} has none"):
                    resolve(given)
            elif loss != "sft":
                assert getattr(resolve(given), option) == value


def test_the_learning_rate_rises_then_follows_the_schedule() -> None:
    from prmbench.training.optimiser import learning_rate

    def rates(schedule: Any) -> list[float]:
        config = settings(TrainConfig(learning_rate=8.0, warmup=0.2, schedule=schedule))
        return [learning_rate(config, update, 10) for update in range(10)]

    assert rates("constant") == [4.0] + [8.0] * 9
    assert rates("linear") == pytest.approx([4, 8, 8, 7, 6, 5, 4, 3, 2, 1])
    cosine = rates("cosine")
    assert cosine[:3] == [4.0, 8.0, 8.0]
    assert cosine[6] == pytest.approx(4.0)  # half way down
    assert cosine[9] == pytest.approx(0.304482, abs=1e-6)  # 4 * (1 + cos(7 pi / 8))
