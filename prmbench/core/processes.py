"""Which process am I, what do the others say, and how a model is spread over all. Started by torchrun.

A single process needs none of it: every function then returns at once. No training rules live here.
"""

from __future__ import annotations

import os
import resource
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import nn

T = TypeVar("T")


def rank() -> int:
    """This process's number, 0 when alone."""
    return int(os.environ.get("RANK", "0"))


def world_size() -> int:
    """How many processes work together, 1 when alone."""
    return int(os.environ.get("WORLD_SIZE", "1"))


PATIENCE = timedelta(days=7)
"""How long to wait for the slowest process; torch's own 30 minutes are less than two shares may differ by."""


def start(device: str = "cpu") -> None:
    """Joins the process group, once: gloo between CPUs, and nccl between the GPUs where there are some."""
    if device.startswith("cuda"):
        torch.cuda.set_device(device)
    if world_size() > 1 and not dist.is_initialized():
        backend = "cpu:gloo,cuda:nccl" if device.startswith("cuda") else "gloo"
        dist.init_process_group(backend, timeout=PATIENCE)


def peak_memory_gib() -> float:
    """Most memory that this process has held: on its GPU, where it used one, else in all."""
    used = torch.cuda.max_memory_allocated() if torch.cuda.is_initialized() else 0  # type: ignore[no-untyped-call]
    return used / 2**30 if used else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def barrier() -> None:
    """Returns when every process has come here. Only "done" is said; no tensor travels."""
    if world_size() > 1:
        start()
        dist.barrier()


def sums(values: Sequence[float]) -> list[float]:
    """Each value added up over all processes, in float64; NaN and infinity reach everybody."""
    if world_size() == 1:
        return list(values)
    total = torch.tensor(values, dtype=torch.float64)
    dist.all_reduce(total)
    return list(map(float, total))


def largest(value: int) -> int:
    """The largest of what all processes have."""
    return max(gathered(value))


def gathered(value: T) -> list[T]:
    """What each process has, by its number."""
    if world_size() == 1:
        return [value]
    found: list[Any] = [None] * world_size()
    dist.all_gather_object(found, value)
    return found


def from_first(value: T) -> T:
    """What process 0 has."""
    if world_size() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box)
    return box[0]


def spread(module: nn.Module, strategy: str, device: str, dtype: torch.dtype) -> nn.Module:
    """The module ready for backward passes whose gradients are means over all processes.

    "ddp" keeps a copy in each. "fsdp" shards every decoder layer and the rest (FSDP2), computes in `dtype` and adds
    gradients up in float32. A process alone has nothing to spread: it gets the module itself.
    """
    if world_size() == 1:
        return module
    if strategy == "fsdp":
        return _sharded(module, device, dtype)
    where = [torch.device(device)] if device.startswith("cuda") else None
    return nn.parallel.DistributedDataParallel(module, device_ids=where, gradient_as_bucket_view=True)


def accumulating(module: nn.Module, last: bool) -> AbstractContextManager[Any]:
    """Around one micro-batch: DDP sends gradients with the last one only. Sharded gradients always travel."""
    if isinstance(module, nn.parallel.DistributedDataParallel) and not last:
        return module.no_sync()
    return nullcontext()


def reshard(module: nn.Module) -> None:
    """After a forward pass without a backward: lets go of the gathered weights, which a later load would not reach."""
    from torch.distributed.fsdp import FSDPModule

    if isinstance(module, FSDPModule):
        module.reshard()


def _sharded(module: nn.Module, device: str, dtype: torch.dtype) -> nn.Module:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    mesh = init_device_mesh(device.partition(":")[0], (world_size(),))
    policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32)
    layers = {name for m in module.modules() for name in getattr(m, "_no_split_modules", None) or ()}
    for layer in [m for m in module.modules() if type(m).__name__ in layers]:
        fully_shard(layer, mesh=mesh, mp_policy=policy)
    fully_shard(module, mesh=mesh, mp_policy=policy)
    return module
