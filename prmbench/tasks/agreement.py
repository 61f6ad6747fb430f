"""Compares the rows of a result file with those derived from its scores.

Runs on every result that is read, since a result file can be edited by hand.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from prmbench.core.records import MetricRow
from prmbench.core.redaction import one_line
from prmbench.tasks.metric_rows import RESAMPLED

TOLERANCE = 1e-8
"""How far a stored number may be from the one derived: absolute, and relative to numbers above 1."""
UNCHECKED = (*RESAMPLED, "ece_if_calibrated")
"""Metrics whose values need replicates or as many draws."""
MOST_LINES = 3
"""How many differing rows of a run are spelled out."""


def differences(stored: Sequence[MetricRow], derived: Sequence[MetricRow], resampled: bool = True) -> list[str]:
    """Returns a line for each row that cannot be derived, is missing, or differs by more than the tolerance.

    Args:
        stored: Rows of a result file.
        derived: Rows computed from its scores.
        resampled: Whether `derived` has bootstrap replicates. If not, intervals and other numbers that need replicates
            are not compared, and rows missing from `stored` are not reported.

    Returns:
        One line per differing row, at most `MOST_LINES` and one that counts the rest; empty when all agree.
    """
    old = {(r.subset, r.protocol, r.metric): r for r in stored}
    new = {(r.subset, r.protocol, r.metric): r for r in derived}
    lines = [f"{_row_name(key)} cannot be derived from the scores" for key in sorted(old.keys() - new.keys())]
    if resampled:
        lines += [f"{_row_name(key)} is missing" for key in sorted(new.keys() - old.keys())]
    for key in sorted(old.keys() & new.keys()):
        lines += _field_differences(key, old[key], new[key], resampled)
    remaining = len(lines) - MOST_LINES
    return [*lines[:MOST_LINES], f"and {remaining} more such rows"] if remaining > 0 else lines


def _row_name(key: Sequence[str]) -> str:
    return f"row {_short('/'.join(key))}"


def _short(value: object) -> str:
    """The value as one line of at most 200 characters."""
    return f"{one_line(value):.200}"


def _field_differences(key: Sequence[str], old: MetricRow, new: MetricRow, resampled: bool) -> list[str]:
    number_fields = ("value", "lo", "hi") if resampled else () if old.metric in UNCHECKED else ("value",)
    fields = [field for field in number_fields if not _close(getattr(old, field), getattr(new, field))]
    fields += [field for field in ("n", "unscored", "note") if getattr(old, field) != getattr(new, field)]
    return [
        f"{_row_name(key)}: {field} {_short(getattr(old, field))} is recomputed as {_short(getattr(new, field))}"
        for field in fields
    ]


def _close(a: float | None, b: float | None) -> bool:
    if a is None or b is None:
        return a is b
    return math.isclose(a, b, rel_tol=TOLERANCE, abs_tol=TOLERANCE)
