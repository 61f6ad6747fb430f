"""SkyRL: step rewards for a generator's output, and an advantage estimator that reads them. Not run inside SkyRL.

Written against SkyRL's interfaces: token-level `rewards` in a generator's output, and `AdvantageEstimatorRegistry`. The
estimator sees no tokens, so that the rewards carry all: a token with a reward other than 0 ends a step.
"""

from __future__ import annotations

import math
from collections.abc import MutableMapping, Sequence
from typing import Any

import torch
from torch import Tensor

from prmbench.adapters import dense_rewards
from prmbench.adapters.missing_trainer import import_trainer
from prmbench.adapters.step_rewards import Prm
from prmbench.core.records import UserError

NAME = "prm_step"
"""The estimator's name for `trainer.algorithm.advantage_estimator`."""
_ZERO = 1e-30
"""Written for a step's reward of exactly 0, so that the step is seen; no sum of rewards moves by it."""


def add_step_rewards(
    prm: Prm, generator_output: MutableMapping[str, Any], problems: Sequence[Any] | None = None
) -> None:
    """Replace `rewards` of a generator's output by one reward a token, from the reward model.

    An unscored completion gets a nan at its last token, for `step_advantages`, and is masked from the loss.

    Args:
        prm: With the policy's tokenizer.
        generator_output: With `prompt_token_ids`, `response_ids`, `rewards` and `loss_masks`.
        problems: The problems or conversations; None = found in the prompts' tokens.
    """
    responses = generator_output["response_ids"]
    prompts = generator_output["prompt_token_ids"] if problems is None else problems
    rewards = []
    for number, (row, response) in enumerate(zip(prm.step_rewards(prompts, responses), responses, strict=True)):
        numbers = prm.step_credits(row)
        if numbers is None:
            tokens = [*[0.0] * (len(response) - 1), math.nan][: len(response)]
            generator_output["loss_masks"][number] = [0] * len(response)
        else:
            tokens = dense_rewards.place([credit or _ZERO for credit in numbers], row.token_ends, len(response))
        rewards.append(tokens)
    generator_output["rewards"] = rewards


def step_advantages(
    token_level_rewards: Tensor, response_mask: Tensor, index: Sequence[Any], config: Any = None, **_: Any
) -> tuple[Tensor, Tensor]:
    """Return advantages and returns, both [b, t]: the leave-one-out returns of `dense_rewards.step_advantages`.

    Args:
        token_level_rewards: [b, t] from `add_step_rewards`.
        response_mask: [b, t].
        index: The prompt's id of each response.
        config: SkyRL's algorithm options.

    Raises:
        UserError: A KL penalty is in the rewards, where every token would look like a step.
    """
    if getattr(config, "use_kl_in_reward", False):
        raise UserError("use_kl_in_reward adds to every token's reward, so that no step can be told; use use_kl_loss")
    rewards = token_level_rewards.masked_fill(~response_mask.bool(), 0.0)
    ends = [row.nonzero()[:, 0].tolist() for row in rewards]
    numbers = [
        None if not steps or row.isnan().any() else row[steps].tolist()
        for row, steps in zip(rewards, ends, strict=True)
    ]
    width = rewards.shape[1]
    advantages = dense_rewards.step_advantages(numbers, ends, [width] * len(ends), [str(name) for name in index])
    result = torch.tensor(advantages, dtype=rewards.dtype, device=rewards.device).reshape(rewards.shape)
    result = result.masked_fill(~response_mask.bool(), 0.0)
    return result, result.clone()


def register() -> None:
    """Register the estimator in SkyRL under NAME. Raises UserError where SkyRL is not installed."""
    module = import_trainer("skyrl.backends.skyrl_train.utils.ppo_utils", "skyrl")
    module.AdvantageEstimatorRegistry.register(NAME, step_advantages)
