"""The process that checks answers for verify.py: reads pickled jobs, writes one JSON line each, may be killed.

Run as `python -m prmbench.verify_worker KIND... [--limit SECONDS] [--memory BYTES]`. Knows nothing of prompts.
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
from typing import Any

MAX_ANSWER = 300
"""Characters of an answer that are handed back: a reply must fit into one piece of a pipe."""
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


def check_math(text: str, gold: str, _entry: Mapping[str, Any]) -> dict[str, str]:
    """math-verify: gold first, as LaTeX in a box; the answer from a box, an "Answer:" line, or any last expression."""
    from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse, verify

    options: dict[str, Any] = {"parsing_timeout": None, "raise_on_error": True}
    golds = parse(f"\\boxed{{{gold}}}", [LatexExtractionConfig()], **options)
    if not golds:
        return {"verdict": "no gold"}
    found = parse(text, [ExprExtractionConfig(), LatexExtractionConfig()], **options)
    if not found:
        return {"verdict": "no answer"}
    failed = False
    for truth in golds:
        for answer in found:
            try:
                if verify(truth, answer, timeout_seconds=None, raise_on_error=True):
                    return {"verdict": "right", "answer": canonical(found)}
            except FAILURES:
                failed = True
    return {"verdict": "crash" if failed else "wrong", "answer": canonical(found)}


def canonical(found: list[Any]) -> str:
    r"""Spelling of an extracted answer: 1/2, \frac{1}{2} and 0.5 are one, and so are `x = 3` and `3`.

    `found` is what math-verify's parse returns: a sympy expression, then its text; or the text alone.
    """
    import sympy  # type: ignore[import-untyped]

    answer = found[0]
    if not isinstance(answer, sympy.Basic):
        return str(found[-1]).strip()
    try:
        if isinstance(answer, sympy.Eq) and answer.lhs.is_Symbol:
            answer = answer.rhs
        if not answer.free_symbols:
            answer = answer.doit()
        if isinstance(answer, sympy.Float):
            answer = sympy.Rational(str(answer))
        return str(answer)
    except FAILURES:
        return str(found[-1]).strip()


def check_gym(text: str, gold: str, entry: Mapping[str, Any]) -> dict[str, str]:
    """The scorer of the task's own dataset; only full marks are right."""
    import reasoning_gym

    name = entry["metadata"]["source_dataset"]
    score = reasoning_gym.get_score_answer_fn(name)(answer=text, entry={**entry, "answer": gold})
    return {"verdict": "right" if score >= 1 else "wrong", "answer": text}


CHECKS: Mapping[str, tuple[str, Callable[[str, str, Mapping[str, Any]], dict[str, str]]]] = {
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
    logging.disable(logging.CRITICAL)
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGALRM, _overdue)
    _reply(out, {"ready": True})
    while True:
        try:
            kind, text, gold, entry = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        _reply(out, _timed(CHECKS[kind][1], (text, gold, entry), limit))


def _timed(
    check: Callable[..., dict[str, str]], job: tuple[str, str, Mapping[str, Any]], limit: float
) -> dict[str, str]:
    try:
        signal.setitimer(signal.ITIMER_REAL, limit)
        try:
            return check(*job)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    except Overdue:
        return {"verdict": "timeout"}
    except FAILURES:
        return {"verdict": "crash"}


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
