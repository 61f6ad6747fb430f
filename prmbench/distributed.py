"""Which process am I, and wait for the others. Started by torchrun; a single process needs none of it."""

from __future__ import annotations

import os
from datetime import timedelta

import torch.distributed as dist


def rank() -> int:
    """This process's number, 0 when alone."""
    return int(os.environ.get("RANK", "0"))


def world_size() -> int:
    """How many processes work together, 1 when alone."""
    return int(os.environ.get("WORLD_SIZE", "1"))


PATIENCE = timedelta(days=7)
"""How long to wait for the slowest process; torch's own 30 minutes are less than two shares may differ by."""


def barrier() -> None:
    """Returns when every process has come here. Over gloo: only "done" is said, tensors never travel."""
    if world_size() == 1:
        return
    if not dist.is_initialized():
        dist.init_process_group("gloo", timeout=PATIENCE)
    dist.barrier()
