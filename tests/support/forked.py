"""Child processes without the seconds that libraries take to import: forked from a server that has imported them."""

from __future__ import annotations

import atexit
import multiprocessing
import os
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

_MODULES = (
    "prmbench.cli",
    "prmbench.evaluation",
    "prmbench.rl.distrl",
    "prmbench.sampling.rollout",
    "prmbench.training.train",
    "sklearn.metrics",
    "torch.distributed.checkpoint",
    "torch.distributed.fsdp",
    "transformers.models.llama.modeling_llama",
)
"""What children would import late. Nothing that starts a thread: a forked process has none but its main one."""
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(list(_MODULES))


class Child:
    """A process that calls `function(*arguments)`; as a context, it is killed at the end.

    `environment` is added to this process's. The function must be importable by its module's name.
    """

    def __init__(self, function: Callable[..., object], *arguments: object, **environment: str) -> None:
        self._files = [tempfile.NamedTemporaryFile(prefix="child-") for _ in range(2)]  # noqa: SIM115  deleted with it
        names = [file.name for file in self._files]
        target = (function, arguments, {**os.environ, **environment}, names)
        self._process = _CONTEXT.Process(target=_call, args=target)
        self._process.start()

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.join()

    @property
    def stdout(self) -> str:
        """What it has written so far."""
        return Path(self._files[0].name).read_text()

    @property
    def stderr(self) -> str:
        """What it has written so far."""
        return Path(self._files[1].name).read_text()

    def poll(self) -> int | None:
        """Returns its exit code, minus the signal that killed it, or None while it runs."""
        return self._process.exitcode

    def send(self, number: signal.Signals) -> None:
        """Sends a signal to a process that has not ended."""
        assert self._process.pid is not None
        with suppress(ProcessLookupError):
            os.kill(self._process.pid, number)

    def wait(self, timeout: float = 300) -> int:
        """Returns the exit code once it has ended, or fails after `timeout` seconds."""
        self._process.join(timeout)
        code = self.poll()
        assert code is not None, f"no end after {timeout} s; stderr: {self.stderr[-3000:]}"
        return code

    def wait_for(self, seen: Callable[[], object], timeout: float = 120) -> None:
        """Returns when `seen()` is true, or fails when the process ends before or the time is over."""
        deadline = time.monotonic() + timeout
        while not seen():
            assert self.poll() is None, f"ended with {self.poll()}; stderr: {self.stderr[-3000:]}"
            assert time.monotonic() < deadline, f"not seen in {timeout} s; stderr: {self.stderr[-3000:]}"
            time.sleep(0.01)


def prmbench(*arguments: object) -> None:
    """The command line, for `Child`."""
    from prmbench.cli import main

    sys.argv = ["prmbench", *map(str, arguments)]
    main()


def group_environments(count: int) -> list[dict[str, str]]:
    """Returns what torchrun adds to the environment of each of `count` processes on one node."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        group = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    group |= {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count)}
    return [{**group, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(count)]


@contextmanager
def started_group(
    function: Callable[..., object], *arguments: object, count: int = 2, **environment: str
) -> Iterator[list[Child]]:
    """Starts `count` processes of one group; at the end those that still run are killed."""
    with ExitStack() as running:
        ranks = group_environments(count)
        yield [running.enter_context(Child(function, *arguments, **{**rank, **environment})) for rank in ranks]


def run_group(
    function: Callable[..., object], *arguments: object, count: int = 2, timeout: float = 900, **environment: str
) -> None:
    """Returns when all processes of a group have ended without an error; at the first error all are ended."""
    deadline = time.monotonic() + timeout
    with started_group(function, *arguments, count=count, **environment) as children:
        while any(child.poll() is None for child in children) and not any(child.poll() for child in children):
            if time.monotonic() > deadline:
                break
            time.sleep(0.05)
    codes = [child.poll() for child in children]
    assert codes == [0] * count, "\n".join([str(codes), *(child.stderr[-3000:] for child in children)])


def _call(function: Callable[..., object], arguments: Any, environment: Mapping[str, str], outputs: list[str]) -> None:
    os.environ.clear()
    os.environ.update(environment)
    for number, name in enumerate(outputs, 1):
        descriptor = os.open(name, os.O_WRONLY | os.O_APPEND)
        os.dup2(descriptor, number)
        os.close(descriptor)
    try:
        function(*arguments)
    finally:
        atexit._run_exitfuncs()
