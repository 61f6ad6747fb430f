"""From the values of steps to what trainers take: one reward a completion, one a token, one advantage a token.

Pure functions of values; nothing here runs a model.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Hashable, Sequence
from typing import Literal

import numpy as np
import torch

from prmbench import objectives
from prmbench.core.records import Notice, UserError
from prmbench.metrics import best_of_n

Placement = Literal["value", "difference", "soft_min"]
AGGREGATIONS = ("soft_min", "min", "mean", "last", "sum", "prod")
"""Ways to make one reward of step values."""
PLACEMENTS: tuple[Placement, ...] = ("value", "difference", "soft_min")
"""What the last token of a step gets."""


def soft_min_weights(values: Sequence[float], temperature: float) -> np.ndarray:
    """Return softmax(-r / T), [k]: the weights of the soft minimum.

    As T falls to 0 all weight goes to the lowest value; as it grows the weights become equal.
    """
    scaled = -np.asarray(values, dtype=float) / temperature
    weights = np.exp(scaled - scaled.max())
    return np.asarray(weights / weights.sum())


def aggregate(
    values: Sequence[float],
    aggregation: str = "soft_min",
    temperature: float = 0.1,
    beta: float = 1.0,
    probability: bool = False,
) -> float:
    """Return one reward for a completion.

    `soft_min` is sum_k w_k r_k with w = softmax(-r / T): between the lowest value (T near 0) and the mean (large T).
    PURE (arXiv 2504.15275) weights step rewards so in its min-form credit; their sum as one reward is our reading. The
    others are those of best_of_n: `min`, `mean`, `last`, `sum`, and `prod`, the log of the product of the steps'
    probabilities.

    Args:
        values: The values of its steps, at least one.
        aggregation: One of AGGREGATIONS.
        temperature: T, in the unit of the values.
        beta: `prod`: scale of values that are not probabilities, of which sigmoid(beta * r) is one.
        probability: `prod`: whether the values are probabilities.
    """
    if aggregation == "soft_min":
        return float(soft_min_weights(values, temperature) @ np.asarray(values, dtype=float))
    return float(best_of_n.aggregate(np.asarray(values, dtype=float), aggregation, beta, probability))


def step_credits(values: Sequence[float], placement: Placement, temperature: float = 0.1) -> list[float]:
    """Return what the last token of each step gets.

    `value` is r_k itself; `difference` is r_k - r_(k-1) with r_0 = 0, for values of prefixes, and sums to the last
    value; `soft_min` is w_k r_k, and sums to the soft minimum.
    """
    numbers = np.asarray(values, dtype=float)
    if placement == "difference":
        numbers = np.diff(numbers, prepend=0.0)
    elif placement == "soft_min":
        numbers = soft_min_weights(values, temperature) * numbers
    return [float(number) for number in numbers]


def place(credits_of_steps: Sequence[float], token_ends: Sequence[int], length: int) -> list[float]:
    """Return one reward a token: each step's at its last token, 0 elsewhere; steps that share a token are added.

    Args:
        credits_of_steps: One number a step.
        token_ends: Index of the last token of each step.
        length: Number of tokens, padding included.
    """
    rewards = [0.0] * length
    for credit, end in zip(credits_of_steps, token_ends, strict=True):
        rewards[end] += credit
    return rewards


def step_advantages(
    credits_of_steps: Sequence[Sequence[float] | None],
    token_ends: Sequence[Sequence[int]],
    lengths: Sequence[int],
    prompts: Sequence[Hashable],
) -> list[list[float]]:
    """Return the advantage of every token: the leave-one-out returns of PRIME, with one reward a step.

    A step's reward counts less the mean of its prompt's completions, and a token gets the sum of those of its own step
    and of the later ones (`objectives.rloo_returns`). An unscored completion is in no mean, and its advantages are 0:
    nothing is learnt from it. So are those of a prompt's only scored completion, which has nothing to compare with.

    Args:
        credits_of_steps: One number a step, for each completion; None for an unscored one.
        token_ends: Index of the last token of each step.
        lengths: Tokens of each completion.
        prompts: What is equal for the completions of one prompt.

    Returns:
        For each completion `length` numbers.
    """
    advantages = [[0.0] * length for length in lengths]
    scored = [i for i, row in enumerate(credits_of_steps) if row is not None and lengths[i]]
    if not scored:
        if advantages:
            warnings.warn(
                f"none of {len(advantages)} completions has a score, so that nothing is learnt from them; "
                "Prm.step_rewards says why in `unscored`",
                Notice,
                stacklevel=2,
            )
        return advantages
    width = max(lengths[i] for i in scored)
    rewards, mask = torch.zeros(len(scored), width, dtype=torch.float64), torch.zeros(len(scored), width).bool()
    for row, i in enumerate(scored):
        rewards[row] = torch.tensor(place(credits_of_steps[i] or (), token_ends[i], width), dtype=torch.float64)
        mask[row, list(token_ends[i])] = True
    names = {name: number for number, name in enumerate(dict.fromkeys(prompts))}
    group = torch.tensor([names[prompts[i]] for i in scored])
    for i, row_advantages in zip(scored, objectives.rloo_returns(rewards, mask, group).tolist(), strict=True):
        advantages[i] = row_advantages[: lengths[i]]
    return advantages


def check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    """Raise UserError where a choice is none of those that there are."""
    if value not in choices:
        raise UserError(f"{name} {value!r}: choose from {', '.join(choices)}")


def check_number(name: str, value: float) -> None:
    """Raise UserError where a reward that a user chose is not a finite number."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise UserError(f"{name} {value!r}: give a finite number, which such completions get as their reward")
