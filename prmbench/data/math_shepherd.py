"""Math-Shepherd's rows: a problem and its steps in one text, a tag behind every step, and a label text beside it.

The tag may be a word of the problem, too; the label text shows which tags close a step. Facts: docs/data.md.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from prmbench.core import validation
from prmbench.core.reading import normalise_line_ends
from prmbench.core.records import UserError
from prmbench.data import files, rollouts
from prmbench.data.rollouts import Rollout

TAG = "ки"
"""Closes every step of `input`; `label` has + or - in its place."""
_FIRST_STEP = re.compile(r"(?<!\S)Step 1:")
_FIRST_STEP_ANY_FORM = re.compile(r"(?:#{1,6} *|\*{1,3})?\bstep\s*1\s*\**(?::|[.)](?=[\s*]))", re.IGNORECASE)
_MARKUP_AT_END = re.compile(r"(?:\n#{1,6}[ \t]*| \*{2,3}|\n\*{1,3})\Z")
"""Of a heading in Markdown, before its words."""
_HEADING = re.compile(r"\A(?:#{1,6} *|\*{1,3})?step\s*\d+\s*\**(?::|[.)](?=[\s*]|\Z))\**\s*", re.IGNORECASE)
_MARK = re.compile(rf"{TAG}(?:[ \t]*\?)?")
"""The tag, also in the card's newer spelling."""
_STEP_END = re.compile(r"[ \t]*(?:\n|\Z|[*# ]*step\s*\d+\s*\**[:.)])", re.IGNORECASE)
"""What follows a tag that closes a step."""
_SIGN = re.compile(rf"(?:{TAG}\s*)?([+-])(?:[ \t]*\?)?")
"""What `label` has in the place of a mark; where its tag alone was replaced, the question mark is still there."""


def solution(row: Mapping[str, Any], where: str) -> Rollout:
    """The problem and its steps in `input`, each closed by the tag; in `label` the same text, + or - for every tag.

    `Step k:` is dropped where text follows it, since encoders write it. A label is what sampling from there reached,
    not a person's word.

    Raises:
        UserError: The row has no problem, no steps, a blank step, or not one label for each step.
    """
    text, labelled = (normalise_line_ends(files.text_field(row, name, where)) for name in ("input", "label"))
    tags = list(_MARK.finditer(text))
    if not tags or text[tags[-1].end() :].strip():
        raise UserError(f"{where}: field 'input' has {len(tags)} tags {TAG!r}; expected one after every step")
    headings = _first_headings(text, where)
    closing = _closing_tags(text, tags, labelled, headings[0], where)
    begin = max(heading for heading in headings if heading < closing[0][0].start())
    starts = (begin, *(tag.end() for tag, _ in closing[:-1]))
    pieces = [text[start : tag.start()].strip() for start, (tag, _) in zip(starts, closing, strict=True)]
    labels = tuple(label for _, label in closing)
    subset = files.text_field(row, "task", where).lower() if row.get("task") else ""
    if subset and not validation.NAME.fullmatch(subset):
        raise UserError(f"{where}: field 'task' is {subset!r:.60}; use letters, digits and . + - _ only")
    return Rollout(
        "",
        _before(text, begin, where),
        steps=files.steps_field({"steps": [_HEADING.sub("", piece) or piece for piece in pieces]}, where),
        step_labels=labels,
        first_error=rollouts.first_error_of(labels),
        subset=subset,
    )


def problem(row: Mapping[str, Any], where: str) -> str:
    """Return the problem of a row, whatever its labels are like. Raises UserError on a row without one."""
    try:
        return solution(row, where).prompt
    except UserError:  # without labels any tag may close the first step
        pass
    text = normalise_line_ends(files.text_field(row, "input", where))
    headings = _first_headings(text, where)
    tag = text.find(TAG, headings[0])
    return _before(text, max(heading for heading in headings if tag < 0 or heading < tag), where)


def _before(text: str, heading: int, where: str) -> str:
    asked = _MARKUP_AT_END.sub("", text[:heading]).strip()
    if not asked:
        raise UserError(f"{where}: field 'input' has no 'Step 1:' after the problem")
    return asked


def _first_headings(text: str, where: str) -> list[int]:
    """Where `Step 1:` stands, at least once: problems say it, too, so the steps begin at the last before their tag."""
    usual, any_form = ([match.start() for match in form.finditer(text)] for form in (_FIRST_STEP, _FIRST_STEP_ANY_FORM))
    if not any_form:
        raise UserError(f"{where}: field 'input' has no 'Step 1:' after the problem")
    # a tag before it: the usual heading is quoted by a later step, and the first one is written otherwise
    return usual if usual and TAG not in text[any_form[0] : usual[0]] else any_form


def _closing_tags(
    text: str, tags: Sequence[re.Match[str]], labelled: str, first: int, where: str
) -> list[tuple[re.Match[str], float]]:
    """The tags from the first heading on that close a step, at least the last one, and the label of each.

    A step may hold + and - of its own, so the label text is read along the input. A tag that stands there unchanged is
    text, unless a line ends or the next heading follows: then its label is missing.
    """
    closing: list[tuple[re.Match[str], float]] = []
    at = begin = 0
    for tag, stop in zip(tags, (*(tag.start() for tag in tags[1:]), len(text)), strict=True):
        body = text[begin : tag.start()].strip()
        at = _skip_blanks(labelled, at)
        fits = labelled.startswith(body, at)
        at = _skip_blanks(labelled, at + len(body))
        behind = _skip_blanks(labelled, at + len(tag[0]))
        unchanged = labelled.startswith(tag[0], at) and labelled.startswith(text[tag.end() : stop].strip(), behind)
        sign = _SIGN.match(labelled, at)
        if fits and unchanged and (tag.start() < first or not _STEP_END.match(text, tag.end())):
            at += len(tag[0])
        elif fits and sign:
            at = sign.end()
            closing += [(tag, float(sign[1] == "+"))] if tag.start() > first else []
        else:
            raise UserError(
                f"{where}: field 'label' has no + or - for step {len(closing)} of 'input', or another text there"
            )
        begin = tag.end()
    if labelled[at:].strip():
        raise UserError(f"{where}: field 'label' goes on after the last step of 'input'")
    return closing


def _skip_blanks(text: str, at: int) -> int:
    while at < len(text) and text[at].isspace():
        at += 1
    return at
