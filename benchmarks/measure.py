"""Clocks and memory peaks that the benchmarks share."""

from __future__ import annotations

import ctypes
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch


def seconds(run: Callable[[], object]) -> float:
    """Return the wall-clock seconds of one call, including the device's queue."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    start = time.perf_counter()
    run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def cpu_seconds(run: Callable[[], object]) -> float:
    """Return the CPU seconds of one call, over all threads."""
    start = time.process_time()
    run()
    return time.process_time() - start


def matmul_rate(
    device: torch.device, dtype: torch.dtype, clock: Callable[[Callable[[], object]], float] = seconds
) -> float:
    """Return the FLOP/s of large square matrix products, the best of 5 series.

    Several products lie between two synchronisations; a single one would also time the start of a GPU's queue.

    Args:
        device: Where the products run.
        dtype: Precision of factors and results.
        clock: What times a series: the clock of the times that the rate is compared with.
    """
    size, products = (2048 if device.type == "cpu" else 8192), 4
    a, out = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))

    def series() -> None:
        for _ in range(products):
            torch.mm(a, a, out=out)

    series()
    return products * 2 * size**3 / min(clock(series) for _ in range(5))


def peak_of(run: Callable[[], object]) -> float:
    """Return the peak GiB of a call, including weights: resident on a CPU (Linux), allocated on a GPU."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        run()
        return torch.cuda.max_memory_allocated() / 2**30
    ctypes.CDLL(None).malloc_trim(0)  # returns what loading has freed
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # resets the peak
    run()
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.partition("VmHWM:")[2].split()[0]) / 2**20


def last_line_of_new_process(*arguments: str) -> str:
    """Run this benchmark again with further arguments, and return the last line that it prints.

    Memory peaks are measured so, since a process keeps what an earlier measurement has allocated.
    """
    command = [sys.executable, *sys.argv, *arguments]
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.splitlines()[-1]
