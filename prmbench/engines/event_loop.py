"""An event loop in a thread of its own, which threads hand their requests to: what runs there can be cancelled."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

_PATIENCE = 2.0
"""Seconds that the end of a process waits for connections to be closed."""


class EventLoop:
    """Runs coroutines for any thread. Its thread is a daemon, so that nobody waits for it at the end of the process."""

    def __init__(self) -> None:
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True, name="http requests")
        self._thread.start()
        self._ready.wait()

    async def _serve(self) -> None:
        """Until `close`; asyncio.run then cancels what is under way."""
        self._loop, self._closing = asyncio.get_running_loop(), asyncio.Event()
        self._ready.set()
        await self._closing.wait()

    def run(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        """Return what the coroutine returns; the calling thread waits for it."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()

    def close(self, last: Callable[[], Awaitable[None]]) -> None:
        """End the loop after this last coroutine function, which closes the caller's client."""

        async def end() -> None:
            try:
                await last()
            finally:
                self._closing.set()

        if self._thread.is_alive():
            asyncio.run_coroutine_threadsafe(end(), self._loop)
        if threading.current_thread() is not self._thread:  # a garbage collection may run in any thread
            self._thread.join(_PATIENCE)
