r"""What a critic's text says: an index, a verdict on every step, Yes or No. Pure functions of text.

All of them look at the answer region alone (answer_region.py), never at a thought that was cut, and read \boxed{...}
there.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from prmbench.verification.answer_region import answer_region, answer_span, boxes, last_box

READING_VERSION = 2
"""Of the rules by which answers are read; a change that moves a verdict bumps it. 2: in the answer region alone."""

_LONGEST_CONTENT = 200
"""Characters of a box beyond which it holds no index and no verdict."""
_WRAPPED = re.compile(
    r"\\(?:text(?:bf|it|rm|sf|tt|up|md|normal)?|emph|underline|[mh]box|operatorname\*?|ensuremath"
    r"|math(?:rm|bf|it|sf|tt|normal)|boldsymbol|bm)\s*\{([^{}]*)\}"
)
_STYLE = re.compile(
    r"\\(?:displaystyle|textstyle|bf|rm|it|sf|tt|bfseries|large|Large|huge|Huge|left|right)(?![A-Za-z])"
)
_ARGUMENT = r"\\(?:textcolor|color|hspace\*?)\s*\{[^{}]*\}"
"""Commands whose first argument is no content."""
_NOISE = re.compile(r"\\[()\[\],;:!]|[$`*'\"<>{}]|\\(?=[_\s#])")
_SIGNS = str.maketrans({**dict.fromkeys("\u2212\u2013\u2012\u2010\ufe63\uff0d", "-"), "\uff0b": "+"})
_INDEX = re.compile(r"(?:(?:paragraph|index)(?![-+]))?[\s_:=]*([+-]?)\s*(\d{1,6})", re.IGNORECASE)
_DECISION = re.compile(r"(?:step\s*\d+\s*(?:is|:)?\s*)?(correct|incorrect)", re.IGNORECASE)
_JUDGEMENT = re.compile(
    rf"(?:{_ARGUMENT}|\\[a-z]++\*?|\\[^a-z]|[^\w\\])*+(yes|no)\b(?!\s+(?:\w+\s+)?(?:error|mistake|issue|problem|flaw))",
    re.IGNORECASE,
)
"""Yes or No behind commands and signs; `No error` is the contrary of No, and is not read."""
_BOLD = re.compile(r"\*\*\s*+(yes|no)\s*+[.!]?\s*+\*\*", re.IGNORECASE)
_EITHER = re.compile(r"\b(?:yes|no)\b", re.IGNORECASE)


def bare(content: str) -> str:
    """Contents without LaTeX wrappers, math and quotation marks, blanks around and a full stop; empty when too long."""
    if len(content) > _LONGEST_CONTENT:
        return ""
    content = _STYLE.sub("", re.sub(_ARGUMENT, "", content.translate(_SIGNS)))
    while (inner := _WRAPPED.sub(r"\1", content)) != content:
        content = inner
    return _NOISE.sub("", content).replace("~", " ").strip().rstrip(".!").strip()


def index(text: str, steps: int) -> int | None:
    r"""The index in the last \boxed{...} of an answer, -1 = no error; None when there is none from -1 to steps - 1.

    ProcessBench's own parser gives the content of the last \boxed{...} to `int` after the vote. What `int` takes is
    read alike here: blanks, a plus, digits of any script. Otherwise:

    * only the answer region counts, and where its last box is never closed there is no answer;
    * braces may nest; \text{2}, paragraph_2, $-1$, the Unicode minus and a full stop are read, but not paragraph-1,
      which may be a hyphen;
    * an index that no paragraph has counts as unparsed (there it is wrong all the same, but it can win the vote);
    * votes are counted over integers, so that 1 and 01 agree and what cannot be parsed never wins.
    """
    region = answer_region(text)
    content = None if region is None else last_box(region)
    value = None if content is None else _integer(content)
    return value if value is not None and -1 <= value < steps else None


def _integer(content: str) -> int | None:
    try:
        return int(content)  # as the official parser reads it
    except ValueError:
        match = _INDEX.fullmatch(bare(content))
        return None if match is None else int(match[1] + match[2])


def decisions(text: str) -> list[bool]:
    r"""Every \boxed{correct} (True) and \boxed{incorrect} (False), in order; other boxes are passed over.

    Of a reasoning model those behind its thought. Where none are there, those in a thought that was ended: ThinkPRM
    gives its verdicts there. A thought that was cut holds none.
    """
    region = answer_region(text)
    return [] if region is None else _decisions(region) or _decisions(text)


def _decisions(text: str) -> list[bool]:
    matches = (_DECISION.fullmatch(bare(box.content)) for box in boxes(text) if box.content is not None)
    return [match[1].lower() == "correct" for match in matches if match]


def first_error(decided: Sequence[bool], steps: int) -> int | None:
    """The first step called incorrect, -1 when all are correct; None when there is not one verdict for each step.

    Verdicts may end with the first incorrect one (ThinkPRM's filter of its training data).
    """
    if False in decided:
        first = list(decided).index(False)
        return first if first < steps and len(decided) in (first + 1, steps) else None
    return -1 if decided and len(decided) == steps else None


def judgement(text: str) -> tuple[int, int] | None:
    r"""Where the word of the last \boxed{Yes} or \boxed{No} stands, in any case and font, else of the last **Yes**.

    None in a thought that was cut, and where the last box is never closed: the answer was cut.
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
        word = _JUDGEMENT.match(content)
        if word and len({each.lower() for each in _EITHER.findall(content)}) == 1:
            return start + box.start + word.start(1), start + box.start + word.end(1)
    bold = list(_BOLD.finditer(text, start, end))
    return bold[-1].span(1) if bold else None
