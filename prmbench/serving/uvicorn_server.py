"""Runs the application in uvicorn: signals, draining, and the line that names the address."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import uvicorn

from prmbench.config.cli_options import STOPPED, say
from prmbench.serving.app import Service, build_app
from prmbench.serving.connections import KEEP_ALIVE_SECONDS, GuardedConnection
from prmbench.serving.gate import Gate

CLOSING_SECONDS = 5
"""Seconds in which connections have to close once every request is answered."""


class Server(uvicorn.Server):
    """uvicorn's server, which leaves signals to `run`."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Do nothing."""
        yield


class Shutdown:
    """The two stages of stopping: the first signal drains, the second ends the process at once."""

    def __init__(self) -> None:
        """Make it inside the event loop."""
        self._loop = asyncio.get_running_loop()
        self.begun = asyncio.Event()
        self._signals = 0

    def begin(self) -> None:
        """Start to drain; callable from any thread."""
        self._loop.call_soon_threadsafe(self.begun.set)

    def on_signal(self, _: int, __: FrameType | None) -> None:
        """Handle SIGTERM or SIGINT."""
        self._signals += 1
        if self._signals > 1:
            os._exit(STOPPED)  # no clean-up: the model may be busy for minutes
        self.begin()

    @contextmanager
    def on_signals(self) -> Iterator[None]:
        """Handle the signals while this is open, in the main thread; elsewhere nobody can."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        earlier = {number: signal.signal(number, self.on_signal) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in earlier.items():
                signal.signal(number, handler)


async def run(
    service: Service,
    listener: socket.socket,
    token: str | None,
    quiet: bool = False,
    shutdown: Shutdown | None = None,
) -> bool:
    """Answer requests until a signal comes, and then those that were taken, for at most `--drain` seconds.

    Args:
        service: The model and its queue.
        listener: A listening socket.
        token: What requests must bring; None = nothing.
        quiet: Whether to leave out the line on stderr.
        shutdown: Lets a caller stop the server without a signal.

    Returns:
        Whether every request that was taken has been answered.
    """
    config, shutdown = service.config, shutdown or Shutdown()
    gate = Gate(build_app(service), config.host, token, config.access_log)
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)  # not a line for every bad request
    server = Server(
        uvicorn.Config(
            gate,
            http=GuardedConnection,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=CLOSING_SECONDS,
        )
    )
    with shutdown.on_signals():
        serving = asyncio.create_task(server.serve([listener]))
        scoring = asyncio.create_task(service.scheduler.run())
        stopping = asyncio.create_task(shutdown.begun.wait())
        if not quiet:
            say("serving", _startup_line(service, listener, token))
        await asyncio.wait({serving, scoring, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if scoring.done():  # by an error, which is raised below; nobody will answer what waits
            service.scheduler.stop()
        in_time = await _drain(service, gate)
        server.should_exit = True
        await serving
        for task in (scoring, stopping):
            task.cancel()
        outcomes = await asyncio.gather(scoring, stopping, return_exceptions=True)
        service.scheduler.close()
    for outcome in outcomes:
        if isinstance(outcome, Exception):
            raise outcome
    return in_time


async def _drain(service: Service, gate: Gate) -> bool:
    """Refuse new requests and wait for the others; return whether they were answered in time."""
    gate.stopping = True
    service.hurry()
    try:
        async with asyncio.timeout(service.config.drain):
            await gate.wait_until_idle()
    except TimeoutError:
        service.scheduler.stop()
        # uvicorn would print a traceback for each request that it ends now, such as one whose body never came
        logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
        return False
    return True


def _startup_line(service: Service, listener: socket.socket, token: str | None) -> str:
    host, port = listener.getsockname()[:2]
    facts, address = service.description, f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    access = "with a token" if token else "without a token"
    read_as = f"backend {facts['backend']}, input {facts['input_format']}, {facts['dtype'] or 'no model'}"
    device = f" on {facts['device']}" if facts["device"] else ""
    return f"{facts['id']} at http://{address}, {access} ({read_as}{device})"
