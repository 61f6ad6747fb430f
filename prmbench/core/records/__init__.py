"""The records that all packages share: a trace, its scores, a protocol, a metric row, a run.

Frozen dataclasses with JSON in and out, and the spelling of protocol keys. Standard library only.
"""

from prmbench.core.records.kinds import (
    DEFAULT_READOUTS,
    ESTIMATOR_VERSION,
    READOUTS,
    READOUTS_ON_REQUEST,
    SCHEMA_VERSION,
    SCORING_VERSION,
    Boundary,
    NonFiniteError,
    Notice,
    Readout,
    RetryError,
    ScoreKind,
    Threshold,
    Tie,
    UserError,
)
from prmbench.core.records.protocol import EvalProtocol
from prmbench.core.records.runs import MetricRow, RunManifest, RunResult
from prmbench.core.records.traces import ScoredTrace, StepScores, Trace, Usage, join_scores, text_hash

__all__ = [
    "DEFAULT_READOUTS",
    "ESTIMATOR_VERSION",
    "READOUTS",
    "READOUTS_ON_REQUEST",
    "SCHEMA_VERSION",
    "SCORING_VERSION",
    "Boundary",
    "EvalProtocol",
    "MetricRow",
    "NonFiniteError",
    "Notice",
    "Readout",
    "RetryError",
    "RunManifest",
    "RunResult",
    "ScoreKind",
    "ScoredTrace",
    "StepScores",
    "Threshold",
    "Tie",
    "Trace",
    "Usage",
    "UserError",
    "join_scores",
    "text_hash",
]
