"""TRL: a reward function for `GRPOTrainer` and the trainers that share its interface. Run inside TRL 1.16.

A completion without a reward is None: TRL 1.16 leaves it out of its group's mean and gives it the advantage 0.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from prmbench.adapters.step_rewards import Prm, StepRewards
from prmbench.core.records import UserError

RewardFunction = Callable[..., list[float | None]]


def reward_function(prm: Prm, problem_column: str | None = None, name: str = "prm_reward") -> RewardFunction:
    """Return a function for `reward_funcs`.

    Args:
        prm: With the policy's tokenizer it scores the sampled tokens, without it the completions' text.
        problem_column: Column of the dataset that holds the problem; None = the prompt, or its last user turn.
        name: Under which TRL logs the reward.

    Returns:
        `f(prompts, completions, completion_ids, **columns) -> list[float | None]`. It logs the share of unscored and
        refused completions and the mean number of steps, where TRL offers `log_metric`.
    """

    def prm_reward(
        prompts: Sequence[Any],
        completions: Sequence[Any],
        completion_ids: Sequence[Sequence[int]] | None = None,
        log_metric: Callable[[str, float], None] | None = None,
        **columns: Any,
    ) -> list[float | None]:
        if problem_column is not None and problem_column not in columns:
            raise UserError(
                f"problem_column {problem_column!r}: the data set's columns are {', '.join(sorted(columns))}"
            )
        problems = prompts if problem_column is None else columns[problem_column]
        if prm.policy_tokenizer is not None and completion_ids is not None:
            rows = prm.step_rewards(problems, completion_ids)
        else:
            rows = prm.score_texts(problems, [_text(completion) for completion in completions])
        if log_metric is not None and rows:
            _log(rows, name, log_metric)
        return [prm.reward(row) for row in rows]

    prm_reward.__name__ = name
    return prm_reward


def _text(completion: Any) -> str:
    """Return the text of a completion, which is a text or a list of messages."""
    if isinstance(completion, str):
        return completion
    return "\n\n".join(str(message.get("content") or "") for message in completion)


def _log(rows: Sequence[StepRewards], name: str, log_metric: Callable[[str, float], None]) -> None:
    scored = [len(row.values) for row in rows if row.values is not None and not row.refused]
    log_metric(f"{name}/unscored", sum(row.values is None for row in rows) / len(rows))
    log_metric(f"{name}/refused", sum(bool(row.refused) for row in rows) / len(rows))
    if scored:
        log_metric(f"{name}/steps", sum(scored) / len(scored))
