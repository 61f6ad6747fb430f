"""A server of a few lines that notes what it is asked."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from chat_server import trickle


@contextmanager
def stub_server(
    answers: Callable[[str, dict[str, Any]], tuple[int, Any]], headers: dict[str, str] | None = None, pause: float = 0.0
) -> Iterator[tuple[str, list[Any]]]:
    """Its address, and what it was asked: (path, body). `pause`: seconds between the bytes of an endless answer."""
    requests: list[Any] = []

    class Handler(BaseHTTPRequestHandler):
        def _answer(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0))) or b"{}")
            requests.append((self.path, body))
            status, found = answers(self.path, body)
            raw = json.dumps(found).encode()
            if pause:
                trickle(self.wfile, pause)
                return
            self.send_response(status)
            for name, value in (headers or {}).items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(raw)))
            self.end_headers()
            self.wfile.write(raw)

        do_GET = do_POST = _answer

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listening:
        thread = threading.Thread(target=listening.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.server_port}", requests
        finally:
            listening.shutdown()
            thread.join()
