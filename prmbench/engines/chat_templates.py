"""Renders chat templates, which are untrusted programs, in a separate process with limits.

The limits cover the time and memory of one rendering, the length of the template and the length of its output. They do
not cover what a template writes, such as a text that misleads the model.
"""

from __future__ import annotations

import atexit
import json
import os
import selectors
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

from prmbench.core.records import UserError
from prmbench.core.redaction import one_line

MAX_SOURCE_LENGTH = 2**20
"""Longest template in characters; those of well-known models have a few thousand."""
BASE_TEXT_LENGTH, TEXT_LENGTH_FACTOR = 2**20, 8
"""A text may have BASE_TEXT_LENGTH characters plus TEXT_LENGTH_FACTOR times those of its messages."""
RENDER_TIMEOUT, START_TIMEOUT = 10.0, 120.0
"""Seconds of wall clock for one rendering, which takes about a millisecond, and for starting the process."""
WORKER_ENVIRONMENT = {"PATH": os.defpath, "LANG": "C.UTF-8", "HF_HUB_OFFLINE": "1", "USE_TORCH": "0"}
"""Environment of the worker process, without API keys and proxies."""
LIMIT_MESSAGES = {
    "memory": "takes more memory than a template may",
    "depth": "calls itself too deeply",
    "size": "writes more text than a template may",
    "time": "takes longer than a template may",
    "end": "ends the process that renders it",
}


class _Worker:
    """The worker process, started when it is first needed, and again after it had to be stopped."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()
        self._owner = 0

    def request(self, job: Mapping[str, Any], max_bytes: int) -> Mapping[str, Any]:
        """Return the reply to a job, of at most `max_bytes`; its key `limit` names a limit that was exceeded."""
        line = json.dumps(job).encode() + b"\n"
        with self._lock:
            process = self._ensure_started()
            try:
                result = _exchange(process, line, max_bytes, RENDER_TIMEOUT)
            except BaseException:  # also Ctrl-C: a late reply must not be taken for the next job's
                self._stop()
                raise
            if isinstance(result, str):
                self._stop()
                return {"limit": result}
        try:
            reply = json.loads(result)
        except ValueError:
            return {"limit": "end"}
        return reply if isinstance(reply, dict) else {"limit": "end"}

    def _ensure_started(self) -> subprocess.Popen[bytes]:
        if self._owner != os.getpid():  # after a fork the process belongs to the parent
            self._process = None
        if self._process is not None and self._process.poll() is None:
            return self._process
        path = os.pathsep.join(entry for entry in sys.path if entry)
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "prmbench.engines.template_worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**WORKER_ENVIRONMENT, "PYTHONPATH": path},
            start_new_session=True,
        )
        self._owner = os.getpid()
        probe = {"messages": [], "source": "ready", "values": {}, "longest": 99, "seconds": START_TIMEOUT}
        ready = _exchange(self._process, json.dumps(probe).encode() + b"\n", 10_000, START_TIMEOUT)
        if isinstance(ready, str) or b"ready" not in ready:
            self._stop()
            raise UserError("chat template: the process that renders it does not start; use --template plain")
        return self._process

    def _stop(self) -> None:
        process, self._process = self._process, None
        if process is not None and self._owner == os.getpid():
            process.kill()
            for stream in (process.stdin, process.stdout):
                if stream is not None:
                    stream.close()
            process.wait()

    def close(self) -> None:
        """Stop the worker process, if it runs."""
        with self._lock:
            self._stop()


def _exchange(process: subprocess.Popen[bytes], line: bytes, max_bytes: int, seconds: float) -> bytes | str:
    """Write a line and return the line of the reply, or the name of the limit that was exceeded."""
    assert process.stdin is not None
    assert process.stdout is not None
    deadline = time.monotonic() + seconds
    reply = bytearray()
    unsent = memoryview(line)
    os.set_blocking(process.stdin.fileno(), False)
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        selector.register(process.stdin, selectors.EVENT_WRITE)
        while (remaining := deadline - time.monotonic()) > 0:
            for key, _ in selector.select(remaining):
                if key.fileobj is process.stdin:
                    try:
                        unsent = unsent[os.write(key.fd, unsent) :]
                    except BrokenPipeError:
                        return "end"
                    if not unsent:
                        selector.unregister(process.stdin)
                    continue
                block = os.read(key.fd, 2**16)
                if not block:
                    return "end"
                reply += block
                if reply.endswith(b"\n"):
                    return bytes(reply)
                if len(reply) > max_bytes:
                    return "size"
    return "time"


_worker = _Worker()
atexit.register(_worker.close)


def render(source: str, messages: Sequence[Mapping[str, str]], values: Mapping[str, Any]) -> str:
    """Render a conversation by a chat template, as transformers does.

    Args:
        source: Jinja source of the template.
        messages: Turns with `role` and `content`.
        values: Further variables of the template.

    Raises:
        UserError: The template fails, or exceeds a limit.
    """
    if len(source) > MAX_SOURCE_LENGTH:
        raise UserError(f"chat template: has {len(source)} characters, and may have {MAX_SOURCE_LENGTH}; use another")
    max_length = BASE_TEXT_LENGTH + TEXT_LENGTH_FACTOR * sum(len(message["content"]) for message in messages)
    limits = {"longest": max_length, "seconds": 2 * RENDER_TIMEOUT}
    job = {"source": source, "messages": list(messages), "values": dict(values), **limits}
    reply = _worker.request(job, 12 * max_length + 10_000)  # JSON takes at most 12 bytes per character
    if "text" in reply:
        return str(reply["text"])
    reason = LIMIT_MESSAGES.get(str(reply.get("limit"))) or one_line(reply.get("failed"))[:500]
    raise UserError(f"chat template: {reason}; pass --template plain or --template FILE")
