"""OpenRLHF: a `reward_func` for `--reward.remote_url`. Not run inside OpenRLHF.

Written against the interface `reward_func(queries, prompts, labels) -> {"rewards", "scores", "extra_logs"}`, which
OpenRLHF loads from a file and calls for one completion at a time, in a thread.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from prmbench.adapters.dense_rewards import check_number
from prmbench.adapters.step_rewards import Prm
from prmbench.core.records import UserError

RewardFunction = Callable[..., dict[str, Any]]


def reward_function(prm: Prm, *, unscored: float) -> RewardFunction:
    """Return a `reward_func`.

    Args:
        prm: With the policy's tokenizer: queries come with special tokens, which are no part of a completion.
        unscored: The reward of a completion that the reward model could not score. OpenRLHF has no word for "none", so
            that you must choose one; the log `prm_unscored` counts them.

    Returns:
        `f(queries, prompts, labels) -> {"rewards", "scores", "extra_logs"}`, with a tensor of one number a query.
        `scores` are the rewards: where these are not from 0 to 1, do not filter by them.

    Raises:
        UserError: The reward model has no tokenizer of the policy, or `unscored` is no number.
    """
    tokenizer = prm.policy_tokenizer
    if tokenizer is None:
        raise UserError("OpenRLHF's queries hold special tokens: give open_prm the policy_tokenizer")
    check_number("unscored", unscored)

    def reward_func(queries: Sequence[str], prompts: Sequence[str], labels: Any = None, **_: Any) -> dict[str, Any]:
        texts = [_response(query, prompt) for query, prompt in zip(queries, prompts, strict=True)]
        ids = [tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"] for text in texts]
        rows = prm.step_rewards([prm.rendered_problem(prompt) for prompt in prompts], ids)
        rewards = torch.tensor([unscored if (r := prm.reward(row)) is None else r for row in rows])
        steps = [0 if row.values is None or row.refused else len(row.values) for row in rows]
        logs = {
            "prm_unscored": torch.tensor([float(row.values is None) for row in rows]),
            "prm_refused": torch.tensor([float(bool(row.refused)) for row in rows]),
            "prm_steps": torch.tensor(steps, dtype=torch.float32),
        }
        return {"rewards": rewards, "scores": rewards, "extra_logs": logs}

    return reward_func


def _response(query: str, prompt: str) -> str:
    if not query.startswith(prompt):
        raise UserError("a query does not begin with its prompt, as where a prompt was cut; raise the prompt's limit")
    return query[len(prompt) :]
