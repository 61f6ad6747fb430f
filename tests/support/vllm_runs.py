"""What the tests of vLLM share: SmolLM2 as a folder, an engine in this process, a server as a process of its own."""

from __future__ import annotations

import importlib.util
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import pytest

from prmbench.engines.hf import Placement
from prmbench.engines.server import fetch_json
from prmbench.engines.vllm import VllmEngine, VllmOptions, open_vllm, serve_command

MARKS = [
    pytest.mark.vllm,
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed: see make test-vllm"),
]
CPU = Placement("cpu", "float32")
CONTEXT = 256
BOOT = 300
"""Seconds that a server may take to start."""


def small(options: VllmOptions) -> VllmOptions:
    """The same for a short context and little memory."""
    context = options.max_tokens or CONTEXT
    return replace(options, max_tokens=context, cache_gib=0.25, eager=True)


def opened(folder: Path, options: VllmOptions | None = None) -> VllmEngine:
    """An engine in this process. The end of any of them is the end of all."""
    return open_vllm(str(folder), None, CPU, small(options or VllmOptions()))


@contextmanager
def served(
    folder: Path, log: Path, options: VllmOptions | None = None
) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """A server started by the command of the docs: its address and process."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    first = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    with log.open("wb") as file:
        process = subprocess.Popen(
            serve_command(str(folder), "float32", small(options or VllmOptions()), port),
            env={**os.environ, "PATH": first},
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    url = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + BOOT
        while not _answers(url):
            assert process.poll() is None, log.read_text()[-2000:]
            assert time.monotonic() < deadline, log.read_text()[-2000:]
            time.sleep(1)
        yield url, process
    finally:
        stop(process)


def _answers(url: str) -> bool:
    try:
        return bool(fetch_json(f"{url}/v1/models", timeout=5))
    except OSError:
        return False


def stop(process: subprocess.Popen[bytes]) -> None:
    """With its engine, which is a process of its own."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
