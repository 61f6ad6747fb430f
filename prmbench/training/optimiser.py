"""Optimizer, learning rate and gradient norm. The rate is a function of the update alone."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from prmbench.config import TrainConfig
from prmbench.config.distrl_options import DistRLConfig
from prmbench.config.presets import Settings
from prmbench.core import extras, processes
from prmbench.core.records import RetryError, UserError


def check(name: str, sharded: bool) -> None:
    """Raises UserError where --optimizer needs a package that is missing, or cannot take sharded weights."""
    if name == "adamw_8bit":
        extras.require("bitsandbytes", f"--optimizer {name}")
        if sharded:
            raise UserError(f"--optimizer {name}: takes whole weights; give --strategy ddp, or --optimizer adamw")


def make(parameters: Sequence[nn.Parameter], config: TrainConfig | DistRLConfig) -> torch.optim.Optimizer:
    """Returns AdamW, its 8-bit version, or SGD without momentum; `step` sets the rate.

    The 8-bit AdamW is that of arXiv 2110.02861: its two moments take two bytes a weight instead of eight.
    """
    if config.optimizer == "sgd":
        return torch.optim.SGD(parameters, lr=0.0, weight_decay=config.weight_decay)
    if config.optimizer == "adamw_8bit":
        from bitsandbytes.optim import AdamW8bit

        optimizer: torch.optim.Optimizer = AdamW8bit(parameters, lr=0.0, weight_decay=config.weight_decay)
        return optimizer
    return torch.optim.AdamW(parameters, lr=0.0, betas=(0.9, 0.999), weight_decay=config.weight_decay, fused=True)


def learning_rate(settings: Settings, update: int, updates: int) -> float:
    """Returns the rate of update 0, 1, ...: it rises linearly, then follows the schedule; cosine and linear end near 0.

    `updates`: how many the whole run has.
    """
    peak, rise = settings.learning_rate, round(settings.warmup * updates)
    if update < rise:
        return peak * (update + 1) / rise
    done = (update - rise) / max(updates - rise, 1)
    if settings.schedule == "cosine":
        return peak * (1 + math.cos(math.pi * done)) / 2
    return peak * (1 - done) if settings.schedule == "linear" else peak


def warmed_up(peak: float, warmup: int, step: int) -> float:
    """Returns the rate of step 0, 1, ... of train-distrl: it rises linearly over `warmup` steps, then stays."""
    return peak * min(1.0, (step + 1) / warmup if warmup else 1.0)


def clip(parameters: Sequence[nn.Parameter], limit: float) -> float:
    """Scales the gradients down to a norm of `limit` (0 = not at all); returns the norm they had, over all shards."""
    norm = nn.utils.clip_grad_norm_(parameters, limit or math.inf)
    full_tensor = getattr(norm, "full_tensor", None)  # the norm of sharded gradients is sharded
    return float(full_tensor() if full_tensor else norm)


def step(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Makes one update at a learning rate and drops the gradients.

    Raises RetryError when memory runs out, as it may in the first update, which allocates the optimizer's state.
    """
    for group in optimizer.param_groups:
        group["lr"] = rate
    try:
        optimizer.step()
    except torch.OutOfMemoryError as error:
        raise RetryError(
            "out of memory in the optimizer's update; give --optimizer adamw_8bit, --lora-rank, --strategy fsdp or a "
            "smaller --batch-tokens (the last checkpoint is kept)"
        ) from error
    optimizer.zero_grad(set_to_none=True)


def are_finite(parameters: Sequence[nn.Parameter]) -> bool:
    """Returns whether all parameters are finite, over the shards of all processes. All processes call it."""
    shards = [p.to_local() if isinstance(p, DTensor) else p for p in parameters]
    return not processes.all_reduce_sum([float(sum(not bool(torch.isfinite(shard).all()) for shard in shards))])[0]
