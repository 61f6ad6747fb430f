"""The worker process that checks answers for verifiers.py: reads pickled jobs and writes one JSON line for each.

Run as `python -m prmbench.verification.worker KIND... [--limit SECONDS] [--memory BYTES]`. verifiers.py starts it in an
isolated interpreter with a minimal environment and its own process group, and may kill it at any time.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import os
import pickle
import resource
import signal
import sys
import tokenize
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, TypeVar

MAX_ANSWER = 300
"""Most characters of an answer in a reply, which must fit into one write to a pipe."""
CANONICAL_SECONDS = 0.5
"""Additional time for computing the canonical form of an answer; the parent waits one second more than the limit."""
T = TypeVar("T")
FAILURES = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    MemoryError,
    NotImplementedError,
    RecursionError,
    SyntaxError,
    TypeError,
    ValueError,
    tokenize.TokenError,
)
"""Errors that sympy raises on unusual input. Any other error ends this process, which counts as a crash, too."""


class Overdue(BaseException):
    """The time limit has passed. Not an Exception, which math-verify and sympy would catch."""


def check_math(region: str, gold: str, _entry: Mapping[str, Any]) -> tuple[str, str, Callable[[str], str]]:
    """Return the verdict on an answer region, its answer, and the function that makes the answer canonical."""
    from prmbench.verification.canonical import vote
    from prmbench.verification.grading import grade

    verdict, answer = grade(region, gold)
    return verdict, answer, partial(vote, gold=gold, verdict=verdict)


def check_gym(text: str, gold: str, entry: Mapping[str, Any]) -> tuple[str, str, Callable[[str], str]]:
    """Return the verdict of the scorer of the task's data set; only the full score is right."""
    import reasoning_gym

    from prmbench.verification.gym_tasks import refusal

    if reason := refusal(entry["metadata"]):  # the parent has checked this, too
        raise ValueError(reason)
    name = entry["metadata"]["source_dataset"]
    score = reasoning_gym.get_score_answer_fn(name)(answer=text, entry={**entry, "answer": gold})
    return "right" if score >= 1 else "wrong", text, str


Check = Callable[[str, str, Mapping[str, Any]], tuple[str, str, Callable[[str], str]]]
CHECKS: Mapping[str, tuple[str, Check]] = {
    "math": ("math_verify", check_math),
    "gym": ("reasoning_gym", check_gym),
}
"""Kind -> (package, check)."""


def serve(kinds: list[str], limit: float, memory: int) -> None:
    """Answer jobs until the input ends; what libraries print does not reach the output."""
    out = os.dup(sys.stdout.fileno())
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    for kind in kinds:
        __import__(CHECKS[kind][0])
    if "math" in kinds:
        from prmbench.verification.canonical import canonical_answer

        canonical_answer(r"\frac{\pi}{2}")  # the first use loads a grammar, for longer than CANONICAL_SECONDS
    logging.disable(logging.CRITICAL)
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    for limit_name in (resource.RLIMIT_CORE, resource.RLIMIT_FSIZE):  # no file can be written
        resource.setrlimit(limit_name, (0, 0))
    signal.signal(signal.SIGALRM, _raise_overdue)
    _reply(out, {"token": "", "ready": True})
    while True:
        try:
            token = pickle.load(sys.stdin.buffer)
            kind, text, gold, entry = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        verdict, answer = _timed_check(CHECKS[kind][1], (text, gold, entry), limit)
        _reply(out, {"token": token, "verdict": verdict, "answer": answer})


def _timed_check(check: Check, job: tuple[str, str, Mapping[str, Any]], limit: float) -> tuple[str, str]:
    """Return the verdict, within the limit, and the canonical answer, whose failure does not change the verdict."""
    try:
        verdict, answer, canonicalise = _run_within(limit, lambda: check(*job))
    except Overdue:
        return "timeout", ""
    except FAILURES:
        return "crash", ""
    try:
        return verdict, _run_within(min(limit, CANONICAL_SECONDS), lambda: canonicalise(answer)) if answer else ""
    except (Overdue, *FAILURES):
        return verdict, answer


def _run_within(seconds: float, function: Callable[[], T]) -> T:
    """Return the function's value.

    Raises:
        Overdue: It took longer than these seconds.
    """
    try:
        signal.setitimer(signal.ITIMER_REAL, seconds)
        return function()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def _raise_overdue(_number: int, _frame: object) -> None:
    raise Overdue


def _reply(out: int, reply: Mapping[str, Any]) -> None:
    short = {k: _shorten(v) if isinstance(v, str) else v for k, v in reply.items()}
    os.write(out, json.dumps(short).encode() + b"\n")


def _shorten(text: str) -> str:
    """Return a long answer's beginning with a hash of the whole, so that different answers stay different."""
    if len(text) <= MAX_ANSWER:
        return text
    return f"{text[: MAX_ANSWER - 20]} #{hashlib.sha256(text.encode(errors='replace')).hexdigest()[:16]}"


def main() -> None:
    """Run a worker from the command line."""
    parser = argparse.ArgumentParser(description="Checks answers for prmbench; started by it.")
    parser.add_argument("kinds", nargs="*", choices=sorted(CHECKS))
    parser.add_argument("--limit", type=float, default=5.0)
    parser.add_argument("--memory", type=int, default=2**31)
    arguments = parser.parse_args()
    serve(arguments.kinds, arguments.limit, arguments.memory)


if __name__ == "__main__":
    main()
