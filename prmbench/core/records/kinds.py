"""The words that records are spelled with, versions, and the three errors. Standard library only."""

from __future__ import annotations

from typing import Literal

SCHEMA_VERSION = 1
"""Of result files. A reader accepts every version up to its own."""
SCORING_VERSION = 1
"""Of the code between a trace and its step scores; a change that moves numbers bumps it."""

ScoreKind = Literal["logratio", "value", "prob", "verdict", "outcome"]
"""What `StepScores.values` holds: sums over a step's tokens, a value read at a step's end,
P(step is right), or nothing (critics store `verdicts`, a policy's completions have outcomes only)."""
Readout = Literal["prefix_sum", "step_sum", "prefix_mean", "step_mean", "as_is", "step_diff", "vote"]
Threshold = Literal["native", "fixed", "calibrated", "calibrated_in_sample", "cross_validated", "oracle"]
Boundary = Literal["exact", "release"]

READOUTS: dict[ScoreKind, tuple[Readout, ...]] = {
    "logratio": ("prefix_sum", "step_sum", "prefix_mean", "step_mean"),
    "value": ("as_is", "step_diff"),
    "prob": ("as_is",),
    "verdict": ("vote",),
    "outcome": (),
}
"""Which readouts each kind of score admits; METHOD names in docs/protocols.md."""


class UserError(Exception):
    """A mistake of the user's: one line that says what, where and how to mend it. Exit code 2."""


class NonFiniteError(Exception):
    """Training met NaN or infinity and stopped; one line that says where the batch was saved. Exit code 3."""


class RetryError(Exception):
    """A server or a device went away, or has other weights than it was given; checkpoint kept. Exit code 75."""


class Notice(UserWarning):
    """What a user should know and need not mend: one line on stderr, by `warnings.warn`."""
