"""Monte-Carlo values of prefixes: how often a policy that continues after step k reaches a right answer.

The caller decides which answers are right.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from prmbench.core.records import Trace, UserError
from prmbench.engines import generation
from prmbench.engines.encoding import number_steps
from prmbench.engines.generation import Sampler, Sampling
from prmbench.sampling.completions import request_seed

Judge = Callable[[Trace, str], bool]
"""Given a trace and a completion that begins with its first steps, returns whether the completion's answer is right."""


def prefix_success(
    engine: Sampler,
    traces: Sequence[Trace],
    right: Judge,
    samples: int,
    how: Sampling,
    seed: int = 0,
    template: str | None = None,
) -> Iterator[Trace]:
    """Yield every trace with Monte-Carlo values as its step labels.

    `step_labels[k]` is the share of continuations after step k that end right; the standard error of a label p is
    sqrt(p (1 - p) / samples). Each continuation has its own seed, from (seed, trace id, k), so labels do not depend on
    the other traces. A prefix is tokenised by itself: where a tokenizer merges a step's end with the blank line after
    it, the policy continues from slightly different tokens than those of the whole trace.

    Args:
        engine: The policy.
        traces: The traces.
        right: Judges a completion.
        samples: Number of continuations of each prefix.
        how: Sampling parameters.
        seed: Seed of the run.
        template: Chat template; None = the tokenizer's own.

    Raises:
        UserError: A prefix fills the context.
    """
    rendered_prompts = [generation.render_prompt(engine.tokenizer, trace.prompt, template) for trace in traces]
    prefixes = [[text for text in _prefixes(trace) for _ in range(samples)] for trace in traces]
    texts = [
        prompt + prefix
        for prompt, trace_prefixes in zip(rendered_prompts, prefixes, strict=True)
        for prefix in trace_prefixes
    ]
    seeds = [
        request_seed(seed, f"{trace.id}/{i // samples}", i % samples)
        for trace, trace_prefixes in zip(traces, prefixes, strict=True)
        for i in range(len(trace_prefixes))
    ]
    continuations = generation.generate(
        engine, texts, how, seeds, stops=generation.end_of_turn(engine.tokenizer, template)
    )
    for trace, trace_prefixes in zip(traces, prefixes, strict=True):
        completions = [prefix + _text(trace, next(continuations)) for prefix in trace_prefixes]
        outcomes = [right(trace, completion) for completion in completions]
        labels = (sum(outcomes[i : i + samples]) / samples for i in range(0, len(outcomes), samples))
        yield replace(trace, step_labels=tuple(labels))


def _prefixes(trace: Trace) -> list[str]:
    """Return the prefix of the completion up to each of its steps."""
    steps = number_steps(trace.steps)
    return ["\n\n".join(steps[: k + 1]) for k in range(len(steps))]


def _text(trace: Trace, continuation: generation.Completion) -> str:
    if continuation.refused:
        raise UserError(f"trace {trace.id}: a prefix leaves no room to go on ({continuation.refused})")
    return continuation.text
