"""PRMBench's metrics on single steps: counts of correct judgements, metrics of these counts, thresholds, chance.

A positive is a valid step. tasks/validity.py decides which steps are pooled, and under which protocol.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

MAX_THRESHOLDS = 400
"""Largest number of thresholds that a search visits, at even ranks of the distinct scores if there are more."""
VALID, INVALID, FIRST_ERROR = range(3)
"""Kinds of judgements: on valid steps, on invalid steps, and on first errors (which are invalid steps too)."""
KINDS = 3


@dataclass(frozen=True, slots=True)
class Steps:
    """Every labelled step; arrays are [s]. A step without a score (nan) counts as wrong at every threshold."""

    score: Floats
    valid: Bools
    first: Bools
    """Whether the step is the first invalid one of its trace."""
    problem: Ints
    category: Ints
    pooled: Bools
    """Whether the step counts towards the pooled numbers and the choice of a threshold."""
    problems: int
    categories: int


# --- counting -----------------------------------------------------------------------------------------------


def correct_at(steps: Steps, threshold: float) -> Floats:
    """Counts correct judgements, [problems, categories, KINDS], if steps that score above the threshold are valid."""
    is_correct = ((steps.score > threshold) == steps.valid) & ~np.isnan(steps.score)
    return _counted(steps, is_correct.astype(float))


def totals(steps: Steps) -> Floats:
    """Counts judgements, [problems, categories, KINDS]."""
    return _counted(steps, np.ones(len(steps.score)))


def _counted(steps: Steps, weight: Floats) -> Floats:
    cell_index = (steps.problem * steps.categories + steps.category) * KINDS
    cell_indices = np.concatenate(
        [cell_index + np.where(steps.valid, VALID, INVALID), cell_index[steps.first] + FIRST_ERROR]
    )
    shape = (steps.problems, steps.categories, KINDS)
    weights = np.concatenate([weight, weight[steps.first]])
    return np.asarray(np.bincount(cell_indices, weights, int(np.prod(shape))), dtype=float).reshape(shape)


# --- formulas on counts ---------------------------------------------------------------------------------------


def metrics(right: Floats, total: Floats, only_valid: bool = False) -> dict[str, Floats]:
    """Computes every metric, each [b], from counts of correct and of all judgements [b, KINDS]; nan where undefined.

    valid_f1 is PRMBench's F1, invalid_f1 its negative F1; their mean is the PRMScore, or with `only_valid` (category
    multi_solutions) the first alone. An F1 exists where the labels have a step of its kind.
    """
    tp, tn, first_errors = (right[..., kind] for kind in (VALID, INVALID, FIRST_ERROR))
    valid, invalid, errors = (total[..., kind] for kind in (VALID, INVALID, FIRST_ERROR))
    valid_f1, invalid_f1 = _f1(tp, tn, valid, invalid), _f1(tn, tp, invalid, valid)
    return {
        "prmscore": valid_f1 if only_valid else (valid_f1 + invalid_f1) / 2,
        "valid_f1": valid_f1,
        "invalid_f1": invalid_f1,
        "step_accuracy": _ratio(tp + tn, valid + invalid),
        "valid_accuracy": _ratio(tp, valid),
        "invalid_accuracy": _ratio(tn, invalid),
        "first_error_accuracy": _ratio(first_errors, errors),
    }


def _f1(correct: Floats, correct_negatives: Floats, positives: Floats, negatives: Floats) -> Floats:
    """2 TP / (2 TP + FN + FP), where FN = positives - TP and FP = negatives - TN."""
    return _ratio(2 * correct, correct + positives + negatives - correct_negatives, positives)


def _ratio(numerator: Floats, denominator: Floats, base: Floats | None = None) -> Floats:
    """The quotient; nan where `base`, by default the denominator, is 0."""
    exists = np.broadcast_to((denominator if base is None else base) > 0, np.shape(denominator))
    return np.asarray(np.divide(numerator, denominator, out=np.full(np.shape(denominator), np.nan), where=exists))


# --- thresholds -----------------------------------------------------------------------------------------------


def candidate_thresholds(score: Floats) -> Floats:
    """Returns rising thresholds [q], from "all valid" to "none valid": between neighbouring scores and at both ends."""
    values = np.unique(score[np.isfinite(score)])
    if not values.size:
        return np.zeros(1)
    middle = values[:-1] + np.diff(values) / 2
    middle = np.where(middle < values[1:], middle, values[:-1])  # neighbouring floats have nothing between them
    edges = np.concatenate([[np.nextafter(values[0], -np.inf)], middle, values[-1:]])
    chosen = np.linspace(0, len(edges) - 1, min(len(edges), MAX_THRESHOLDS)).round().astype(np.int64)
    return edges[chosen]


@dataclass(frozen=True, slots=True)
class ThresholdCounts:
    """Correct judgements on each problem's pooled steps at every threshold, [problems, q], and totals, [problems]."""

    valid: Floats
    invalid: Floats
    all_valid: Floats
    all_invalid: Floats


def threshold_counts(steps: Steps, thresholds: Floats) -> ThresholdCounts:
    """Counts correct judgements on pooled steps at all thresholds at once, with one histogram per problem."""
    counts = []
    for kind in (steps.valid, ~steps.valid):
        is_kind = kind & steps.pooled
        scored = is_kind & ~np.isnan(steps.score)
        thresholds_below = np.searchsorted(
            thresholds, steps.score[scored]
        )  # thresholds at which the step is called valid
        bin_indices = steps.problem[scored] * (len(thresholds) + 1) + thresholds_below
        bins = np.bincount(bin_indices, minlength=steps.problems * (len(thresholds) + 1)).reshape(steps.problems, -1)
        invalid_calls = bins.cumsum(axis=1)[:, :-1].astype(float)
        total = np.bincount(steps.problem[is_kind], minlength=steps.problems).astype(float)
        counts.append((bins.sum(axis=1, keepdims=True) - invalid_calls, invalid_calls, total))
    (right_valid, _, all_valid), (_, right_invalid, all_invalid) = counts
    return ThresholdCounts(right_valid, right_invalid, all_valid, all_invalid)


def best_thresholds(curve: ThresholdCounts, weights: Floats, fold: Ints) -> Ints:
    """Returns the index of the threshold with the highest PRMScore on all other folds, [b, folds].

    A single fold is tuned on itself (oracle). Of several best thresholds the lowest is taken.

    Args:
        curve: Correct judgements at every threshold.
        weights: [b, problems].
        fold: Fold of each problem, [problems].
    """
    names = np.unique(fold)
    parts = [_weighted(curve, weights, fold == name) for name in names]
    all_folds = [np.sum(counts, axis=0) for counts in zip(*parts, strict=True)]
    chosen = []
    for part in parts:
        tp, tn, valid, invalid = all_folds if len(parts) == 1 else [a - b for a, b in zip(all_folds, part, strict=True)]
        valid, invalid = valid[:, None], invalid[:, None]
        score = np.nan_to_num(_f1(tp, tn, valid, invalid) + _f1(tn, tp, invalid, valid))  # twice the PRMScore
        best = score >= score.max(axis=1, keepdims=True) * (1 - 1e-12)  # ties survive rounding
        chosen.append(best.argmax(axis=1))
    return np.stack(chosen, axis=1)


def _weighted(curve: ThresholdCounts, weights: Floats, in_fold: Bools) -> list[Floats]:
    w = weights[:, in_fold]
    return [w @ part[in_fold] for part in (curve.valid, curve.invalid, curve.all_valid, curve.all_invalid)]


def count_correct(steps: Steps, thresholds: Floats, chosen: Ints, weights: Floats, fold: Ints) -> Floats:
    """Counts correct judgements, [b, categories, KINDS], when each fold has its own threshold.

    Args:
        steps: The labelled and scored steps.
        thresholds: Candidate thresholds, [q].
        chosen: Index of each fold's threshold, [b, folds].
        weights: [b, problems].
        fold: Fold of each problem, [problems].
    """
    counts = np.zeros((len(weights), steps.categories * KINDS))
    for index in np.unique(chosen):
        correct = correct_at(steps, float(thresholds[index])).reshape(steps.problems, -1)
        for column, name in enumerate(np.unique(fold)):
            rows, in_fold = np.flatnonzero(chosen[:, column] == index), fold == name
            if rows.size:
                counts[rows] += weights[np.ix_(rows, in_fold)] @ correct[in_fold]
    return counts.reshape(len(weights), steps.categories, KINDS)


# --- chance ----------------------------------------------------------------------------------------


def flagged_at_random(total: Floats, rate: Floats) -> Floats:
    """Computes the expected correct judgements, [b, ..., KINDS], if steps are flagged with probability `rate`, [b]."""
    share = np.stack([1 - rate, rate, rate], axis=-1)
    return total * share.reshape(len(rate), *[1] * (total.ndim - 2), KINDS)


def best_rate(total: Floats) -> Floats:
    """Returns the flag rate of highest expected PRMScore, [b], which is the share of invalid steps.

    With v valid and i invalid steps and n = v + i, the formula's counts at rate q give v(1 - q) / (n + v - qn) for
    half of F1 and iq / (i + qn) for half of negative F1; the sum is concave, with slope 0 where q = i / n. There F1 is
    v / n, negative F1 is i / n, and so the PRMScore is one half whatever the labels are.
    """
    return _ratio(total[:, INVALID], total[:, VALID] + total[:, INVALID])
