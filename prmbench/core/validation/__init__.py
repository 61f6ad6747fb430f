"""Reads results that somebody else may have written: the type, range and length of every field, before any judging.

parsing.py checks types, with pydantic. What it cannot know is in manifests.py and traces.py: ranges, lengths, and how
fields depend on each other. Whether a result may be *listed* (commit, clean tree) is the report's business; whether its
rows follow from its scores is judge's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from prmbench.core.records import RunManifest, RunResult, ScoredTrace, UserError
from prmbench.core.validation.fields import MOST_TRACES, NAME, Fault, is_count
from prmbench.core.validation.manifests import SAMPLING, manifest_faults, row_faults
from prmbench.core.validation.parsing import read_record, read_result, read_step, read_trace
from prmbench.core.validation.score_lines import OF_FIRST_ERRORS, coverage_faults, trace_faults

__all__ = [
    "MOST_TRACES",
    "NAME",
    "OF_FIRST_ERRORS",
    "SAMPLING",
    "check_draft",
    "check_result",
    "check_scores",
    "is_count",
    "read_record",
    "read_result",
    "read_step",
    "read_trace",
]


def check_result(result: RunResult, where: str) -> None:
    """Raises UserError with the first field of the manifest or of a row that cannot be, and how many more there are."""
    faults = list(manifest_faults(result.manifest))
    _refuse(faults or list(row_faults(result.rows, result.manifest)), where)  # rows are measured by the manifest


def check_draft(manifest: RunManifest, where: str) -> None:
    """Raises UserError where a run with such a manifest could not be read again; `n` may not be counted yet."""
    _refuse(list(manifest_faults(replace(manifest, n=max(manifest.n, 1)))), where)


def check_scores(manifest: RunManifest, scores: Sequence[ScoredTrace], where: str) -> None:
    """Raises UserError with the first field of a trace that cannot be, and how many more there are.

    `manifest` has been checked.
    """
    _refuse(list(trace_faults(scores, manifest)) or list(coverage_faults(manifest, scores)), where)


def _refuse(faults: Sequence[Fault], where: str) -> None:
    if faults:
        path, words = faults[0]
        raise UserError(f"{where}: {path} {words}{f' (and {len(faults) - 1} more)' if len(faults) > 1 else ''}")
