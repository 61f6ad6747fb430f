"""Verdicts on the rows of a comparison: the margin, the direction that is better, the adjustment for protocols."""

from __future__ import annotations

import pytest

from prmbench.core.records import MetricRow
from prmbench.tasks import find_task
from prmbench.tasks.comparison_verdicts import verdicts

STEPS, CALIBRATION = find_task("steps"), find_task("calibration")


def rows(
    difference: float,
    half: float | None,
    p: float,
    protocol: str = "p/oracle",
    metric: str = "f1",
    adjusted: float = -1,
) -> list[MetricRow]:
    lo, hi = (None, None) if half is None else (difference - half, difference + half)
    found = [
        MetricRow("math", protocol, f"{metric}_difference", difference, lo, hi, 100, 0),
        MetricRow("math", protocol, "p_value", p, None, None, 100, 0),
    ]
    return [*found, *[MetricRow("math", protocol, "p_adjusted", adjusted, None, None, 100, 0)] * (adjusted >= 0)]


@pytest.mark.parametrize(
    ("difference", "half", "p", "expected"),
    [
        (0.05, 0.02, 0.001, "yes"),
        (-0.05, 0.02, 0.001, "no"),
        (0.01, 0.03, 0.5, "unclear"),
        (0.002, 0.01, 0.7, "equivalent"),
        (0.01, 0.008, 0.01, "equivalent"),
        (0.05, None, 0.001, "unclear"),
    ],
)
def test_verdict_of_one_protocol(difference: float, half: float | None, p: float, expected: str) -> None:
    (judged,) = verdicts(rows(difference, half, p), STEPS)
    assert judged.verdict == expected
    assert judged.margin is not None
    assert judged.margin.text == "2 points"


def test_a_lower_calibration_error_is_better() -> None:
    (judged,) = verdicts(rows(-0.05, 0.02, 0.001, metric="ece"), CALIBRATION)
    assert judged.verdict == "yes"


def test_a_metric_without_a_margin_is_never_equivalent() -> None:
    (judged,) = verdicts(rows(0.0001, 0.001, 0.9, metric="threshold"), STEPS)
    assert (judged.verdict, judged.margin, judged.equivalence_p) == ("unclear", None, None)


def test_protocols_compared_at_once_are_adjusted_together() -> None:
    two = [*rows(0.05, 0.04, 0.03, "a/oracle"), *rows(0.05, 0.04, 0.04, "b/oracle")]
    assert [v.verdict for v in verdicts(two, STEPS)] == ["unclear", "unclear"]
    by_the_comparison = [
        *rows(0.05, 0.04, 0.03, "a/oracle", adjusted=0.04),
        *rows(0.05, 0.04, 0.04, "b/oracle", adjusted=0.06),
    ]
    assert [v.verdict for v in verdicts(by_the_comparison, STEPS)] == ["yes", "unclear"]
