"""What comes back for a request over HTTP: whether asking again is of use, and when, and whether it may be billed."""

from __future__ import annotations

import math
import os
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from http import HTTPStatus

from prmbench.engines.http_errors import clipped, parsed, reason, stated_reasons

MOST_BYTES = 64 * 2**20
"""Of a body, unpacked: more than the longest answers have, with the probabilities of all their tokens."""
TOO_LARGE = f"its answer has more than {MOST_BYTES >> 20} MiB"
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
    def has_reason(self) -> bool:
        """Whether the body may say why there is no answer; a broken one may hold half an answer."""
        return not self.fine or isinstance(parsed(self.body), dict)

    @property
    def error_status(self) -> int:
        """The status, or the one that stands in an error body that gateways send as if all were fine."""
        body = parsed(self.body) if self.fine else None
        error = body.get("error") if isinstance(body, dict) and not body.get("choices") else None
        code = error.get("code", error.get("status")) if isinstance(error, dict) else None
        match = re.fullmatch(r"[45]\d\d", str(code))
        return int(match[0]) if match else self.status

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
        status = self.error_status
        again = (0, HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.CONFLICT, HTTPStatus.TOO_MANY_REQUESTS)
        fine = HTTPStatus.OK <= status < HTTPStatus.MULTIPLE_CHOICES  # though nothing can be read in it
        return status in again or fine or status >= HTTPStatus.INTERNAL_SERVER_ERROR

    @property
    def reason(self) -> str:
        """Why nothing can be done with the reply, in one line."""
        if self.failure:
            return clipped(self.failure)
        if not self.fine:
            return reason(self.body, f"status {self.status}, no reason given")
        body = parsed(self.body)
        if isinstance(body, dict):
            return clipped(stated_reasons(body)) or "malformed answer: no choice in it"
        return "malformed answer: no object" if isinstance(body, list) else "malformed answer: not valid JSON"

    @property
    def asked_pause(self) -> float:
        """Seconds that the server asks to wait; 0 when it asks for nothing that can be read."""
        seconds = self.headers.get("retry-after", "")
        pause = _number(self.headers.get("retry-after-ms", "")) / 1000 or _number(seconds) or _until(seconds)
        return pause if math.isfinite(pause) and pause > 0 else 0.0


def _number(text: str) -> float:
    """The number that a header gives, or 0."""
    try:
        return float(text)
    except ValueError:
        return 0.0


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
