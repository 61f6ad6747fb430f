r"""What a critic's text says: an index, a verdict on every step, Yes or No. Pure functions of text.

All of them read \boxed{...}, with braces matched.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

_BOXED = re.compile(r"\\boxed\s*\{")
_WRAPPED = re.compile(r"\\(?:boxed|text|textbf|textit|mathrm|mathbf|mathit|boldsymbol)\s*\{([^{}]*)\}")
_NOISE = re.compile(r"\\[()\[\]]|[$`*'\"<>]|\\(?=[_\s])")
_MINUS = str.maketrans(dict.fromkeys("\u2212\u2013\u2012\u2010\ufe63\uff0d", "-"))
_INDEX = re.compile(r"(?:(?:paragraph|index)(?!-))?[\s_:=]*(-?)\s*(\d{1,6})", re.ASCII | re.IGNORECASE)
_JUDGEMENT = re.compile(r"\\boxed\s*\{\s*(?:\\text(?:bf)?\s*\{\s*)?(yes|no)\b", re.IGNORECASE)
_THOUGHT = "</think>"


def boxed(text: str) -> list[str]:
    r"""The contents of every \boxed{...}, in order; one never closed is left out, one in another is part of it."""
    found, at = [], 0
    while opened := _BOXED.search(text, at):
        stop = _closing(text, opened.end())
        if stop is not None:
            found.append(text[opened.end() : stop])
        at = opened.end() if stop is None else stop
    return found


def _closing(text: str, start: int) -> int | None:
    """Where the brace that was opened before `start` is closed; escaped braces do not count."""
    depth, at = 1, start
    while at < len(text):
        if text[at] == "\\":
            at += 2
            continue
        depth += {"{": 1, "}": -1}.get(text[at], 0)
        if not depth:
            return at
        at += 1
    return None


def bare(content: str) -> str:
    """Contents without LaTeX wrappers, math and quotation marks, blanks around them or a full stop."""
    content = content.translate(_MINUS)
    while (inner := _WRAPPED.sub(r"\1", content)) != content:
        content = inner
    return _NOISE.sub("", content).strip().rstrip(".").strip()


def index(text: str, steps: int) -> int | None:
    r"""The index in the last \boxed{...} of an answer, -1 = no error; None when there is none from -1 to steps - 1.

    ProcessBench's own parser takes the last \boxed{...} without braces inside and gives its text to `int` after the
    vote. Here, otherwise: braces may nest; \text{2}, paragraph_2, 02, $-1$, the Unicode minus and a full stop are read,
    but not paragraph-1, which may be a hyphen; an index that no paragraph has counts as unparsed (there it is wrong all
    the same, but it can win the vote); and votes are counted over integers, so that 1 and 01 agree and what cannot be
    parsed never wins.
    """
    last = boxed(text)[-1:]
    match = _INDEX.fullmatch(bare(last[0])) if last else None
    if match is None:
        return None
    value = int(match[1] + match[2])
    return value if -1 <= value < steps else None


def decisions(text: str) -> list[bool]:
    r"""Every \boxed{correct} (True) and \boxed{incorrect} (False), in order; other boxes are passed over.

    Of a reasoning model those behind its thoughts, if there are any there.
    """
    thoughts, closed, rest = text.rpartition(_THOUGHT)
    behind = _decisions(rest)
    return behind if behind or not closed else _decisions(thoughts)


def _decisions(text: str) -> list[bool]:
    said = (bare(content).lower() for content in boxed(text))
    return [word == "correct" for word in said if word in ("correct", "incorrect")]


def first_error(found: Sequence[bool], steps: int) -> int | None:
    """The first step called incorrect, -1 when all are correct; None when there is not one verdict for each step.

    Verdicts may end with the first incorrect one (ThinkPRM's filter of its training data).
    """
    if False in found:
        at = list(found).index(False)
        return at if at < steps and len(found) in (at + 1, steps) else None
    return -1 if found and len(found) == steps else None


def judgement(text: str) -> tuple[int, int] | None:
    r"""Where the word of the last \boxed{Yes} or \boxed{No} stands, in any case."""
    found = list(_JUDGEMENT.finditer(text))
    return found[-1].span(1) if found else None
