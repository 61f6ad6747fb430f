"""Writes traces into the critics' prompts from assets/prompts.

User text is inserted, never formatted: braces and tags in a problem stay as they are.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from string import Formatter
from typing import Literal

from prmbench.core.records import Trace, UserError
from prmbench.engines.chat import Messages
from prmbench.engines.encoding import number_steps

DECISION_QUESTION = "Is the solution correct? Answer with one word, yes or no."
"""Asked when a critique of the steps was cut or holds no verdict. ThinkPRM forces its decision with the first four
words appended to the critique; here they are a turn of their own, which every engine supports."""
DECISION_WORDS = ("yes", "no")
JUDGEMENT_WORDS = ("Yes", "No")
_HEADER = re.compile(r"Step \d+:\s*")


@dataclass(frozen=True, slots=True)
class Prompt:
    """A critic's prompt, as a file in assets/prompts holds it."""

    name: str
    text: str
    critic: Literal["processbench", "stepwise", "yes_no"]
    """The critic that it belongs to: a value of --critic."""
    opening: str = ""
    """Text with which every answer begins, as in the checkpoint's training."""
    removed: str = ""
    """Regular expression whose matches are removed from every step before it is numbered. Empty: only a header at the
    beginning of a step is removed."""


def load(name: str) -> Prompt:
    """Read a critic's prompt. Raises UserError when there is none of that name."""
    source = files("prmbench") / "assets" / "prompts" / f"{name}.json"
    fields = json.loads(source.read_text(encoding="utf-8")) if name.isidentifier() and source.is_file() else {}
    if "critic" not in fields:
        raise UserError(f"prompt {name!r}: prmbench/assets/prompts has no critic's prompt of that name")
    return Prompt(name, fields["text"], fields["critic"], fields.get("opening", ""), fields.get("removed", ""))


def fill(template: str, **values: str) -> str:
    """Fill the fields of a Python format string; braces in the values have no meaning."""
    return "".join(before + (values[name] if name else "") for before, name, *_ in Formatter().parse(template))


def processbench(prompt: Prompt, trace: Trace) -> Messages:
    """Return one user turn: the problem, and the steps as tagged paragraphs, counted from 0."""
    tagged = "\n\n".join(f"<paragraph_{i}>\n{step}\n</paragraph_{i}>" for i, step in enumerate(trace.steps))
    return _user_turn(fill(prompt.text, problem=trace.prompt, tagged_response=tagged))


def stepwise(prompt: Prompt, trace: Trace) -> Messages:
    """Return one user turn: the problem, and the steps as "Step 1: ...", one a line, without their own headers.

    The prompt says which headers are removed: ThinkPRM's code removes every `Step n:`, also inside a step.
    """
    if prompt.removed:
        steps = [re.sub(prompt.removed, "", step).strip() for step in trace.steps]
    else:
        steps = [_HEADER.sub("", step, count=1) if _HEADER.match(step) else step for step in trace.steps]
    return _user_turn(fill(prompt.text, problem=trace.prompt, solution="\n".join(number_steps(steps))))


def yes_no(prompt: Prompt, trace: Trace, critiques: Sequence[str] = ()) -> Messages:
    """Return a user turn for each step, the problem before the first, with the critiques so far between them."""
    steps = (f"{trace.prompt}\n{trace.steps[0]}", *trace.steps[1:])
    turns: list[dict[str, str]] = [{"role": "system", "content": fill(prompt.text)}]
    for i, step in enumerate(steps[: len(critiques) + 1]):
        turns.append({"role": "user", "content": step})
        turns += [{"role": "assistant", "content": text} for text in critiques[i : i + 1]]
    return tuple(turns)


def decision_messages(messages: Messages, critique: str) -> Messages:
    """Return the conversation extended by the critique and the question that forces a decision."""
    return (*messages, {"role": "assistant", "content": critique}, *_user_turn(DECISION_QUESTION))


def _user_turn(content: str) -> Messages:
    return ({"role": "user", "content": content},)
