"""Reads results that somebody else may have written: the type, range and length of every field, before any judging.

parsing.py checks types, with pydantic. What it cannot know is in manifests.py and traces.py: ranges, lengths, and how
fields depend on each other. Whether a result may be *listed* (commit, clean tree) is the report's business; whether its
rows follow from its scores is judge's.
"""

from __future__ import annotations

from collections.abc import Sequence

from prmbench.schema import RunResult, ScoredTrace, UserError
from prmbench.sound.fields import MOST_TRACES, NAME, Fault
from prmbench.sound.manifests import SAMPLING, manifest_faults, row_faults
from prmbench.sound.parsing import read_result, read_step, read_trace
from prmbench.sound.traces import coverage_faults, trace_faults

__all__ = ["MOST_TRACES", "NAME", "SAMPLING", "check", "read_result", "read_step", "read_trace"]


def check(result: RunResult, scores: Sequence[ScoredTrace], where: str) -> None:
    """Raises UserError with the first field whose value cannot be, and how many more there are."""
    manifest = result.manifest
    faults: list[Fault] = list(manifest_faults(manifest))
    if not faults:  # the rest is measured by the manifest
        faults += row_faults(result.rows, manifest)
        faults += trace_faults(scores, manifest)
    if not faults:
        faults += coverage_faults(manifest, scores)
    if faults:
        path, words = faults[0]
        more = f" (and {len(faults) - 1} more faults)" if len(faults) > 1 else ""
        raise UserError(f"{where}: {path} {words}{more}")
