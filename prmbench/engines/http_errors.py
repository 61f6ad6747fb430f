"""Why a server refused: a reason in one line, from error bodies of any shape, and which parameters are to blame."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterable, Iterator
from typing import Any

from prmbench.core.redaction import one_line

REASON_LENGTH = 200
"""Characters of a reason in a message."""
_SEARCHED = 5000
"""Characters of a reason in which the name of a parameter is looked for."""
_DEPTH = 12
"""Levels of nesting that are looked at."""
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
"""Where servers write why they refused: OpenAI, vLLM, Anthropic, FastAPI, OpenRouter, problem+json and others."""
_BLAME_KEYS = ("param", "parameter", "loc", "field")
"""Where they name the part of the request that they refused."""
_LONGEST_PAGE = 10_000
"""Characters of an HTML page that are looked at: to take tags out may need time with the square of its length."""
_INVISIBLE = re.compile(r"(?is)<(script|style|head)\b.*?</\1>|<!--.*?-->|<[^>]*>")
_TITLE = re.compile(r"(?is)<title[^>]*>(.*?)</title>")


def parsed(raw: bytes) -> Any:
    """Return a body as JSON, or as text when it is none; bytes that are no UTF-8 (or -16, -32) are replaced."""
    text = raw.decode(json.detect_encoding(raw), "replace")
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def reason(raw: bytes, fallback: str = "no reason given") -> str:
    """Return why a server refused: one line without secrets, of at most REASON_LENGTH characters."""
    return clipped(_all_reasons(raw)) or fallback


def clipped(text: str) -> str:
    """Return a text from a server as one printable line without secrets, of at most REASON_LENGTH characters."""
    line = one_line(text)
    return line if len(line) <= REASON_LENGTH else f"{line[: REASON_LENGTH - 1]}…"


def error_text(raw: bytes) -> str:
    """Return everything that a body says about the error, codes and names of parameters included, for searching."""
    body = parsed(raw)
    codes = _strings_at(body, ("code", "type", *_BLAME_KEYS))
    return " ".join([*codes, _all_reasons(raw)])[:_SEARCHED]


def blamed(raw: bytes, names: Iterable[str]) -> list[str]:
    """Return which of these parameters a body blames: those it names as such, else those its reason mentions."""
    return _named(" ".join(_strings_at(parsed(raw), _BLAME_KEYS)), names) or _named(_all_reasons(raw), names)


def _named(text: str, names: Iterable[str]) -> list[str]:
    """Which of the names are in the text, however they are spelled: `top_p`, `topP`, `Top-p`, `top p`."""
    spelled = {name: name.replace("_", "[-_ ]?") for name in names}
    return [n for n, pattern in spelled.items() if re.search(rf"(?i)(?<!\w){pattern}(?!\w)", text[:_SEARCHED])]


def stated_reasons(body: Any) -> str:
    """Return what a body gives as reasons, as long as it may be; empty when it gives none."""
    return "; ".join(dict.fromkeys(_reasons(body, _DEPTH)))


def _all_reasons(raw: bytes) -> str:
    body = parsed(raw)
    return stated_reasons(body) or (json.dumps(body) if body else "")


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
        where = ".".join(_strings_at({"loc": body.get("loc")}, ("loc",)))  # FastAPI says where beside what
        yield from ([f"{where}: {reasons[0]}", *reasons[1:]] if reasons and where else reasons)


def _reasons_of_text(text: str, depth: int) -> Iterator[str]:
    """Gateways quote the JSON of the server behind them as a text, and proxies answer in HTML."""
    text = text.strip()
    if text.startswith(("{", "[")):
        quoted = parsed(text.encode("utf-8", "replace"))
        if not isinstance(quoted, str):
            yield from _reasons(quoted, depth - 1)
            return
    if text.startswith("<"):
        text = text[:_LONGEST_PAGE]
        title = _TITLE.search(text)
        text = html.unescape(" ".join([*(title.groups() if title else ()), _INVISIBLE.sub(" ", text)])).strip()
    if text:
        yield text


def _strings_at(body: Any, keys: tuple[str, ...], depth: int = _DEPTH) -> list[str]:
    """Every text below one of these keys, at any level; what a server quotes of the request is not looked into."""
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
