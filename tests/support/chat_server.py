"""A stand-in for an OpenAI-compatible server: a script says what it answers, and every request is kept."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, BinaryIO

DROP = "drop the connection"
ANSWER_PATH = "/v1/chat/completions"


@dataclass
class Reply:
    """What goes back; `body` is JSON, or raw bytes."""

    body: Any = None
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    wait: float = 0.0
    trickle: float = 0.0
    """Seconds between the bytes that are sent, those of the status line and the headers included."""


Script = Callable[[dict[str, Any], int], Reply | str]
"""(request body, how many came before it) -> reply, or DROP."""


@dataclass
class Server:
    url: str
    asked: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    most: int = 0
    """Requests that were under way at once."""


def said(text: Any, finish: str = "stop", used: tuple[int, int] = (100, 20), **more: Any) -> Reply:
    """A chat completion. `more`: logprobs, or further keys of the message."""
    choice = {"index": 0, "finish_reason": finish, "logprobs": more.pop("logprobs", None)}
    message = {"role": "assistant", "content": text, **more}
    usage = {"prompt_tokens": used[0], "completion_tokens": used[1]}
    return Reply({"id": "c", "object": "chat.completion", "choices": [{**choice, "message": message}], "usage": usage})


def failed(status: int, message: str, headers: dict[str, str] | None = None, **more: Any) -> Reply:
    """An error as OpenAI words it."""
    return Reply(
        {"error": {"message": message, "type": "e", "param": None, "code": None, **more}}, status, headers or {}
    )


def part(kind: str, text: object) -> dict[str, object]:
    """A part of a message's content."""
    return {"type": kind, kind if kind in ("thinking", "reasoning") else "text": text}


def listed(*tokens: str | tuple[str, dict[str, float]]) -> dict[str, Any]:
    """Log-probabilities of tokens; those given as a pair come with alternatives, their own probability among them."""
    content = []
    for token in tokens:
        text, odds = token if isinstance(token, tuple) else (token, {token: -0.1})
        top = [{"token": t, "logprob": lp, "bytes": None} for t, lp in odds.items()]
        content.append({"token": text, "logprob": odds[text], "bytes": None, "top_logprobs": top})
    return {"content": content}


def trickle(file: BinaryIO, pause: float) -> None:
    """Sends a header that never ends, until the client has gone."""
    with suppress(OSError):
        for byte in b"HTTP/1.1 200 OK\r\nX-Filler: " + b"x" * 100_000:
            file.write(bytes([byte]))
            time.sleep(pause)


@contextmanager
def serving(script: Script) -> Iterator[Server]:
    """Runs the server in threads of this process."""
    lock, live = threading.Lock(), [0]

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True  # else an answer waits 40 ms for the acknowledgement of its headers

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                number = len(server.asked)
                server.asked.append(body)
                server.headers.append({k.lower(): v for k, v in self.headers.items()})
                server.times.append(time.monotonic())
                live[0] += 1
                server.most = max(server.most, live[0])
            try:
                self.reply(script(body, number) if self.path == ANSWER_PATH else failed(404, "Not Found"))
            finally:
                with lock:
                    live[0] -= 1

        def reply(self, reply: Reply | str) -> None:
            if isinstance(reply, str):
                self.close_connection = True
                self.connection.close()
                return
            time.sleep(reply.wait)
            if reply.trickle:
                self.close_connection = True
                trickle(self.wfile, reply.trickle)
                return
            raw = reply.body if isinstance(reply.body, bytes) else json.dumps(reply.body).encode()
            self.send_response(reply.status)
            for name, value in (
                {"Content-Type": "application/json", "Content-Length": str(len(raw))} | reply.headers
            ).items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(raw)

        def log_message(self, *_: Any) -> None:
            pass

    class Quiet(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_: Any) -> None:
            """A client that was killed."""

    with Quiet(("127.0.0.1", 0), Handler) as http:
        server = Server(f"http://127.0.0.1:{http.server_address[1]}/v1")
        thread = threading.Thread(target=http.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield server
        finally:
            http.shutdown()
            thread.join()
