"""The backend of benchmark format_shift: scores a trace in another format and maps the scores to the original steps.

It wraps any other backend; data/renderings.py defines the formats.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from prmbench.backends import Backend, Facts
from prmbench.core.records import StepScores, Trace, Usage
from prmbench.data import renderings
from prmbench.engines.cost_budget import Budget


class RenderedBackend:
    """Scores the traces of `renderings.render_traces` by another backend."""

    def __init__(self, backend: Backend) -> None:
        """`backend` scores the text in the other format."""
        self.backend = backend
        self.facts: Facts = backend.facts
        self.budget: Budget | None = getattr(backend, "budget", None)

    def cost(self, trace: Trace) -> int:
        """Return the tokens of the text in the other format."""
        return self.backend.cost(renderings.model_view(trace).trace)

    def at_most(self, trace: Trace) -> Usage:
        """Return the most tokens that a critic's answers about the text may use; none for other backends."""
        ask = getattr(self.backend, "at_most", None)
        return ask(renderings.model_view(trace).trace) if ask else Usage()

    def score(self, traces: Sequence[Trace]) -> Iterator[StepScores]:
        """Yield the scores of each trace, in order, one for each judged step."""
        rendered = [renderings.model_view(trace) for trace in traces]
        scores_of_rendered = self.backend.score([r.trace for r in rendered])
        for trace, rendering, scores in zip(traces, rendered, scores_of_rendered, strict=True):
            yield renderings.combine_split_scores(len(trace.steps), rendering.parents, scores, self.facts.kind)
