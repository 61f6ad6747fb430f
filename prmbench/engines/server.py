"""The engine that asks a vLLM server, over vLLM's own HTTP endpoints, for completions, and sends it new weights.

Standard library only. The server is started by the user: `serve_command` in vllm.py. When to send: sync.py.
"""

from __future__ import annotations

import http.client
import json
import time
import urllib.error
import urllib.request
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
from typing import Any

from prmbench.engines.decoding import Drawn
from prmbench.engines.sampling import Sampling
from prmbench.engines.vllm import NO_LIMIT, request, tokens_of
from prmbench.schema import RetryError, UserError

_AWAY = (OSError, http.client.HTTPException)  # refused, reset, timed out, cut short; URLError is an OSError


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
            told = {"lora_name": folder.name, "lora_path": str(folder.resolve())}
            self._post("/v1/load_lora_adapter", told)
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
            whole = choice["finish_reason"] in ("stop", "length") and len(drawn.ids) == len(drawn.logprobs) > 0
        except (KeyError, IndexError, TypeError) as error:
            raise UserError(
                f"server {self.url}: its answer has no token ids or log-probabilities; is it vLLM?"
            ) from error
        if not whole:
            raise RetryError(f"server {self.url}: broke a completion off ({choice['finish_reason']})")
        return drawn

    def _post(self, path: str, body: Mapping[str, Any], fine: Collection[int] = ()) -> dict[str, Any]:
        """The answer, as JSON or empty. Statuses in `fine` are answers too."""
        reason = ""
        for attempt in range(self.tries):
            if attempt:
                time.sleep(self.pause * 2 ** (attempt - 1))
            try:
                return fetch(self.url + path, self.timeout, body)
            except urllib.error.HTTPError as error:
                if error.code in fine:
                    return {}
                reason = _said(error)
                if error.code < HTTPStatus.INTERNAL_SERVER_ERROR and error.code != HTTPStatus.TOO_MANY_REQUESTS:
                    self._refused(path, error.code, reason)
            except _AWAY as error:
                reason = str(getattr(error, "reason", "") or error) or type(error).__name__
        raise RetryError(f"server {self.url}: no answer from {path} after {self.tries} attempts ({reason})")

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
    tokenizer, stops = tokens_of(name, revision)
    where = url.rstrip("/")
    try:
        served = fetch(f"{where}/v1/models", timeout=30)["data"][0]
        return ServerEngine(where, tokenizer, stops, served.get("max_model_len"), served["id"], tells)
    except _AWAY as error:
        raise RetryError(f"server {where}: does not answer ({error}); is it running?") from error
    except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        raise UserError(f"server {where}: is not a vLLM server; --help says how to name one") from error


def fetch(url: str, timeout: float, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """GET, or POST of JSON, past any proxy. Answers that are not a JSON object count as empty."""
    data = None if body is None else json.dumps(body).encode()
    asked = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with direct.open(asked, timeout=timeout) as answer:
        raw = answer.read()
    try:
        found = json.loads(raw)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _said(error: urllib.error.HTTPError) -> str:
    """What the server gives as its reason, in one line."""
    try:
        raw = error.read()
        told = json.loads(raw)
        return str(told.get("error", told).get("message", told)).splitlines()[0][:200]
    except (OSError, ValueError, AttributeError, IndexError):
        return str(error.reason)
