"""The values that fields of records may have, versions, and the errors. Standard library only."""

from __future__ import annotations

from typing import Literal

SCHEMA_VERSION = 1
"""Version of result files. A reader accepts every version up to its own."""
SCORING_VERSION = 1
"""Version of the code from a trace to its step scores; a change that moves a number increases it."""
ESTIMATOR_VERSION = 2
"""Version of the code from step scores to rows. A change that moves a value, an interval or a floor increases it; rows
of earlier versions are computed again when their scores are read."""

ScoreKind = Literal["logratio", "value", "prob", "verdict", "outcome"]
"""What `StepScores.values` holds: sums over a step's tokens, a value read at a step's end,
P(step is right), or nothing (critics store `verdicts`, a policy's completions have outcomes only)."""
Readout = Literal["prefix_sum", "step_sum", "prefix_mean", "step_mean", "as_is", "step_diff", "vote"]
Threshold = Literal["native", "fixed", "calibrated", "calibrated_in_sample", "cross_validated", "oracle", "ranking"]
"""Where a threshold comes from; `ranking` has none, but asks how well scores separate wrong steps from right ones."""
Boundary = Literal["exact", "release"]
Tie = Literal["right", "wrong"]
"""The label of a step whose score equals the threshold: one rule per family of models, as its authors have it."""

READOUTS: dict[ScoreKind, tuple[Readout, ...]] = {
    "logratio": ("prefix_sum", "step_sum", "prefix_mean", "step_mean"),
    "value": ("as_is", "step_diff"),
    "prob": ("as_is",),
    "verdict": ("vote",),
    "outcome": (),
}
"""Which readouts each kind of score admits; METHOD names in docs/protocols.md."""
READOUTS_ON_REQUEST: dict[ScoreKind, tuple[Readout, ...]] = {"prob": ("step_diff",)}
"""Further readouts, under which a run is judged only where a protocol asks for them."""
DEFAULT_READOUTS: dict[ScoreKind, Readout] = {
    "logratio": "step_sum",
    "value": "as_is",
    "prob": "as_is",
    "verdict": "vote",
}
"""The readout that stands for a run, by kind of score; outcomes have none."""


class UserError(Exception):
    """A mistake of the user; the message is one line that says what, where and how to mend it. Exit code 2."""


class NonFiniteError(Exception):
    """Training met NaN or infinity and stopped; the message says where the batch was saved. Exit code 3."""


class RetryError(Exception):
    """A server or device is gone, or has other weights than were sent; a checkpoint is kept. Exit code 75."""


class Notice(UserWarning):
    """A fact that a user should know, but need not act on: one line on stderr, by `warnings.warn`."""
