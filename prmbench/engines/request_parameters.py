"""Adapts requests to a server that refuses parameters: omits, renames or lowers them in all later requests."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from threading import Lock
from typing import Any

from prmbench.core.records import Notice
from prmbench.engines.http_errors import blamed_parameters, error_text

MAX_TOKENS, MAX_COMPLETION_TOKENS = "max_tokens", "max_completion_tokens"
"""Names of the limit of an answer's length: the usual one, and the one that reasoning models require."""
LIMIT_NAMES = (MAX_TOKENS, MAX_COMPLETION_TOKENS)
OPTIONAL_NAMES = ("temperature", "top_p", "top_k", "seed")
"""Parameters that a request can omit; the server's defaults then apply."""
_LIMIT_SPELLINGS = (*LIMIT_NAMES, "max_new_tokens", "max_output_tokens", "maximum_tokens", "max_tokens_to_sample")
"""Names that servers give the answer limit when they refuse it."""
_MIN_ANSWER_LIMIT = 256
"""A smaller number in a message is taken for a part of a model's name, not for a token limit."""
_LOGPROBS = ("top_logprobs", "logprobs")
_MUTUALLY_EXCLUSIVE = re.compile(r"(?i)\b(both|together|only one|either|simultaneous\w*|mutually|at the same time)\b")
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


def exceeds_context(raw: bytes) -> bool:
    """Return whether an error body says that the conversation, with or without its answer, exceeds the context."""
    return bool(_TOO_LONG.search(error_text(raw)))


def mentions_unsupported(raw: bytes) -> bool:
    """Return whether an error body says that something in the request is not supported, whatever its status."""
    return bool(_UNSUPPORTED.search(error_text(raw)))


class RequestParameters:
    """The parameters that a server accepts, learned from its refusals; thread-safe."""

    def __init__(self, server: str) -> None:
        """`server`: the server's name in messages."""
        self._server = server
        self._lock = Lock()
        self._dropped: set[str] = set()
        self._lowered: dict[str, int] = {}
        self._renamed = False
        self._changes: list[str] = []

    @property
    def changes(self) -> tuple[str, ...]:
        """The changes made so far, in words for the manifest, e.g. `temperature left out`."""
        with self._lock:
            return tuple(self._changes)

    def adapt(self, intended: Mapping[str, Any]) -> dict[str, Any]:
        """Return a request with the parameters that this server accepts."""
        with self._lock:
            adapted = {**intended}
            for name, limit in self._lowered.items():
                if name in adapted:
                    adapted[name] = min(adapted[name], limit)
            if self._renamed and MAX_TOKENS in adapted:
                adapted[MAX_COMPLETION_TOKENS] = adapted.pop(MAX_TOKENS)
            return {name: value for name, value in adapted.items() if name not in self._dropped}

    def learn(self, intended: Mapping[str, Any], sent: Mapping[str, Any], raw: bytes) -> bool:
        """Learn from a refusal which parameters to change.

        Args:
            intended: The request before `adapt`.
            sent: The request after `adapt`, which the server refused.
            raw: The body of the refusal.

        Returns:
            Whether `adapt` now gives another request, so that a retry makes sense.
        """
        with self._lock:
            for change in self._apply_refusal(sent, raw):
                if change not in self._changes:
                    self._changes.append(change)
                    warnings.warn(f"{self._server} refuses a parameter: {change}", Notice, stacklevel=2)
        return self.adapt(intended) != sent

    def _apply_refusal(self, sent: Mapping[str, Any], raw: bytes) -> list[str]:
        """Record the changes that a refusal calls for and return them in words."""
        text = error_text(raw)
        names = blamed_parameters(raw, (*_LIMIT_SPELLINGS, *_LOGPROBS, *OPTIONAL_NAMES))
        limit = next((name for name in LIMIT_NAMES if name in sent), None)
        changes = []
        if limit is not None and set(names) & set(_LIMIT_SPELLINGS):
            changes += self._change_limit(limit, sent[limit], text)
        if set(names) & set(_LOGPROBS):
            changes += self._lower("top_logprobs", sent.get("top_logprobs", 0), text, minimum=1)
        refused = [name for name in names if name in OPTIONAL_NAMES and name in sent]
        if {"temperature", "top_p"} <= set(refused) and _MUTUALLY_EXCLUSIVE.search(text):
            refused = ["top_p"]
        self._dropped.update(refused)
        return changes + [f"{name} left out" for name in refused]

    def _change_limit(self, limit: str, value: int, text: str) -> list[str]:
        """Rename the answer limit, lower it to the longest answer that the model allows, or omit it."""
        rename = limit == MAX_TOKENS and (MAX_COMPLETION_TOKENS in text or not _TOO_LARGE.search(text))
        if not rename and _TOO_LARGE.search(text):
            return self._lower(MAX_TOKENS, value, text, minimum=_MIN_ANSWER_LIMIT)
        if rename:
            self._renamed = True
            return [f"{MAX_TOKENS} sent as {MAX_COMPLETION_TOKENS}"]
        self._dropped.update(LIMIT_NAMES)
        return [f"{MAX_TOKENS} left out"]

    def _lower(self, name: str, value: int, text: str, minimum: int) -> list[str]:
        """Lower a parameter to the largest number in the message that is below its value, if there is one."""
        text = re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", text)  # thousands separators; [1,8192] is a range
        matches = re.findall(r"(?<![\w.-])(\d{1,7})(?![\w.]*\w)( \(exclusive\))?", text)
        numbers = [int(number) - bool(exclusive) for number, exclusive in matches]
        lower = max((n for n in numbers if minimum <= n < value), default=None)
        if lower is None:
            return []
        self._lowered[name] = lower
        return [f"{name} lowered from {value} to {lower}"]
