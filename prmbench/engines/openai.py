"""Chat with an OpenAI-compatible server through the `openai` SDK, with retries, a rate limit and a cost limit.

openai_answers.py reads answers, cost_budget.py counts what is spent, request_parameters.py adapts refused parameters.
vLLM's own endpoints (token ids, weights) are in server.py. Needs the extra `openai`.
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
from prmbench.engines.addresses import api_key, check_redirect, is_local, server_host
from prmbench.engines.chat import Answer, ChatRequest, Messages, WordComparison
from prmbench.engines.cost_budget import Budget, Reservation
from prmbench.engines.event_loop import EventLoop
from prmbench.engines.generation import Sampling
from prmbench.engines.http_bodies import ACCEPT_ENCODING, limit_body
from prmbench.engines.http_errors import clip, error_text, parse_body
from prmbench.engines.http_replies import UNBILLED_ERRORS, Reply, root_cause
from prmbench.engines.openai_answers import (
    first_word_probability,
    located_word_probability,
    read_answer,
    read_usage,
    repair_surrogates,
    token_logprobs,
)
from prmbench.engines.request_parameters import (
    LIMIT_NAMES,
    MAX_TOKENS,
    RequestParameters,
    exceeds_context,
    mentions_unsupported,
)
from prmbench.verification.answer_region import answer_region

MAX_ATTEMPTS = 6
"""Attempts at a request. Between them it waits as long as the server asks, else FIRST_PAUSE, doubled each time."""
FIRST_PAUSE = 0.5
MAX_PAUSE = 120.0
"""Seconds; a server that asks for a longer pause is given up."""
TIMEOUT, CONNECT_TIMEOUT = 600.0, 15.0
"""Seconds that one answer may take from the first byte sent to the last one read, and that a connection may take."""
TOP_LOGPROBS = 20
"""Alternatives requested at each position: the most that servers give."""
MESSAGE_OVERHEAD_TOKENS = 16
"""Most tokens that a chat template puts around one message."""
CONVERSATION_OVERHEAD_TOKENS = 64
"""Most tokens that a chat template puts before the first message."""
ANSWER_OVERHEAD_TOKENS = 32
"""Most tokens that a server counts beyond the limit of an answer, such as ends of turns."""
IMPLAUSIBLE_FACTOR = 10
"""A server that counts this many times the possible tokens is an error, even without a cost limit."""
MAX_ANSWER_TOKENS = 10_000_000
"""Most plausible tokens of an answer where no limit was sent."""
_REFUSALS = (HTTPStatus.BAD_REQUEST, HTTPStatus.UNPROCESSABLE_ENTITY)
_CONTENT_FILTER = re.compile(r"(?i)content_filter|content management policy")


class HttpChat:
    """A model behind an OpenAI-compatible server; thread-safe.

    Methods raise RetryError when the server is unreachable or keeps refusing temporarily, and UserError when it refuses
    permanently or the budget does not allow a request. A body without a choice is retried as well. For an answer that
    is empty or not text, `Answer.unreadable` gives the reason.
    """

    def __init__(
        self, url: str, model: str, rate: float | None = None, tries: int = MAX_ATTEMPTS, budget: Budget | None = None
    ) -> None:
        """Connect to a server.

        Args:
            url: Base URL without credentials; the key is read from the environment.
            model: Name of the model to request.
            rate: Largest number of requests a minute; None = no limit.
            tries: Attempts at a request.
            budget: The cost limit; None = a new one without a limit.
        """
        host = server_host(url)
        self.url, self.model, self._tries = url.rstrip("/"), model, tries
        self.budget = budget or Budget()
        self.parameters = RequestParameters(f"--base-url {self.url}")
        self._rate_limiter = RateLimiter(rate)
        self._loop = EventLoop()
        self._client = openai.AsyncOpenAI(
            base_url=self.url,
            api_key=api_key(host),
            max_retries=0,  # each attempt has a reservation of its own
            timeout=openai.Timeout(TIMEOUT, connect=CONNECT_TIMEOUT),
            http_client=_http_client(self.url, trust_env=not is_local(host)),  # a local server: past any proxy
        )
        weakref.finalize(self, self._loop.close, self._client.close)

    def prompt_tokens(self, messages: Messages) -> int:
        """Return an upper bound: only the server has the tokenizer, and none makes more tokens than there are bytes."""
        sizes = (len(m["content"].encode("utf-8", "surrogatepass")) + MESSAGE_OVERHEAD_TOKENS for m in messages)
        return CONVERSATION_OVERHEAD_TOKENS + sum(sizes)

    def answer(
        self, requests: Sequence[ChatRequest], sampling: Sampling, comparison: WordComparison | None = None
    ) -> list[Answer]:
        """Return one answer for each conversation, requested sequentially; callers use several threads."""
        return [self._answer(request, sampling, comparison) for request in requests]

    def choose_word(self, requests: Sequence[ChatRequest], words: tuple[str, str]) -> list[Answer]:
        """Return the probability of `words[0]` against `words[1]` as the first token; None if neither is listed."""
        return [self._choose(request, words) for request in requests]

    def _answer(self, request: ChatRequest, sampling: Sampling, comparison: WordComparison | None) -> Answer:
        body = {
            "temperature": sampling.temperature,
            **({"top_p": sampling.top_p} if sampling.top_p < 1 else {}),
            **({"top_k": sampling.top_k} if sampling.top_k else {}),
            MAX_TOKENS: sampling.max_new_tokens,
            **({} if comparison is None else {"logprobs": True, "top_logprobs": TOP_LOGPROBS}),
        }
        answer, completion = self._post(request, body)
        if comparison is None or answer.unreadable or answer.refused or answer_region(answer.text) is None:
            return answer
        return self._with_probability(
            answer, completion, lambda logprobs: located_word_probability(logprobs, comparison)
        )

    def _choose(self, request: ChatRequest, words: tuple[str, str]) -> Answer:
        answer, completion = self._post(
            request, {"temperature": 0.0, MAX_TOKENS: 1, "logprobs": True, "top_logprobs": TOP_LOGPROBS}
        )
        answer = replace(answer, text="")
        if not answer.finish:
            return answer
        return self._with_probability(
            replace(answer, unreadable=""), completion, lambda logprobs: first_word_probability(logprobs, words)
        )

    def _with_probability(
        self, answer: Answer, completion: Mapping[str, Any], probability_of: Callable[[list[Any]], float | None]
    ) -> Answer:
        """Return the answer with a probability from its token log-probabilities; UserError where there are none."""
        try:
            logprobs = token_logprobs(completion)
            if logprobs:
                return replace(answer, good_probability=probability_of(logprobs))
        except (LookupError, TypeError, ValueError, AttributeError):
            return replace(answer, unreadable="malformed answer: its log-probabilities are none")
        raise UserError(f"--base-url {self.url}: gives no top_logprobs, which this critic reads; use another server")

    def _post(self, request: ChatRequest, body: Mapping[str, Any]) -> tuple[Answer, Mapping[str, Any]]:
        """Return the answer and the body that it came in; an empty body where the server refused this conversation."""
        messages = [{**message, "content": repair_surrogates(message["content"])} for message in request.messages]
        intended: Mapping[str, Any] = {"model": self.model, "messages": messages, "seed": request.seed, **body}
        max_tokens = self.prompt_tokens(request.messages), body[MAX_TOKENS] + ANSWER_OVERHEAD_TOKENS
        failures = 0
        while True:
            sent = self.parameters.adapt(intended)
            self._check_limit(intended, sent)
            self._rate_limiter.wait()
            with self.budget.request(*max_tokens) as reservation:
                reply = self._send(sent, reservation)
                completion = self._settle(reply, reservation, self._plausible_tokens(max_tokens, sent))
            if completion is not None:
                usage = (reservation.prompt_tokens, reservation.completion_tokens) if reservation.settled else (0, 0)
                return replace(read_answer(completion, usage), changes=self.parameters.changes), completion
            adapted = self._adapt(reply, intended, sent)
            if adapted is not None:
                intended = adapted
            elif reply.is_retryable:
                failures += 1
                self._wait_to_retry(reply, failures)
            else:
                return self._refusal(reply), {}

    def _send(self, sent: Mapping[str, Any], reservation: Reservation) -> Reply:
        """Make one attempt. The deadline covers the whole exchange, also when a server keeps sending single bytes."""
        # The SDK takes only parameters of OpenAI's API by name.
        standard_body = {name: value for name, value in sent.items() if name != "top_k"}
        extra_body = {"top_k": sent["top_k"]} if "top_k" in sent else None

        async def exchange() -> Any:
            async with asyncio.timeout(TIMEOUT):
                return await self._client.chat.completions.with_raw_response.create(
                    **standard_body, extra_body=extra_body
                )

        try:
            raw = self._loop.run(exchange())
        except UserError:  # a redirect
            reservation.release()
            raise
        except openai.APIStatusError as error:
            return Reply(error.status_code, error.response.content, error.response.headers)
        except TimeoutError:
            return Reply(transport_error=f"timed out: no whole answer within {TIMEOUT:g} seconds")
        except openai.APIConnectionError as error:
            name = type(error.__cause__).__name__
            failure = "timed out" if isinstance(error, openai.APITimeoutError) else root_cause(error)
            return Reply(transport_error=failure, may_have_arrived=name not in UNBILLED_ERRORS)
        return Reply(raw.status_code, raw.content, raw.headers)

    def _settle(self, reply: Reply, reservation: Reservation, max_tokens: tuple[float, float]) -> dict[str, Any] | None:
        """Return the body of an answer, or None, and settle the reservation as far as the usage is known.

        Raises UserError when the server is no OpenAI-compatible one, or reports an impossible usage.
        """
        if not reply.is_success:
            if not reply.may_be_billed:
                reservation.release()
            return None
        completion = parse_body(reply.body)
        if not isinstance(completion, dict):
            if "json" not in reply.headers.get("content-type", ""):
                raise UserError(f"--base-url {self.url}: what answers is no such server; most addresses end in /v1")
            return None
        has_choices = bool(completion.get("choices"))
        usage = self._usage(completion, reservation, max_tokens)
        has_text = has_choices and bool(read_answer(completion, (0, 0)).text)
        if usage is not None and usage[0] and (usage[1] or not has_text):
            reservation.settle(*usage)
        return completion if has_choices else None

    def _usage(
        self, completion: Mapping[str, Any], reservation: Reservation, max_tokens: tuple[float, float]
    ) -> tuple[int, int] | None:
        """Return the prompt and answer tokens that the server reports. Raises UserError when they are impossible."""
        try:
            usage = read_usage(completion)
        except ValueError as error:
            raise UserError(f"--base-url {self.url}: what it says that it used is no count ({error})") from None
        if usage is None or (usage[0] <= max_tokens[0] and usage[1] <= max_tokens[1]):
            return usage
        if usage[0] <= max_tokens[0] * IMPLAUSIBLE_FACTOR and usage[1] <= max_tokens[1] * IMPLAUSIBLE_FACTOR:
            reservation.settle(*usage)  # it may well be billed
        raise UserError(
            f"--base-url {self.url}: says that it used {usage[0]} prompt and {usage[1]} answer tokens, where at most "
            f"{max_tokens[0]:.0f} and {max_tokens[1]:.0f} were possible"
        )

    def _plausible_tokens(self, max_tokens: tuple[int, int], sent: Mapping[str, Any]) -> tuple[float, float]:
        """Return the largest usage that is believed; with a cost limit it is what was reserved."""
        if self.budget.capped:
            return max_tokens
        return max_tokens[0] * IMPLAUSIBLE_FACTOR, max_tokens[1] * IMPLAUSIBLE_FACTOR if set(LIMIT_NAMES) & set(
            sent
        ) else MAX_ANSWER_TOKENS

    def _check_limit(self, intended: Mapping[str, Any], sent: Mapping[str, Any]) -> None:
        if self.budget.capped and MAX_TOKENS in intended and not set(LIMIT_NAMES) & set(sent):
            raise UserError(
                f"--max-cost: {self.url} takes no limit for an answer, so that its cost is unknown; "
                "drop --max-cost, or use another server"
            )

    def _adapt(self, reply: Reply, intended: Mapping[str, Any], sent: Mapping[str, Any]) -> Mapping[str, Any] | None:
        """Return the request to try next after a refusal, or None when nothing in it can be changed.

        An answer limit beyond the context is dropped: the context is then the limit, as in a local engine. Servers
        refuse parameters with various statuses, so the stated reason decides.
        """
        if not reply.has_reason or _CONTENT_FILTER.search(error_text(reply.body)):
            return None
        if reply.error_status not in _REFUSALS:
            return (
                intended
                if mentions_unsupported(reply.body) and self.parameters.learn(intended, sent, reply.body)
                else None
            )
        if exceeds_context(reply.body):
            unlimited = {name: value for name, value in intended.items() if name != MAX_TOKENS}
            return unlimited if MAX_TOKENS in intended else None
        return intended if self.parameters.learn(intended, sent, reply.body) else None

    def _wait_to_retry(self, reply: Reply, failures: int) -> None:
        """Wait before the next attempt. Raises RetryError after the last one."""
        pause = reply.retry_after
        if failures >= self._tries or pause > MAX_PAUSE:
            raise RetryError(
                f"--base-url {self.url}: no answer from the server ({reply.reason}); check that it runs, that "
                "address and port are right, and what its log says; the same command then goes on from there"
            )
        time.sleep(pause or FIRST_PAUSE * 2 ** (failures - 1) * random.uniform(0.75, 1))

    def _refusal(self, reply: Reply) -> Answer:
        """Return a refusal that concerns one conversation as an answer; raise UserError for any other."""
        reason = reply.reason
        status = reply.error_status
        if status == HTTPStatus.REQUEST_ENTITY_TOO_LARGE or (status in _REFUSALS and exceeds_context(reply.body)):
            return Answer(refused=f"the server: {reason}")
        if status in _REFUSALS and _CONTENT_FILTER.search(error_text(reply.body)):
            return Answer(unreadable=f"the server: {reason}")
        if status in _REFUSALS:
            raise UserError(f"--base-url {self.url}: refuses the request ({reason})")
        hints: dict[int, str] = {
            HTTPStatus.UNAUTHORIZED: f"check {API_KEY}",
            HTTPStatus.FORBIDDEN: f"check {API_KEY}",
            HTTPStatus.NOT_FOUND: "check --model, and that the address is complete (most end in /v1)",
        }
        hint = hints.get(status, "see the server's log")
        raise UserError(f"--base-url {self.url}: status {status} for {self.model} ({reason}); {hint}")


class RateLimiter:
    """Spaces requests evenly over all threads."""

    def __init__(self, rate: float | None) -> None:
        """`rate`: largest number of requests a minute; None = no limit."""
        self._gap = 0.0 if rate is None else 60 / rate
        self._next = 0.0
        self._lock = Lock()

    def wait(self) -> None:
        """Block until the caller may send its request."""
        if not self._gap:
            return
        with self._lock:
            now = time.monotonic()
            start = max(now, self._next)
            self._next = start + self._gap
        time.sleep(start - now)


def _http_client(url: str, trust_env: bool) -> Any:
    """Return the SDK's HTTP client. Raises UserError when the environment's proxies or certificates are unusable."""
    try:
        return openai.DefaultAsyncHttpxClient(
            trust_env=trust_env,
            headers={"Accept-Encoding": ACCEPT_ENCODING},
            event_hooks={"request": [_redirect_check(url)], "response": [limit_body]},
        )
    except (ImportError, ValueError, OSError, httpx2.InvalidURL) as error:
        raise UserError(
            "the proxies (HTTPS_PROXY, ALL_PROXY) or certificates (SSL_CERT_FILE) that the environment names cannot be "
            f"used ({clip(str(error))}); mend or unset them"
        ) from error


def _redirect_check(url: str) -> Callable[[Any], Awaitable[None]]:
    """Return a hook that refuses requests to other servers; the client calls it for redirects as well."""

    async def check(request: Any) -> None:
        check_redirect("--base-url", url, str(request.url))

    return check
