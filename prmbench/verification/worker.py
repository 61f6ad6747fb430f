"""The process that checks answers for verifiers.py: reads pickled jobs, writes one JSON line each, may be killed.

Run as `python -m prmbench.verification.worker KIND... [--limit SECONDS] [--memory BYTES]`. Knows nothing of prompts.
verifiers.py starts it in an isolated interpreter, with nothing of its environment, in a process group of its own.
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
from typing import Any, TypeVar

MAX_ANSWER = 300
"""Characters of an answer that are handed back: a reply must fit into one piece of a pipe."""
SPELLING_SECONDS = 0.5
"""Simplifying an answer that was judged in time may take so much more; the parent waits a second."""
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
"""What sympy raises on odd input. Any other error ends this process, which is a crash, too."""


class Overdue(BaseException):
    """The limit has passed. Not an Exception: math-verify and sympy catch those and go on."""


def check_math(region: str, gold: str, _entry: Mapping[str, Any]) -> tuple[str, str, Callable[[str], str]]:
    """The verdict on an answer region, its answer, and what spells that so that equal ones vote together."""
    from prmbench.verification.canonical import spelled
    from prmbench.verification.grading import grade

    return *grade(region, gold), spelled


def check_gym(text: str, gold: str, entry: Mapping[str, Any]) -> tuple[str, str, Callable[[str], str]]:
    """The scorer of the task's own dataset; only full marks are right."""
    import reasoning_gym

    from prmbench.verification.gym_tasks import refusal

    if reason := refusal(entry["metadata"]):  # as the parent has asked already
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
    """Answers jobs until the input ends. Nothing but replies reaches the output, whatever libraries print."""
    out = os.dup(sys.stdout.fileno())
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    for kind in kinds:
        __import__(CHECKS[kind][0])
    if "math" in kinds:
        __import__("prmbench.verification.canonical")
    logging.disable(logging.CRITICAL)
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    for nothing in (resource.RLIMIT_CORE, resource.RLIMIT_FSIZE):  # no file is written
        resource.setrlimit(nothing, (0, 0))
    signal.signal(signal.SIGALRM, _overdue)
    _reply(out, {"token": "", "ready": True})
    while True:
        try:
            token = pickle.load(sys.stdin.buffer)
            kind, text, gold, entry = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        verdict, answer = _timed(CHECKS[kind][1], (text, gold, entry), limit)
        _reply(out, {"token": token, "verdict": verdict, "answer": answer})


def _timed(check: Check, job: tuple[str, str, Mapping[str, Any]], limit: float) -> tuple[str, str]:
    """The verdict within the limit, and the answer's spelling, which may take longer and never costs a verdict."""
    try:
        verdict, answer, spell = _within(limit, lambda: check(*job))
    except Overdue:
        return "timeout", ""
    except FAILURES:
        return "crash", ""
    try:
        return verdict, _within(min(limit, SPELLING_SECONDS), lambda: spell(answer)) if answer else ""
    except (Overdue, *FAILURES):
        return verdict, answer


def _within(seconds: float, function: Callable[[], T]) -> T:
    """What a function returns. Raises Overdue after so many seconds."""
    try:
        signal.setitimer(signal.ITIMER_REAL, seconds)
        return function()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def _overdue(_number: int, _frame: object) -> None:
    raise Overdue


def _reply(out: int, reply: Mapping[str, Any]) -> None:
    short = {k: _short(v) if isinstance(v, str) else v for k, v in reply.items()}
    os.write(out, json.dumps(short).encode() + b"\n")


def _short(text: str) -> str:
    """A long answer keeps its beginning, and a hash of the whole: unlike answers stay unlike."""
    if len(text) <= MAX_ANSWER:
        return text
    return f"{text[: MAX_ANSWER - 20]} #{hashlib.sha256(text.encode(errors='replace')).hexdigest()[:16]}"


def main() -> None:
    """Command line of a worker."""
    parser = argparse.ArgumentParser(description="Checks answers for prmbench; started by it.")
    parser.add_argument("kinds", nargs="*", choices=sorted(CHECKS))
    parser.add_argument("--limit", type=float, default=5.0)
    parser.add_argument("--memory", type=int, default=2**31)
    given = parser.parse_args()
    serve(given.kinds, given.limit, given.memory)


if __name__ == "__main__":
    main()
