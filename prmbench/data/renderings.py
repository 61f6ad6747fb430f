"""Benchmark format_shift: the same solution in other formats, and which original step each new one comes from.

Pure text functions. None looks at the label to decide what a model sees, or tells right from wrong.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from prmbench.core.records import ScoreKind, StepScores, Trace, UserError
from prmbench.data import files
from prmbench.tasks.format_shift import MERGED, PLAIN, PREFIX, base_and_rendering, rendered_id, rendered_name

ANSWERLESS, SPLIT = "answerless", "split"
RULE = "-" * 20
"""What `separators` writes below every step; no family's tag or separator is in it."""
HIDDEN = "?"
"""What stands for an answer that is taken out."""
_HEADER = re.compile(r"\W*step\s*\d", re.IGNORECASE)
_MATH = re.compile(
    r"(?<!\\)\$\$.*?(?:\$\$|\Z)|(?<!\\)\$.*?(?:(?<!\\)\$|\Z)|\\\[.*?(?:\\\]|\Z)|\\\(.*?(?:\\\)|\Z)"
    r"|\\begin\{([^}]*)\}.*?(?:\\end\{\1\}|\Z)",
    re.DOTALL,
)
"""What is never cut; one that is left open reaches to the end, and so may a currency's dollar."""
_CUT = re.compile(r"[.!?][\"')\]*]*(?=\s)|\r\n?|\n")
_NUMBER = re.compile(r"(?:^|\n)\W*(?:step\s*)?\d+[.:)]?\W*\Z", re.IGNORECASE)
"""The number of a list or a header, which is no sentence."""
_WORD = re.compile(r"\w")
_ANSWER = re.compile(
    r"(\banswer\b\**\s*(?:is\b\s*:?|:)[\s*]*)"
    r"(\\\[.*?\\\]|\$\$.*?\$\$|[^\s*:](?:(?!\n).)*?)(?=\**[.!?]?\**(?:\n|\Z)|\**[.!?]\**\s)",
    re.IGNORECASE | re.DOTALL,
)
"""Up to the end of the sentence or of the line."""
_BOXED = re.compile(r"\\boxed\s*\{")


@dataclass(frozen=True, slots=True)
class Rendered:
    """A trace in another format; its label and steps are those of the new format."""

    trace: Trace
    parents: tuple[int, ...]
    """Per new step, the index of the original one that it comes from; of a merged step the first."""


def plain(trace: Trace) -> Rendered:
    """As it is."""
    return Rendered(trace, tuple(range(len(trace.steps))))


def headers(trace: Trace) -> Rendered:
    """`Step 3: ` before each step that does not begin so already."""
    return _each(trace, "headers", lambda k, step: step if _HEADER.match(step) else f"Step {k}: {step}")


def markdown(trace: Trace) -> Rendered:
    """A line `### Step 3` above each step that does not begin with a step's number already."""
    return _each(trace, "markdown", lambda k, step: step if _HEADER.match(step) else f"### Step {k}\n{step}")


def separators(trace: Trace) -> Rendered:
    """A line of dashes below each step."""
    return _each(trace, "separators", lambda k, step: f"{step}\n{RULE}")


def merged(trace: Trace) -> Rendered:
    """Two steps become one, a line break between them: step k moves to k // 2, and so does the first error."""
    parents = tuple(range(0, len(trace.steps), 2))
    steps = tuple("\n".join(trace.steps[k : k + 2]) for k in parents)
    label = trace.first_error
    return _cut(trace, MERGED, steps, parents, label if label is None or label < 0 else label // 2)


def split(trace: Trace) -> Rendered:
    """Each step is cut in two at the sentence or line end nearest to its middle; one that has none stays whole.

    Never inside a formula, an environment or a box. The label is the first half of the wrong step, which need not be
    the wrong half: scores are brought back to the original steps before they are judged (`combined`).
    """
    halves = [_halves(step) for step in trace.steps]
    parents = tuple(k for k, parts in enumerate(halves) for _ in parts)
    label = trace.first_error
    steps = tuple(part for parts in halves for part in parts)
    return _cut(trace, SPLIT, steps, parents, label if label is None or label < 0 else parents.index(label))


def answerless(trace: Trace) -> Rendered:
    r"""The last step says `?` for the contents of `\boxed{...}` and for what stands after "answer is" or "answer:".

    The same number elsewhere in the text stays.
    """
    last = _without_answer(trace.steps[-1])
    return _each(trace, ANSWERLESS, lambda k, step: last if k == len(trace.steps) else step)


def prefix(trace: Trace) -> Rendered:
    """The first half of the steps, ceil(K / 2). The label is -1 when the first error is behind; no outcome."""
    count = (len(trace.steps) + 1) // 2
    label = trace.first_error
    found = _cut(
        trace, PREFIX, trace.steps[:count], tuple(range(count)), -1 if label is not None and label >= count else label
    )
    return replace(found, trace=replace(found.trace, outcome=None, answer="", finish=""))


RENDERINGS: Mapping[str, Callable[[Trace], Rendered]] = {
    PLAIN: plain,
    "headers": headers,
    "markdown": markdown,
    "separators": separators,
    MERGED: merged,
    SPLIT: split,
    ANSWERLESS: answerless,
    PREFIX: prefix,
}
"""By name, in table order."""


# --- what is judged, and what a model is shown ------------------------------------------------------------


def rendered(traces: Sequence[Trace], names: Sequence[str] = ()) -> list[Trace]:
    """The traces of the benchmark: plain ones, then each rendering (default: all) with ids and subsets of its own.

    They are as they are judged: those of `split` keep their original steps, and backends/rendered.py shows a model the
    halves. `answerless` leaves out traces whose first error is the last step, whatever that step says: without its
    answer it may be right. Raises UserError on names that cannot be used.
    """
    for name in names:
        if name not in RENDERINGS:
            raise UserError(f"--rendering {name}: choose from {', '.join(RENDERINGS)}")
    for trace in traces:
        if base_and_rendering(trace.subset)[1] != PLAIN:
            raise UserError(f"subset {trace.subset!r}: ends like a rendering's name; call it something else")
    found = []
    for name, render in RENDERINGS.items():
        if name == PLAIN or not names or name in names:
            found += [_judged(trace, name, render) for trace in traces if _keeps_its_label(trace, name)]
    files.unique_ids([t.id for t in found], "the rendered traces")
    return found


def _judged(trace: Trace, name: str, render: Callable[[Trace], Rendered]) -> Trace:
    return _named(trace, SPLIT) if name == SPLIT else render(trace).trace


def _keeps_its_label(trace: Trace, name: str) -> bool:
    return name != ANSWERLESS or trace.first_error != len(trace.steps) - 1


def shown(trace: Trace) -> Rendered:
    """What a model reads of a trace that `rendered` made: itself, but for `split` the halves. Ids stay."""
    if base_and_rendering(trace.subset)[1] != SPLIT:
        return plain(trace)
    found = split(trace)
    return replace(found, trace=replace(found.trace, id=trace.id, subset=trace.subset))


def combined(original_steps: int, parents: Sequence[int], scores: StepScores, kind: ScoreKind) -> StepScores:
    """Scores of split steps as scores of the original ones; `parents` rise from 0 to original_steps - 1.

    Sums over tokens add up, of values and probabilities the lowest counts, a verdict names the parent.
    """
    if scores.unscored or len(parents) == original_steps:
        return scores
    if kind == "verdict":
        verdicts = tuple(v if v is None or v == -1 else _parent(v, parents) for v in scores.verdicts)
        return replace(scores, verdicts=verdicts)
    for name, series in (("values", scores.values), *scores.also.items()):
        if len(series) != len(parents):
            return StepScores(
                scores.id,
                unscored=f"{len(series)} {name} for {len(parents)} steps",
                said=scores.said,
                usage=scores.usage,
                request_changes=scores.request_changes,
            )
    starts = [parents.index(k) for k in range(original_steps)]
    gather = np.add if kind == "logratio" else np.minimum  # both pass on a NaN
    return replace(
        scores,
        values=tuple(map(float, gather.reduceat(scores.values, starts))),
        also={name: tuple(map(float, gather.reduceat(series, starts))) for name, series in scores.also.items()},
        tokens=tuple(map(int, np.add.reduceat(scores.tokens, starts))) if scores.tokens else (),
    )


def _parent(verdict: int, parents: Sequence[int]) -> int | None:
    """None for a step that is not there: such a verdict is wrong, and must not become right by its number."""
    return parents[verdict] if 0 <= verdict < len(parents) else None


# --- text -------------------------------------------------------------------------------------------------


def _each(trace: Trace, name: str, write: Callable[[int, str], str]) -> Rendered:
    """One new step for each, given its number from 1."""
    steps = tuple(write(k, step) for k, step in enumerate(trace.steps, 1))
    return Rendered(replace(_named(trace, name), steps=steps), tuple(range(len(steps))))


def _cut(trace: Trace, name: str, steps: tuple[str, ...], parents: tuple[int, ...], label: int | None) -> Rendered:
    """Other steps, whose own labels nobody knows."""
    return Rendered(replace(_named(trace, name), steps=steps, first_error=label, step_labels=()), parents)


def _named(trace: Trace, name: str) -> Trace:
    return replace(trace, id=rendered_id(trace.id, name), subset=rendered_name(trace.subset, name))


def _halves(step: str) -> tuple[str, ...]:
    """The two parts, or the step itself."""
    kept = [(found.start(), found.end()) for found in _MATH.finditer(step)] + _boxes(step)
    cuts = [
        at
        for at in (found.end() for found in _CUT.finditer(step))
        if not any(begin < at < end for begin, end in kept) and _both_say_something(step[:at], step[at:])
    ]
    if not cuts:
        return (step,)
    at = min(cuts, key=lambda at: abs(2 * at - len(step)))
    return step[:at].rstrip(), step[at:].lstrip()


def _both_say_something(left: str, right: str) -> bool:
    return bool(_WORD.search(left) and _WORD.search(right)) and not _NUMBER.search(left)


def _without_answer(step: str) -> str:
    text = step
    for begin, end in reversed(_boxes(step)):
        opening = step.index("{", begin) + 1
        text = f"{text[:opening]}{HIDDEN}{text[end - 1 :]}"
    return _ANSWER.sub(lambda found: found[0] if "\\boxed" in found[2] else f"{found[1]}{HIDDEN}", text)


def _boxes(text: str) -> list[tuple[int, int]]:
    r"""Where each outermost `\boxed{...}` begins and ends; one that is never closed is none."""
    found: list[tuple[int, int]] = []
    for opening in _BOXED.finditer(text):
        depth, at = 1, opening.end()
        while depth and at < len(text):
            depth += {"{": 1, "}": -1}.get(text[at], 0) if text[at - 1] != "\\" else 0
            at += 1
        if not depth and not (found and opening.start() < found[-1][1]):
            found.append((opening.start(), at))
    return found
