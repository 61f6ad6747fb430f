"""Out of memory: the first time micro-batches are halved; the second time, or with several processes, the run stops."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch

from prmbench.core import processes
from prmbench.core.records import RetryError
from prmbench.rl.models import Models
from prmbench.rl.resume import Progress

T = TypeVar("T")


def sampling(work: Callable[[], T]) -> T:
    """Returns `work()`, which samples completions. Raises RetryError when memory runs out."""
    try:
        return work()
    except torch.OutOfMemoryError as error:
        raise RetryError(
            "out of memory while completions were drawn; give a smaller --draw-tokens (the last checkpoint is kept)"
        ) from error


def within_memory(models: Models, progress: Progress, full: int, work: Callable[[int], T]) -> T:
    """Returns `work(budget)`, which may run twice: `full` is the budget, halved once memory has run out.

    Raises RetryError when half of it is too much, or with several processes: one of them cannot begin again while the
    others wait in the middle of a reduction.
    """
    budget = full // 2 if progress.halved else full
    try:
        return work(budget)
    except torch.OutOfMemoryError as error:
        if processes.world_size() > 1 or progress.halved:
            raise RetryError(
                f"out of memory at {budget} padded tokens a micro-batch; give a smaller --batch-tokens, "
                f"--gradient-checkpointing on or --strategy fsdp (the last checkpoint is kept)"
            ) from error
    progress.halved = True
    for runner in (models.policy, models.rm):
        if runner is not None:
            runner.module.zero_grad(set_to_none=True)
    torch.cuda.empty_cache()
    return within_memory(models, progress, full, work)
