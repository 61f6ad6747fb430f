"""Distributed processes, as torchrun starts them: rank, collective operations, and wrapping a model for DDP or FSDP.

In a single process every function returns at once.

Two limits on waiting. Collective operations of training take milliseconds, so one that takes minutes is an error. Where
the work of the processes legitimately takes different times (shares of an evaluation, sampling, one process writing a
file), they first meet at a barrier that waits long, says in the log who is missing, and ends when a missing process
gives no sign of life any more.
"""

from __future__ import annotations

import atexit
import itertools
import logging
import os
import re
import resource
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import nn

from prmbench.core.records import RetryError, UserError
from prmbench.core.redaction import first_line

T = TypeVar("T")
TIMEOUT = "PRMBENCH_TIMEOUT"
"""Environment variable: seconds that a collective operation of training, or a silent process, may take."""
DEFAULT_TIMEOUT = 600.0
LONG_TIMEOUT = timedelta(minutes=30)
"""How long the first process waits for the last one to start, and to write its part of a checkpoint."""
LONGEST_WAIT = timedelta(days=1)
"""How long a process waits for others that are alive and still at work."""
NOTICE_SECONDS = 60.0
"""A process that waits says so in the log, once in this time."""
KEPT_GRADIENT_BYTES = 8 * 2**30
"""Most float32 gradients that a process keeps unsharded between the micro-batches of an update."""
_AGAIN = "the same command goes on from what is kept"
_LATE = r"[Tt]imed? ?out"
_LOST = re.compile(rf"{_LATE}|closed by peer|pair closure|[Cc]onnection (reset|refused|was)|Broken pipe|NCCL error")
"""What torch says when another process is late or gone."""


def rank() -> int:
    """Return this process's number; 0 in a single process."""
    return int(os.environ.get("RANK", "0"))


def world_size() -> int:
    """Return the number of processes; 1 in a single process."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def timeout_seconds() -> float:
    """Return the limit of a collective operation of training, from PRMBENCH_TIMEOUT or its default.

    Raises:
        UserError: The variable is no positive number.
    """
    text = os.environ.get(TIMEOUT) or str(DEFAULT_TIMEOUT)
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < LONGEST_WAIT.total_seconds():
        raise UserError(f"{TIMEOUT}={text}: give seconds, more than 0 and less than a day")
    return seconds


def start(device: str = "cpu") -> None:
    """Join the process group, once: gloo between CPUs, and nccl between GPUs where the device is one.

    Raises:
        UserError: PRMBENCH_TIMEOUT is no number of seconds.
        RetryError: Another process does not start.
    """
    global _meeting  # noqa: PLW0603
    if device.startswith("cuda"):
        torch.cuda.set_device(device)
    if world_size() == 1 or _meeting is not None:
        return
    seconds = timeout_seconds()
    with named_failures("the start", LONG_TIMEOUT.total_seconds()):
        if not dist.is_initialized():
            backend = "cpu:gloo,cuda:nccl" if device.startswith("cuda") else "gloo"
            dist.init_process_group(backend, timeout=LONG_TIMEOUT)
        _meeting = _Meeting(seconds)
    _meeting.wait("the start")
    _limit(None)


def _limit(group: dist.ProcessGroup | None) -> None:
    """Give the operations of a group (None = all processes) the limit of training; it is made with a longer one."""
    dist.distributed_c10d._set_pg_timeout(timedelta(seconds=timeout_seconds()), group)


class _Meeting:
    """A barrier for processes whose work takes different times.

    It works through the store with which the process group was made: a process that comes leaves a key there. A thread
    of each process gives signs of life in it, even while the process computes. A process that was killed or stopped, or
    whose machine is gone, gives none. (gloo's own barrier could not be left before its time is over.)
    """

    def __init__(self, timeout: float) -> None:
        self.timeout = timeout
        self.interval = min(10.0, timeout / 4)
        self.group = dist.new_group(backend="gloo", timeout=LONG_TIMEOUT)
        store: Any = dist.distributed_c10d.PrefixStore("prmbench", dist.distributed_c10d._get_default_store())
        self.store = store
        self.number = 0
        self.store.set(f"alive {rank()}", "0")
        ending = threading.Event()
        thread = threading.Thread(target=self._stay_alive, args=(store.clone(), ending), daemon=True)
        thread.start()

        def end() -> None:
            ending.set()
            thread.join(self.interval)  # Python must not end while it is inside torch: that would abort the process
            with suppress(RuntimeError):
                self.store.set(f"ended {rank()}", "")

        atexit.register(end)

    def wait(self, operation: str) -> None:
        """Return when all processes have come here.

        Raises:
            RetryError: A process has ended, gives no sign of life, or did not come within a day.
        """
        with named_failures(operation):
            self.number += 1
            self.store.set(f"{self.number} {rank()}", "")
            self.store.delete_key(f"{self.number - 2} {rank()}")  # the others have left that meeting
            begun = noticed = time.monotonic()
            signs: dict[int, tuple[bytes, float]] = {}
            while missing := self._missing():
                now = time.monotonic()
                for other in missing:
                    sign = self.store.get(f"alive {other}")
                    if signs.get(other, (b"", now))[0] != sign:
                        signs[other] = sign, now
                reason = self._reason_to_end(now - begun, {other: now - signs[other][1] for other in missing})
                if reason:
                    raise RetryError(f"process {rank()} of {world_size()}, {operation}: {reason}; {_AGAIN}")
                if now - noticed > NOTICE_SECONDS:
                    noticed = now
                    names = ", ".join(map(str, missing))
                    logging.getLogger(__name__).info(
                        "process %d has waited %.0f s at %s; not there yet: %s", rank(), now - begun, operation, names
                    )

    def _missing(self) -> list[int]:
        """Return the processes that do not come within `interval`."""
        keys = [f"{self.number} {number}" for number in range(world_size())]
        end, pause = time.monotonic() + self.interval, 0.0005
        while not self.store.check(keys):  # its `wait` prints lines whenever a wait is over
            if time.monotonic() > end:
                return [number for number, key in enumerate(keys) if not self.store.check([key])]
            time.sleep(pause)
            pause = min(2 * pause, 0.1)
        return []

    def _reason_to_end(self, waited: float, silent: dict[int, float]) -> str | None:
        for other in silent:
            if self.store.check([f"ended {other}"]) and not self.store.check([f"{self.number} {other}"]):
                return f"process {other} has ended, and says itself why"
        other, seconds = max(silent.items(), key=lambda item: item[1])
        if seconds > self.timeout:
            return f"process {other} has given no sign of life for {self.timeout:g} seconds ({TIMEOUT})"
        if waited > LONGEST_WAIT.total_seconds():
            return f"process {other} has not come within a day"
        return None

    def _stay_alive(self, store: Any, ending: threading.Event) -> None:
        signs = itertools.count(1)
        with suppress(RuntimeError):  # the store is gone: the run has ended
            while not ending.wait(self.interval):
                store.set(f"alive {rank()}", str(next(signs)))


_meeting: _Meeting | None = None


@contextmanager
def named_failures(operation: str, seconds: float | None = None) -> Iterator[None]:
    """Turn torch's error about a process that is late or gone into one line that names this process and the operation.

    Between GPUs it is torch's own watchdog that ends a process, after the same time and with lines of its own.

    Args:
        operation: What the process was doing, for the message.
        seconds: The operation's limit, for the message; None = that of PRMBENCH_TIMEOUT.

    Raises:
        RetryError: The body met such an error.
    """
    try:
        yield
    except RuntimeError as error:
        text = first_line(error)
        if world_size() == 1 or not _LOST.search(text):
            raise
        reason = "another process has ended, and says itself why"
        if re.search(_LATE, text):
            limit = f"{timeout_seconds():g} seconds ({TIMEOUT})" if seconds is None else f"{seconds:g} seconds"
            reason = f"another process has not come within {limit}"
        raise RetryError(f"process {rank()} of {world_size()}, {operation}: {reason}; {_AGAIN}") from error


@contextmanager
def _collective(operation: str, uneven: bool = True) -> Iterator[None]:
    """Wait for all processes, where their work before was uneven, and name the operation if it fails."""
    start()
    assert _meeting is not None
    if uneven:
        _meeting.wait(operation)
    with named_failures(operation):
        yield


def peak_memory_gib() -> float:
    """Return the peak memory of this process in GiB: on its GPU where it used one, else in main memory."""
    on_gpu = torch.cuda.max_memory_allocated() if torch.cuda.is_initialized() else 0  # type: ignore[no-untyped-call]
    return on_gpu / 2**30 if on_gpu else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def waiting_group() -> dist.ProcessGroup | None:
    """Return the group for operations of libraries during uneven work, such as writing shards; None in one process."""
    return _meeting.group if _meeting is not None else None


def device_memory_gib(device: str) -> float | None:
    """Return the memory of a GPU in GiB; None where the device is none."""
    if not device.startswith("cuda"):
        return None
    return torch.cuda.get_device_properties(device).total_memory / 2**30


def barrier() -> None:
    """Return when every process has called this. It sends no tensors."""
    if world_size() > 1:
        with _collective("a barrier"):
            pass


def all_reduce_sum(values: Sequence[float], uneven: bool = True) -> list[float]:
    """Return each value summed over all processes, in float64; NaN and infinity reach every process.

    Args:
        values: This process's values.
        uneven: Whether the processes may come here at different times. False in an update: a process that is minutes
            late there hangs.
    """
    if world_size() == 1:
        return list(values)
    total = torch.tensor(values, dtype=torch.float64)
    with _collective("a sum over all processes", uneven):
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
    with _collective("an exchange of values"):
        dist.all_gather_object(values, value)
    return values


def broadcast(value: T) -> T:
    """Return the value of process 0."""
    if world_size() == 1:
        return value
    values = [value]
    with _collective("a broadcast"):
        dist.broadcast_object_list(values)
    return values[0]


def wrap_distributed(module: nn.Module, strategy: str, device: str, dtype: torch.dtype) -> nn.Module:
    """Return the module wrapped so that backward passes average gradients over all processes.

    Args:
        module: The model; in a single process it is returned as it is.
        strategy: `ddp` keeps a copy in each process. `fsdp` shards every decoder layer and the rest over all processes
            (FSDP2), computes in `dtype` and reduces gradients in float32. `hsdp` shards them over the processes of a
            node only, and keeps a copy in each node.
        device: Device of this process.
        dtype: What `fsdp` and `hsdp` compute in.

    Raises:
        UserError: `hsdp` on nodes with different numbers of processes.
    """
    if world_size() == 1:
        return module
    barrier()  # the processes may have loaded the model from disks of different speed
    if strategy != "ddp":
        return _sharded(module, strategy, device, dtype)
    device_ids = [torch.device(device)] if device.startswith("cuda") else None
    return nn.parallel.DistributedDataParallel(module, device_ids=device_ids, gradient_as_bucket_view=True)


def gradient_accumulation(module: nn.Module, last: bool) -> AbstractContextManager[Any]:
    """Return the context of one micro-batch: gradients are reduced over the processes with the last one only.

    Until then each process keeps its own, unsharded. Where FSDP's would take more than KEPT_GRADIENT_BYTES, every
    micro-batch reduces them over the shards, and the last one over copies of the model in other nodes.
    """
    from torch.distributed.fsdp import FSDPModule

    if isinstance(module, nn.parallel.DistributedDataParallel) and not last:
        return module.no_sync()
    if isinstance(module, FSDPModule):
        assert isinstance(module, nn.Module)
        trained = 4 * sum(p.numel() for p in module.parameters() if p.requires_grad)  # of all shards
        module.set_requires_gradient_sync(last or trained > KEPT_GRADIENT_BYTES)
        module.set_requires_all_reduce(last)
    return nullcontext()


def reshard(module: nn.Module) -> None:
    """Free weights that FSDP gathered for a forward pass without a backward: loading new weights would miss them."""
    from torch.distributed.fsdp import FSDPModule

    if isinstance(module, FSDPModule):
        module.reshard()


def _sharded(module: nn.Module, strategy: str, device: str, dtype: torch.dtype) -> nn.Module:
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    mesh = _mesh(strategy, device.partition(":")[0])
    policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32)
    layers = {name for m in module.modules() for name in getattr(m, "_no_split_modules", None) or ()}
    for layer in [m for m in module.modules() if type(m).__name__ in layers]:
        fully_shard(layer, mesh=mesh, mp_policy=policy)
    fully_shard(module, mesh=mesh, mp_policy=policy)
    return module


def _mesh(strategy: str, device_type: str) -> Any:
    """Return the mesh over which `fsdp` or `hsdp` shards: one of all processes, or (nodes, processes of a node)."""
    from torch.distributed.device_mesh import init_device_mesh

    per_node = world_size()
    if strategy == "hsdp":
        sizes = sorted(set(all_gather(int(os.environ.get("LOCAL_WORLD_SIZE", world_size())))))
        if len(sizes) > 1:  # known to all processes, so that none waits for the others
            raise UserError(f"--strategy hsdp: nodes with {sizes} processes; start as many on each, or take fsdp")
        per_node = sizes[0]
    if per_node == world_size():
        mesh = init_device_mesh(device_type, (per_node,))
    else:
        shape = world_size() // per_node, per_node
        mesh = init_device_mesh(device_type, shape, mesh_dim_names=("replicate", "shard"))
    for group in mesh.get_all_groups():
        _limit(group)
    return mesh
