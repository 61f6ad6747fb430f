r"""Finds the part of a completion that holds its final answer, outside of its reasoning, and the boxes in a text.

Plain string functions, linear in the length of the text. Both the verifiers (verifiers.py) and the critics' parser read
answers with them.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from dataclasses import dataclass

_TAG = re.compile(
    r"(?i)<(/?)\s*(answer|(?:seed:)?think|thinking|thought|reasoning)\s*>|[\[\u25c1](/?)(think)[\]\u25b7]"
    r"|<\|(?:begin|(end))_of_(thought)\|>|<\|channel\|>\s*(?:analysis|commentary|(final))\b[^<]*(?:<\|message\|>)?"
)
_BOX = re.compile(r"\\(?:boxed|fbox)(?![A-Za-z])\s*+")
_BARE_BOX = re.compile(r"[^\s${}\\,.;]+(?:[.,][^\s${}\\,.;]+)*")

_BLANK = re.compile(
    r"\\(?:text(?:bf|it|rm)?|math(?:rm|bf)|mbox|q?quad|[lc]?dots|square|Box|[hv]?phantom|hspace\*?)(?![A-Za-z])"
    r"|\\[ ,;:!_]|[\s?.,;:…_~$□{}\[\]()]"
)
"""Matches what says nothing in a box that nobody has filled in."""
_PLACEHOLDERS = frozenset(["", "answer", "youranswer", "finalanswer", "theanswer", "yourfinalanswer", "youranswerhere"])


def answer_region(text: str) -> str | None:
    """Return the part of a completion that holds its final answer.

    It is the content of the last `<answer>...</answer>` after the thought; without such tags, the text after the
    thought; without a thought, the whole text. A thought ends at `</think>` (also written `</thinking>`, `</thought>`,
    `</reasoning>`, `[/THINK]`, and as Seed-OSS, Kimi, OpenThinker and gpt-oss write it), whether its beginning is in
    the text or was in the prompt. When nothing but blanks follows the thought, an answer in tags inside it counts.

    Returns:
        The region, or None when the text ends inside a thought or inside an answer's tags, since it was truncated.
    """
    span = answer_span(text)
    return None if span is None else text[slice(*span)]


def answer_span(text: str) -> tuple[int, int] | None:
    """Return the start and end of the `answer_region` of a text, or None when it has none."""
    thought_end = 0
    in_thought = False
    answer_start: int | None = None
    region: tuple[int, int] | None = None
    for tag in _TAG.finditer(text):
        closes = bool(tag[1] or tag[3] or tag[5] or tag[7])
        if (tag[2] or "").lower() != "answer":
            in_thought = not closes
            if closes:
                thought_end = tag.end()
        elif not closes:
            answer_start = tag.end()
        elif answer_start is not None:
            region = (answer_start, tag.start())
            answer_start = None
    if in_thought or (answer_start is not None and answer_start > thought_end):
        return None
    if region is not None and (region[0] > thought_end or not text[thought_end:].strip()):
        return region
    return thought_end, len(text)


@dataclass(frozen=True, slots=True)
class Box:
    r"""A `\boxed{...}`, `\boxed {...}`, `\fbox{...}` or `\boxed 42`; positions are indices into the text."""

    start: int
    end: int
    content: str | None
    """None when the box is not closed."""


def boxes(text: str) -> list[Box]:
    r"""Return the outermost boxes of a text, in order; a box that is not closed is the last one.

    Boxes inside a box are unwrapped: the content of `\boxed{x = \boxed{2}}` is `x = 2`.
    """
    closing = _closing_braces(text)
    outermost: list[Box] = []
    position = 0
    commands = list(_BOX.finditer(text))
    starts = [command.start() for command in commands]
    for command in commands:
        begin = command.end()
        if command.start() < position:
            continue
        if text[begin : begin + 1] != "{":
            bare = _BARE_BOX.match(text, begin)
            if bare is not None:
                position = bare.end()
                outermost.append(Box(command.start(), position, bare[0]))
        elif begin in closing:
            position = closing[begin] + 1
            inner = commands[bisect_left(starts, begin) : bisect_left(starts, position)]
            outermost.append(Box(command.start(), position, _unwrapped(text, begin + 1, position - 1, inner, closing)))
        else:
            return [*outermost, Box(command.start(), len(text), None)]
    return outermost


def last_box(text: str) -> str | None:
    """Return the content of the last outermost box.

    Returns:
        None when there is no box, or when the last one is not closed.
    """
    outermost = boxes(text)
    return outermost[-1].content if outermost else None


def is_blank(content: str) -> bool:
    r"""Return whether a box was left blank, such as `\boxed{}`, `\boxed{?}`, `\boxed{\ldots}` and `\boxed{answer}`."""
    return _BLANK.sub("", content).lower() in _PLACEHOLDERS


def filled_boxes(text: str) -> list[Box]:
    """Return the outermost boxes of a text as `boxes` does, without those that were left blank."""
    return [box for box in boxes(text) if box.content is None or not is_blank(box.content)]


def _unwrapped(text: str, start: int, end: int, commands: list[re.Match[str]], closing: dict[int, int]) -> str:
    """Return the text from start to end without these box commands and their braces."""
    dropped = {closing[c.end()]: closing[c.end()] + 1 for c in commands if c.end() in closing}
    dropped |= {c.start(): c.end() + (text[c.end() : c.end() + 1] == "{") for c in commands}
    pieces = []
    for begin, after in sorted(dropped.items()):
        pieces.append(text[start:begin])
        start = max(start, after)
    return "".join([*pieces, text[start:end]]).strip()


def _closing_braces(text: str) -> dict[int, int]:
    """Return a map from the position of each opening brace to that of its closing one; escaped braces are text."""
    closing: dict[int, int] = {}
    open_braces: list[int] = []
    for brace in re.finditer(r"\\.|[{}]", text, re.DOTALL):
        if brace[0] == "{":
            open_braces.append(brace.start())
        elif brace[0] == "}" and open_braces:
            closing[open_braces.pop()] = brace.start()
    return closing
