"""Distributed processes, as torchrun starts them: rank, collective operations, and wrapping a model for DDP or FSDP.

In a single process every function returns at once.
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
    """Return this process's number; 0 in a single process."""
    return int(os.environ.get("RANK", "0"))


def world_size() -> int:
    """Return the number of processes; 1 in a single process."""
    return int(os.environ.get("WORLD_SIZE", "1"))


TIMEOUT = timedelta(days=7)
"""How long to wait for the slowest process: shares of the work may differ by more than torch's own 30 minutes."""


def start(device: str = "cpu") -> None:
    """Join the process group, once: gloo between CPUs, and nccl between GPUs where the device is one."""
    if device.startswith("cuda"):
        torch.cuda.set_device(device)
    if world_size() > 1 and not dist.is_initialized():
        backend = "cpu:gloo,cuda:nccl" if device.startswith("cuda") else "gloo"
        dist.init_process_group(backend, timeout=TIMEOUT)


def peak_memory_gib() -> float:
    """Return the peak memory of this process in GiB: on its GPU where it used one, else in main memory."""
    on_gpu = torch.cuda.max_memory_allocated() if torch.cuda.is_initialized() else 0  # type: ignore[no-untyped-call]
    return on_gpu / 2**30 if on_gpu else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def barrier() -> None:
    """Return when every process has called this. It sends no tensors."""
    if world_size() > 1:
        start()
        dist.barrier()


def all_reduce_sum(values: Sequence[float]) -> list[float]:
    """Return each value summed over all processes, in float64; NaN and infinity reach every process."""
    if world_size() == 1:
        return list(values)
    total = torch.tensor(values, dtype=torch.float64)
    dist.all_reduce(total)
    return list(map(float, total))


def all_reduce_max(value: int) -> int:
    """Return the largest value of all processes."""
    return max(all_gather(value))


def all_gather(value: T) -> list[T]:
    """Return the values of all processes, by rank."""
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def broadcast(value: T) -> T:
    """Return the value of process 0."""
    if world_size() == 1:
        return value
    values = [value]
    dist.broadcast_object_list(values)
    return values[0]


def wrap_distributed(module: nn.Module, strategy: str, device: str, dtype: torch.dtype) -> nn.Module:
    """Return the module wrapped so that backward passes average gradients over all processes.

    Args:
        module: The model; in a single process it is returned as it is.
        strategy: `ddp` keeps a copy in each process. `fsdp` shards every decoder layer and the rest (FSDP2), computes
            in `dtype` and reduces gradients in float32.
        device: Device of this process.
        dtype: What `fsdp` computes in.
    """
    if world_size() == 1:
        return module
    if strategy == "fsdp":
        return _sharded(module, device, dtype)
    device_ids = [torch.device(device)] if device.startswith("cuda") else None
    return nn.parallel.DistributedDataParallel(module, device_ids=device_ids, gradient_as_bucket_view=True)


def gradient_accumulation(module: nn.Module, last: bool) -> AbstractContextManager[Any]:
    """Return the context of one micro-batch: DDP reduces gradients with the last one only, FSDP with every one."""
    if isinstance(module, nn.parallel.DistributedDataParallel) and not last:
        return module.no_sync()
    return nullcontext()


def reshard(module: nn.Module) -> None:
    """Free weights that FSDP gathered for a forward pass without a backward: loading new weights would miss them."""
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
