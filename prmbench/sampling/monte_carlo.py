"""Monte-Carlo success of prefixes: how often a policy that goes on from step k reaches a right answer.

Draws and counts. What is right is the caller's word; what the numbers are held against is the judge's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from prmbench.core.records import Trace, UserError
from prmbench.engines import generation
from prmbench.engines.encoding import numbered
from prmbench.engines.generation import Sampler, Sampling
from prmbench.sampling.completions import request_seed

Judge = Callable[[Trace, str], bool]
"""(the trace, a whole completion that shares its first steps) -> whether the answer is right."""


def prefix_success(
    engine: Sampler,
    traces: Sequence[Trace],
    right: Judge,
    samples: int,
    how: Sampling,
    seed: int = 0,
    template: str | None = None,
) -> Iterator[Trace]:
    """Every trace with `step_labels[k]` = the share of `samples` continuations after step k that end right.

    The standard error of a label p is sqrt(p (1 - p) / samples). A continuation has a seed of its own, from (seed,
    trace id, k), so labels do not depend on the company. The prefix is tokenised as a text by itself: tokenizers that
    merge a step's end with the blank line after it go on from slightly other tokens than the whole trace has.
    Raises UserError when a prefix leaves no room to go on.
    """
    heads = [generation.render_prompt(engine.tokenizer, trace.prompt, template) for trace in traces]
    prefixes = [[text for text in _prefixes(trace) for _ in range(samples)] for trace in traces]
    texts = [head + text for head, said in zip(heads, prefixes, strict=True) for text in said]
    seeds = [
        request_seed(seed, f"{trace.id}/{i // samples}", i % samples)
        for trace, said in zip(traces, prefixes, strict=True)
        for i in range(len(said))
    ]
    drawn = generation.generate(engine, texts, how, seeds, stops=generation.end_of_turn(engine.tokenizer, template))
    for trace, said in zip(traces, prefixes, strict=True):
        ends = [text + _text(trace, next(drawn)) for text in said]
        found = [right(trace, end) for end in ends]
        labels = (sum(found[i : i + samples]) / samples for i in range(0, len(found), samples))
        yield replace(trace, step_labels=tuple(labels))


def _prefixes(trace: Trace) -> list[str]:
    """The completion through each of its steps."""
    steps = numbered(trace.steps)
    return ["\n\n".join(steps[: k + 1]) for k in range(len(steps))]


def _text(trace: Trace, drawn: generation.Completion) -> str:
    if drawn.refused:
        raise UserError(f"trace {trace.id}: a prefix leaves no room to go on ({drawn.refused})")
    return drawn.text
