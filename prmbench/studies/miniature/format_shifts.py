"""The five format shifts of the miniature world: the same solution in another format, with its label moved along.

Pure text functions on traces in the plain format; they do no arithmetic and cannot tell right steps from wrong ones.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from prmbench.core.records import Trace

PLAIN = "plain"
"""The format that policies answer in and that reward models are trained on."""
_WORDS = {"+": "plus", "-": "minus", "*": "times", "=": "gives"}


def headers(trace: Trace) -> Trace:
    """Step headers: every step gets another heading, `Next : 1 * 3 = 3`."""
    return _with_steps(trace, "headers", tuple(f"Next : {step}" for step in trace.steps))


def separators(trace: Trace) -> Trace:
    """Separators: every step but the last ends in a semicolon, `1 * 3 = 3 ;`."""
    return _with_steps(trace, "separators", (*(f"{step} ;" for step in trace.steps[:-1]), *trace.steps[-1:]))


def words(trace: Trace) -> Trace:
    """Word forms: signs become words, `1 times 3 gives 3`."""
    steps = (" ".join(_WORDS.get(symbol, symbol) for symbol in step.split(" ")) for step in trace.steps)
    return _with_steps(trace, "words", tuple(steps))


def merged(trace: Trace) -> Trace:
    """Merged steps: two become one, `7 + 5 = 1 , 1 * 3 = 3`; the last step, which states the answer, stays alone.

    A merged step is wrong where either half is: step k moves to k // 2. Step labels are those of the later half.
    """
    body = trace.steps[:-1]
    pairs = [body[k : k + 2] for k in range(0, len(body), 2)]
    last_originals = [min(2 * k + 1, len(body) - 1) for k in range(len(pairs))] + [len(body)]
    label = trace.first_error
    if label is not None and label >= 0:
        label = len(pairs) if label == len(body) else label // 2
    steps = (*(" , ".join(pair) for pair in pairs), *trace.steps[-1:])
    step_labels = tuple(trace.step_labels[k] for k in last_originals) if trace.step_labels else ()
    return replace(_with_steps(trace, "merged", steps), first_error=label, step_labels=step_labels)


def verbose(trace: Trace) -> Trace:
    """Verbose steps: each names the number that it starts from, `we have 1 , then 1 * 3 = 3`."""
    return _with_steps(trace, "verbose", tuple(_add_start_value(step) for step in trace.steps))


SHIFTS: Mapping[str, Callable[[Trace], Trace]] = {
    "headers": headers,
    "separators": separators,
    "words": words,
    "merged": merged,
    "verbose": verbose,
}
"""The shifts by name; the name is also the marker at the start of a prompt that asks for the format."""
EXTRA_WORDS = ("Next", ":", ";", *_WORDS.values(), ",", "we", "have", "then")
"""Words that the shifts write and the plain format does not."""


def marker(name: str) -> str:
    """Returns the word at the start of a prompt that asks for a format."""
    return f"[{name}]"


def _add_start_value(step: str) -> str:
    first = step.split(" ", 1)[0]
    return f"we have {first} , then {step}" if first.isdigit() else step


def _with_steps(trace: Trace, name: str, steps: tuple[str, ...]) -> Trace:
    prompt = trace.prompt.replace(marker(PLAIN), marker(name), 1)
    return replace(trace, prompt=prompt, steps=steps, subset=name)
