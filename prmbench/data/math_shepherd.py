"""Reader of Math-Shepherd's rows: one text with a problem and its steps, a tag after every step, and a label text.

The problem may contain the tag as a word; the label text shows which tags end a step. See docs/data.md.
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
"""Ends every step of `input`; `label` has + or - in its place."""
_FIRST_STEP = re.compile(r"(?<!\S)Step 1:")
_FIRST_STEP_ANY_FORM = re.compile(r"(?:#{1,6} *|\*{1,3})?\bstep\s*1\s*\**(?::|[.)](?=[\s*]))", re.IGNORECASE)
_MARKUP_AT_END = re.compile(r"(?:\n#{1,6}[ \t]*| \*{2,3}|\n\*{1,3})\Z")
"""The Markdown markup of a heading, which precedes its words."""
_HEADING = re.compile(r"\A(?:#{1,6} *|\*{1,3})?step\s*\d+\s*\**(?::|[.)](?=[\s*]|\Z))\**\s*", re.IGNORECASE)
_MARK = re.compile(rf"{TAG}(?:[ \t]*\?)?")
"""The tag, with or without the question mark that the data card's newer spelling has."""
_STEP_END = re.compile(r"[ \t]*(?:\n|\Z|[*# ]*step\s*\d+\s*\**[:.)])", re.IGNORECASE)
"""What follows a tag that ends a step."""
_SIGN = re.compile(rf"(?:{TAG}\s*)?([+-])(?:[ \t]*\?)?")
"""What `label` has in the place of a tag; if only the tag was replaced, the question mark is still there."""


def solution(row: Mapping[str, Any], location: str) -> Rollout:
    """Return a row as a rollout with one label per step.

    `input` holds the problem and the steps, each ended by the tag; `label` holds the same text with + or - for every
    tag. `Step k:` is dropped where text follows it, since encoders write it. The labels come from Monte-Carlo sampling
    after each step, not from people.

    Raises:
        UserError: The row has no problem, no steps, a blank step, or not one label for each step.
    """
    text, label_text = (normalise_line_ends(files.text_field(row, name, location)) for name in ("input", "label"))
    tags = list(_MARK.finditer(text))
    if not tags or text[tags[-1].end() :].strip():
        raise UserError(f"{location}: field 'input' has {len(tags)} tags {TAG!r}; expected one after every step")
    headings = _first_headings(text, location)
    closing = _closing_tags(text, tags, label_text, headings[0], location)
    begin = max(heading for heading in headings if heading < closing[0][0].start())
    starts = (begin, *(tag.end() for tag, _ in closing[:-1]))
    pieces = [text[start : tag.start()].strip() for start, (tag, _) in zip(starts, closing, strict=True)]
    labels = tuple(label for _, label in closing)
    subset = files.text_field(row, "task", location).lower() if row.get("task") else ""
    if subset and not validation.NAME.fullmatch(subset):
        raise UserError(f"{location}: field 'task' is {subset!r:.60}; use letters, digits and . + - _ only")
    return Rollout(
        "",
        _problem_before(text, begin, location),
        steps=files.steps_field({"steps": [_HEADING.sub("", piece) or piece for piece in pieces]}, location),
        step_labels=labels,
        first_error=rollouts.first_error_of(labels),
        subset=subset,
    )


def problem(row: Mapping[str, Any], location: str) -> str:
    """Return the problem of a row, even where its labels are invalid.

    Raises:
        UserError: The row has no problem.
    """
    try:
        return solution(row, location).prompt
    except UserError:  # without labels any tag may end the first step
        pass
    text = normalise_line_ends(files.text_field(row, "input", location))
    headings = _first_headings(text, location)
    tag = text.find(TAG, headings[0])
    return _problem_before(text, max(heading for heading in headings if tag < 0 or heading < tag), location)


def _problem_before(text: str, heading: int, location: str) -> str:
    problem_text = _MARKUP_AT_END.sub("", text[:heading]).strip()
    if not problem_text:
        raise UserError(f"{location}: field 'input' has no 'Step 1:' after the problem")
    return problem_text


def _first_headings(text: str, location: str) -> list[int]:
    """Return all positions of `Step 1:`; a problem may contain it, so the steps begin at the last one before a tag."""
    usual, any_form = ([match.start() for match in form.finditer(text)] for form in (_FIRST_STEP, _FIRST_STEP_ANY_FORM))
    if not any_form:
        raise UserError(f"{location}: field 'input' has no 'Step 1:' after the problem")
    # With a tag in between, a later step quotes the usual heading, and the first step's heading has another form.
    return usual if usual and TAG not in text[any_form[0] : usual[0]] else any_form


def _closing_tags(
    text: str, tags: Sequence[re.Match[str]], label_text: str, first: int, location: str
) -> list[tuple[re.Match[str], float]]:
    """Return the tags after the first heading that end a step, at least the last one, each with its label.

    Steps may contain + and -, so the label text is compared with the input piece by piece. A tag that is unchanged in
    the label text belongs to the text, unless a line end or the next heading follows: then its label is missing.
    """
    closing: list[tuple[re.Match[str], float]] = []
    position = begin = 0
    for tag, stop in zip(tags, (*(tag.start() for tag in tags[1:]), len(text)), strict=True):
        body = text[begin : tag.start()].strip()
        position = _skip_blanks(label_text, position)
        same_text = label_text.startswith(body, position)
        position = _skip_blanks(label_text, position + len(body))
        after_tag = _skip_blanks(label_text, position + len(tag[0]))
        unchanged = label_text.startswith(tag[0], position) and label_text.startswith(
            text[tag.end() : stop].strip(), after_tag
        )
        sign = _SIGN.match(label_text, position)
        if same_text and unchanged and (tag.start() < first or not _STEP_END.match(text, tag.end())):
            position += len(tag[0])
        elif same_text and sign:
            position = sign.end()
            closing += [(tag, float(sign[1] == "+"))] if tag.start() > first else []
        else:
            raise UserError(
                f"{location}: field 'label' has no + or - for step {len(closing)} of 'input', or another text there"
            )
        begin = tag.end()
    if label_text[position:].strip():
        raise UserError(f"{location}: field 'label' goes on after the last step of 'input'")
    return closing


def _skip_blanks(text: str, position: int) -> int:
    while position < len(text) and text[position].isspace():
        position += 1
    return position
