"""Connections that cannot be held for ever: limits on their number, on waiting for a request, and on slow readers.

uvicorn has a limit only for the time between two requests.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from prmbench.serving.answers import error_response

MAX_CONNECTIONS = 4096
REQUEST_SECONDS = 15.0
"""Seconds that a client has to send the head of a request, or the rest of a body that was refused."""
READING_SECONDS = 60.0
"""Seconds that a client has to read what is buffered for it."""
KEEP_ALIVE_SECONDS = 60


class _Timer:
    """Calls a function once, after a time; starting it again while it runs changes nothing."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._handle: asyncio.TimerHandle | None = None

    def start(self, seconds: float, call: Callable[[], None]) -> None:
        if self._handle is None:
            self._handle = self._loop.call_later(seconds, call)

    def cancel(self) -> None:
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None


class GuardedConnection(H11Protocol):
    """A connection of uvicorn's, with limits."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Take uvicorn's arguments."""
        super().__init__(*args, **kwargs)
        self._request_timer = _Timer(self.loop)
        self._reading_timer = _Timer(self.loop)

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the time for the first request; close the connection where there are too many."""
        super().connection_made(transport)
        if len(self.connections) > MAX_CONNECTIONS:
            transport.abort()
        else:
            self._request_timer.start(REQUEST_SECONDS, transport.abort)

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the timers."""
        self._request_timer.cancel()
        self._reading_timer.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Read data; the time runs unless a request is being answered, and does not start anew with every byte."""
        super().data_received(data)
        if self.cycle is not None and not self.cycle.response_complete:
            self._request_timer.cancel()
        elif not self.transport.is_closing():
            self._request_timer.start(REQUEST_SECONDS, self.transport.abort)

    def on_response_complete(self) -> None:
        """Go on with the connection, and stop the time of the request that was answered."""
        self._request_timer.cancel()
        super().on_response_complete()

    def pause_writing(self) -> None:
        """Stop writing to a client that does not read, and give it some time."""
        super().pause_writing()
        self._reading_timer.start(READING_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        """Go on writing."""
        self._reading_timer.cancel()
        super().resume_writing()

    def send_400_response(self, msg: str) -> None:
        """Answer what is no HTTP with JSON, where no answer has begun yet."""
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            response = error_response(400, msg, {"connection": "close"})
            head = h11.Response(status_code=400, headers=response.raw_headers, reason=b"Bad Request")
            events = (head, h11.Data(data=bytes(response.body)), h11.EndOfMessage())
            self.transport.write(b"".join(self.conn.send(event) or b"" for event in events))
        self.transport.close()
