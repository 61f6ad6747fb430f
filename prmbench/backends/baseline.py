"""Rows that keep the others honest: random, step-length, all-right, position-only, outcome-oracle, gold. No model.

These are runs with scores of their own and simple constants; the floors beside every F1 (metrics/first_error.py) are
computed from the labels at hand, and so lie a little above position-only and outcome-oracle.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from prmbench.backends import BASELINES, Facts
from prmbench.backends.cards import ModelCard
from prmbench.config import ModelConfig
from prmbench.core.records import StepScores, Trace, UserError


@dataclass(frozen=True, slots=True)
class Baseline:
    """A rule that looks at the labels, at lengths, or at nothing."""

    name: str
    seed: int
    facts: Facts

    def cost(self, trace: Trace) -> int:
        """Nothing is pushed through a model."""
        return 0

    def score(self, traces: Sequence[Trace]) -> Iterator[StepScores]:
        """One entry a trace, in order."""
        for trace in traces:
            draw = random.Random(f"{self.seed}/{trace.id}")
            if self.name == "random":
                yield StepScores(trace.id, tuple(draw.random() for _ in trace.steps), (1,) * len(trace.steps))
            elif self.name == "step-length":
                yield StepScores(trace.id, tuple(-float(len(step)) for step in trace.steps), (1,) * len(trace.steps))
            else:
                yield StepScores(trace.id, verdicts=(_verdict(self.name, trace, draw),))


COIN = 0.5
"""How often position-only flags a step. The floor of that name uses the best rate for the labels at hand instead."""
USUAL_INDEX = 1
"""The index it flags: the commonest first error of three of ProcessBench's four subsets."""


def load(card: ModelCard, config: ModelConfig) -> Baseline:
    """The baseline that --model names."""
    if card.model not in BASELINES:
        raise UserError(f"--model {card.model}: the baselines are {', '.join(BASELINES)}")
    if card.model == "random":
        facts = Facts("prob", "none", fixed=0.5, signal="none", engine="none", backend="baseline")
    elif card.model == "step-length":  # the longer, the likelier wrong: sums of log-probabilities know that, too
        facts = Facts("value", "none", signal="none", engine="none", backend="baseline")
    else:
        facts = Facts("verdict", "none", signal="none", engine="none", backend="baseline")
    return Baseline(card.model, config.seed, facts)


def _verdict(name: str, trace: Trace, draw: random.Random) -> int | None:
    """Predicted first error, -1 = none."""
    usual = min(USUAL_INDEX, len(trace.steps) - 1)
    if name == "gold":
        return trace.first_error
    if name == "outcome-oracle":
        return None if trace.outcome is None else -1 if trace.outcome else usual
    if name == "position-only":
        return usual if draw.random() < COIN else -1
    return -1
