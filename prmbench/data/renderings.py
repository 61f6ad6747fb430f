"""Benchmark format_shift: renders a solution in other formats, and maps each new step to the original one.

Pure text functions. What a model sees never depends on the label.
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
"""What `separators` writes below every step; it contains no model family's tag or separator."""
HIDDEN = "?"
"""Replaces an answer that is removed."""
_HEADER = re.compile(r"\W*step\s*\d", re.IGNORECASE)
_MATH = re.compile(
    r"(?<!\\)\$\$.*?(?:\$\$|\Z)|(?<!\\)\$.*?(?:(?<!\\)\$|\Z)|\\\[.*?(?:\\\]|\Z)|\\\(.*?(?:\\\)|\Z)"
    r"|\\begin\{([^}]*)\}.*?(?:\\end\{\1\}|\Z)",
    re.DOTALL,
)
"""Formulas and environments, which are never cut. An unclosed one, and perhaps a dollar sign of a price, extends to the
end of the text."""
_CUT = re.compile(r"[.!?][\"')\]*]*(?=\s)|\r\n?|\n")
_NUMBER = re.compile(r"(?:^|\n)\W*(?:step\s*)?\d+[.:)]?\W*\Z", re.IGNORECASE)
"""The number of a list item or a header, which is not a sentence."""
_WORD = re.compile(r"\w")
_ANSWER = re.compile(
    r"(\banswer\b\**\s*(?:is\b\s*:?|:)[\s*]*)"
    r"(\\\[.*?\\\]|\$\$.*?\$\$|[^\s*:](?:(?!\n).)*?)(?=\**[.!?]?\**(?:\n|\Z)|\**[.!?]\**\s)",
    re.IGNORECASE | re.DOTALL,
)
"""An announced answer, up to the end of its sentence or line."""
_BOXED = re.compile(r"\\boxed\s*\{")


@dataclass(frozen=True, slots=True)
class Rendered:
    """A trace in another format; its label and steps are those of the new format."""

    trace: Trace
    parents: tuple[int, ...]
    """Index of the original step of each new step; for a merged step, of the first of its two."""


def plain(trace: Trace) -> Rendered:
    """Return the trace unchanged."""
    return Rendered(trace, tuple(range(len(trace.steps))))


def headers(trace: Trace) -> Rendered:
    """Put `Step 3: ` before each step that has no such heading yet."""
    return _rewrite_steps(trace, "headers", lambda k, step: step if _HEADER.match(step) else f"Step {k}: {step}")


def markdown(trace: Trace) -> Rendered:
    """Put a line `### Step 3` above each step that has no such heading yet."""
    return _rewrite_steps(trace, "markdown", lambda k, step: step if _HEADER.match(step) else f"### Step {k}\n{step}")


def separators(trace: Trace) -> Rendered:
    """Put a line of dashes below each step."""
    return _rewrite_steps(trace, "separators", lambda k, step: f"{step}\n{RULE}")


def merged(trace: Trace) -> Rendered:
    """Join each two steps by a line break: step k becomes k // 2, and so does the label."""
    parents = tuple(range(0, len(trace.steps), 2))
    steps = tuple("\n".join(trace.steps[k : k + 2]) for k in parents)
    label = trace.first_error
    return _replace_steps(trace, MERGED, steps, parents, label if label is None or label < 0 else label // 2)


def split(trace: Trace) -> Rendered:
    """Cut each step in two at the sentence or line end nearest to its middle; a step without one stays as it is.

    It is never cut inside a formula, an environment or a box. The label becomes the first half of the wrong step, which
    need not be the wrong half, so scores are mapped back to the original steps before they are judged: see
    `combine_split_scores`.
    """
    halves = [_halves(step) for step in trace.steps]
    parents = tuple(k for k, parts in enumerate(halves) for _ in parts)
    label = trace.first_error
    steps = tuple(part for parts in halves for part in parts)
    return _replace_steps(trace, SPLIT, steps, parents, label if label is None or label < 0 else parents.index(label))


def answerless(trace: Trace) -> Rendered:
    r"""Replace by `?`, in the last step, the contents of `\boxed{...}` and what follows "answer is" or "answer:".

    The same number elsewhere in the text stays.
    """
    last = _without_answer(trace.steps[-1])
    return _rewrite_steps(trace, ANSWERLESS, lambda k, step: last if k == len(trace.steps) else step)


def prefix(trace: Trace) -> Rendered:
    """Keep the first ceil(K / 2) steps, without an outcome; the label is -1 when the first error comes later."""
    count = (len(trace.steps) + 1) // 2
    label = trace.first_error
    prefix_only = _replace_steps(
        trace, PREFIX, trace.steps[:count], tuple(range(count)), -1 if label is not None and label >= count else label
    )
    return replace(prefix_only, trace=replace(prefix_only.trace, outcome=None, answer="", finish=""))


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
"""Name -> rendering, in the order of the tables."""


# --- traces that are judged, and traces that a model reads ------------------------------------------------------------


def render_traces(traces: Sequence[Trace], names: Sequence[str] = ()) -> list[Trace]:
    """Return the traces of the benchmark as they are judged: plain, then in each rendering, with new ids and subsets.

    Traces of `split` keep their original steps; backends/rendered.py gives the halves to the model. `answerless` leaves
    out the traces whose first error is the last step, since that step may be right without its answer.

    Args:
        traces: Traces of the underlying benchmark.
        names: Keys of RENDERINGS; empty uses all.

    Raises:
        UserError: A rendering is unknown, or a subset's name already ends like that of a rendering.
    """
    for name in names:
        if name not in RENDERINGS:
            raise UserError(f"--rendering {name}: choose from {', '.join(RENDERINGS)}")
    for trace in traces:
        if base_and_rendering(trace.subset)[1] != PLAIN:
            raise UserError(f"subset {trace.subset!r}: ends like a rendering's name; call it something else")
    all_traces = []
    for name, render in RENDERINGS.items():
        if name == PLAIN or not names or name in names:
            all_traces += [_judged_trace(trace, name, render) for trace in traces if _keeps_label(trace, name)]
    files.check_unique_ids([t.id for t in all_traces], "the rendered traces")
    return all_traces


def _judged_trace(trace: Trace, name: str, render: Callable[[Trace], Rendered]) -> Trace:
    return _with_rendered_name(trace, SPLIT) if name == SPLIT else render(trace).trace


def _keeps_label(trace: Trace, name: str) -> bool:
    return name != ANSWERLESS or trace.first_error != len(trace.steps) - 1


def model_view(trace: Trace) -> Rendered:
    """Return what a model reads for a trace of `render_traces`: the trace or, for `split`, its halves with its id."""
    if base_and_rendering(trace.subset)[1] != SPLIT:
        return plain(trace)
    halves = split(trace)
    return replace(halves, trace=replace(halves.trace, id=trace.id, subset=trace.subset))


def combine_split_scores(
    original_steps: int, parents: Sequence[int], scores: StepScores, kind: ScoreKind
) -> StepScores:
    """Return the scores of split steps as scores of the original steps.

    Log-ratios are summed; of values and probabilities the lowest counts; a verdict becomes that of the original step.

    Args:
        original_steps: Number of original steps.
        parents: Index of the original step of each new one, rising from 0 to original_steps - 1.
        scores: Scores of the new steps.
        kind: Kind of the scores, which decides how they are combined.
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
    gather = np.add if kind == "logratio" else np.minimum  # both propagate NaN
    return replace(
        scores,
        values=tuple(map(float, gather.reduceat(scores.values, starts))),
        also={name: tuple(map(float, gather.reduceat(series, starts))) for name, series in scores.also.items()},
        tokens=tuple(map(int, np.add.reduceat(scores.tokens, starts))) if scores.tokens else (),
    )


def _parent(verdict: int, parents: Sequence[int]) -> int | None:
    """Return the original step of a verdict, or None for a step that does not exist: it must not become right."""
    return parents[verdict] if 0 <= verdict < len(parents) else None


# --- text -------------------------------------------------------------------------------------------------


def _rewrite_steps(trace: Trace, name: str, write: Callable[[int, str], str]) -> Rendered:
    """Rewrite each step, given its 1-based number and its text."""
    steps = tuple(write(k, step) for k, step in enumerate(trace.steps, 1))
    return Rendered(replace(_with_rendered_name(trace, name), steps=steps), tuple(range(len(steps))))


def _replace_steps(
    trace: Trace, name: str, steps: tuple[str, ...], parents: tuple[int, ...], label: int | None
) -> Rendered:
    """Replace the steps, and drop the step labels, which do not apply to the new steps."""
    return Rendered(replace(_with_rendered_name(trace, name), steps=steps, first_error=label, step_labels=()), parents)


def _with_rendered_name(trace: Trace, name: str) -> Trace:
    return replace(trace, id=rendered_id(trace.id, name), subset=rendered_name(trace.subset, name))


def _halves(step: str) -> tuple[str, ...]:
    """Return the two halves of a step, or the step itself where it cannot be cut."""
    protected = [(match.start(), match.end()) for match in _MATH.finditer(step)] + _boxes(step)
    cuts = [
        cut
        for cut in (match.end() for match in _CUT.finditer(step))
        if not any(begin < cut < end for begin, end in protected) and _both_have_words(step[:cut], step[cut:])
    ]
    if not cuts:
        return (step,)
    middle = min(cuts, key=lambda cut: abs(2 * cut - len(step)))
    return step[:middle].rstrip(), step[middle:].lstrip()


def _both_have_words(left: str, right: str) -> bool:
    return bool(_WORD.search(left) and _WORD.search(right)) and not _NUMBER.search(left)


def _without_answer(step: str) -> str:
    text = step
    for begin, end in reversed(_boxes(step)):
        opening = step.index("{", begin) + 1
        text = f"{text[:opening]}{HIDDEN}{text[end - 1 :]}"
    return _ANSWER.sub(lambda match: match[0] if "\\boxed" in match[2] else f"{match[1]}{HIDDEN}", text)


def _boxes(text: str) -> list[tuple[int, int]]:
    r"""Return the start and end of each outermost `\boxed{...}` that is closed."""
    spans: list[tuple[int, int]] = []
    for opening in _BOXED.finditer(text):
        depth, position = 1, opening.end()
        while depth and position < len(text):
            depth += {"{": 1, "}": -1}.get(text[position], 0) if text[position - 1] != "\\" else 0
            position += 1
        if not depth and not (spans and opening.start() < spans[-1][1]):
            spans.append((opening.start(), position))
    return spans
