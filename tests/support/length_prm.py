"""A reward model without weights: a step's value is a function of its text, so that tests can work rewards out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from prmbench.adapters import Prm
from prmbench.backends import Facts
from prmbench.core.records import StepScores, Trace

UNSCORABLE = "unscorable"


class LengthBackend:
    """P(right) = 1 / length of the step; a step with the word `unscorable` makes its trace unscored."""

    def __init__(self, config: Any = None) -> None:
        self.facts = Facts(kind="prob", input_format="none")
        self.batches: list[list[Trace]] = []

    def cost(self, trace: Trace) -> int:
        return sum(map(len, trace.steps))

    def score(self, traces: Sequence[Trace]) -> Iterator[StepScores]:
        self.batches.append(list(traces))
        for trace in traces:
            if any(UNSCORABLE in step for step in trace.steps):
                yield StepScores(trace.id, unscored="it says so")
            else:
                yield StepScores(trace.id, tuple(map(value, trace.steps)), (1,) * len(trace.steps))


def value(step: str) -> float:
    return 1 / len(step)


def length_prm(tokenizer: Any = None, **options: Any) -> Prm:
    return Prm(LengthBackend(), tokenizer, **options)
