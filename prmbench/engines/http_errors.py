"""Reads error bodies of any shape: the reason for a refusal in one line, and the parameters that it blames."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterable, Iterator
from typing import Any

from prmbench.core.redaction import one_line

REASON_LENGTH = 200
"""Longest reason in a message, in characters."""
_MAX_SEARCHED = 5000
"""Characters of a reason that are searched for names of parameters."""
_MAX_DEPTH = 12
"""Levels of nesting that are read."""
_REASON_KEYS = (
    "message",
    "Message",
    "msg",
    "error_message",
    "error_msg",
    "errorMessage",
    "status_msg",
    "error_description",
    "error",
    "errors",
    "detail",
    "details",
    "reason",
    "description",
    "title",
    "fault",
    "faultstring",
    "base_resp",
    "metadata",
    "raw",
)
"""Keys under which servers write the reason: OpenAI, vLLM, Anthropic, FastAPI, OpenRouter, problem+json and others."""
_BLAME_KEYS = ("param", "parameter", "loc", "field")
"""Keys under which servers name the refused part of the request."""
_MAX_PAGE_LENGTH = 10_000
"""Characters of an HTML page that are read: removing tags may take time quadratic in its length."""
_HTML_MARKUP = re.compile(r"(?is)<(script|style|head)\b.*?</\1>|<!--.*?-->|<[^>]*>")
_TITLE = re.compile(r"(?is)<title[^>]*>(.*?)</title>")


def parse_body(raw: bytes) -> Any:
    """Return a body as parsed JSON, or as text when it is no JSON; invalid UTF-8, -16 or -32 bytes are replaced."""
    text = raw.decode(json.detect_encoding(raw), "replace")
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def error_reason(raw: bytes, fallback: str = "no reason given") -> str:
    """Return the reason for a refusal as one line without secrets, of at most REASON_LENGTH characters."""
    return clip(_reasons_or_body(raw)) or fallback


def clip(text: str) -> str:
    """Return a text from a server as one printable line without secrets, of at most REASON_LENGTH characters."""
    line = one_line(text)
    return line if len(line) <= REASON_LENGTH else f"{line[: REASON_LENGTH - 1]}…"


def error_text(raw: bytes) -> str:
    """Return all text that describes the error, with codes and names of parameters, to be searched for patterns."""
    body = parse_body(raw)
    codes = _strings_at(body, ("code", "type", *_BLAME_KEYS))
    return " ".join([*codes, _reasons_or_body(raw)])[:_MAX_SEARCHED]


def blamed_parameters(raw: bytes, names: Iterable[str]) -> list[str]:
    """Return the parameters that a body blames: those under a key for parameters, else those that its reason mentions.

    Args:
        raw: The error body.
        names: The parameters to look for.
    """
    return _names_in(" ".join(_strings_at(parse_body(raw), _BLAME_KEYS)), names) or _names_in(
        _reasons_or_body(raw), names
    )


def _names_in(text: str, names: Iterable[str]) -> list[str]:
    """Return the names that occur in the text, in any spelling: `top_p`, `topP`, `Top-p`, `top p`."""
    patterns = {name: name.replace("_", "[-_ ]?") for name in names}
    return [n for n, pattern in patterns.items() if re.search(rf"(?i)(?<!\w){pattern}(?!\w)", text[:_MAX_SEARCHED])]


def extract_reasons(body: Any) -> str:
    """Return all reasons in a body, joined and unclipped; empty when it gives none."""
    return "; ".join(dict.fromkeys(_reasons(body, _MAX_DEPTH)))


def _reasons_or_body(raw: bytes) -> str:
    """Return all reasons in a body, or the whole body where it gives none."""
    body = parse_body(raw)
    return extract_reasons(body) or (json.dumps(body) if body else "")


def _reasons(body: Any, depth: int) -> Iterator[str]:
    if not depth:
        return
    if isinstance(body, str):
        yield from _reasons_of_text(body, depth)
    elif isinstance(body, list):
        for item in body[:5]:
            yield from _reasons(item, depth - 1)
    elif isinstance(body, dict):
        reasons = [text for key in _REASON_KEYS for text in _reasons(body.get(key), depth - 1)]
        location = ".".join(
            _strings_at({"loc": body.get("loc")}, ("loc",))
        )  # FastAPI puts the location beside the message
        yield from ([f"{location}: {reasons[0]}", *reasons[1:]] if reasons and location else reasons)


def _reasons_of_text(text: str, depth: int) -> Iterator[str]:
    """Yield the reasons in a text: gateways quote another server's JSON as a string, and proxies answer in HTML."""
    text = text.strip()
    if text.startswith(("{", "[")):
        quoted = parse_body(text.encode("utf-8", "replace"))
        if not isinstance(quoted, str):
            yield from _reasons(quoted, depth - 1)
            return
    if text.startswith("<"):
        text = text[:_MAX_PAGE_LENGTH]
        title = _TITLE.search(text)
        text = html.unescape(" ".join([*(title.groups() if title else ()), _HTML_MARKUP.sub(" ", text)])).strip()
    if text:
        yield text


def _strings_at(body: Any, keys: tuple[str, ...], depth: int = _MAX_DEPTH) -> list[str]:
    """Return the strings under the given keys at any level, except in parts that quote the request."""
    if not depth:
        return []
    if isinstance(body, list):
        return [text for item in body[:20] for text in _strings_at(item, keys, depth - 1)]
    if not isinstance(body, dict):
        return []
    strings: list[str] = []
    for key, value in body.items():
        if key in keys:
            items = value if isinstance(value, list) else [value]
            strings += [str(item) for item in items[:20] if isinstance(item, str | int)]
        if key not in ("input", "request", "body", "messages"):
            strings += _strings_at(value, keys, depth - 1)
    return strings
