"""The routes: scores, vLLM's /pooling, the served model, health."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from prmbench.backends import Backend
from prmbench.config import ServeConfig
from prmbench.config.cli_options import say
from prmbench.core.records import Trace
from prmbench.serving.answers import error_response, pooling_answer, score_answer, to_response
from prmbench.serving.gate import HEALTH
from prmbench.serving.request_bodies import (
    INVALID,
    TOO_LARGE,
    Reading,
    RequestError,
    parse_json,
    parse_pooling,
    parse_score,
)
from prmbench.serving.scheduler import QueueFullError, Scheduler, Scored, ScoringError, StoppedError

BODY_SECONDS = 30.0
"""Seconds that a client has to send a body."""
MAX_BUFFERED_BYTES = 2**28
"""Bytes that the bodies of all unanswered requests may have together; beyond it a request is answered 429."""
INLINE_BYTES = 2**16
"""A larger body is parsed in another thread, so that the others do not wait for it."""
LAST_BODY_SECONDS = 5.0
"""Seconds that a client has to send the rest of a body once the server stops."""
RETRY_SECONDS = 1
"""Value of Retry-After when the queue is full."""

Parser = Callable[[Mapping[str, Any], ServeConfig, Reading], list[Trace]]
Formatter = Callable[[str, Backend, Sequence[Trace], Sequence[Scored]], dict[str, Any]]


@dataclass
class Service:
    """What the routes need: the options, the model with its description, and its queue."""

    config: ServeConfig
    backend: Backend
    description: Mapping[str, Any]
    reading: Reading
    scheduler: Scheduler
    buffered: int = field(default=0)
    """Bytes of the bodies of unanswered requests."""
    unread: set[asyncio.Timeout] = field(default_factory=set)
    """The time limits of the bodies that are being read."""

    def hurry(self) -> None:
        """Leave the clients that are sending a body only a little more time, since the server stops."""
        latest = asyncio.get_running_loop().time() + LAST_BODY_SECONDS
        for limit in self.unread:
            limit.reschedule(min(latest, limit.when() or latest))

    async def answer(self, request: Request, parse: Parser, to_content: Formatter) -> Response:
        """Return the answer to a request. Raises RequestError where there is none."""
        start = asyncio.get_running_loop().time()
        body = _Body(self, request)
        try:
            if self.scheduler.is_full:
                raise QueueFullError
            raw = await body.read(min(BODY_SECONDS, self.config.timeout))
            read = partial(self._traces, parse, raw)
            traces = read() if len(raw) <= INLINE_BYTES else await asyncio.to_thread(read)
            async with asyncio.timeout_at(start + self.config.timeout):
                scored = await _unless_disconnected(request, self.scheduler.score(traces))
        except TimeoutError as error:
            raise RequestError(504, f"no answer within {self.config.timeout:g} s (--timeout)") from error
        except QueueFullError as error:
            message = f"{self.config.max_pending} requests wait already (--max-pending)"
            raise RequestError(429, message, RETRY_SECONDS) from error
        except ScoringError as error:
            say("error", f"{error} ({error.__cause__!r:.300})")
            raise RequestError(500, str(error)) from error
        except StoppedError as error:
            raise RequestError(503, "the server stopped before the request was scored") from error
        finally:
            body.release()
        return to_response(to_content(self.description["id"], self.backend, traces, scored))

    def _traces(self, parse: Parser, raw: bytes) -> list[Trace]:
        return parse(parse_json(raw), self.config, self.reading)


class _Body:
    """The body of a request, counted among the bytes that are buffered."""

    def __init__(self, service: Service, request: Request) -> None:
        self._service, self._request = service, request
        self._content = bytearray()

    async def read(self, seconds: float) -> bytes:
        """Return the body. Raises RequestError where it is too large, too slow, or not JSON by its headers."""
        headers, limit = self._request.headers, self._service.config.max_body
        media_type = headers.get("content-type", "").partition(";")[0].strip().lower()
        if media_type != "application/json":
            raise RequestError(415, "expected the header Content-Type: application/json")
        if headers.get("content-encoding", "identity").strip().lower() != "identity":
            raise RequestError(415, "a compressed body is not taken; send it without Content-Encoding")
        if int(headers.get("content-length", "0")) > limit:  # h11 has checked that it is a number
            raise _too_large(limit)
        try:
            async with asyncio.timeout(seconds) as time_limit:
                self._service.unread.add(time_limit)
                async for chunk in self._request.stream():
                    self._add(chunk, limit)
        except TimeoutError as error:
            raise RequestError(408, f"the body did not arrive within {seconds:g} s, or before a stop") from error
        finally:
            self._service.unread.discard(time_limit)
        return bytes(self._content)

    def release(self) -> None:
        """Count the body no longer."""
        self._service.buffered -= len(self._content)
        self._content.clear()

    def _add(self, chunk: bytes, limit: int) -> None:
        if len(self._content) + len(chunk) > limit:
            raise _too_large(limit)
        if self._service.buffered + len(chunk) > MAX_BUFFERED_BYTES:
            raise RequestError(429, "the bodies of waiting requests fill the memory meant for them", RETRY_SECONDS)
        self._service.buffered += len(chunk)
        self._content += chunk


def _too_large(limit: int) -> RequestError:
    return RequestError(TOO_LARGE, f"request body: has more than {limit:,} bytes (--max-body)")


async def _unless_disconnected(request: Request, work: Coroutine[Any, Any, list[Scored]]) -> list[Scored]:
    """Return the result of a coroutine; cancel it when the client goes. Raises ClientDisconnect then."""
    scoring, gone = asyncio.create_task(work), asyncio.create_task(_wait_for_disconnect(request))
    try:
        await asyncio.wait({scoring, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not scoring.done():
            raise ClientDisconnect
        return scoring.result()
    finally:
        scoring.cancel()
        gone.cancel()
        await asyncio.gather(scoring, gone, return_exceptions=True)


async def _wait_for_disconnect(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def build_app(service: Service) -> FastAPI:
    """Return the application. It has no pages of documentation, whose scripts would come from elsewhere."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False)

    @app.post("/v1/score")
    async def score(request: Request) -> Response:
        return await service.answer(request, parse_score, score_answer)

    @app.post("/pooling")
    async def pooling(request: Request) -> Response:
        if service.backend.facts.kind == "verdict":
            raise RequestError(INVALID, "this model gives verdicts, and no row for each step; use /v1/score")
        return await service.answer(request, parse_pooling, pooling_answer)

    @app.get("/v1/models")
    async def models() -> Response:
        return to_response({"object": "list", "data": [service.description]})

    @app.api_route(HEALTH, methods=["GET", "HEAD"])
    async def health() -> Response:
        since = service.scheduler.busy_since
        if since is not None and time.monotonic() - since > service.config.timeout:
            return error_response(503, f"the model has been busy with one batch for over {service.config.timeout:g} s")
        return to_response({"status": "ok"})

    _add_error_answers(app)
    return app


def _add_error_answers(app: FastAPI) -> None:
    @app.exception_handler(RequestError)
    async def refuse(_: Request, error: RequestError) -> Response:
        headers = {} if error.retry_after is None else {"retry-after": str(error.retry_after)}
        return error_response(error.status, error.message, headers)

    @app.exception_handler(HTTPException)
    async def refuse_route(request: Request, error: HTTPException) -> Response:
        allowed = dict(error.headers or {})
        return error_response(error.status_code, f"{request.method} {request.url.path:.80}: {error.detail}", allowed)

    @app.exception_handler(Exception)
    async def fail(_: Request, error: Exception) -> Response:  # uvicorn prints the traceback on stderr
        return error_response(500, f"an error in the server, not in the request ({type(error).__name__})")

    @app.exception_handler(ClientDisconnect)
    async def forget(_: Request, __: ClientDisconnect) -> Response:
        return error_response(499, "the client has gone")
