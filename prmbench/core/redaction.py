"""Removes secrets from text and makes text one line. Standard library only.

A server's replies go through `scrub` when they are read, and messages when they are printed: an API key that a server
repeats reaches no file, no terminal and no exception.
"""

from __future__ import annotations

import html
import json
import os
import re
from urllib.parse import quote, quote_plus, urlsplit

API_KEY = "OPENAI_API_KEY"
SERVER_TOKEN = "PRMBENCH_TOKEN"
SECRET_VARIABLES = (API_KEY, SERVER_TOKEN, "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "WANDB_API_KEY")
"""Environment variables whose values are secrets."""
MASK = "***"
MIN_SECRET_LENGTH = 6
"""Shorter values are no secrets: masking a key such as `none`, as local servers get, would hide common words."""

_USER = re.compile(r"(?<=://)([^\s\"'<>]*@)?+([^\s\"'<>]*+)")
"""User and password of a URL, and the rest; possessive, so that text with many "://" takes linear time."""
_PARAMETER = re.compile(
    r"(?i)(?<=[?&])((?:api[-_]?|access[-_]?|secret[-_]?|auth[-_]?)?(?:key|token|sig|signature|password|secret)=)[^&\s\"'<>]+"
)
_HEADER = re.compile(r"(?i)(\bauthorization\b[\"']?\s*[:=]\s*[\"']?)(?:(?:bearer|basic)\s+)?[^\s\"',;}]+")


def scrub(text: str) -> str:
    """Return the text with every secret replaced by `***`.

    Secrets are the values of SECRET_VARIABLES (also as they are written in a URL, in JSON or in HTML), the user and
    password of any URL, parameters of a URL that are named like a key, and the value of an Authorization header.
    """
    for secret in _spellings():
        text = text.replace(secret, MASK)
    text = _USER.sub(lambda url: f"{MASK}@{url[2]}" if url[1] else url[0], text)
    text = _PARAMETER.sub(rf"\g<1>{MASK}", text)
    return _HEADER.sub(rf"\g<1>{MASK}", text)


def one_line(text: object) -> str:
    """Return a text as one printable line without secrets."""
    return " ".join("".join(c if c.isprintable() else " " for c in scrub(str(text))).split())


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, joined with the next while it ends with a colon."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    end = next((n for n, line in enumerate(lines, 1) if not line.endswith(":")), len(lines))
    return " ".join(lines[:end])


def _spellings() -> list[str]:
    """Return every spelling of the secrets, the longest first since one may be part of another."""
    values = (os.environ.get(name, "").strip() for name in SECRET_VARIABLES)
    secrets = [value for value in values if len(value) >= MIN_SECRET_LENGTH]
    spellings = set()
    for value in secrets:
        in_json = json.dumps(value)[1:-1]
        urls = quote(value, safe=""), quote(value), quote_plus(value)
        spellings |= {value, *urls, in_json, in_json.replace("/", "\\/"), html.escape(value)}
    return sorted(spellings, key=lambda s: (-len(s), s))


def has_secrets(url: str) -> bool:
    """Return whether a URL holds a user, a password, a query or a fragment."""
    return any(mark in url for mark in "@?#")


def host_of(url: str) -> str:
    """Return the host of a URL, or an empty text when it has none or cannot be parsed."""
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""


def origin(url: str) -> tuple[str, str, int | None] | None:
    """Return (scheme, host, port) of a URL, the port by default that of the scheme; None when it has none."""
    try:
        parts = urlsplit(url)
        port = parts.port or {"http": 80, "https": 443}.get(parts.scheme)
    except ValueError:
        return None
    return (parts.scheme, parts.hostname, port) if parts.hostname else None


def written_origin(url: str) -> str:
    """Return `scheme://host:port` of a URL, which holds no secret."""
    parts = origin(url)
    if parts is None:
        return "an address that cannot be read"
    scheme, host, port = parts
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"
