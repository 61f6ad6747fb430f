"""Chat with an OpenAI-compatible server, by the SDK of that name: retried, paced, counted. The key stays in the client.

What vLLM's own endpoints offer beyond that (token ids, weights) is server.py's. Needs the extra `openai`.
"""

from __future__ import annotations

import ipaddress
import json
import math
import os
import re
import time
import weakref
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import accumulate
from threading import Lock
from typing import Any, NoReturn
from urllib.parse import urlsplit

import openai

from prmbench.engines.chat import Answer, Ask, Messages, Weighing, other_word, share
from prmbench.engines.sampling import Sampling
from prmbench.schema import RetryError, UserError

KEY = "OPENAI_API_KEY"
TRIES = 6
"""Attempts at a request. The pauses between them double from half a second, or are those that the server asks for, up
to a minute."""
PAUSE = 0.5
TIMEOUT, CONNECT = 600.0, 15.0
"""Seconds that one answer may take, and a connection."""
TOP = 20
"""Log-probabilities asked for at a position: the most that servers give."""
CHARACTERS = 4
"""Of a token, roughly: what a plan made without the server's tokenizer goes by."""
_REASON = 200


class HttpChat:
    """A model behind an OpenAI-compatible server; safe to be called from several threads.

    Methods raise RetryError when the server stays away or keeps refusing for now, and UserError when it refuses for
    good. A body without a choice is asked for again, too; an answer that is empty, or no text, is lost, and told so.
    """

    def __init__(self, url: str, model: str, rate: float | None = None, tries: int = TRIES) -> None:
        """`url` without credentials; the key is read from the environment. `rate`: most requests a minute."""
        host = address(url)
        self.url, self.model, self._tries = url.rstrip("/"), model, tries
        self._key = api_key(host)
        pace = Pace(rate)
        self._client = openai.OpenAI(
            base_url=self.url,
            api_key=self._key,
            max_retries=tries - 1,
            timeout=openai.Timeout(TIMEOUT, connect=CONNECT),
            http_client=openai.DefaultHttpxClient(
                trust_env=not local(host),  # past any proxy
                event_hooks={"request": [lambda _: pace.wait()]},  # the SDK's own repetitions, too
            ),
        )
        weakref.finalize(self, self._client.close)

    def prompt_tokens(self, messages: Messages) -> int:
        """A guess from the number of characters: the tokenizer is the server's."""
        return sum(-(-len(message["content"]) // CHARACTERS) for message in messages)

    def answer(self, asks: Sequence[Ask], sampling: Sampling, weighing: Weighing | None = None) -> list[Answer]:
        """One answer for each conversation, asked for one after the other: callers ask from several threads."""
        return [self._answer(ask, sampling, weighing) for ask in asks]

    def choose(self, asks: Sequence[Ask], words: tuple[str, str]) -> list[Answer]:
        """The share of the first word among those that the server lists for the first token; None if it lists none."""
        return [self._choose(ask, words) for ask in asks]

    def _answer(self, ask: Ask, sampling: Sampling, weighing: Weighing | None) -> Answer:
        body = {
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "max_tokens": sampling.max_new_tokens,
            "extra_body": {"top_k": sampling.top_k} if sampling.top_k else {},
        }
        told = self._post(ask, body if weighing is None else {**body, "logprobs": True, "top_logprobs": TOP})
        if isinstance(told, Answer):
            return told
        answer = read(told)
        if weighing is None or answer.lost:
            return answer
        return self._weighed(answer, told, lambda listed: weigh(listed, weighing))

    def _choose(self, ask: Ask, words: tuple[str, str]) -> Answer:
        told = self._post(ask, {"temperature": 0.0, "max_tokens": 1, "logprobs": True, "top_logprobs": TOP})
        if isinstance(told, Answer):
            return told
        answer = replace(read(told), text="")
        if not answer.finish:
            return answer
        return self._weighed(replace(answer, lost=""), told, lambda listed: choice(listed, words))

    def _weighed(self, answer: Answer, told: Mapping[str, Any], how: Callable[[list[Any]], float | None]) -> Answer:
        """The answer with a share from its log-probabilities. Raises UserError where the server gives none."""
        try:
            listed = (told["choices"][0].get("logprobs") or {}).get("content") or []
            if any(entry.get("top_logprobs") for entry in listed):
                return replace(answer, share=how(listed))
        except (LookupError, TypeError, ValueError, AttributeError):
            return replace(answer, lost="malformed answer: its log-probabilities are none")
        raise UserError(f"--base-url {self.url}: gives no top_logprobs, which this critic reads; use another server")

    def _post(self, ask: Ask, body: Mapping[str, Any]) -> dict[str, Any] | Answer:
        """What the server says, as JSON; or an answer that says why there is none."""
        asked = {"model": self.model, "messages": list(ask.messages), "seed": ask.seed, **body}
        failures = 0
        while True:  # as it is, then as the server may want it instead
            try:
                raw = self._client.chat.completions.with_raw_response.create(**asked)
            except (openai.BadRequestError, openai.UnprocessableEntityError) as error:
                other = adapted(asked, error)
                if other is None:
                    return self._unfit(error)
                asked = other
            except (openai.APIConnectionError, openai.RateLimitError, openai.InternalServerError) as error:
                raise RetryError(f"--base-url {self.url}: no answer from the server ({self._said(error)})") from None
            except openai.APIStatusError as error:
                self._refused(error)
            else:
                if "json" not in raw.headers.get("content-type", ""):
                    raise UserError(f"--base-url {self.url}: what answers is no such server; most addresses end in /v1")
                told = parsed(raw.text)
                if told.get("choices"):
                    return told
                failures += 1  # cut, or a gateway's word of a server behind it; the SDK sees success
                self._again(told.get("error") or "malformed answer: no choice in it", failures)

    def _again(self, error: object, failures: int) -> None:
        """Waits before the next attempt. Raises RetryError after the last one."""
        if failures >= self._tries:
            said = error.get("message") if isinstance(error, dict) else error
            raise RetryError(f"--base-url {self.url}: no answer from the server ({self._clean(str(said))})")
        time.sleep(PAUSE * 2 ** (failures - 1))

    def _unfit(self, error: openai.APIStatusError) -> Answer:
        """Of one conversation the answer says so; a request that fits no conversation is the user's to mend."""
        if _too_long(error):
            return Answer(refused=f"the server: {self._said(error)}")
        if error.code == "content_filter":
            return Answer(lost=f"the server: {self._said(error)}")
        raise UserError(f"--base-url {self.url}: refuses the request ({self._said(error)})") from None

    def _refused(self, error: openai.APIStatusError) -> NoReturn:
        hint = {
            401: f"check {KEY}",
            403: f"check {KEY}",
            404: "check --model, and that the address is complete (most end in /v1)",
        }.get(error.status_code, "see the server's log")
        said = self._said(error)
        raise UserError(
            f"--base-url {self.url}: status {error.status_code} for {self.model} ({said}); {hint}"
        ) from None

    def _said(self, error: openai.APIError) -> str:
        """The reason in one line."""
        body = error.body if isinstance(error.body, dict) else {}
        reason = error.__cause__ if isinstance(error, openai.APIConnectionError) else None
        return self._clean(str(body.get("message") or reason or error.message))

    def _clean(self, text: str) -> str:
        """What a server says in one line, without the key, which some repeat."""
        return " ".join(text.replace(self._key, "***").split())[:_REASON]


class Pace:
    """Spaces requests evenly, over all threads."""

    def __init__(self, rate: float | None) -> None:
        """`rate`: most requests a minute; None = no limit."""
        self._gap = 0.0 if rate is None else 60 / rate
        self._next = 0.0
        self._lock = Lock()

    def wait(self) -> None:
        """Returns when it is this caller's turn."""
        if not self._gap:
            return
        with self._lock:
            now = time.monotonic()
            turn = max(now, self._next)
            self._next = turn + self._gap
        time.sleep(turn - now)


# --- where the server is, and with what key -------------------------------------------------------------------


def address(url: str) -> str:
    """The host of a server's address. Raises UserError, which repeats nothing of it: secrets may stand there."""
    try:
        parts = urlsplit(url)
        host, secrets = parts.hostname, parts.username or parts.password or parts.query or parts.fragment
    except ValueError:
        host = secrets = None
    if secrets or "@" in url:
        raise UserError(f"--base-url: holds a user, a password or a query; give the plain address, and a key in {KEY}")
    if not host or parts.scheme not in ("http", "https"):
        raise UserError("--base-url: not an address like http://127.0.0.1:8000/v1")
    return host


def local(host: str) -> bool:
    """Whether a host is this machine or on a private network."""
    try:
        return ipaddress.ip_address(host).is_private
    except ValueError:
        return host == "localhost"


def api_key(host: str) -> str:
    """The key from the environment; a local server needs none. Raises UserError when it is missing or malformed."""
    key = os.environ.get(KEY, "").strip()
    if not key and not local(host):
        raise UserError(f"{KEY} is not set, and {host} is no local server; set it in the environment")
    if not key.isascii() or not key.isprintable() or " " in key:
        raise UserError(f"{KEY}: holds characters that no key has; set it again")
    return key or "no-key-needed"


# --- what a server says -----------------------------------------------------------------------------------------


def parsed(text: str) -> dict[str, Any]:
    """The JSON object of an answer's body, or an error instead."""
    try:
        told = json.loads(text)
    except ValueError:
        return {"error": "malformed answer: not valid JSON"}
    return told if isinstance(told, dict) else {"error": "malformed answer: no object"}


def read(told: Mapping[str, Any]) -> Answer:
    """The first choice. What a server keeps apart as reasoning is put in front, as the model wrote it."""
    try:
        counts = told.get("usage") or {}
        used = int(counts.get("prompt_tokens") or 0), int(counts.get("completion_tokens") or 0)
        first = told["choices"][0]
        message = first["message"]
        said, thought = message.get("content") or "", message.get("reasoning_content") or message.get("reasoning") or ""
        text = f"<think>\n{thought}\n</think>\n{said}" if thought and said else said or thought
        finish = "length" if first.get("finish_reason") == "length" else "stop"
    except (LookupError, TypeError, ValueError, AttributeError):
        return Answer(lost="malformed answer: no choice in it")
    if not isinstance(text, str):
        return Answer("", "", *used, lost="malformed answer: its content is no text")
    return Answer(text, finish, *used, lost="" if text.strip() else "empty answer")


def weigh(listed: Sequence[Mapping[str, Any]], weighing: Weighing) -> float | None:
    """The share of the good word where the last of the two stands in the tokens listed; None where it is no one token.

    A word that is not among the likeliest has at most the probability of the last of them, and is given that (GenPRM).
    """
    tokens = [str(entry["token"]) for entry in listed]
    text = "".join(tokens)
    span = weighing.find(text)
    if span is None:
        return None
    starts = list(accumulate(map(len, tokens), initial=0))
    at = bisect_right(starts, span[0], hi=len(tokens)) - 1
    if span[1] > starts[at + 1]:
        return None
    word = text[slice(*span)]
    other = text[starts[at] : span[0]] + other_word(word, weighing.words) + text[span[1] : starts[at + 1]]
    found = {str(e["token"]): float(e["logprob"]) for e in listed[at]["top_logprobs"]}
    mine, theirs = float(listed[at]["logprob"]), found.get(other, min(found.values()))
    good = word.lower() == weighing.words[0].lower()
    return share(mine, theirs) if good else share(theirs, mine)


def choice(listed: Sequence[Mapping[str, Any]], words: tuple[str, str]) -> float | None:
    """The share of the first word among the likeliest first tokens, in lower case or capitalised, blanks aside."""
    masses = [0.0, 0.0]
    for entry in listed[0]["top_logprobs"] if listed else ():
        for i, word in enumerate(words):
            if str(entry["token"]).strip() in (word, word.capitalize()):
                masses[i] += math.exp(float(entry["logprob"]))
    return masses[0] / sum(masses) if sum(masses) else None


def adapted(asked: Mapping[str, Any], error: openai.APIStatusError) -> dict[str, Any] | None:
    """The request as this server wants it instead, or None.

    A limit that reaches beyond the context is left out (the context then is the limit, as in a local engine), some
    models want it by its newer name, and some servers draw without seeds.
    """
    unlimited = {name: value for name, value in asked.items() if name != "max_tokens"}
    if "max_tokens" in asked and _too_long(error):
        return unlimited
    if "max_tokens" in asked and (error.param == "max_tokens" or "max_completion_tokens" in error.message):
        return {**unlimited, "max_completion_tokens": asked["max_tokens"]}
    if "seed" in asked and (error.param == "seed" or re.search(r"\bseed\b", error.message)):
        return {name: value for name, value in asked.items() if name != "seed"}
    return None


def _too_long(error: openai.APIStatusError) -> bool:
    return bool(re.search(r"context.(length|size|window)", f"{error.code} {error.message}"))
