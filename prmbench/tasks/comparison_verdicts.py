"""Verdicts of `prmbench compare`, from the rows of a comparison: is the second run better, or shown to be as good?"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from prmbench.core.records import MetricRow
from prmbench.metrics.equivalence import (
    Margin,
    Verdict,
    equivalence_p_of_interval,
    holm_where_tested,
    margin_of,
    verdict,
)
from prmbench.tasks.task import Task

DIFFERENCE = "_difference"


@dataclass(frozen=True, slots=True)
class ComparisonVerdict:
    """The verdict on one difference: whether the second run is better."""

    protocol: str
    subset: str
    metric: str
    verdict: Verdict
    """Yes: the second run is better; no: the first. Adjusted for all protocols that are compared at once."""
    margin: Margin | None
    """None where no margin was declared for the metric, so that `equivalent` cannot be said."""
    equivalence_p: float | None
    """p-value of the two one-sided tests that the difference is within the margin, unadjusted."""


@dataclass(frozen=True, slots=True)
class _Tested:
    difference: MetricRow
    p: float | None
    adjusted: float | None
    """The p-value that the comparison itself adjusted for all protocols, if it did."""
    margin: Margin | None
    equivalence_p: float | None


def verdicts(rows: Sequence[MetricRow], task: Task) -> tuple[ComparisonVerdict, ...]:
    """Returns a verdict for every difference of a comparison, in the order of the rows.

    The protocols compared on one subset are a family: their p-values are adjusted, by the comparison itself where it
    has rows `p_adjusted`, else by Holm; those of equivalence by Holm.
    """
    by_key = {(row.protocol, row.subset, row.metric): row.value for row in rows}
    tested = [_tested(row, by_key) for row in rows if row.metric.endswith(DIFFERENCE) and row.value is not None]
    judged: dict[tuple[str, str], ComparisonVerdict] = {}
    for subset in dict.fromkeys(t.difference.subset for t in tested):
        family = [t for t in tested if t.difference.subset == subset]
        judged |= {(v.protocol, v.subset): v for v in _family(family, task)}
    return tuple(judged[t.difference.protocol, t.difference.subset] for t in tested)


def _tested(row: MetricRow, by_key: dict[tuple[str, str, str], float | None]) -> _Tested:
    margin = margin_of(row.metric.removesuffix(DIFFERENCE))
    p, adjusted = (by_key.get((row.protocol, row.subset, name)) for name in ("p_value", "p_adjusted"))
    equivalence = None
    if margin is not None and row.value is not None:
        equivalence = equivalence_p_of_interval(row.value, row.lo, row.hi, margin.value)
    return _Tested(row, None if row.lo is None else p, adjusted, margin, equivalence)


def _family(family: Sequence[_Tested], task: Task) -> Iterable[ComparisonVerdict]:
    by_holm = holm_where_tested([t.p for t in family])
    equivalence = holm_where_tested([t.equivalence_p for t in family])
    for t, p, p_equivalent in zip(family, by_holm, equivalence, strict=True):
        metric = t.difference.metric.removesuffix(DIFFERENCE)
        sign = -1 if task.prefers_low(metric) else 1
        adjusted = p if t.adjusted is None else t.adjusted
        yield ComparisonVerdict(
            protocol=t.difference.protocol,
            subset=t.difference.subset,
            metric=metric,
            verdict=verdict(sign * (t.difference.value or 0.0), adjusted, p_equivalent),
            margin=t.margin,
            equivalence_p=t.equivalence_p,
        )
