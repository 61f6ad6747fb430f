r"""Reads a critic's answer: an index, a verdict on every step, or Yes or No. Pure functions of text.

All read \boxed{...} in the answer region only (verification/answer_region.py), never in a thought that was cut.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from prmbench.verification.answer_region import answer_region, answer_span, boxes, last_box

READING_VERSION = 2
"""Version of the parsing rules; a change that moves a verdict raises it. 2: only the answer region is read."""

_MAX_CONTENT_LENGTH = 200
"""A longer box, in characters, holds no index and no verdict."""
_LATEX_WRAPPER = re.compile(
    r"\\(?:text(?:bf|it|rm|sf|tt|up|md|normal)?|emph|underline|[mh]box|operatorname\*?|ensuremath"
    r"|math(?:rm|bf|it|sf|tt|normal)|boldsymbol|bm)\s*\{([^{}]*)\}"
)
_LATEX_STYLE = re.compile(
    r"\\(?:displaystyle|textstyle|bf|rm|it|sf|tt|bfseries|large|Large|huge|Huge|left|right)(?![A-Za-z])"
)
_LATEX_ARGUMENT = r"\\(?:textcolor|color|hspace\*?)\s*\{[^{}]*\}"
"""Matches commands whose first argument is not content."""
_LATEX_NOISE = re.compile(r"\\[()\[\],;:!]|[$`*'\"<>{}]|\\(?=[_\s#])")
_SIGNS = str.maketrans({**dict.fromkeys("\u2212\u2013\u2012\u2010\ufe63\uff0d", "-"), "\uff0b": "+"})
_INDEX = re.compile(r"(?:(?:paragraph|index)(?![-+]))?[\s_:=]*([+-]?)\s*(\d{1,6})", re.IGNORECASE)
_DECISION = re.compile(r"(?:step\s*\d+\s*(?:is|:)?\s*)?(correct|incorrect)", re.IGNORECASE)
_JUDGEMENT = re.compile(
    rf"(?:{_LATEX_ARGUMENT}|\\[a-z]++\*?|\\[^a-z]|[^\w\\])*+(yes|no)\b(?!\s+(?:\w+\s+)?(?:error|mistake|issue|problem|flaw))",
    re.IGNORECASE,
)
"""Matches Yes or No after commands and signs; `No error` means the opposite of No and is not read."""
_BOLD_JUDGEMENT = re.compile(r"\*\*\s*+(yes|no)\s*+[.!]?\s*+\*\*", re.IGNORECASE)
_YES_OR_NO = re.compile(r"\b(?:yes|no)\b", re.IGNORECASE)


def strip_markup(content: str) -> str:
    """Remove LaTeX wrappers, math and quotation marks, outer blanks and a full stop; empty when it is too long."""
    if len(content) > _MAX_CONTENT_LENGTH:
        return ""
    content = _LATEX_STYLE.sub("", re.sub(_LATEX_ARGUMENT, "", content.translate(_SIGNS)))
    while (inner := _LATEX_WRAPPER.sub(r"\1", content)) != content:
        content = inner
    return _LATEX_NOISE.sub("", content).replace("~", " ").strip().rstrip(".!").strip()


def parse_index(text: str, steps: int) -> int | None:
    r"""Return the index in the last \boxed{...} of an answer.

    ProcessBench's own parser passes the content of the last \boxed{...} to `int` after the vote. What `int` accepts is
    read the same way here: blanks, a plus, digits of any script. The differences:

    * only the answer region counts, and an unclosed last box is no answer;
    * braces may nest; \text{2}, paragraph_2, $-1$, the Unicode minus and a full stop are read, but not paragraph-1,
      whose sign may be a hyphen;
    * an index without a paragraph counts as unparsed (in the official parser it is wrong, but can win the vote);
    * votes are counted over integers, so that 1 and 01 agree and an unparsed answer never wins.

    Args:
        text: The answer.
        steps: Number of steps of the solution.

    Returns:
        An index from 0 to steps - 1, or -1 for no error; None when the answer holds no such index.
    """
    region = answer_region(text)
    content = None if region is None else last_box(region)
    value = None if content is None else _parse_index(content)
    return value if value is not None and -1 <= value < steps else None


def _parse_index(content: str) -> int | None:
    try:
        return int(content)  # as in the official parser
    except ValueError:
        match = _INDEX.fullmatch(strip_markup(content))
        return None if match is None else int(match[1] + match[2])


def parse_decisions(text: str) -> list[bool]:
    r"""Return every \boxed{correct} (True) and \boxed{incorrect} (False) in order; other boxes are skipped.

    For a reasoning model these are the boxes after its thought, or, where there are none, those inside a finished
    thought, where ThinkPRM gives its verdicts. A thought that was cut has none.
    """
    region = answer_region(text)
    return [] if region is None else _decisions(region) or _decisions(text)


def _decisions(text: str) -> list[bool]:
    matches = (_DECISION.fullmatch(strip_markup(box.content)) for box in boxes(text) if box.content is not None)
    return [match[1].lower() == "correct" for match in matches if match]


def first_error(verdicts: Sequence[bool], steps: int) -> int | None:
    """Return the index of the first incorrect step, -1 when all are correct, None without one verdict for each step.

    The verdicts may end at the first incorrect one (as in ThinkPRM's filter of its training data).
    """
    if False in verdicts:
        first = list(verdicts).index(False)
        return first if first < steps and len(verdicts) in (first + 1, steps) else None
    return -1 if verdicts and len(verdicts) == steps else None


def judgement(text: str) -> tuple[int, int] | None:
    r"""Return the start and end of the word in the last \boxed{Yes} or \boxed{No}, else in the last bold Yes or No.

    Case and font do not matter. None without such a word, in a thought that was cut, and when the last box is never
    closed, since the answer was then cut.
    """
    region = answer_span(text)
    if region is None:
        return None
    start, end = region
    boxed = boxes(text[start:end])
    if boxed and boxed[-1].content is None:
        return None
    for box in reversed(boxed):
        content = text[start + box.start : start + box.end]
        match = _JUDGEMENT.match(content)
        if match and len({each.lower() for each in _YES_OR_NO.findall(content)}) == 1:
            return start + box.start + match.start(1), start + box.start + match.end(1)
    bold = list(_BOLD_JUDGEMENT.finditer(text, start, end))
    return bold[-1].span(1) if bold else None
