"""Checks a request before anything of it is read: is the server stopping, who asks, and with which token.

A page in a browser must reach a server on loopback neither through a name that it points there (DNS rebinding: the Host
header tells) nor by posting to it from elsewhere (the Origin header tells); no answer allows another origin to read it.
"""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import time
from collections.abc import Awaitable, Callable, Mapping, MutableMapping, Sequence
from typing import Any

from fastapi.responses import Response

from prmbench.config.cli_options import say
from prmbench.core.redaction import host_of
from prmbench.serving.answers import error_response

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]
HEALTH = "/health"


def is_loopback(host: str) -> bool:
    """Return whether only this machine can connect to a host."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


class Gate:
    """An ASGI application around another one, that counts and may refuse its requests."""

    def __init__(self, app: App, host: str, token: str | None, access_log: bool = False) -> None:
        """Make the gate.

        Args:
            app: Answers the requests that pass.
            host: The address that the server listens on; where it is loopback, the Host header has to be, too.
            token: What requests must bring as `Authorization: Bearer TOKEN`; None = nothing.
            access_log: Whether to print a line on stderr for every request.
        """
        self._app, self._host, self._access_log = app, host, access_log
        self._token = None if token is None else token.encode()
        self.stopping = False
        self._running = 0
        self._idle = asyncio.Event()
        self._idle.set()

    async def wait_until_idle(self) -> None:
        """Return once no request is being answered."""
        await self._idle.wait()

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Answer a request."""
        start, status = time.monotonic(), 0

        async def send_and_note(message: Message) -> None:
            nonlocal status
            status = message.get("status", status)
            await send(message)

        self._running += 1
        self._idle.clear()
        try:
            answer = self._refusal(scope) or self._app
            await answer(scope, receive, send_and_note)
        finally:
            self._running -= 1
            if not self._running:
                self._idle.set()
            if self._access_log:
                say("request", f"{scope['method']} {scope['path']} {status or '-'} {time.monotonic() - start:.3f}s")

    def _refusal(self, scope: Mapping[str, Any]) -> Response | None:
        """Return the answer to a request that may not pass; None for one that may."""
        headers: list[tuple[bytes, bytes]] = scope["headers"]
        values = {name: value for name, value in headers if name in (b"host", b"origin", b"expect")}
        # A client that waits for `100 Continue` sends no body after a refusal, so that nothing can follow on it.
        close = {"connection": "close"} if self.stopping or b"expect" in values else {}
        if self.stopping:
            return error_response(503, "the server is stopping; no new request is taken", {"retry-after": "5", **close})
        if b"origin" in values:
            return error_response(403, "requests of web pages (with an Origin header) are not taken", close)
        host = host_of(f"//{values.get(b'host', b'localhost').decode('latin-1')}")
        if is_loopback(self._host) and not (is_loopback(host) or host == self._host):
            return error_response(421, "the Host header names another host than this; use localhost", close)
        tokens = [value for name, value in headers if name == b"authorization"]
        if scope["path"] != HEALTH and not self._is_authorized(tokens):
            message = "a token is needed: send one header Authorization, whose value is Bearer and the token"
            return error_response(401, message, {"www-authenticate": "Bearer", **close})
        return None

    def _is_authorized(self, authorizations: Sequence[bytes]) -> bool:
        """Return whether the one Authorization header has the token; of several it is not clear which counts."""
        scheme, _, token = (authorizations[0] if len(authorizations) == 1 else b"").partition(b" ")
        return self._token is None or (scheme.lower() == b"bearer" and hmac.compare_digest(token.strip(), self._token))
