"""Chat with an OpenAI-compatible server, by the SDK of that name: retried, paced, counted. The key stays in the client.

What answers hold: openai_answers.py. What is spent: cost_budget.py. Parameters that a server refuses: request_parameters.py.
What vLLM's own endpoints offer beyond that (token ids, weights) is server.py's. Needs the extra `openai`.
"""

from __future__ import annotations

import asyncio
import random
import re
import time
import weakref
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from http import HTTPStatus
from threading import Lock
from typing import Any

import httpx2
import openai

from prmbench.core.records import RetryError, UserError
from prmbench.core.redaction import API_KEY
from prmbench.engines.addresses import address, api_key, check_redirect, local
from prmbench.engines.chat import Answer, Ask, Messages, Weighing
from prmbench.engines.cost_budget import Budget, Reservation
from prmbench.engines.event_loop import EventLoop
from prmbench.engines.generation import Sampling
from prmbench.engines.http_bodies import ENCODING, bound
from prmbench.engines.http_errors import clipped, error_text, parsed
from prmbench.engines.http_replies import UNBILLED, Reply, root_cause
from prmbench.engines.openai_answers import answer_of, choice, listed_logprobs, usage_of, weigh, well_formed
from prmbench.engines.request_parameters import LIMITS, OLD_LIMIT, RequestParameters, too_long, unsupported
from prmbench.verification.answer_region import answer_region

TRIES = 6
"""Attempts at a request. The pauses between them double from half a second, or are those that the server asks for."""
PAUSE = 0.5
LONGEST_PAUSE = 120.0
"""Seconds; a server that asks for a longer one is not waited for."""
TIMEOUT, CONNECT = 600.0, 15.0
"""Seconds that one answer may take from the first byte sent to the last one read, and a connection."""
TOP = 20
"""Log-probabilities asked for at a position: the most that servers give."""
MARKUP_TOKENS = 16
"""Tokens that a chat template may put around one message."""
PREAMBLE_TOKENS = 64
"""Tokens that it may put in front of them all."""
CLOSING_TOKENS = 32
"""Tokens that a server may count beyond the limit of an answer: ends of turns."""
ABSURD = 10
"""Times what was possible: a server that counts more is not believed, with or without a cap."""
LONGEST_ANSWER = 10_000_000
"""Tokens that an answer may have where no limit was sent."""
_REFUSALS = (HTTPStatus.BAD_REQUEST, HTTPStatus.UNPROCESSABLE_ENTITY)
_FILTERED = re.compile(r"(?i)content_filter|content management policy")


class HttpChat:
    """A model behind an OpenAI-compatible server; safe to be called from several threads.

    Methods raise RetryError when the server stays away or keeps refusing for now, and UserError when it refuses for
    good or when the budget does not allow a request. A body without a choice is asked for again, too; of an answer that
    is empty, or no text, `Answer.lost` says so.
    """

    def __init__(
        self, url: str, model: str, rate: float | None = None, tries: int = TRIES, budget: Budget | None = None
    ) -> None:
        """`url` without credentials; the key is read from the environment. `rate`: most requests a minute."""
        host = address(url)
        self.url, self.model, self._tries = url.rstrip("/"), model, tries
        self.budget = budget or Budget()
        self.parameters = RequestParameters(f"--base-url {self.url}")
        self._pace = Pace(rate)
        self._loop = EventLoop()
        self._client = openai.AsyncOpenAI(
            base_url=self.url,
            api_key=api_key(host),
            max_retries=0,  # each attempt has a reservation of its own
            timeout=openai.Timeout(TIMEOUT, connect=CONNECT),
            http_client=_http_client(self.url, trust_env=not local(host)),  # a local server: past any proxy
        )
        weakref.finalize(self, self._loop.close, self._client.close)

    def prompt_tokens(self, messages: Messages) -> int:
        """An upper bound, since the tokenizer is the server's: no tokenizer makes more tokens than there are bytes."""
        sizes = (len(m["content"].encode("utf-8", "surrogatepass")) + MARKUP_TOKENS for m in messages)
        return PREAMBLE_TOKENS + sum(sizes)

    def answer(self, asks: Sequence[Ask], sampling: Sampling, weighing: Weighing | None = None) -> list[Answer]:
        """One answer for each conversation, asked for one after the other: callers ask from several threads."""
        return [self._answer(ask, sampling, weighing) for ask in asks]

    def choose(self, asks: Sequence[Ask], words: tuple[str, str]) -> list[Answer]:
        """The share of the first word among those that the server lists for the first token; None if it lists none."""
        return [self._choose(ask, words) for ask in asks]

    def _answer(self, ask: Ask, sampling: Sampling, weighing: Weighing | None) -> Answer:
        body = {
            "temperature": sampling.temperature,
            **({"top_p": sampling.top_p} if sampling.top_p < 1 else {}),
            **({"top_k": sampling.top_k} if sampling.top_k else {}),
            OLD_LIMIT: sampling.max_new_tokens,
            **({} if weighing is None else {"logprobs": True, "top_logprobs": TOP}),
        }
        answer, completion = self._post(ask, body)
        if weighing is None or answer.lost or answer.refused or answer_region(answer.text) is None:
            return answer
        return self._weighed(answer, completion, lambda listed: weigh(listed, weighing))

    def _choose(self, ask: Ask, words: tuple[str, str]) -> Answer:
        answer, completion = self._post(ask, {"temperature": 0.0, OLD_LIMIT: 1, "logprobs": True, "top_logprobs": TOP})
        answer = replace(answer, text="")
        if not answer.finish:
            return answer
        return self._weighed(replace(answer, lost=""), completion, lambda listed: choice(listed, words))

    def _weighed(
        self, answer: Answer, completion: Mapping[str, Any], how: Callable[[list[Any]], float | None]
    ) -> Answer:
        """The answer with a share from its log-probabilities. Raises UserError where the server gives none."""
        try:
            listed = listed_logprobs(completion)
            if listed:
                return replace(answer, share=how(listed))
        except (LookupError, TypeError, ValueError, AttributeError):
            return replace(answer, lost="malformed answer: its log-probabilities are none")
        raise UserError(f"--base-url {self.url}: gives no top_logprobs, which this critic reads; use another server")

    def _post(self, ask: Ask, body: Mapping[str, Any]) -> tuple[Answer, Mapping[str, Any]]:
        """The answer, and the body that it came in; empty where the server refused this one conversation."""
        messages = [{**message, "content": well_formed(message["content"])} for message in ask.messages]
        wanted: Mapping[str, Any] = {"model": self.model, "messages": messages, "seed": ask.seed, **body}
        most = self.prompt_tokens(ask.messages), body[OLD_LIMIT] + CLOSING_TOKENS
        failures = 0
        while True:
            sent = self.parameters.fitted(wanted)
            self._check_limit(wanted, sent)
            self._pace.wait()
            with self.budget.request(*most) as reservation:
                reply = self._send(sent, reservation)
                completion = self._settled(reply, reservation, self._possible(most, sent))
            if completion is not None:
                usage = (reservation.prompt_tokens, reservation.completion_tokens) if reservation.settled else (0, 0)
                return replace(answer_of(completion, usage), changes=self.parameters.changes), completion
            adapted = self._adapted(reply, wanted, sent)
            if adapted is not None:
                wanted = adapted
            elif reply.passing:
                failures += 1
                self._pause(reply, failures)
            else:
                return self._refused(reply), {}

    def _send(self, sent: Mapping[str, Any], reservation: Reservation) -> Reply:
        """One attempt. The deadline is for all of it: a server that sends a byte now and then is not waited for."""
        standard = {name: value for name, value in sent.items() if name != "top_k"}  # which is not OpenAI's
        more = {"top_k": sent["top_k"]} if "top_k" in sent else None

        async def exchange() -> Any:
            async with asyncio.timeout(TIMEOUT):
                return await self._client.chat.completions.with_raw_response.create(**standard, extra_body=more)

        try:
            raw = self._loop.run(exchange())
        except UserError:  # a redirect
            reservation.release()
            raise
        except openai.APIStatusError as error:
            return Reply(error.status_code, error.response.content, error.response.headers)
        except TimeoutError:
            return Reply(failure=f"timed out: no whole answer within {TIMEOUT:g} seconds")
        except openai.APIConnectionError as error:
            name = type(error.__cause__).__name__
            failure = "timed out" if isinstance(error, openai.APITimeoutError) else root_cause(error)
            return Reply(failure=failure, arrived=name not in UNBILLED)
        return Reply(raw.status_code, raw.content, raw.headers)

    def _settled(self, reply: Reply, reservation: Reservation, most: tuple[float, float]) -> dict[str, Any] | None:
        """The body of an answer, or None; what the request took is settled as far as it is known.

        Raises UserError when no such server answers, or when what it says that it used cannot be.
        """
        if not reply.fine:
            if not reply.may_be_billed:
                reservation.release()
            return None
        completion = parsed(reply.body)
        if not isinstance(completion, dict):
            if "json" not in reply.headers.get("content-type", ""):
                raise UserError(f"--base-url {self.url}: what answers is no such server; most addresses end in /v1")
            return None
        has_choices = bool(completion.get("choices"))
        usage = self._usage(completion, reservation, most)
        wrote = has_choices and bool(answer_of(completion, (0, 0)).text)
        if usage is not None and usage[0] and (usage[1] or not wrote):
            reservation.settle(*usage)
        return completion if has_choices else None

    def _usage(
        self, completion: Mapping[str, Any], reservation: Reservation, most: tuple[float, float]
    ) -> tuple[int, int] | None:
        """What a server says that it used. Raises UserError when that cannot be."""
        try:
            usage = usage_of(completion)
        except ValueError as error:
            raise UserError(f"--base-url {self.url}: what it says that it used is no count ({error})") from None
        if usage is None or (usage[0] <= most[0] and usage[1] <= most[1]):
            return usage
        if usage[0] <= most[0] * ABSURD and usage[1] <= most[1] * ABSURD:
            reservation.settle(*usage)  # it may well be billed
        raise UserError(
            f"--base-url {self.url}: says that it used {usage[0]} prompt and {usage[1]} answer tokens, where at most "
            f"{most[0]:.0f} and {most[1]:.0f} were possible"
        )

    def _possible(self, most: tuple[int, int], sent: Mapping[str, Any]) -> tuple[float, float]:
        """The tokens beyond which what a server says is not believed. Under a cap these are what was reserved."""
        if self.budget.capped:
            return most
        return most[0] * ABSURD, most[1] * ABSURD if set(LIMITS) & set(sent) else LONGEST_ANSWER

    def _check_limit(self, wanted: Mapping[str, Any], sent: Mapping[str, Any]) -> None:
        if self.budget.capped and OLD_LIMIT in wanted and not set(LIMITS) & set(sent):
            raise UserError(
                f"--max-cost: {self.url} takes no limit for an answer, so that nobody knows what one may cost; "
                "drop --max-cost, or use another server"
            )

    def _adapted(self, reply: Reply, wanted: Mapping[str, Any], sent: Mapping[str, Any]) -> Mapping[str, Any] | None:
        """The request as this server may take it, or None when nothing in it can be changed.

        A limit that reaches beyond the context is left out: the context then is the limit, as in a local engine.
        A parameter may be refused with any status, where the reason says so.
        """
        if not reply.has_reason or _FILTERED.search(error_text(reply.body)):
            return None
        if reply.error_status not in _REFUSALS:
            return wanted if unsupported(reply.body) and self.parameters.learn(wanted, sent, reply.body) else None
        if too_long(reply.body):
            unlimited = {name: value for name, value in wanted.items() if name != OLD_LIMIT}
            return unlimited if OLD_LIMIT in wanted else None
        return wanted if self.parameters.learn(wanted, sent, reply.body) else None

    def _pause(self, reply: Reply, failures: int) -> None:
        """Waits before the next attempt. Raises RetryError after the last one."""
        pause = reply.asked_pause
        if failures >= self._tries or pause > LONGEST_PAUSE:
            raise RetryError(f"--base-url {self.url}: no answer from the server ({reply.reason})")
        time.sleep(pause or PAUSE * 2 ** (failures - 1) * random.uniform(0.75, 1))

    def _refused(self, reply: Reply) -> Answer:
        """Of one conversation the answer says so; a request that fits no conversation is the user's to mend."""
        why = reply.reason
        status = reply.error_status
        if status == HTTPStatus.REQUEST_ENTITY_TOO_LARGE or (status in _REFUSALS and too_long(reply.body)):
            return Answer(refused=f"the server: {why}")
        if status in _REFUSALS and _FILTERED.search(error_text(reply.body)):
            return Answer(lost=f"the server: {why}")
        if status in _REFUSALS:
            raise UserError(f"--base-url {self.url}: refuses the request ({why})")
        hints: dict[int, str] = {
            HTTPStatus.UNAUTHORIZED: f"check {API_KEY}",
            HTTPStatus.FORBIDDEN: f"check {API_KEY}",
            HTTPStatus.NOT_FOUND: "check --model, and that the address is complete (most end in /v1)",
        }
        hint = hints.get(status, "see the server's log")
        raise UserError(f"--base-url {self.url}: status {status} for {self.model} ({why}); {hint}")


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


def _http_client(url: str, trust_env: bool) -> Any:
    """Raises UserError when the environment's proxies or certificates cannot be used."""
    try:
        return openai.DefaultAsyncHttpxClient(
            trust_env=trust_env,
            headers={"Accept-Encoding": ENCODING},
            event_hooks={"request": [_stays_with(url)], "response": [bound]},
        )
    except (ImportError, ValueError, OSError, httpx2.InvalidURL) as error:
        raise UserError(
            "the proxies (HTTPS_PROXY, ALL_PROXY) or certificates (SSL_CERT_FILE) that the environment names cannot be "
            f"used ({clipped(str(error))}); mend or unset them"
        ) from error


def _stays_with(url: str) -> Callable[[Any], Awaitable[None]]:
    """What the SDK's client calls before it sends a request, the one that a redirect leads to as well."""

    async def check(request: Any) -> None:
        check_redirect("--base-url", url, str(request.url))

    return check
