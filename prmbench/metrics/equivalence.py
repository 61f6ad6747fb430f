"""Verdicts on a difference: yes, no, equivalent or unclear, with the margins that were declared beforehand.

`equivalent` is shown by two one-sided tests (TOST): both say at 5% that the difference lies within the margin, which is
the same as a 90% interval inside the margin. That a difference is not significant shows nothing of the kind.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from scipy import special

Verdict = Literal["yes", "no", "equivalent", "unclear"]
VERDICTS: tuple[Verdict, ...] = ("yes", "no", "equivalent", "unclear")
ALPHA = 0.05
"""Level of every test: two-sided for yes and no, each of the two one-sided tests for equivalent."""
VERDICT_TEXT = (
    "equivalent: the 90% interval of the difference lies within the margin (two one-sided tests at 5%); else yes or "
    "no: the two-sided test at 5% finds a difference above or below 0; else unclear"
)
"""What the verdicts mean, for captions."""
NORMAL_95 = 1.959964
"""z(0.975)."""
_NO_SPREAD = 1e-12
"""A standard error below this is float noise."""


@dataclass(frozen=True, slots=True)
class Margin:
    """The largest difference that counts as none."""

    value: float
    """In the unit of the measure: 0.02 is two points of a share."""
    reason: str

    @property
    def text(self) -> str:
        """The margin as a table shows it: `2 points`."""
        points = 100 * self.value
        return f"{points:g} point{'s' * (points != 1)}"


MARGINS: dict[str, Margin] = {
    "F1": Margin(0.02, "another 1,000 traces move an F1 by more, and nobody would choose between two models on less"),
    "F1 of a probe": Margin(0.05, "what the probes call no change: their effects are of tens of points"),
    "PRMScore": Margin(0.02, "the mean of two F1, so the margin of F1"),
    "best-of-N accuracy": Margin(0.01, "one problem in a hundred; the gain over a random pick is often a few points"),
    "policy accuracy": Margin(0.01, "one problem in a hundred; the effects claimed for training methods are larger"),
    "reward model accuracy": Margin(0.02, "accuracy on the rollouts of a step, which number some hundreds"),
    "calibration error": Margin(0.01, "one point of probability, less than bins of an ECE resolve"),
    "AUC": Margin(0.02, "two in a hundred pairs of steps ordered otherwise"),
}
"""Every margin of the project. A study or a comparison takes its margin from here; none is chosen after looking."""
_MEASURES: dict[str, str] = {
    **dict.fromkeys(("f1", "f1_drop", "valid_f1", "invalid_f1"), "F1"),
    **dict.fromkeys(("error_accuracy", "correct_accuracy", "first_error_accuracy"), "F1"),
    "prmscore": "PRMScore",
    **dict.fromkeys(("best_of", "weighted_vote", "gain", "regret"), "best-of-N accuracy"),
    **dict.fromkeys(("accuracy", "avg", "pass", "majority"), "policy accuracy"),
    **dict.fromkeys(("ece", "brier"), "calibration error"),
    **dict.fromkeys(("auc", "auroc", "auprc"), "AUC"),
}
"""Metric, without `@N` -> its entry of MARGINS."""


def margin_of(metric: str) -> Margin | None:
    """Returns the margin of a metric such as `f1` or `best_of@8`; None where none was declared."""
    measure = _MEASURES.get(metric.partition("@")[0])
    return None if measure is None else MARGINS[measure]


def equivalence_p(difference: float, error: float, df: float, low: float, high: float) -> float:
    """Returns the p-value of two one-sided t-tests that the true difference lies between two bounds.

    Args:
        difference: The estimate.
        error: Its standard error.
        df: Degrees of freedom of the error; infinite for a normal distribution.
        low: Lower bound: minus the margin. Minus infinity leaves out its test.
        high: Upper bound: the margin. Infinity leaves out its test.

    Returns:
        The larger of the two p-values: below 0.05 exactly where the 90% interval lies within the bounds.
    """
    return max(_one_sided_p(difference - low, error, df), _one_sided_p(high - difference, error, df))


def _one_sided_p(distance: float, error: float, df: float) -> float:
    """The p-value that an estimate so far on the right side of a bound arises at the bound."""
    if error <= _NO_SPREAD:
        return 0.0 if distance > 0 else 1.0
    if math.isinf(distance):
        return 0.0
    t = distance / error
    return float(special.ndtr(-t) if math.isinf(df) else special.stdtr(df, -t))


def equivalence_p_of_interval(difference: float, lo: float | None, hi: float | None, margin: float) -> float | None:
    """Returns the p-value of two one-sided tests from a 95% interval, where the replicates are not at hand.

    Each end of the interval is read as 1.96 standard errors from the estimate, which may differ on the two sides. With
    few problems, where an end is a larger multiple, this errs towards a larger p.

    Returns:
        The larger of the two p-values; None without an interval.
    """
    if lo is None or hi is None:
        return None
    below, above = (max(width, 0.0) / NORMAL_95 for width in (difference - lo, hi - difference))
    lower, upper = difference + margin, margin - difference
    return max(_one_sided_p(lower, below, math.inf), _one_sided_p(upper, above, math.inf))


def verdict(difference: float, p: float | None, p_equivalent: float | None) -> Verdict:
    """Returns the verdict on the claim that a difference is above 0.

    Where a difference is significant and also shown to lie within the margin, the verdict is `equivalent`: the margin
    says beforehand that so small a difference decides nothing, and the difference stands beside the verdict.

    Args:
        difference: The estimate; above 0 agrees with the claim.
        p: Two-sided p-value against 0; None where nothing can be tested.
        p_equivalent: p-value of the two one-sided tests; None without a margin.
    """
    if p_equivalent is not None and p_equivalent < ALPHA:
        return "equivalent"
    if p is not None and p < ALPHA:
        return "yes" if difference > 0 else "no"
    return "unclear"


def holm_where_tested(ps: Sequence[float | None]) -> list[float | None]:
    """Returns Holm's adjustment over the p-values of a family; those that are None, and so no test, stay None."""
    adjusted = iter(holm([p for p in ps if p is not None]))
    return [None if p is None else next(adjusted) for p in ps]


def holm(ps: Sequence[float]) -> list[float]:
    """Returns Holm's step-down adjustment of p-values, in their order. scipy has no such function."""
    adjusted, so_far = [0.0] * len(ps), 0.0
    for rank, i in enumerate(sorted(range(len(ps)), key=lambda i: ps[i])):
        so_far = max(so_far, min(1.0, (len(ps) - rank) * ps[i]))
        adjusted[i] = so_far
    return adjusted
