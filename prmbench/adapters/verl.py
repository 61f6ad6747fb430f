"""verl: a reward manager for `reward.reward_manager.source=importlib`. Not run inside verl.

Written against the interface `async run_single(data) -> {"reward_score", "reward_extra_info"}`. verl asks for one
completion at a time. Those that arrive while others are scored are scored together next.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

from prmbench.adapters.dense_rewards import check_number
from prmbench.adapters.missing_trainer import import_trainer
from prmbench.adapters.step_rewards import Prm, StepRewards

_Waiting = tuple[Any, list[int], "asyncio.Future[StepRewards]"]
"""A prompt, a response, and who waits for its values."""


def reward_manager(open_policy_prm: Callable[[Any], Prm], *, unscored: float) -> type:
    """Return a reward manager class, to be given a name in a file that verl loads.

    Args:
        open_policy_prm: Opens the reward model for the policy's tokenizer, once in each worker:
            `lambda tokenizer: open_prm("runs/prm", policy_tokenizer=tokenizer)`.
        unscored: The reward of a completion that the reward model could not score. verl has no word for "none", so that
            you must choose one; `prm_unscored` in the extra information marks them.

    Returns:
        A subclass of verl's RewardManagerBase whose `run_single` gives `reward_score` and `reward_extra_info`.

    Raises:
        UserError: verl is not installed, or `unscored` is no number.
    """
    check_number("unscored", unscored)
    base = import_trainer("verl.experimental.reward_loop.reward_manager.base", "verl").RewardManagerBase

    class PrmRewardManager(base):  # type: ignore[misc, valid-type]
        """Scores completions by a process reward model."""

        def __init__(self, config: Any, tokenizer: Any, *_: Any, **__: Any) -> None:
            # Not the base's: the order of its arguments has changed between versions of verl.
            self.config, self.tokenizer = config, tokenizer
            self.prm = open_policy_prm(tokenizer)
            self.waiting: list[_Waiting] = []
            self.running: asyncio.Task[None] | None = None

        async def run_single(self, data: Any) -> dict[str, Any]:
            """Return the reward of the last completion in `data`."""
            item = data[len(data) - 1]
            future: asyncio.Future[StepRewards] = asyncio.get_running_loop().create_future()
            self.waiting.append((_prompt(item), _response(item), future))
            if self.running is None or self.running.done():
                self.running = asyncio.create_task(self._score_waiting())
            row = await future
            reward = self.prm.reward(row)
            steps = 0 if row.values is None or row.refused else len(row.values)
            extra = {
                "prm_unscored": float(row.values is None),
                "prm_refused": float(bool(row.refused)),
                "prm_steps": float(steps),
            }
            return {"reward_score": unscored if reward is None else reward, "reward_extra_info": extra}

        def _score(self, batch: Sequence[_Waiting]) -> list[StepRewards]:
            return self.prm.step_rewards([prompt for prompt, _, _ in batch], [ids for _, ids, _ in batch])

        async def _score_waiting(self) -> None:
            while self.waiting:
                batch, self.waiting = self.waiting, []
                scoring = asyncio.to_thread(self._score, batch)
                (result,) = await asyncio.gather(scoring, return_exceptions=True)
                for number, (_, _, future) in enumerate(batch):
                    if future.done():  # its caller has given up
                        continue
                    if isinstance(result, BaseException):
                        future.set_exception(result)
                    else:
                        future.set_result(result[number])

    return PrmRewardManager


def _prompt(item: Any) -> Any:
    """Return the conversation where the data has it, else the prompt's token ids without padding."""
    conversation = item.non_tensor_batch.get("raw_prompt")
    if conversation is not None:
        return list(conversation)
    prompt = item.batch["prompts"]
    used = item.batch["attention_mask"][: len(prompt)]
    return [int(token) for token, mask in zip(prompt, used, strict=True) if mask]


def _response(item: Any) -> list[int]:
    response = item.batch["responses"]
    used = int(item.batch["attention_mask"][-len(response) :].sum()) if len(response) else 0
    return [int(token) for token in response[:used]]
