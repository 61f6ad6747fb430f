"""The records that cross every boundary: a trace, its scores, a protocol, a metric row, a run.

Standard library only; frozen; JSON in and out. No behaviour lives here beyond (de)serialisation
and the spelling of protocol keys.
"""

from prmbench.core.records.kinds import (
    READOUTS,
    SCHEMA_VERSION,
    SCORING_VERSION,
    Boundary,
    NonFiniteError,
    Notice,
    Readout,
    RetryError,
    ScoreKind,
    Threshold,
    UserError,
)
from prmbench.core.records.protocol import EvalProtocol
from prmbench.core.records.runs import MetricRow, RunManifest, RunResult
from prmbench.core.records.traces import ScoredTrace, StepScores, Trace, Usage, scored, text_hash

__all__ = [
    "READOUTS",
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
    "Trace",
    "Usage",
    "UserError",
    "scored",
    "text_hash",
]
