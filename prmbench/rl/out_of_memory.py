"""Out of memory once: half the micro-batch, and again. Twice, or among several processes: a clear stop."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch

from prmbench.core import processes
from prmbench.core.records import RetryError
from prmbench.rl.models import Models
from prmbench.rl.resume import Progress

T = TypeVar("T")


def drawing(work: Callable[[], T]) -> T:
    """`work()`, which draws completions. Raises RetryError when memory runs out."""
    try:
        return work()
    except torch.OutOfMemoryError as error:
        raise RetryError(
            "out of memory while completions were drawn; give a smaller --draw-tokens (the last checkpoint is kept)"
        ) from error


def within_memory(models: Models, at: Progress, full: int, work: Callable[[int], T]) -> T:
    """`work(budget)`, safe to begin again; `full` is the budget. Raises RetryError when half of it is too much, too.

    Of several processes one cannot begin again alone: the others wait in the middle of a reduction.
    """
    budget = full // 2 if at.halved else full
    try:
        return work(budget)
    except torch.OutOfMemoryError as error:
        if processes.world_size() > 1 or at.halved:
            raise RetryError(
                f"out of memory at {budget} padded tokens a micro-batch; give a smaller --batch-tokens, "
                f"--gradient-checkpointing or --strategy fsdp (the last checkpoint is kept)"
            ) from error
    at.halved = True
    for runner in (models.policy, models.rm):
        if runner is not None:
            runner.module.zero_grad(set_to_none=True)
    torch.cuda.empty_cache()
    return within_memory(models, at, full, work)
