"""Validates results of unknown origin: the type, range and length of every field, before any metric is computed.

parsing.py checks types, with pydantic; manifests.py and score_lines.py check ranges, lengths, and how fields depend on
each other. Whether a result may be *listed* (commit, clean tree) is decided in report/, and whether its rows follow
from its scores in tasks/.
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


def check_result(result: RunResult, source: str) -> None:
    """Raise UserError with the first invalid field of the manifest or of a row, and the number of further ones."""
    faults = list(manifest_faults(result.manifest))
    _refuse(faults or list(row_faults(result.rows, result.manifest)), source)  # limits of rows depend on the manifest


def check_draft(manifest: RunManifest, source: str) -> None:
    """Raise UserError where a run with such a manifest could not be read again; `n` may still be 0."""
    _refuse(list(manifest_faults(replace(manifest, n=max(manifest.n, 1)))), source)


def check_scores(manifest: RunManifest, scores: Sequence[ScoredTrace], source: str) -> None:
    """Raise UserError with the first invalid field of a trace, and the number of further ones.

    Args:
        manifest: The run's manifest, already checked.
        scores: Its scored traces.
        source: The run's file, for the message.
    """
    _refuse(list(trace_faults(scores, manifest)) or list(coverage_faults(manifest, scores)), source)


def _refuse(faults: Sequence[Fault], source: str) -> None:
    if faults:
        path, problem = faults[0]
        raise UserError(f"{source}: {path} {problem}{f' (and {len(faults) - 1} more)' if len(faults) > 1 else ''}")
