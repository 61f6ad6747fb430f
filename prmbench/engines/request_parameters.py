"""Parameters that a server refuses: left out, renamed or lowered once, for all requests that follow, and said."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from threading import Lock
from typing import Any

from prmbench.core.records import Notice
from prmbench.engines.http_errors import blamed_parameters, error_text

OLD_LIMIT, NEW_LIMIT = "max_tokens", "max_completion_tokens"
"""The limit of an answer's length, by its usual name and by the one that reasoning models want."""
LIMITS = (OLD_LIMIT, NEW_LIMIT)
OPTIONAL = ("temperature", "top_p", "top_k", "seed")
"""What a request can do without; the server then decides."""
_SPELLINGS = (*LIMITS, "max_new_tokens", "max_output_tokens", "maximum_tokens", "max_tokens_to_sample")
"""What servers call the limit when they refuse it."""
_LEAST_LIMIT = 256
"""Tokens below which a number in a message is taken for a part of a model's name, not for the longest answer."""
_LOGPROBS = ("top_logprobs", "logprobs")
_NOT_BOTH = re.compile(r"(?i)\b(both|together|only one|either|simultaneous\w*|mutually|at the same time)\b")
_TOO_LARGE = re.compile(
    r"(?i)too (large|high|big|many)|exceed|at most|less than|lower than|maximum|\brange|between|<=|≤|>"
)
_UNSUPPORTED = re.compile(
    r"(?i)unsupported|unknown|unrecogni[sz]ed|unexpected|not (be )?(support|allow|permit|recogni[sz]|accept|implement)"
    r"|n't (support|allow|permit|recogni[sz]|accept)|support the param|extra(neous)? |deprecated"
)
_TOO_LONG = re.compile(
    r"(?i)context.?(length|size|window|limit)|prompt (is )?too long|input (is |length )?too long"
    r"|inputs?\W+tokens \+ |max_model_len|(too many|number of) (input|prompt) tokens|reduce the length"
)


def too_long(raw: bytes) -> bool:
    """Whether an error body says that the conversation, or with it the answer, does not fit the model's context."""
    return bool(_TOO_LONG.search(error_text(raw)))


def unsupported(raw: bytes) -> bool:
    """Whether an error body says that something in the request is not taken, whatever the status is."""
    return bool(_UNSUPPORTED.search(error_text(raw)))


class RequestParameters:
    """What a server takes of a request's parameters, learned from its refusals; safe for several threads."""

    def __init__(self, server: str) -> None:
        """`server`: how messages name it."""
        self._server = server
        self._lock = Lock()
        self._dropped: set[str] = set()
        self._lowered: dict[str, int] = {}
        self._renamed = False
        self._changes: list[str] = []

    @property
    def changes(self) -> tuple[str, ...]:
        """What was changed so far, for the manifest: `temperature left out`."""
        with self._lock:
            return tuple(self._changes)

    def fitted(self, wanted: Mapping[str, Any]) -> dict[str, Any]:
        """Return a request as this server takes it."""
        with self._lock:
            fitted = {**wanted}
            for name, most in self._lowered.items():
                if name in fitted:
                    fitted[name] = min(fitted[name], most)
            if self._renamed and OLD_LIMIT in fitted:
                fitted[NEW_LIMIT] = fitted.pop(OLD_LIMIT)
            return {name: value for name, value in fitted.items() if name not in self._dropped}

    def learn(self, wanted: Mapping[str, Any], sent: Mapping[str, Any], raw: bytes) -> bool:
        """Take notice of a refusal.

        Args:
            wanted: The request as it is meant.
            sent: What `fitted` made of it, and the server refused.
            raw: The body of the answer.

        Returns:
            Whether `fitted` now makes another request of it, so that it is worth sending again.
        """
        with self._lock:
            for change in self._changed(sent, raw):
                if change not in self._changes:
                    self._changes.append(change)
                    warnings.warn(f"{self._server} refuses a parameter: {change}", Notice, stacklevel=2)
        return self.fitted(wanted) != sent

    def _changed(self, sent: Mapping[str, Any], raw: bytes) -> list[str]:
        """Note what the refusal asks for; return it in words."""
        text = error_text(raw)
        names = blamed_parameters(raw, (*_SPELLINGS, *_LOGPROBS, *OPTIONAL))
        limit = next((name for name in LIMITS if name in sent), None)
        changes = []
        if limit is not None and set(names) & set(_SPELLINGS):
            changes += self._change_limit(limit, sent[limit], text)
        if set(names) & set(_LOGPROBS):
            changes += self._lower("top_logprobs", sent.get("top_logprobs", 0), text, least=1)
        refused = [name for name in names if name in OPTIONAL and name in sent]
        if {"temperature", "top_p"} <= set(refused) and _NOT_BOTH.search(text):
            refused = ["top_p"]
        self._dropped.update(refused)
        return changes + [f"{name} left out" for name in refused]

    def _change_limit(self, limit: str, value: int, text: str) -> list[str]:
        """The limit by its newer name, or lowered to the longest answer that the model gives, or left out."""
        rename = limit == OLD_LIMIT and (NEW_LIMIT in text or not _TOO_LARGE.search(text))
        if not rename and _TOO_LARGE.search(text):
            return self._lower(OLD_LIMIT, value, text, least=_LEAST_LIMIT)
        if rename:
            self._renamed = True
            return [f"{OLD_LIMIT} sent as {NEW_LIMIT}"]
        self._dropped.update(LIMITS)
        return [f"{OLD_LIMIT} left out"]

    def _lower(self, name: str, value: int, text: str, least: int) -> list[str]:
        """To the largest number that the message gives and that is below the value; nothing is changed without one."""
        text = re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", text)  # of thousands; [1,8192] is a range
        found = re.findall(r"(?<![\w.-])(\d{1,7})(?![\w.]*\w)( \(exclusive\))?", text)
        numbers = [int(number) - bool(exclusive) for number, exclusive in found]
        lower = max((n for n in numbers if least <= n < value), default=None)
        if lower is None:
            return []
        self._lowered[name] = lower
        return [f"{name} lowered from {value} to {lower}"]
