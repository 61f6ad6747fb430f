"""What critics are asked: prompts from assets/prompts, and a trace written into them. No model, no parsing of answers.

User text is put in, never formatted: braces and tags in a problem stay what they are.
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
from prmbench.engines.encoding import numbered

DECIDE = "Is the solution correct? Answer with one word, yes or no."
"""Asked when a critique of the steps was cut, or holds no verdict (ThinkPRM forces its decision with these first four
words behind the critique; here they are a turn of their own, which every engine can take)."""
DECISION = ("yes", "no")
JUDGEMENT = ("Yes", "No")
_HEADER = re.compile(r"Step \d+:\s*")


@dataclass(frozen=True, slots=True)
class Prompt:
    """A file of assets/prompts."""

    name: str
    text: str
    critic: Literal["processbench", "stepwise", "yes_no"]
    """Whose prompt it is: a value of --critic."""
    opening: str = ""
    """What answers begin with: checkpoints were trained so."""
    removed: str = ""
    """Regular expression; its matches are taken out of every step before it is numbered. Empty: a header that a step
    begins with is taken out, and nothing inside it."""


def load(name: str) -> Prompt:
    """Reads a critic's prompt. Raises UserError when there is none of that name."""
    source = files("prmbench") / "assets" / "prompts" / f"{name}.json"
    row = json.loads(source.read_text(encoding="utf-8")) if name.isidentifier() and source.is_file() else {}
    if "critic" not in row:
        raise UserError(f"prompt {name!r}: prmbench/assets/prompts has no critic's prompt of that name")
    return Prompt(name, row["text"], row["critic"], row.get("opening", ""), row.get("removed", ""))


def fill(template: str, **values: str) -> str:
    """A Python format string with its fields filled in; what is filled in is not looked at."""
    return "".join(before + (values[name] if name else "") for before, name, *_ in Formatter().parse(template))


def processbench(prompt: Prompt, trace: Trace) -> Messages:
    """One user turn: the problem, and the steps as tagged paragraphs, counted from 0."""
    tagged = "\n\n".join(f"<paragraph_{i}>\n{step}\n</paragraph_{i}>" for i, step in enumerate(trace.steps))
    return _user(fill(prompt.text, problem=trace.prompt, tagged_response=tagged))


def stepwise(prompt: Prompt, trace: Trace) -> Messages:
    """One user turn: the problem, and the steps as "Step 1: ...", one a line, without headers of their own.

    What counts as one is the prompt's business: ThinkPRM's code takes out every `Step n:`, wherever it stands.
    """
    if prompt.removed:
        steps = [re.sub(prompt.removed, "", step).strip() for step in trace.steps]
    else:
        steps = [_HEADER.sub("", step, count=1) if _HEADER.match(step) else step for step in trace.steps]
    return _user(fill(prompt.text, problem=trace.prompt, solution="\n".join(numbered(steps))))


def yes_no(prompt: Prompt, trace: Trace, said: Sequence[str] = ()) -> Messages:
    """A turn a step, the problem in front of the first, and between them what was said so far."""
    steps = (f"{trace.prompt}\n{trace.steps[0]}", *trace.steps[1:])
    turns: list[dict[str, str]] = [{"role": "system", "content": fill(prompt.text)}]
    for i, step in enumerate(steps[: len(said) + 1]):
        turns.append({"role": "user", "content": step})
        turns += [{"role": "assistant", "content": text} for text in said[i : i + 1]]
    return tuple(turns)


def decide(asked: Messages, said: str) -> Messages:
    """The question that forces a decision, after what was asked and said."""
    return (*asked, {"role": "assistant", "content": said}, *_user(DECIDE))


def _user(content: str) -> Messages:
    return ({"role": "user", "content": content},)
