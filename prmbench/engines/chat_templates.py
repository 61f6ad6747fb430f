"""Chat templates are programs of strangers: they are rendered in a process of their own, which has limits and is ended.

The limits are on the time and the memory of one rendering, on the length of the template, and on that of the text. Not
covered: what a template writes within them, such as a text that misleads the model.
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

LONGEST_SOURCE = 2**20
"""Characters of a template; those of well-known models have a few thousand."""
SPARE, FACTOR = 2**20, 8
"""Characters that a text may have: so many, and so many times those of its messages."""
SECONDS, SECONDS_TO_START = 10.0, 120.0
"""Wall clock of one rendering, which takes about a millisecond, and of starting the process, on a busy machine."""
CLEAN = {"PATH": os.defpath, "LANG": "C.UTF-8", "HF_HUB_OFFLINE": "1", "USE_TORCH": "0"}
"""Environment of the process: no keys, no proxies."""
LIMITS = {
    "memory": "takes more memory than a template may",
    "depth": "calls itself too deeply",
    "size": "writes more text than a template may",
    "time": "takes longer than a template may",
    "end": "ends the process that renders it",
}


class _Worker:
    """The process, started when it is needed first, and again after one that had to be ended."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()
        self._owner = 0

    def ask(self, job: Mapping[str, Any], most: int) -> Mapping[str, Any]:
        """The reply to a job, of at most so many bytes; `limit` in it says which limit was met."""
        line = json.dumps(job).encode() + b"\n"
        with self._lock:
            process = self._started()
            try:
                raw = _exchange(process, line, most, SECONDS)
            except BaseException:  # be it Ctrl-C: a reply that comes too late must not be taken for the next one's
                self._end()
                raise
            if isinstance(raw, str):
                self._end()
                return {"limit": raw}
        try:
            reply = json.loads(raw)
        except ValueError:
            return {"limit": "end"}
        return reply if isinstance(reply, dict) else {"limit": "end"}

    def _started(self) -> subprocess.Popen[bytes]:
        if self._owner != os.getpid():  # a fork's copy: the process answers to the parent
            self._process = None
        if self._process is not None and self._process.poll() is None:
            return self._process
        path = os.pathsep.join(entry for entry in sys.path if entry)
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "prmbench.engines.template_worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**CLEAN, "PYTHONPATH": path},
            start_new_session=True,
        )
        self._owner = os.getpid()
        probe = {"messages": [], "source": "ready", "values": {}, "longest": 99, "seconds": SECONDS_TO_START}
        ready = _exchange(self._process, json.dumps(probe).encode() + b"\n", 10_000, SECONDS_TO_START)
        if isinstance(ready, str) or b"ready" not in ready:
            self._end()
            raise UserError("chat template: the process that renders it does not start; use --template plain")
        return self._process

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is not None and self._owner == os.getpid():
            process.kill()
            for stream in (process.stdin, process.stdout):
                if stream is not None:
                    stream.close()
            process.wait()

    def close(self) -> None:
        """Ends the process, if there is one."""
        with self._lock:
            self._end()


def _exchange(process: subprocess.Popen[bytes], line: bytes, most: int, seconds: float) -> bytes | str:
    """Writes a line and reads one; instead of that, the name of the limit that was met."""
    assert process.stdin is not None
    assert process.stdout is not None
    until = time.monotonic() + seconds
    reply = bytearray()
    rest = memoryview(line)
    os.set_blocking(process.stdin.fileno(), False)
    with selectors.DefaultSelector() as ready:
        ready.register(process.stdout, selectors.EVENT_READ)
        ready.register(process.stdin, selectors.EVENT_WRITE)
        while (left := until - time.monotonic()) > 0:
            for key, _ in ready.select(left):
                if key.fileobj is process.stdin:
                    try:
                        rest = rest[os.write(key.fd, rest) :]
                    except BrokenPipeError:
                        return "end"
                    if not rest:
                        ready.unregister(process.stdin)
                    continue
                block = os.read(key.fd, 2**16)
                if not block:
                    return "end"
                reply += block
                if reply.endswith(b"\n"):
                    return bytes(reply)
                if len(reply) > most:
                    return "size"
    return "time"


_worker = _Worker()
atexit.register(_worker.close)


def render(source: str, messages: Sequence[Mapping[str, str]], values: Mapping[str, Any]) -> str:
    """The text of a conversation under a template, as transformers renders it; `values` are its further variables.

    Raises UserError when the template fails, or meets a limit.
    """
    if len(source) > LONGEST_SOURCE:
        raise UserError(f"chat template: has {len(source)} characters, and may have {LONGEST_SOURCE}; use another")
    longest = SPARE + FACTOR * sum(len(message["content"]) for message in messages)
    limits = {"longest": longest, "seconds": 2 * SECONDS}
    job = {"source": source, "messages": list(messages), "values": dict(values), **limits}
    reply = _worker.ask(job, 12 * longest + 10_000)  # a character is 12 bytes of JSON at most
    if "text" in reply:
        return str(reply["text"])
    reason = LIMITS.get(str(reply.get("limit"))) or one_line(reply.get("failed"))[:500]
    raise UserError(f"chat template: {reason}; pass --template plain or --template FILE")
