"""Validates results of unknown origin: the type, range and length of every field, before any metric is computed.

parsing.py checks types, with pydantic. What it cannot know is in manifests.py and score_lines.py: ranges, lengths, and
how fields depend on each other, as far as all tasks agree on it; what a task demands besides is in its file. The report
decides whether a result may be *listed* (commit, clean tree), judging whether its rows follow from its scores.
"""

from __future__ import annotations

from collections.abc import Sequence

from prmbench.core.records import RunManifest, RunResult, ScoredTrace, UserError
from prmbench.core.validation.fields import (
    LARGEST_SCORE,
    MAX_TRACES,
    NAME,
    Fault,
    all_within,
    is_count,
    is_number,
    short,
)
from prmbench.core.validation.manifests import manifest_faults, row_faults
from prmbench.core.validation.parsing import read_record, read_result, read_step, read_trace
from prmbench.core.validation.score_lines import coverage_faults, series_of, trace_faults

__all__ = [
    "LARGEST_SCORE",
    "MAX_TRACES",
    "NAME",
    "Fault",
    "all_within",
    "check_result",
    "check_scores",
    "is_count",
    "is_number",
    "read_record",
    "read_result",
    "read_step",
    "read_trace",
    "refuse",
    "series_of",
    "short",
]


def check_result(result: RunResult, source: str) -> None:
    """Raise UserError with the first invalid field of the manifest or of a row, and the number of further ones."""
    faults = list(manifest_faults(result.manifest))
    refuse(faults or list(row_faults(result.rows, result.manifest)), source)  # limits of rows depend on the manifest


def check_scores(manifest: RunManifest, scores: Sequence[ScoredTrace], source: str) -> None:
    """Raise UserError with the first invalid field of a trace, and the number of further ones.

    Args:
        manifest: The run's manifest, already checked.
        scores: Its scored traces.
        source: The run's file, for the message.
    """
    refuse(list(trace_faults(scores, manifest)) or list(coverage_faults(manifest, scores)), source)


def refuse(faults: Sequence[Fault], source: str) -> None:
    """Raise UserError with the first fault, if there is any, and the number of further ones."""
    if faults:
        path, problem = faults[0]
        raise UserError(f"{source}: {path} {problem}{f' (and {len(faults) - 1} more)' if len(faults) > 1 else ''}")
