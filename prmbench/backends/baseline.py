"""Model-free baselines: random, step-length, all-right, position-only, outcome-oracle, gold.

They are runs with stored scores and fixed constants. The floors beside every F1 (metrics/first_error.py) are computed
from the labels of the data instead, and so are slightly above position-only and outcome-oracle.
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
    """A rule that scores by the labels, by step lengths or at random."""

    name: str
    seed: int
    facts: Facts

    def cost(self, trace: Trace) -> int:
        """Return 0: no model is run."""
        return 0

    def score(self, traces: Sequence[Trace]) -> Iterator[StepScores]:
        """Yield the scores of each trace, in order."""
        for trace in traces:
            rng = random.Random(f"{self.seed}/{trace.id}")
            if self.name == "random":
                yield StepScores(trace.id, tuple(rng.random() for _ in trace.steps), (1,) * len(trace.steps))
            elif self.name == "step-length":
                yield StepScores(trace.id, tuple(-float(len(step)) for step in trace.steps), (1,) * len(trace.steps))
            else:
                yield StepScores(trace.id, verdicts=(_verdict(self.name, trace, rng),))


FLAG_RATE = 0.5
"""Rate at which position-only flags a step. The floor of that name uses the best rate for the labels instead."""
COMMON_INDEX = 1
"""The step index it flags: the most common first error in three of ProcessBench's four subsets."""


def load(card: ModelCard, config: ModelConfig) -> Baseline:
    """Return the baseline that --model names. Raises UserError on an unknown name."""
    if card.model not in BASELINES:
        raise UserError(f"--model {card.model}: the baselines are {', '.join(BASELINES)}")
    if card.model == "random":
        facts = Facts("prob", "none", fixed=0.5, signal="none", engine="none", backend="baseline")
    elif card.model == "step-length":
        # Longer steps are more often wrong, and sums of log-probabilities reflect length as well.
        facts = Facts("value", "none", signal="none", engine="none", backend="baseline")
    else:
        facts = Facts("verdict", "none", signal="none", engine="none", backend="baseline")
    return Baseline(card.model, config.seed, facts)


def _verdict(name: str, trace: Trace, rng: random.Random) -> int | None:
    """Return the predicted first error; -1 = none, None = the trace has no outcome."""
    flagged = min(COMMON_INDEX, len(trace.steps) - 1)
    if name == "gold":
        return trace.first_error
    if name == "outcome-oracle":
        return None if trace.outcome is None else -1 if trace.outcome else flagged
    if name == "position-only":
        return flagged if rng.random() < FLAG_RATE else -1
    return -1
