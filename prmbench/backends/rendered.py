"""A backend for benchmark format_shift: shows the model a trace as its rendering writes it, and brings scores back.

Wraps any other backend; what the renderings are is data/renderings.py's business.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from prmbench.backends import Backend, Facts
from prmbench.core.records import StepScores, Trace, Usage
from prmbench.data import renderings
from prmbench.engines.cost_budget import Budget


class RenderedBackend:
    """The same model on traces that `renderings.rendered` made."""

    def __init__(self, backend: Backend) -> None:
        """`backend` reads the text that is shown."""
        self.backend = backend
        self.facts: Facts = backend.facts
        self.budget: Budget | None = getattr(backend, "budget", None)

    def cost(self, trace: Trace) -> int:
        """Tokens of the text that is shown."""
        return self.backend.cost(renderings.shown(trace).trace)

    def at_most(self, trace: Trace) -> Usage:
        """What a critic's answers about the text that is shown may take; nothing for other backends."""
        ask = getattr(self.backend, "at_most", None)
        return ask(renderings.shown(trace).trace) if ask else Usage()

    def score(self, traces: Sequence[Trace]) -> Iterator[StepScores]:
        """One entry a trace, in order, its scores one per judged step."""
        seen = [renderings.shown(trace) for trace in traces]
        for trace, found, scores in zip(traces, seen, self.backend.score([s.trace for s in seen]), strict=True):
            yield renderings.combined(len(trace.steps), found.parents, scores, self.facts.kind)
