"""slime: a function for `--custom-advantage-function-path`. Not run inside slime.

Written against the interface `f(args, rollout_data) -> None`, which slime calls in every training process with that
process's share of the samples.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, MutableMapping
from typing import Any

import torch

from prmbench.adapters import dense_rewards
from prmbench.adapters.step_rewards import Prm
from prmbench.core.records import Notice, UserError

AdvantageFunction = Callable[[Any, MutableMapping[str, Any]], None]


def advantage_function(open_args_prm: Callable[[Any], Prm]) -> AdvantageFunction:
    """Return a function that sets `advantages` and `returns` of slime's rollout data.

    They are those of `dense_rewards.step_advantages`, over the completions of a prompt that are in this process; a
    `Notice` counts those that are alone there, and learn nothing. slime's own rewards are not used: add them in a
    function of your own where you want both.

    Args:
        open_args_prm: Opens the reward model from slime's arguments, once in each process:
            `lambda args: open_prm("runs/prm", policy_tokenizer=args.hf_checkpoint)`.
    """
    opened: dict[str, Prm] = {}

    def set_advantages(args: Any, rollout_data: MutableMapping[str, Any]) -> None:
        if "prm" not in opened:
            opened["prm"] = open_args_prm(args)
        prm = opened["prm"]
        tokens = [[int(token) for token in row] for row in rollout_data["tokens"]]
        lengths = [int(length) for length in rollout_data["response_lengths"]]
        whole = [
            (row[: len(row) - length], row[len(row) - length :]) for row, length in zip(tokens, lengths, strict=True)
        ]
        for kl, length in zip(rollout_data["kl"], lengths, strict=True):
            if len(kl) != length:
                raise UserError("a sequence is spread over processes; this adapter needs --context-parallel-size 1")
        prompts, responses = [prompt for prompt, _ in whole], [response for _, response in whole]
        rows = prm.step_rewards(prompts, responses)
        numbers = [prm.step_credits(row) for row in rows]
        names = [tuple(prompt) for prompt in prompts]
        _warn_of_lone([name for name, row in zip(names, numbers, strict=True) if row is not None])
        advantages = dense_rewards.step_advantages(numbers, [row.token_ends for row in rows], lengths, names)
        rollout_data["advantages"] = [
            torch.tensor(row, dtype=torch.float32, device=kl.device)
            for row, kl in zip(advantages, rollout_data["kl"], strict=True)
        ]
        rollout_data["returns"] = [row.clone() for row in rollout_data["advantages"]]

    return set_advantages


def _warn_of_lone(names: list[tuple[int, ...]]) -> None:
    lone = sum(count == 1 for count in Counter(names).values())
    if lone:
        warnings.warn(
            f"{lone} of {len(names)} scored completions have no other of their prompt in this process, so that their "
            "advantages are 0",
            Notice,
            stacklevel=3,
        )
