"""The records that cross every boundary: a trace, its scores, a protocol, a metric row, a run.

Standard library only; frozen; JSON in and out. No behaviour lives here beyond (de)serialisation
and the spelling of protocol keys.
"""

from prmbench.schema.kinds import (
    READOUTS,
    SCHEMA_VERSION,
    SCORING_VERSION,
    Boundary,
    NonFiniteError,
    Notice,
    Readout,
    RetryError,
    ScoreKind,
    Task,
    Threshold,
    UserError,
    one_line,
)
from prmbench.schema.protocol import (
    EvalProtocol,
)
from prmbench.schema.runs import (
    MetricRow,
    RunManifest,
    RunResult,
)
from prmbench.schema.traces import (
    ScoredTrace,
    StepScores,
    Trace,
    Usage,
    scored,
    text_hash,
)

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
    "Task",
    "Threshold",
    "Trace",
    "Usage",
    "UserError",
    "one_line",
    "scored",
    "text_hash",
]
