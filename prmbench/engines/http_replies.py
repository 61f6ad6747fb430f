"""What comes back for a request over HTTP: whether asking again is of use, and when, and whether it may be billed."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from http import HTTPStatus

from prmbench.engines.http_errors import clipped, parsed, reason

UNBILLED = ("ConnectError", "ConnectTimeout", "PoolTimeout", "ProxyError")
"""Errors of the transport before the server got anything."""


@dataclass(frozen=True, slots=True)
class Reply:
    """What came back for one attempt at a request."""

    status: int = 0
    """0 when nothing came."""
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    failure: str = ""
    """Why nothing came."""
    arrived: bool = True
    """Whether the server may have got the request."""

    @property
    def fine(self) -> bool:
        """Whether the server took the request."""
        return HTTPStatus.OK <= self.status < HTTPStatus.MULTIPLE_CHOICES

    @property
    def may_be_billed(self) -> bool:
        """Whether an answer may have been written that never came: gateways say 5xx when they stop waiting for it."""
        lost = (
            not self.status
            or self.status == HTTPStatus.REQUEST_TIMEOUT
            or self.status >= HTTPStatus.INTERNAL_SERVER_ERROR
        )
        return self.arrived and lost

    @property
    def passing(self) -> bool:
        """Whether the same request may succeed later."""
        return self.status in (0, HTTPStatus.CONFLICT, HTTPStatus.TOO_MANY_REQUESTS) or self.may_be_billed

    @property
    def reason(self) -> str:
        """Why nothing can be done with the reply, in one line."""
        if self.failure:
            return clipped(self.failure)
        if not self.fine:
            return reason(self.body, f"status {self.status}, no reason given")
        body = parsed(self.body)
        if isinstance(body, dict):
            return reason(self.body) if body.get("error") else "malformed answer: no choice in it"
        return "malformed answer: no object" if isinstance(body, list) else "malformed answer: not valid JSON"

    @property
    def asked_pause(self) -> float:
        """Seconds that the server asks to wait; 0 when it asks for nothing that can be read."""
        milliseconds, seconds = self.headers.get("retry-after-ms", ""), self.headers.get("retry-after", "")
        try:
            pause = float(milliseconds) / 1000 if milliseconds else float(seconds or 0)
        except ValueError:
            pause = _until(seconds)
        return pause if math.isfinite(pause) and pause > 0 else 0.0


def _until(date: str) -> float:
    """Seconds until the date of a header."""
    try:
        return parsedate_to_datetime(date).timestamp() - time.time()
    except (ValueError, TypeError, OverflowError):
        return 0.0


def root_cause(error: BaseException) -> str:
    """What the lowest layer said: the libraries above it say only that something failed."""
    while True:
        below = error.exceptions[0] if isinstance(error, BaseExceptionGroup) else error.__cause__ or error.__context__
        if below is None:
            break
        error = below
    if isinstance(error, ConnectionError) and error.errno:
        return os.strerror(error.errno)
    return str(error) or type(error).__name__
