"""The reply to one HTTP request: whether to retry it, when, and whether it may be billed."""

from __future__ import annotations

import math
import os
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from http import HTTPStatus

from prmbench.engines.http_errors import clip, error_reason, extract_reasons, parse_body

MAX_BODY_BYTES = 64 * 2**20
"""Largest decompressed body: more than the longest answers take with the probabilities of all their tokens."""
TOO_LARGE_MESSAGE = f"its answer has more than {MAX_BODY_BYTES >> 20} MiB"
UNBILLED_ERRORS = ("ConnectError", "ConnectTimeout", "PoolTimeout", "ProxyError")
"""Transport errors that occur before the server receives anything."""


@dataclass(frozen=True, slots=True)
class Reply:
    """The reply to one attempt at a request, or the transport error in its place."""

    status: int = 0
    """HTTP status; 0 when no reply came."""
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    transport_error: str = ""
    """Why no reply came; empty when one did."""
    may_have_arrived: bool = True
    """Whether the server may have received the request."""

    @property
    def is_success(self) -> bool:
        """Whether the status is 2xx."""
        return HTTPStatus.OK <= self.status < HTTPStatus.MULTIPLE_CHOICES

    @property
    def has_reason(self) -> bool:
        """Whether the body may give a reason for the failure; a truncated 2xx body may hold half an answer instead."""
        return not self.is_success or isinstance(parse_body(self.body), dict)

    @property
    def error_status(self) -> int:
        """The status, or the one inside an error body that a gateway sends with a 2xx status."""
        body = parse_body(self.body) if self.is_success else None
        error = body.get("error") if isinstance(body, dict) and not body.get("choices") else None
        code = error.get("code", error.get("status")) if isinstance(error, dict) else None
        match = re.fullmatch(r"[45]\d\d", str(code))
        return int(match[0]) if match else self.status

    @property
    def may_be_billed(self) -> bool:
        """Whether the model may have written an answer that never arrived: gateways send 5xx when they stop waiting."""
        without_answer = (
            not self.status
            or self.status == HTTPStatus.REQUEST_TIMEOUT
            or self.status >= HTTPStatus.INTERNAL_SERVER_ERROR
        )
        return self.may_have_arrived and without_answer

    @property
    def is_retryable(self) -> bool:
        """Whether the same request may succeed later."""
        status = self.error_status
        retryable = (0, HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.CONFLICT, HTTPStatus.TOO_MANY_REQUESTS)
        is_success = HTTPStatus.OK <= status < HTTPStatus.MULTIPLE_CHOICES  # but without a readable answer
        return status in retryable or is_success or status >= HTTPStatus.INTERNAL_SERVER_ERROR

    @property
    def reason(self) -> str:
        """Why the reply holds no answer, in one line."""
        if self.transport_error:
            return clip(self.transport_error)
        if not self.is_success:
            return error_reason(self.body, f"status {self.status}, no reason given")
        body = parse_body(self.body)
        if isinstance(body, dict):
            return clip(extract_reasons(body)) or "malformed answer: no choice in it"
        return "malformed answer: no object" if isinstance(body, list) else "malformed answer: not valid JSON"

    @property
    def retry_after(self) -> float:
        """Seconds that the server asks to wait before a retry; 0 when it gives no readable delay."""
        seconds = self.headers.get("retry-after", "")
        pause = (
            _number_in(self.headers.get("retry-after-ms", "")) / 1000 or _number_in(seconds) or _seconds_until(seconds)
        )
        return pause if math.isfinite(pause) and pause > 0 else 0.0


def _number_in(text: str) -> float:
    """Return a header's value as a number; 0 when it is none."""
    try:
        return float(text)
    except ValueError:
        return 0.0


def _seconds_until(date: str) -> float:
    """Return the seconds until a header's date; 0 when it is none."""
    try:
        return parsedate_to_datetime(date).timestamp() - time.time()
    except (ValueError, TypeError, OverflowError):
        return 0.0


def root_cause(error: BaseException) -> str:
    """Return the message of the innermost exception: the libraries around it say only that something failed."""
    while True:
        cause = error.exceptions[0] if isinstance(error, BaseExceptionGroup) else error.__cause__ or error.__context__
        if cause is None:
            break
        error = cause
    if isinstance(error, ConnectionError) and error.errno:
        return os.strerror(error.errno)
    return str(error) or type(error).__name__
