"""SIGTERM and Ctrl-C as a request that a training loop looks at when it can stop."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from prmbench.core import processes


@contextmanager
def stop_requests() -> Iterator[Callable[[], bool]]:
    """Makes the first SIGTERM or Ctrl-C a request to stop; the second one acts as it does outside.

    Yields a function that returns whether any process was asked to stop. All processes call it at the same place, so
    that all decide alike.
    """
    received: list[int] = []

    def is_requested() -> bool:
        return processes.all_reduce_sum([float(bool(received))], uneven=False)[0] > 0

    if threading.current_thread() is not threading.main_thread():
        yield is_requested  # only the main thread may set handlers
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def record(number: int, _: Any) -> None:
        received.append(number)
        signal.signal(number, before[number])  # type: ignore[index]

    for number in before:
        signal.signal(number, record)
    try:
        yield is_requested
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
