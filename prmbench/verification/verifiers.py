"""Is a completion's final answer right? A pool of worker processes that can be killed, and exact match.

A timeout or crash of the verifier is an outcome of its own, never "wrong". The checking itself: worker.py.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
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
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any, Literal, get_args

from prmbench.core.records import UserError
from prmbench.verification import gym_tasks
from prmbench.verification.answer_region import answer_region, answer_span, boxes, last_box

Kind = Literal["math", "exact", "gym"]
PACKAGES = {"math": "math_verify", "gym": "reasoning_gym"}
"""What a worker of each kind imports; exact match needs no worker."""
OUTCOMES: Mapping[str, int | None] = {
    "right": 1,
    "wrong": 0,
    "no answer": 0,
    "no gold": None,
    "too long": None,
    "timeout": None,
    "crash": None,
}
"""Verdict -> outcome. None: the verifier could not say, which is nobody's mistake but its own."""
MAX_CHARACTERS = 50_000
"""A longer answer region without a box is not searched: some of math-verify's patterns take quadratic time."""
GRACE_SECONDS = 1.0
"""A worker that cannot interrupt itself at the limit (a big power in C) is killed so much later."""
START_SECONDS = 120.0
"""sympy loads in a second, but on a busy machine in many."""
LINE_BYTES = 4096
"""A reply is shorter, so that a pipe carries it in one piece."""
ENVIRONMENT = {"LC_ALL": "C.UTF-8", "OMP_NUM_THREADS": "1"}
"""All that a worker has in its environment: no key, no path, no proxy."""
_BOOT = """\
import sys
root = sys.argv.pop(1)
sys.path.insert(next((k for k, p in enumerate(sys.path) if p.endswith("-packages")), len(sys.path)), root)
from prmbench.verification.worker import main
main()
"""
"""What an isolated interpreter runs, which finds no module in the current folder or in PYTHONPATH."""


@dataclass(frozen=True, slots=True)
class Claim:
    """A completion, and what its final answer is held against."""

    text: str
    gold: str
    verifier: Kind = "math"
    entry: Mapping[str, Any] = field(default_factory=dict)
    """reasoning-gym only: the task's entry (question, answer, metadata with source_dataset)."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the verifier said: one of OUTCOMES, and the final answer, normalised so that equal ones vote together."""

    verdict: str
    answer: str = ""

    @property
    def outcome(self) -> int | None:
        """1 right, 0 wrong or without an answer, None when the verifier could not say."""
        return OUTCOMES[self.verdict]


@dataclass(eq=False, slots=True)
class _Worker:
    """A process, the job it is at (empty while it starts), and when it will be killed; None = idle."""

    process: subprocess.Popen[bytes]
    job: bytes = b""
    token: str = ""
    """Of the job: a reply that does not repeat it is nobody's verdict."""
    deadline: float | None = None

    @property
    def pipe(self) -> int:
        """File number that its replies come from."""
        assert self.process.stdout is not None
        return self.process.stdout.fileno()


class Verifier:
    """Checks claims in killable worker processes, started when first needed. Use it as a context manager."""

    def __init__(self, workers: int = 2, limit: float = 5.0, memory_gib: float = 2.0) -> None:
        """`limit` seconds and `memory_gib` of address space are what one claim may take."""
        self.limit = limit
        self._size = workers
        self._memory = int(memory_gib * 2**30)
        self._kinds: frozenset[str] = frozenset()
        self._workers: list[_Worker] = []
        self._known: dict[bytes, Verdict] = {}

    def __enter__(self) -> Verifier:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the worker processes; what was found out is kept, and a later check starts new ones."""
        while self._workers:
            _end(self._workers.pop())

    def check(self, claims: Sequence[Claim]) -> list[Verdict]:
        """One verdict a claim, in order. Equal claims are checked once.

        Raises UserError when the package that a verifier needs is not installed.
        """
        jobs = [_job(claim) for claim in claims]
        keys = [hashlib.sha256(job).digest() for job in jobs]
        new = {key: (claim, job) for key, claim, job in zip(keys, claims, jobs, strict=True) if key not in self._known}
        hard = {}
        for key, (claim, job) in new.items():
            verdict = _at_once(claim)
            if verdict is None:
                hard[key] = job
            else:
                self._known[key] = verdict
        if hard:
            self._ready({new[key][0].verifier for key in hard})
            try:
                self._run(hard)
            finally:
                if any(
                    worker.job for worker in self._workers
                ):  # interrupted: a late reply must not be taken for another
                    self.close()
        return [self._known[key] for key in keys]

    def _ready(self, kinds: Iterable[str]) -> None:
        """Sees to it that the workers have loaded what these kinds need."""
        missing = frozenset(kinds) - self._kinds
        for kind in sorted(missing):
            need(kind)
        if missing:
            self.close()
            self._kinds |= missing

    def _run(self, jobs: Mapping[bytes, bytes]) -> None:
        """Gives jobs to idle workers until every one has its verdict; replaces workers that died or hang."""
        waiting, of_job = deque(jobs.values()), {job: key for key, job in jobs.items()}
        while waiting or any(worker.job for worker in self._workers):
            self._man(min(self._size, len(jobs)))
            for worker in self._workers:
                if worker.deadline is None and waiting:
                    self._assign(worker, waiting.popleft())
            for worker, reply in self._replies():
                if worker.job:
                    self._known[of_job[worker.job]] = _verdict(reply)
                elif "ready" not in reply:
                    kinds = " ".join(sorted(self._kinds))
                    raise UserError(
                        f"a verifier process does not start; `python -m prmbench.verification.worker {kinds}` shows why"
                    )
                worker.job, worker.deadline = b"", None

    def _man(self, size: int) -> None:
        """Sees to it that there are so many workers, none of them killed while it was idle."""
        for worker in [w for w in self._workers if w.deadline is None and w.process.poll() is not None]:
            self._drop(worker)
        while len(self._workers) < size:
            self._workers.append(self._start())

    def _drop(self, worker: _Worker) -> None:
        _end(worker)
        self._workers.remove(worker)

    def _replies(self) -> list[tuple[_Worker, dict[str, Any]]]:
        """Waits for the next reply, death or deadline; workers that are dead or overdue are dropped."""
        busy = {worker.pipe: (worker, worker.deadline) for worker in self._workers if worker.deadline is not None}
        nearest = min(deadline for _, deadline in busy.values())
        spoke = wait(list(busy), max(0.0, nearest - time.monotonic()))
        found: list[tuple[_Worker, dict[str, Any]]] = []
        for pipe, (worker, deadline) in busy.items():
            if pipe in spoke:
                reply = _parsed(os.read(pipe, LINE_BYTES), worker.token)
            elif deadline <= time.monotonic():
                reply = {"verdict": "timeout"}
            else:
                continue
            if "token" not in reply:
                self._drop(worker)
            found.append((worker, reply))
        return found

    def _assign(self, worker: _Worker, job: bytes) -> None:
        worker.job, worker.deadline = job, time.monotonic() + self.limit + GRACE_SECONDS
        worker.token = secrets.token_hex(16)
        assert worker.process.stdin is not None
        try:
            worker.process.stdin.write(pickle.dumps(worker.token) + job)
            worker.process.stdin.flush()
        except BrokenPipeError:
            return  # it is dead: its pipe says so when next read

    def _start(self) -> _Worker:
        root = str(Path(__file__).resolve().parents[2])
        command = [sys.executable, "-I", "-B", "-c", _BOOT, root, *sorted(self._kinds)]
        command += ["--limit", str(self.limit), "--memory", str(self._memory)]
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=ENVIRONMENT,
            cwd="/",
            start_new_session=True,  # Ctrl-C is for the parent, which ends its workers; and one group to kill
        )
        return _Worker(process, deadline=time.monotonic() + START_SECONDS)


def need(kind: str) -> None:
    """Raises UserError when the package that this kind of verifier needs is not installed."""
    if kind not in get_args(Kind):
        raise UserError(f"verifier {kind!r}: choose from {', '.join(get_args(Kind))}")
    package = PACKAGES.get(kind)
    if package and importlib.util.find_spec(package) is None:
        raise UserError(f"verifier {kind}: needs {package.replace('_', '-')}; run: pip install prmbench[verify]")
    if kind == "gym":
        gym_tasks.check_version()


def _parsed(raw: bytes, token: str) -> dict[str, Any]:
    """A worker's reply, or a crash where it is not one line that repeats the token."""
    try:
        reply = json.loads(raw) if raw.endswith(b"\n") else None
    except (ValueError, RecursionError):
        reply = None
    if isinstance(reply, dict) and reply.get("token") == token:
        return reply
    return {"verdict": "crash"}


def _verdict(reply: Mapping[str, Any]) -> Verdict:
    """The verdict in a reply, whatever the reply holds."""
    verdict, answer = reply.get("verdict"), reply.get("answer", "")
    if not isinstance(verdict, str) or verdict not in OUTCOMES or not isinstance(answer, str):
        return Verdict("crash")
    return Verdict(verdict, answer)


def _job(claim: Claim) -> bytes:
    """What a worker reads; also what makes two claims equal."""
    text = answer_or_line(claim.text) if claim.verifier == "gym" else answer_region(claim.text) or ""
    return pickle.dumps((claim.verifier, text, claim.gold, dict(claim.entry)))


def _at_once(claim: Claim) -> Verdict | None:
    """The verdict where no worker is needed, else None."""
    if not claim.gold.strip() and claim.verifier != "gym":  # whose scorers know the answer themselves
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
    answer = normal(answer)
    return Verdict("right" if answer == normal(claim.gold) else "wrong", answer)


def _end(worker: _Worker) -> None:
    """Kills a worker with all processes that it may have started, and closes its pipes."""
    with contextlib.suppress(ProcessLookupError):  # the group is gone with its last member
        os.killpg(worker.process.pid, signal.SIGKILL)
    worker.process.kill()
    worker.process.wait()
    for pipe in (worker.process.stdin, worker.process.stdout):
        if pipe is not None:
            try:
                pipe.close()
            except BrokenPipeError:
                continue  # half a job was still in the buffer


# --- final answers, for exact match and reasoning-gym ---------------------------------------------------

_ANNOUNCED = re.compile(r"(?im)^.*\b(?:answer|ans)\b[*]*+[ \t]*+(?:is\b)?[ \t]*+[:=]?[*]*+[ \t]*+(.+)$")
_NUMBER = re.compile(r"([+-]?)0*+(\d{1,3}(?:,\d{3})+|\d+)?(?:\.(\d*))?")


def final_answer(text: str) -> str:
    r"""Return the final answer of a completion as text; empty when it has none.

    Within its answer region (answer_region.py): the last box, what stands between `<answer>` tags, or what follows the
    last "answer" on its line. A region that ends in an open box has no answer.
    """
    span = answer_span(text)
    if span is None:
        return ""
    region = text[slice(*span)]
    if boxes(region):
        return last_box(region) or ""
    if text[span[1] :].lstrip().lower().startswith("</answer"):
        return region.strip()
    return next(iter(_ANNOUNCED.findall(region)[-1:]), "").strip()


def answer_or_line(text: str) -> str:
    """The final answer; of a text of one line that announces none, the line."""
    region = answer_region(text)
    if region is None or boxes(region):
        return final_answer(text)
    whole = region.strip()
    return final_answer(text) or (whole if "\n" not in whole else "")


def normal(answer: str) -> str:
    """An answer as exact match compares it: no $, stars, closing stop or case; 1,000.50 = 1000.5."""
    plain = " ".join(answer.replace("$", " ").replace("*", " ").split()).rstrip(".").strip().casefold()
    found = _NUMBER.fullmatch(plain)
    if not found or not any(c.isdigit() for c in plain):
        return plain
    sign, whole, rest = found.groups()
    digits = (whole or "").replace(",", "") or "0"
    decimals = (rest or "").rstrip("0")
    minus = "-" if sign == "-" and (digits != "0" or decimals) else ""
    return f"{minus}{digits}.{decimals}" if decimals else f"{minus}{digits}"
