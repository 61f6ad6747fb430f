"""An asyncio event loop in its own thread, so that requests from any thread can be cancelled at a deadline."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

_CLOSE_TIMEOUT = 2.0
"""Seconds to wait at the end of the process until connections are closed."""


class EventLoop:
    """Runs coroutines for any thread. Its thread is a daemon, so that it never keeps the process alive."""

    def __init__(self) -> None:
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True, name="http requests")
        self._thread.start()
        self._ready.wait()

    async def _serve(self) -> None:
        """Wait for `close`; asyncio.run then cancels the coroutines that still run."""
        self._loop, self._closing = asyncio.get_running_loop(), asyncio.Event()
        self._ready.set()
        await self._closing.wait()

    def run(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        """Run a coroutine, block the calling thread until it ends, and return its result."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()

    def close(self, last: Callable[[], Awaitable[None]]) -> None:
        """End the loop after running `last`, which closes the caller's client."""

        async def end() -> None:
            try:
                await last()
            finally:
                self._closing.set()

        if self._thread.is_alive():
            asyncio.run_coroutine_threadsafe(end(), self._loop)
        if threading.current_thread() is not self._thread:  # a garbage collection may run in any thread
            self._thread.join(_CLOSE_TIMEOUT)
