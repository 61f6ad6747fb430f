"""Verifies the final answers of completions, in a pool of worker processes that can be killed, or by exact match.

A timeout or crash of the verifier is its own verdict, never "wrong". worker.py checks the answers.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import pickle
import re
import secrets
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any, Literal, get_args

from prmbench.core import extras
from prmbench.core.records import UserError
from prmbench.verification import gym_tasks
from prmbench.verification.answer_region import answer_region, answer_span, boxes, filled_boxes

Kind = Literal["math", "exact", "gym"]
PACKAGES = {"math": "math_verify", "gym": "reasoning_gym"}
"""Package that a worker of each kind imports; exact match needs no worker."""
OUTCOMES: Mapping[str, int | None] = {
    "right": 1,
    "wrong": 0,
    "no answer": 0,
    "no gold": None,
    "too long": None,
    "timeout": None,
    "crash": None,
}
"""Verdict -> outcome. None: the verifier failed; excluded from accuracy."""
MAX_CHARACTERS = 50_000
"""A longer answer region without a box is not searched: some of math-verify's patterns take quadratic time."""
GRACE_SECONDS = 1.0
"""A worker that cannot interrupt itself at the limit (in C code, as for a big power) is killed this much later."""
START_SECONDS = 120.0
"""Time for a worker to start; importing sympy takes a second, but many on a busy machine."""
LINE_BYTES = 4096
"""Upper limit of a reply, so that a pipe transmits it in one piece."""
ENVIRONMENT = {"LC_ALL": "C.UTF-8", "OMP_NUM_THREADS": "1"}
"""The whole environment of a worker: no key, no path, no proxy."""
_WORKER_CODE = """\
import sys
root = sys.argv.pop(1)
sys.path.insert(next((k for k, p in enumerate(sys.path) if p.endswith("-packages")), len(sys.path)), root)
from prmbench.verification.worker import main
main()
"""
"""Code of the isolated interpreter, which imports nothing from the current folder or from PYTHONPATH."""


@dataclass(frozen=True, slots=True)
class Claim:
    """A completion, and the reference answer that its final answer is compared with."""

    text: str
    gold: str
    verifier: Kind = "math"
    entry: Mapping[str, Any] = field(default_factory=dict)
    """For reasoning-gym only: the task's entry (question, answer, metadata with source_dataset)."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """A key of OUTCOMES, and the final answer, normalised so that equal answers vote together."""

    verdict: str
    answer: str = ""

    @property
    def outcome(self) -> int | None:
        """1 right, 0 wrong or without an answer, None when the verifier failed."""
        return OUTCOMES[self.verdict]


@dataclass(eq=False, slots=True)
class _Worker:
    """A worker process with its current job (empty while it starts)."""

    process: subprocess.Popen[bytes]
    job: bytes = b""
    token: str = ""
    """Random token of the job; a reply that does not repeat it is ignored."""
    deadline: float | None = None
    """Monotonic time at which the worker is killed; None = idle."""

    @property
    def pipe(self) -> int:
        """File descriptor of its replies."""
        assert self.process.stdout is not None
        return self.process.stdout.fileno()


class Stopped(Exception):
    """A check ended early, since nobody waits for it any more."""


class Verifier:
    """Checks claims in killable worker processes, which start when first needed. Use it as a context manager."""

    def __init__(self, workers: int | None = None, limit: float = 5.0, memory_gib: float = 2.0) -> None:
        """Set the number of workers and the limits of one claim, in seconds and in GiB of address space.

        Workers that are None are as many as there are cores for this process.
        """
        self.limit = limit
        self._size = workers or cores_per_process()
        self._memory = int(memory_gib * 2**30)
        self._kinds: frozenset[str] = frozenset()
        self._workers: list[_Worker] = []
        self._verdicts: dict[bytes, Verdict] = {}

    def __enter__(self) -> Verifier:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the worker processes; verdicts stay cached, and a later check starts new processes."""
        while self._workers:
            _kill(self._workers.pop())

    def check(self, claims: Sequence[Claim], is_stopped: Callable[[], bool] = lambda: False) -> list[Verdict]:
        """Return one verdict per claim, in order; equal claims are checked once.

        Args:
            claims: The claims.
            is_stopped: Asked before every wait for the workers, for a caller in a thread that is to end.

        Raises:
            Stopped: `is_stopped` returned true before all verdicts were there.
            UserError: The package that a verifier needs is not installed, or a worker does not start.
        """
        jobs = [_job(claim) for claim in claims]
        keys = [hashlib.sha256(job).digest() for job in jobs]
        new = {
            key: (claim, job) for key, claim, job in zip(keys, claims, jobs, strict=True) if key not in self._verdicts
        }
        hard_jobs = {}
        for key, (claim, job) in new.items():
            verdict = _quick_verdict(claim)
            if verdict is None:
                hard_jobs[key] = job
            else:
                self._verdicts[key] = verdict
        if hard_jobs:
            self._load_kinds({new[key][0].verifier for key in hard_jobs})
            try:
                self._run(hard_jobs, is_stopped)
            finally:
                # After an interruption, a late reply must not be taken for that of another job.
                if any(worker.job for worker in self._workers):
                    self.close()
        return [self._verdicts[key] for key in keys]

    def _load_kinds(self, kinds: Iterable[str]) -> None:
        """Restart the workers if they have not imported the packages of all these kinds."""
        missing = frozenset(kinds) - self._kinds
        for kind in sorted(missing):
            check_installed(kind)
        if missing:
            self.close()
            self._kinds |= missing

    def _run(self, jobs: Mapping[bytes, bytes], is_stopped: Callable[[], bool]) -> None:
        """Give jobs to idle workers until every job has a verdict; replace workers that died or hang."""
        waiting, key_of_job = deque(jobs.values()), {job: key for key, job in jobs.items()}
        while waiting or any(worker.job for worker in self._workers):
            if is_stopped():
                raise Stopped
            self._ensure_workers(min(self._size, len(jobs)))
            for worker in self._workers:
                if worker.deadline is None and waiting:
                    self._assign(worker, waiting.popleft())
            for worker, reply in self._replies():
                if worker.job:
                    self._verdicts[key_of_job[worker.job]] = _verdict(reply)
                elif "ready" not in reply:
                    kinds = " ".join(sorted(self._kinds))
                    raise UserError(
                        f"a verifier process does not start; `python -m prmbench.verification.worker {kinds}` shows why"
                    )
                worker.job, worker.deadline = b"", None

    def _ensure_workers(self, size: int) -> None:
        """Start workers until there are `size`, after dropping those that were killed while idle."""
        for worker in [w for w in self._workers if w.deadline is None and w.process.poll() is not None]:
            self._drop(worker)
        while len(self._workers) < size:
            self._workers.append(self._start())

    def _drop(self, worker: _Worker) -> None:
        _kill(worker)
        self._workers.remove(worker)

    def _replies(self) -> list[tuple[_Worker, dict[str, Any]]]:
        """Wait for the next reply, death or deadline; drop workers that are dead or overdue."""
        busy = {worker.pipe: (worker, worker.deadline) for worker in self._workers if worker.deadline is not None}
        nearest = min(deadline for _, deadline in busy.values())
        readable = wait(list(busy), max(0.0, nearest - time.monotonic()))
        replies: list[tuple[_Worker, dict[str, Any]]] = []
        for pipe, (worker, deadline) in busy.items():
            if pipe in readable:
                reply = _parse_reply(os.read(pipe, LINE_BYTES), worker.token)
            elif deadline <= time.monotonic():
                reply = {"verdict": "timeout"}
            else:
                continue
            if "token" not in reply:
                self._drop(worker)
            replies.append((worker, reply))
        return replies

    def _assign(self, worker: _Worker, job: bytes) -> None:
        worker.job, worker.deadline = job, time.monotonic() + self.limit + GRACE_SECONDS
        worker.token = secrets.token_hex(16)
        assert worker.process.stdin is not None
        try:
            worker.process.stdin.write(pickle.dumps(worker.token) + job)
            worker.process.stdin.flush()
        except BrokenPipeError:
            return  # the worker is dead, which the next read of its pipe reveals

    def _start(self) -> _Worker:
        root = str(Path(__file__).resolve().parents[2])
        command = [sys.executable, "-I", "-B", "-c", _WORKER_CODE, root, *sorted(self._kinds)]
        command += ["--limit", str(self.limit), "--memory", str(self._memory)]
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=ENVIRONMENT,
            cwd="/",
            start_new_session=True,  # Ctrl-C reaches only the parent, which kills the group
        )
        return _Worker(process, deadline=time.monotonic() + START_SECONDS)


def cores_per_process() -> int:
    """Return the cores that this process may use, shared with the others that torchrun started on this machine."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("WORLD_SIZE") or 1))


def check_installed(kind: str) -> None:
    """Raise UserError when the package that this kind of verifier needs is not installed."""
    if kind not in get_args(Kind):
        raise UserError(f"verifier {kind!r}: choose from {', '.join(get_args(Kind))}")
    if kind in PACKAGES:
        extras.require(PACKAGES[kind], f"verifier {kind}")
    if kind == "gym":
        gym_tasks.check_version()


def _parse_reply(raw: bytes, token: str) -> dict[str, Any]:
    """Return a worker's reply, or a crash where it is not one line with the token."""
    try:
        reply = json.loads(raw) if raw.endswith(b"\n") else None
    except (ValueError, RecursionError):
        reply = None
    if isinstance(reply, dict) and reply.get("token") == token:
        return reply
    return {"verdict": "crash"}


def _verdict(reply: Mapping[str, Any]) -> Verdict:
    """Return the verdict in a reply; a reply of any other form is a crash."""
    verdict, answer = reply.get("verdict"), reply.get("answer", "")
    if not isinstance(verdict, str) or verdict not in OUTCOMES or not isinstance(answer, str):
        return Verdict("crash")
    return Verdict(verdict, answer)


def _job(claim: Claim) -> bytes:
    """Return the bytes that a worker reads, which also identify equal claims."""
    text = answer_or_line(claim.text) if claim.verifier == "gym" else answer_region(claim.text) or ""
    return pickle.dumps((claim.verifier, text, claim.gold, dict(claim.entry)))


def _quick_verdict(claim: Claim) -> Verdict | None:
    """Return the verdict of a claim that needs no worker, else None."""
    if not claim.gold.strip() and claim.verifier != "gym":  # reasoning-gym's scorers know the answer
        return Verdict("no gold")
    region = answer_region(claim.text)
    if region is None or not region.strip():
        return Verdict("no answer")
    if len(region) > MAX_CHARACTERS and not boxes(region):
        return Verdict("too long")
    if claim.verifier == "math":
        return None
    answer = answer_or_line(claim.text)
    if not answer:
        return Verdict("no answer")
    if claim.verifier == "gym":
        metadata = claim.entry.get("metadata")
        return Verdict("crash") if not isinstance(metadata, Mapping) or gym_tasks.refusal(metadata) else None
    answer = normalise_answer(answer)
    return Verdict("right" if answer == normalise_answer(claim.gold) else "wrong", answer)


def _kill(worker: _Worker) -> None:
    """Kill a worker and all processes that it started, and close its pipes."""
    with contextlib.suppress(ProcessLookupError):  # the group ends with its last member
        os.killpg(worker.process.pid, signal.SIGKILL)
    worker.process.kill()
    worker.process.wait()
    for pipe in (worker.process.stdin, worker.process.stdout):
        if pipe is not None:
            try:
                pipe.close()
            except BrokenPipeError:
                continue  # part of a job was still in the buffer


# --- final answers, for exact match and reasoning-gym ---------------------------------------------------

_ANNOUNCED = re.compile(r"(?im)^.*\b(?:answer|ans)\b[*]*+[ \t]*+(?:is\b)?[ \t]*+[:=]?[*]*+[ \t]*+(.+)$")
_NUMBER = re.compile(r"([+-]?)0*+(\d{1,3}(?:,\d{3})+|\d+)?(?:\.(\d*))?")


def final_answer(text: str) -> str:
    r"""Return the final answer of a completion as text; empty when it has none.

    Within its answer region (answer_region.py): the last box that is not blank, what stands between `<answer>` tags, or
    what follows the last "answer" on its line. A region that ends in an open box has no answer.
    """
    span = answer_span(text)
    if span is None:
        return ""
    region = text[slice(*span)]
    if filled := filled_boxes(region):
        return filled[-1].content or ""
    if text[span[1] :].lstrip().lower().startswith("</answer"):
        return region.strip()
    return next(iter(_ANNOUNCED.findall(region)[-1:]), "").strip()


def answer_or_line(text: str) -> str:
    """Return the final answer as text; where none is announced and the region is a single line, that line."""
    region = answer_region(text)
    if region is None or filled_boxes(region):
        return final_answer(text)
    region = region.strip()
    return final_answer(text) or (region if "\n" not in region else "")


def normalise_answer(answer: str) -> str:
    """Return an answer as exact match compares it: without $, stars, final full stop and case; 1,000.50 = 1000.5."""
    plain = " ".join(answer.replace("$", " ").replace("*", " ").split()).rstrip(".").strip().casefold()
    number = _NUMBER.fullmatch(plain)
    if not number or not any(c.isdigit() for c in plain):
        return plain
    sign, integer_part, fraction_part = number.groups()
    digits = (integer_part or "").replace(",", "") or "0"
    decimals = (fraction_part or "").rstrip("0")
    minus = "-" if sign == "-" and (digits != "0" or decimals) else ""
    return f"{minus}{digits}.{decimals}" if decimals else f"{minus}{digits}"
