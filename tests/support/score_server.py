"""`prmbench serve` in a thread of the test's process, and backends whose scoring a test controls."""

from __future__ import annotations

import asyncio
import http.client
import json
import socket
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from prmbench import serving
from prmbench.backends import Backend, Facts
from prmbench.backends.cards import ModelCard
from prmbench.config import ServeConfig
from prmbench.core.records import StepScores, Trace
from prmbench.serving import uvicorn_server
from prmbench.serving.answers import describe_model
from prmbench.serving.app import Service
from prmbench.serving.request_bodies import Reading
from prmbench.serving.scheduler import Scheduler

JSON = {"content-type": "application/json"}


@dataclass
class LengthBackend:
    """Scores a step by its length. `before` is called with every batch; a step "poison" raises `error`."""

    facts: Facts = field(default_factory=lambda: Facts("value", "none", engine="hf", backend="token_cls"))
    before: Callable[[Sequence[Trace]], None] = lambda _: None
    error: BaseException = field(default_factory=lambda: RuntimeError("a kernel failed"))
    batches: list[list[str]] = field(default_factory=list)
    """The problems in each batch that was asked for."""
    forgotten: int = 0

    def cost(self, trace: Trace) -> int:
        if "unmeasurable" in trace.steps:
            raise self.error
        return sum(map(len, trace.steps))

    def score(self, traces: Sequence[Trace]) -> Iterator[StepScores]:
        self.batches.append([trace.prompt for trace in traces])
        self.before(traces)
        if any("poison" in trace.steps for trace in traces):
            raise self.error
        # By id, as critics do it.
        scores = {t.id: tuple(float(len(step)) for step in t.steps) for t in traces}
        return iter([StepScores(t.id, scores[t.id], (1,) * len(t.steps)) for t in traces])

    def forget_encodings(self) -> None:
        self.forgotten += 1


class Latch:
    """Holds a backend until it is opened."""

    def __init__(self) -> None:
        self.reached, self.open = threading.Event(), threading.Event()

    def __call__(self, _: Sequence[Trace]) -> None:
        self.reached.set()
        assert self.open.wait(20), "nobody opened the latch"


def service_of(backend: Backend, **options: Any) -> Service:
    """The service of a backend that no checkpoint belongs to."""
    config = ServeConfig(model="lengths", port=0, **options)
    description = describe_model(config, ModelCard("lengths", "token_cls"), backend)
    scheduler = Scheduler(backend, config.batch_tokens or 64, config.max_pending, config.batching)
    return Service(config, backend, description, Reading(("lengths",)), scheduler)


@dataclass
class Running:
    port: int
    service: Service
    stop: Callable[[], None]
    in_time: list[bool] = field(default_factory=list)
    """What `run` returned."""

    def ask(
        self, path: str, body: Any = None, headers: Mapping[str, str] = JSON, method: str | None = None
    ) -> tuple[int, Any, Mapping[str, str]]:
        """(status, parsed JSON, headers); `body` is JSON, or bytes."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        try:
            raw = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
            connection.request(method or ("GET" if body is None else "POST"), path, raw, dict(headers))
            reply = connection.getresponse()
            text = reply.read().decode()
            assert text == "" or text.count("\n") == 1, "one line"
            return reply.status, json.loads(text or "null"), {k.lower(): v for k, v in reply.getheaders()}
        finally:
            connection.close()

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=20)


@contextmanager
def running(service: Service, token: str | None = None) -> Iterator[Running]:
    listener = serving.bind(service.config.host, 0)
    serving.listen(listener, service.config)
    handle = Running(listener.getsockname()[1], service, lambda: None)
    ready = threading.Event()

    async def main() -> None:
        shutdown = uvicorn_server.Shutdown()
        handle.stop = shutdown.begin
        ready.set()
        handle.in_time.append(await uvicorn_server.run(service, listener, token, quiet=True, shutdown=shutdown))

    thread = threading.Thread(target=asyncio.run, args=(main(),))
    thread.start()
    assert ready.wait(20)
    try:
        yield handle
    finally:
        with suppress(RuntimeError):  # it has ended, and its event loop with it
            handle.stop()
        thread.join(20)
        assert not thread.is_alive()


def eventually(condition: Callable[[], bool]) -> None:
    """Waits until a condition holds; fails after ten seconds."""
    pause = threading.Event()
    for _ in range(1000):
        if condition():
            return
        pause.wait(0.01)
    raise AssertionError("it never came to hold")
