"""Do the rows of a result follow from its scores? Derives them again and names those that differ.

Used on every result that is read, since anybody can write a number into a file.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from prmbench.core.records import MetricRow
from prmbench.core.redaction import one_line
from prmbench.tasks.metric_rows import RESAMPLED

TOLERANCE = 1e-8
"""How far a stored number may be from the one derived: absolute, and relative to numbers above 1.

Platt-scaled rows of before scikit-learn are up to 4e-9 off: the Newton's method of that time stopped a little early."""
MOST_LINES = 3
"""Differing rows of a run that are spelled out."""


def differences(stored: Sequence[MetricRow], derived: Sequence[MetricRow], resampled: bool = True) -> list[str]:
    """Lines on rows that cannot be derived, are missing, or are further apart than the tolerance.

    Args:
        stored: Rows of a result file.
        derived: Rows that its scores give.
        resampled: Whether `derived` was resampled. If not, intervals and what else needs replicates are taken as they
            are, and so is a missing row: it says nothing wrong.

    Returns:
        One line a row, at most `MOST_LINES` and one that counts the others; empty when all agree.
    """
    old = {(r.subset, r.protocol, r.metric): r for r in stored}
    new = {(r.subset, r.protocol, r.metric): r for r in derived}
    found = [f"{_name(key)} cannot be derived from the scores" for key in sorted(old.keys() - new.keys())]
    if resampled:
        found += [f"{_name(key)} is missing" for key in sorted(new.keys() - old.keys())]
    for key in sorted(old.keys() & new.keys()):
        found += _differences(key, old[key], new[key], resampled)
    more = len(found) - MOST_LINES
    return [*found[:MOST_LINES], f"and {more} more such rows"] if more > 0 else found


def _name(key: Sequence[str]) -> str:
    return f"row {_words('/'.join(key))}"


def _words(value: object) -> str:
    """Not longer than that."""
    return f"{one_line(value):.200}"


def _differences(key: Sequence[str], old: MetricRow, new: MetricRow, resampled: bool) -> list[str]:
    numbers = ("value", "lo", "hi") if resampled else () if old.metric in RESAMPLED else ("value",)
    fields = [field for field in numbers if not _close(getattr(old, field), getattr(new, field))]
    fields += [field for field in ("n", "unscored", "note") if getattr(old, field) != getattr(new, field)]
    return [
        f"{_name(key)}: {field} {_words(getattr(old, field))} is recomputed as {_words(getattr(new, field))}"
        for field in fields
    ]


def _close(a: float | None, b: float | None) -> bool:
    if a is None or b is None:
        return a is b
    return math.isclose(a, b, rel_tol=TOLERANCE, abs_tol=TOLERANCE)
