"""prime-rl: an algorithm that gives each sampled token the advantage of its step. Not run inside prime-rl.

Written against prime-rl's interfaces `Algorithm.score_group` and `assign_advantages`. There, an algorithm is a class in
its own sources: a file of three lines and an entry of `ALGORITHM_CLASSES`, as docs/adapters.md shows.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

from prmbench.adapters import dense_rewards
from prmbench.adapters.missing_trainer import import_trainer
from prmbench.adapters.step_rewards import Prm
from prmbench.core.records import UserError


def algorithm(open_config_prm: Callable[[Any], Prm]) -> type:
    """Return a subclass of prime-rl's Algorithm.

    It assigns the advantages of `dense_rewards.step_advantages` over the traces of a group. The environment's own
    rewards are not used.

    Args:
        open_config_prm: Opens the reward model from the algorithm's config, once.

    Raises:
        UserError: prime-rl is not installed.
    """
    base = import_trainer("prime_rl.orchestrator.algo.base", "prime-rl")
    routing = import_trainer("prime_rl.orchestrator.algo.routing", "prime-rl")

    class PrmAlgorithm(base.Algorithm):  # type: ignore[misc, name-defined]
        """Advantages of steps from a process reward model."""

        def __init__(self, config: Any, policy_pool: Any) -> None:
            super().__init__(config, policy_pool)
            self.prm = open_config_prm(config)

        async def score_group(self, episodes: list[Any]) -> None:
            """Assign an advantage to every sampled token of the group's traces."""
            traces = [trace for _, trace in base.iter_trainable_traces(episodes)]
            for trace, advantages in zip(traces, await asyncio.to_thread(advantages_of, self.prm, traces), strict=True):
                routing.assign_advantages(trace, advantages)

    return PrmAlgorithm


def advantages_of(prm: Prm, traces: Sequence[Any]) -> list[list[float]]:
    """Return for each trace one advantage a sampled token, in the order that `assign_advantages` takes.

    Traces of one problem are compared with each other.

    Raises:
        UserError: A trace has more than one sampled turn, which this adapter does not read.
    """
    responses = [_sampled_tokens(trace) for trace in traces]
    prompts = [_messages(trace) for trace in traces]
    rows = prm.step_rewards(prompts, responses)
    return dense_rewards.step_advantages(
        [prm.step_credits(row) for row in rows],
        [row.token_ends for row in rows],
        [len(response) for response in responses],
        [prm.problem_text(prompt) for prompt in prompts],
    )


def _sampled_tokens(trace: Any) -> list[int]:
    turns = [node for node in trace.nodes if any(node.mask)]
    if len(turns) != 1:
        raise UserError(f"trace {trace.id}: has {len(turns)} sampled turns; this adapter reads single-turn traces")
    return [int(token) for token, sampled in zip(turns[0].token_ids, turns[0].mask, strict=True) if sampled]


def _messages(trace: Any) -> list[dict[str, Any]]:
    """Return the conversation before the sampled turn."""
    messages = []
    for node in trace.nodes:
        if any(node.mask):
            break
        messages.append({"role": node.message.role, "content": node.message.content})
    return messages
