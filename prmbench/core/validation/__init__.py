"""Reads results that somebody else may have written: the type, range and length of every field, before any judging.

parsing.py checks types, with pydantic. What it cannot know is in manifests.py and score_lines.py: ranges, lengths, and
how fields depend on each other, as far as all tasks agree on it; what a task demands besides is in its file. The report
decides whether a result may be *listed* (commit, clean tree), judging whether its rows follow from its scores.
"""

from __future__ import annotations

from collections.abc import Sequence

from prmbench.core.records import RunManifest, RunResult, ScoredTrace, UserError
from prmbench.core.validation.fields import (
    LARGEST_SCORE,
    MOST_TRACES,
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
    "MOST_TRACES",
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


def check_result(result: RunResult, where: str) -> None:
    """Raises UserError with the first field of the manifest or of a row that cannot be, and how many more there are."""
    faults = list(manifest_faults(result.manifest))
    refuse(faults or list(row_faults(result.rows, result.manifest)), where)  # rows are measured by the manifest


def check_scores(manifest: RunManifest, scores: Sequence[ScoredTrace], where: str) -> None:
    """Raises UserError with the first field of a trace that cannot be, and how many more there are.

    `manifest` has been checked.
    """
    refuse(list(trace_faults(scores, manifest)) or list(coverage_faults(manifest, scores)), where)


def refuse(faults: Sequence[Fault], where: str) -> None:
    """Raises UserError with the first fault, if there is any, and how many more there are."""
    if faults:
        path, words = faults[0]
        raise UserError(f"{where}: {path} {words}{f' (and {len(faults) - 1} more)' if len(faults) > 1 else ''}")
