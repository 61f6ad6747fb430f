"""The engine that samples from a vLLM server over vLLM's own HTTP endpoints, and loads new weights into it.

Standard library only. The user starts the server, see `serve_command` in vllm.py; weight_sync.py sends the weights.
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
from prmbench.engines.addresses import check_redirect, server_host
from prmbench.engines.generation import SampledTokens, Sampling
from prmbench.engines.http_errors import clip, error_reason, parse_body
from prmbench.engines.http_replies import MAX_BODY_BYTES, TOO_LARGE_MESSAGE
from prmbench.engines.vllm import NO_LIMIT, load_tokenizer, sampling_request

_CONNECTION_ERRORS = (OSError, http.client.HTTPException)  # refused, reset, timed out, cut short


@dataclass(slots=True)
class ServerEngine:
    """A vLLM server. Unlike the HF engine's, its log-probabilities of sampled tokens are after top-k and top-p.

    Methods raise RetryError when the server does not answer within `tries` attempts, all with the same seeds, and
    UserError when it refuses.
    """

    url: str
    """`http://host:port`."""
    tokenizer: Any
    stops: frozenset[int]
    max_tokens: int | None = None
    model: str = ""
    """Model name in requests: the served model's, or that of the adapter loaded last."""
    sends_weights: bool = True
    """Whether this process sends weights to the server; exactly one of those that share it does."""
    max_concurrent: int = 128
    """Most concurrent requests."""
    tries: int = 5
    first_pause: float = 1.0
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
    ) -> list[SampledTokens]:
        """Return one completion for each prompt, of at most `limits[i]` tokens, requested concurrently."""
        bodies = [
            {
                "model": self.model,
                "prompt": list(prompt),
                "return_token_ids": True,
                **sampling_request(sampling, limit, seed, stops),
            }
            for prompt, limit, seed in zip(prompts, limits, seeds, strict=True)
        ]
        with ThreadPoolExecutor(max(1, min(self.max_concurrent, len(bodies)))) as pool:
            return list(pool.map(self._complete, bodies))  # the first failure cancels the requests not yet started

    def reload(self, folder: Path) -> None:
        """Have the server load all weights from a folder that it sees at the same path."""
        if self.sends_weights:
            arguments = {"weights_path": str(folder.resolve())}
            self._post("/collective_rpc", {"method": "reload_weights", "kwargs": arguments})
            self.reset_prefix_cache()

    def adapter(self, folder: Path) -> None:
        """Have the server load an adapter from a folder that it sees at the same path, and sample from it."""
        previous, self.model = self.model, folder.name
        if self.sends_weights:
            self._unload(folder.name)  # an earlier run may have left one of this name
            adapter = {"lora_name": folder.name, "lora_path": str(folder.resolve())}
            self._post("/v1/load_lora_adapter", adapter)
            if previous != folder.name:
                self._unload(previous)
            self.reset_prefix_cache()

    def transfer_workers(self) -> int:
        """Return how many GPUs serve the model, where the server was started to receive weights over NCCL; else 0."""
        try:
            config = fetch_json(f"{self.url}/server_info?config_format=json", timeout=300)["vllm_config"]
            backend = (config["weight_transfer_config"] or {}).get("backend")
            workers = fetch_json(f"{self.url}/get_world_size", timeout=30)["world_size"]
        except (*_CONNECTION_ERRORS, LookupError, TypeError, AttributeError):
            return 0  # of a version that does not know them
        return workers if backend == "nccl" and type(workers) is int else 0

    # vLLM's trainer side of a transfer calls the next four. None is repeated: both sides are then within one transfer.

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        """Have the server's workers join the group of the transfer."""
        self._post("/init_weight_transfer_engine", {"init_info": init_info}, tries=1)

    def start_weight_update(self) -> None:
        """Announce new weights."""
        self._post("/start_weight_update", {}, tries=1)

    def update_weights(self, update_info: Any) -> None:
        """Have the workers receive the weights that `update_info` names, which are sent meanwhile."""
        self._post("/update_weights", {"update_info": update_info}, tries=1)

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        """Have the server use what it received."""
        self._post("/finish_weight_update", {"weight_version": weight_version}, tries=1)

    def _unload(self, name: str) -> None:
        """Unload an adapter; the server answers 404 for an unknown name or the base model's, which does no harm."""
        self._post("/v1/unload_lora_adapter", {"lora_name": name}, accepted=(HTTPStatus.NOT_FOUND,))

    def reset_prefix_cache(self) -> None:
        """Clear the cached keys and values of prompts, which were computed with the old weights."""
        if self._post("/reset_prefix_cache", {}).get("success") is not True:
            raise RetryError(f"server {self.url}: somebody else samples from it; its prefix cache cannot be reset")

    def _complete(self, body: Mapping[str, Any]) -> SampledTokens:
        answer = self._post("/v1/completions", body)
        try:
            choice = answer["choices"][0]
            sampled = SampledTokens(tuple(choice["token_ids"]), tuple(choice["logprobs"]["token_logprobs"]))
            if not all(type(i) is int and i >= 0 for i in sampled.ids) or not all(map(_is_number, sampled.logprobs)):
                raise TypeError("token ids or log-probabilities that are none")
            is_complete = (
                choice["finish_reason"] in ("stop", "length") and len(sampled.ids) == len(sampled.logprobs) > 0
            )
        except (LookupError, TypeError, AttributeError) as error:
            raise UserError(
                f"server {self.url}: its answer has no token ids or log-probabilities; is it vLLM?"
            ) from error
        if not is_complete:
            finish_reason = clip(str(choice["finish_reason"]))
            raise RetryError(f"server {self.url}: broke a completion off ({finish_reason})")
        return sampled

    def _post(
        self, path: str, body: Mapping[str, Any], accepted: Collection[int] = (), tries: int | None = None
    ) -> dict[str, Any]:
        """Return the answer as JSON; empty when it is none, or when its status is among `accepted`."""
        reason, tries = "", tries or self.tries
        for attempt in range(tries):
            if attempt:
                time.sleep(self.first_pause * 2 ** (attempt - 1))
            try:
                return fetch_json(self.url + path, self.timeout, body)
            except StatusError as error:
                if error.status in accepted:
                    return {}
                reason = error.reason
                if error.status < HTTPStatus.INTERNAL_SERVER_ERROR and error.status != HTTPStatus.TOO_MANY_REQUESTS:
                    self._raise_refusal(path, error.status, reason)
            except _CONNECTION_ERRORS as error:
                reason = _error_text(error)
        raise RetryError(
            f"server {self.url}: no answer from {path} after {tries} attempt{'s' * (tries > 1)} ({reason}); "
            "check that it runs, and what its log says; the same command then goes on from the last checkpoint"
        )

    def _raise_refusal(self, path: str, status: int, reason: str) -> None:
        if status == HTTPStatus.NOT_FOUND and path == "/v1/completions":
            raise RetryError(f"server {self.url}: has no model {self.model} (any more); was it started again?")
        if status == HTTPStatus.NOT_FOUND:
            raise UserError(f"server {self.url}: has no {path}; start it as docs/scaling.md says")
        raise UserError(f"server {self.url}: refused {path} ({status}: {reason})")


def open_server(url: str, name: str, revision: str | None = None, sends_weights: bool = True) -> ServerEngine:
    """Connect to a running server.

    Args:
        url: `http://host:port`.
        name: The model that it serves, whose tokenizer and stop tokens are used.
        revision: The model's hub revision; None = the newest.
        sends_weights: Whether this process is the one that sends weights to the server.

    Raises:
        RetryError: The server does not answer.
        UserError: The server is not a vLLM server.
    """
    server_host(url, "--server", "http://node1:8000")
    tokenizer, stops = load_tokenizer(name, revision)
    base_url = url.rstrip("/")
    try:
        model_info = fetch_json(f"{base_url}/v1/models", timeout=30)["data"][0]
        max_tokens = model_info.get("max_model_len")
        if not isinstance(model_info["id"], str) or not (
            max_tokens is None or (type(max_tokens) is int and max_tokens > 0)
        ):
            raise TypeError("a model's name or its context is none")
        return ServerEngine(base_url, tokenizer, stops, max_tokens, model_info["id"], sends_weights)
    except _CONNECTION_ERRORS as error:
        raise RetryError(f"server {base_url}: does not answer ({_error_text(error)}); is it running?") from error
    except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        raise UserError(f"server {base_url}: is not a vLLM server; --help says how to name one") from error


def _error_text(error: BaseException) -> str:
    return clip(str(error) or type(error).__name__)


def _is_number(logprob: object) -> bool:
    return isinstance(logprob, int | float) and not isinstance(logprob, bool) and not math.isnan(logprob)


class StatusError(OSError):
    """A server answered with a status other than 2xx."""

    def __init__(self, status: int, body: bytes) -> None:
        super().__init__(f"status {status}: {error_reason(body)}")
        self.status, self.reason = status, error_reason(body)


def fetch_json(url: str, timeout: float, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Send a GET, or a POST of JSON, without any proxy, and return the JSON object of the answer.

    Args:
        url: The requested URL.
        timeout: Seconds until the last byte of the answer, also when the server keeps sending single bytes.
        body: The JSON to post; None = GET.

    Returns:
        The answer; empty when it is not a JSON object.

    Raises:
        OSError, http.client.HTTPException: No complete answer came, or (StatusError) the server refused.
        UserError: The server redirects to another one.
    """
    parts = urlsplit(url)
    connect = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    data = None if body is None else json.dumps(body)
    with closing(connect(parts.hostname or "", parts.port, timeout=timeout)) as connection:
        connection.connect()
        with _deadline(connection.sock, timeout):
            path = (parts.path or "/") + f"?{parts.query}" * bool(parts.query)
            connection.request("GET" if data is None else "POST", path, data, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            raw = _read_body(answer)
    location = answer.headers.get("Location")
    if HTTPStatus.MULTIPLE_CHOICES <= answer.status < HTTPStatus.BAD_REQUEST and location:
        check_redirect("--server", url, location)
    if not HTTPStatus.OK <= answer.status < HTTPStatus.MULTIPLE_CHOICES:
        raise StatusError(answer.status, raw)
    body_json = parse_body(raw)
    return body_json if isinstance(body_json, dict) else {}


def _read_body(answer: http.client.HTTPResponse) -> bytes:
    raw = answer.read(MAX_BODY_BYTES + 1)
    if len(raw) > MAX_BODY_BYTES:
        raise http.client.HTTPException(TOO_LARGE_MESSAGE)
    if answer.length:  # a partial `read` does not raise on a truncated body
        raise http.client.IncompleteRead(raw, answer.length)
    return raw


@contextmanager
def _deadline(connection_socket: socket.socket, seconds: float) -> Iterator[None]:
    """Close a connection that is still in use after `seconds`, and raise TimeoutError."""
    has_expired = threading.Event()

    def close_connection() -> None:
        has_expired.set()
        with suppress(OSError):  # already closed
            # Below the SSL layer, which another thread reads.
            socket.socket.shutdown(connection_socket, socket.SHUT_RDWR)

    timer = threading.Timer(seconds, close_connection)
    timer.daemon = True
    timer.start()
    try:
        yield
    except (OSError, http.client.HTTPException):
        if not has_expired.is_set():
            raise
    finally:
        timer.cancel()
    if has_expired.is_set():
        raise TimeoutError(f"no whole answer within {seconds:g} seconds") from None
