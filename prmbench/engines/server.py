"""The engine that asks a vLLM server, over vLLM's own HTTP endpoints, for completions, and sends it new weights.

Standard library only. The server is started by the user: `serve_command` in vllm.py. When to send: weight_sync.py.
"""

from __future__ import annotations

import http.client
import json
import math
import socket
import threading
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from prmbench.core.records import RetryError, UserError
from prmbench.engines.addresses import address, check_redirect
from prmbench.engines.decoding import Drawn
from prmbench.engines.generation import Sampling
from prmbench.engines.http_errors import clip, error_reason, parse_body
from prmbench.engines.http_replies import MAX_BODY_BYTES, TOO_LARGE_MESSAGE
from prmbench.engines.vllm import NO_LIMIT, request, tokens_of

_AWAY = (OSError, http.client.HTTPException)  # refused, reset, timed out, cut short


@dataclass(slots=True)
class ServerEngine:
    """A vLLM server. `Drawn.logprobs` are behind top-k and top-p, other than the HF engine's.

    Its methods raise RetryError when the server does not answer after `tries` attempts, each with the same seeds, and
    UserError when it refuses.
    """

    url: str
    """`http://host:port`."""
    tokenizer: Any
    stops: frozenset[int]
    max_tokens: int | None = None
    model: str = ""
    """Whom requests ask for: the model that is served, or the adapter that was sent last."""
    tells: bool = True
    """Whether this process sends weights to this server: one does, and the others only ask."""
    requests: int = 128
    """How many may be under way at once."""
    tries: int = 5
    pause: float = 1.0
    """Seconds before the second attempt; twice as long before each further one."""
    timeout: float = 1800.0
    """Seconds that one completion, or one reload, may take."""
    batch_tokens: int = field(default=NO_LIMIT, init=False)

    def sample(
        self,
        prompts: Sequence[Sequence[int]],
        limits: Sequence[int],
        seeds: Sequence[int],
        sampling: Sampling,
        stops: Collection[int],
    ) -> list[Drawn]:
        """One completion a prompt, of at most `limits[i]` tokens, many asked for at once."""
        bodies = [
            {
                "model": self.model,
                "prompt": list(prompt),
                "return_token_ids": True,
                **request(sampling, limit, seed, stops),
            }
            for prompt, limit, seed in zip(prompts, limits, seeds, strict=True)
        ]
        with ThreadPoolExecutor(max(1, min(self.requests, len(bodies)))) as pool:
            return list(pool.map(self._complete, bodies))  # the first that fails cancels those that wait

    def reload(self, folder: Path) -> None:
        """Has the server take all weights from a folder that it can see at the same path."""
        if self.tells:
            where = {"weights_path": str(folder.resolve())}
            self._post("/collective_rpc", {"method": "reload_weights", "kwargs": where})
            self._forget()

    def adapter(self, folder: Path) -> None:
        """Has the server take the adapter of a folder that it can see at the same path, and asks for it from now on."""
        before, self.model = self.model, folder.name
        if self.tells:
            self._unload(folder.name)  # left by an earlier run of ours
            adapter = {"lora_name": folder.name, "lora_path": str(folder.resolve())}
            self._post("/v1/load_lora_adapter", adapter)
            if before != folder.name:
                self._unload(before)
            self._forget()

    def _unload(self, name: str) -> None:
        """Of a name that is none, or the base model's, the server says so: no harm is done."""
        self._post("/v1/unload_lora_adapter", {"lora_name": name}, fine=(HTTPStatus.NOT_FOUND,))

    def _forget(self) -> None:
        """Keys and values of prompts were computed with the old weights."""
        if self._post("/reset_prefix_cache", {}).get("success") is not True:
            raise RetryError(f"server {self.url}: somebody else samples from it; its prefix cache cannot be reset")

    def _complete(self, body: Mapping[str, Any]) -> Drawn:
        answer = self._post("/v1/completions", body)
        try:
            choice = answer["choices"][0]
            drawn = Drawn(tuple(choice["token_ids"]), tuple(choice["logprobs"]["token_logprobs"]))
            if not all(type(i) is int and i >= 0 for i in drawn.ids) or not all(map(_is_number, drawn.logprobs)):
                raise TypeError("token ids or log-probabilities that are none")
            whole = choice["finish_reason"] in ("stop", "length") and len(drawn.ids) == len(drawn.logprobs) > 0
        except (LookupError, TypeError, AttributeError) as error:
            raise UserError(
                f"server {self.url}: its answer has no token ids or log-probabilities; is it vLLM?"
            ) from error
        if not whole:
            why = clip(str(choice["finish_reason"]))
            raise RetryError(f"server {self.url}: broke a completion off ({why})")
        return drawn

    def _post(self, path: str, body: Mapping[str, Any], fine: Collection[int] = ()) -> dict[str, Any]:
        """The answer, as JSON or empty. Statuses in `fine` are answers too."""
        why = ""
        for attempt in range(self.tries):
            if attempt:
                time.sleep(self.pause * 2 ** (attempt - 1))
            try:
                return fetch(self.url + path, self.timeout, body)
            except StatusError as error:
                if error.status in fine:
                    return {}
                why = error.reason
                if error.status < HTTPStatus.INTERNAL_SERVER_ERROR and error.status != HTTPStatus.TOO_MANY_REQUESTS:
                    self._refused(path, error.status, why)
            except _AWAY as error:
                why = _why(error)
        raise RetryError(f"server {self.url}: no answer from {path} after {self.tries} attempts ({why})")

    def _refused(self, path: str, status: int, reason: str) -> None:
        if status == HTTPStatus.NOT_FOUND and path == "/v1/completions":
            raise RetryError(f"server {self.url}: has no model {self.model} (any more); was it started again?")
        if status == HTTPStatus.NOT_FOUND:
            raise UserError(f"server {self.url}: has no {path}; start it as docs/scaling.md says")
        raise UserError(f"server {self.url}: refused {path} ({status}: {reason})")


def open_server(url: str, name: str, revision: str | None = None, tells: bool = True) -> ServerEngine:
    """The engine of a server that runs. `name`: the model whose tokenizer and stops are used, the one it serves.

    Raises RetryError when it does not answer, UserError when what answers is no such server.
    """
    address(url, "--server", "http://node1:8000")
    tokenizer, stops = tokens_of(name, revision)
    where = url.rstrip("/")
    try:
        served = fetch(f"{where}/v1/models", timeout=30)["data"][0]
        longest = served.get("max_model_len")
        if not isinstance(served["id"], str) or not (longest is None or (type(longest) is int and longest > 0)):
            raise TypeError("a model's name or its context is none")
        return ServerEngine(where, tokenizer, stops, longest, served["id"], tells)
    except _AWAY as error:
        raise RetryError(f"server {where}: does not answer ({_why(error)}); is it running?") from error
    except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        raise UserError(f"server {where}: is not a vLLM server; --help says how to name one") from error


def _why(error: BaseException) -> str:
    return clip(str(error) or type(error).__name__)


def _is_number(logprob: object) -> bool:
    return isinstance(logprob, int | float) and not isinstance(logprob, bool) and not math.isnan(logprob)


class StatusError(OSError):
    """A server answered with a status other than 2xx."""

    def __init__(self, status: int, body: bytes) -> None:
        super().__init__(f"status {status}: {error_reason(body)}")
        self.status, self.reason = status, error_reason(body)


def fetch(url: str, timeout: float, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """GET, or POST of JSON, past any proxy. Answers that are not a JSON object count as empty.

    Args:
        url: What is asked for.
        timeout: Seconds until the last byte of the answer; a server that sends one now and then is not waited for.
        body: What is posted; None = GET.

    Raises:
        OSError, http.client.HTTPException: No whole answer came, or (StatusError) the server refused.
        UserError: The server redirects to another one.
    """
    parts = urlsplit(url)
    connect = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    data = None if body is None else json.dumps(body)
    with closing(connect(parts.hostname or "", parts.port, timeout=timeout)) as connection:
        connection.connect()
        with _deadline(connection.sock, timeout):
            connection.request(
                "GET" if data is None else "POST", parts.path or "/", data, {"Content-Type": "application/json"}
            )
            answer = connection.getresponse()
            raw = _body(answer)
    location = answer.headers.get("Location")
    if HTTPStatus.MULTIPLE_CHOICES <= answer.status < HTTPStatus.BAD_REQUEST and location:
        check_redirect("--server", url, location)
    if not HTTPStatus.OK <= answer.status < HTTPStatus.MULTIPLE_CHOICES:
        raise StatusError(answer.status, raw)
    answered = parse_body(raw)
    return answered if isinstance(answered, dict) else {}


def _body(answer: http.client.HTTPResponse) -> bytes:
    raw = answer.read(MAX_BODY_BYTES + 1)
    if len(raw) > MAX_BODY_BYTES:
        raise http.client.HTTPException(TOO_LARGE_MESSAGE)
    if answer.length:  # which `read` of a part does not mind
        raise http.client.IncompleteRead(raw, answer.length)
    return raw


@contextmanager
def _deadline(connection: socket.socket, seconds: float) -> Iterator[None]:
    """Cuts a connection off that is still in use after so many seconds. Raises TimeoutError then."""
    late = threading.Event()

    def cut() -> None:
        late.set()
        with suppress(OSError):  # closed by then
            socket.socket.shutdown(connection, socket.SHUT_RDWR)  # past the layer of an SSL socket, which another reads

    timer = threading.Timer(seconds, cut)
    timer.daemon = True
    timer.start()
    try:
        yield
    except (OSError, http.client.HTTPException):
        if not late.is_set():
            raise
    finally:
        timer.cancel()
    if late.is_set():
        raise TimeoutError(f"no whole answer within {seconds:g} seconds") from None
