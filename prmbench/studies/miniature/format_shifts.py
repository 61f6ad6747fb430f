"""The five format shifts of the miniature world: the same solution in other clothes, and where its first error moves.

Pure text functions on a trace in the plain format; they know no arithmetic and cannot tell right from wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from prmbench.core.records import Trace

PLAIN = "plain"
"""The format that policies answer in and that reward models are trained on."""
_WORDS = {"+": "plus", "-": "minus", "*": "times", "=": "gives"}


def headers(trace: Trace) -> Trace:
    """Step headers: every step gets one more, `Next : 1 * 3 = 3`."""
    return _rewritten(trace, "headers", tuple(f"Next : {step}" for step in trace.steps))


def separators(trace: Trace) -> Trace:
    """Separators: every step but the last ends in a semicolon, `1 * 3 = 3 ;`."""
    return _rewritten(trace, "separators", (*(f"{step} ;" for step in trace.steps[:-1]), *trace.steps[-1:]))


def words(trace: Trace) -> Trace:
    """Word forms: signs become words, `1 times 3 gives 3`."""
    spelled = (" ".join(_WORDS.get(word, word) for word in step.split(" ")) for step in trace.steps)
    return _rewritten(trace, "words", tuple(spelled))


def merged(trace: Trace) -> Trace:
    """Merged steps: two become one, `7 + 5 = 1 , 1 * 3 = 3`; the last step, which answers, stays alone.

    A merged step is wrong where either half is: step k moves to k // 2. Step labels are those of the later half.
    """
    body = trace.steps[:-1]
    pairs = [body[k : k + 2] for k in range(0, len(body), 2)]
    ends = [min(2 * k + 1, len(body) - 1) for k in range(len(pairs))] + [len(body)]
    label = trace.first_error
    if label is not None and label >= 0:
        label = len(pairs) if label == len(body) else label // 2
    steps = (*(" , ".join(pair) for pair in pairs), *trace.steps[-1:])
    labels = tuple(trace.step_labels[end] for end in ends) if trace.step_labels else ()
    return replace(_rewritten(trace, "merged", steps), first_error=label, step_labels=labels)


def verbose(trace: Trace) -> Trace:
    """Verbose steps: each names the number that it starts from, `we have 1 , then 1 * 3 = 3`."""
    return _rewritten(trace, "verbose", tuple(_told(step) for step in trace.steps))


SHIFTS: Mapping[str, Callable[[Trace], Trace]] = {
    "headers": headers,
    "separators": separators,
    "words": words,
    "merged": merged,
    "verbose": verbose,
}
"""By name, which is also the marker that a prompt opens with to ask for the format."""
EXTRA_WORDS = ("Next", ":", ";", *_WORDS.values(), ",", "we", "have", "then")
"""What the shifts write beyond the plain format."""


def marker(name: str) -> str:
    """The word that opens a prompt and asks for this format."""
    return f"[{name}]"


def _told(step: str) -> str:
    first = step.split(" ", 1)[0]
    return f"we have {first} , then {step}" if first.isdigit() else step


def _rewritten(trace: Trace, name: str, steps: tuple[str, ...]) -> Trace:
    prompt = trace.prompt.replace(marker(PLAIN), marker(name), 1)
    return replace(trace, prompt=prompt, steps=steps, subset=name)
