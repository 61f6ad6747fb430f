"""PRMBench's score of single steps: counts of right judgements, the formulas on them, thresholds, chance; in numpy.

Positive means valid. Which steps are counted together, and under which protocol, is tasks/validity.py's business.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

MOST_CUTS = 400
"""Thresholds that a search visits: all there are, or so many at even ranks of the distinct scores."""
VALID, INVALID, FIRST = range(3)
"""Kinds of judgements: on valid steps, on invalid steps, and on first errors, which are among the invalid ones."""
KINDS = 3


@dataclass(frozen=True, slots=True)
class Steps:
    """Every labelled step; arrays are [s]. A step without a score (nan) is judged wrongly at every threshold."""

    score: Floats
    valid: Bools
    first: Bools
    """The first invalid step of its trace."""
    problem: Ints
    category: Ints
    pooled: Bools
    """Counts towards the whole, and so towards the choice of a threshold."""
    problems: int
    categories: int


# --- counting -----------------------------------------------------------------------------------------------


def judged_right(steps: Steps, threshold: float) -> Floats:
    """How many judgements are right at a threshold, [problems, categories, KINDS]: valid is what scores above it."""
    right = ((steps.score > threshold) == steps.valid) & ~np.isnan(steps.score)
    return _counted(steps, right.astype(float))


def totals(steps: Steps) -> Floats:
    """How many judgements there are, [problems, categories, KINDS]."""
    return _counted(steps, np.ones(len(steps.score)))


def _counted(steps: Steps, weight: Floats) -> Floats:
    place = (steps.problem * steps.categories + steps.category) * KINDS
    places = np.concatenate([place + np.where(steps.valid, VALID, INVALID), place[steps.first] + FIRST])
    shape = (steps.problems, steps.categories, KINDS)
    weights = np.concatenate([weight, weight[steps.first]])
    return np.asarray(np.bincount(places, weights, int(np.prod(shape))), dtype=float).reshape(shape)


# --- formulas on counts ---------------------------------------------------------------------------------------


def metrics(right: Floats, total: Floats, only_valid: bool = False) -> dict[str, Floats]:
    """Every metric of [b, KINDS] counts of right judgements among all, each [b]; nan where there is none.

    valid_f1 is PRMBench's F1, invalid_f1 its negative F1; their mean is the PRMScore, or with `only_valid` (category
    multi_solutions) the first alone. An F1 exists where the labels have a step of its kind.
    """
    tp, tn, found = (right[..., kind] for kind in (VALID, INVALID, FIRST))
    valid, invalid, errors = (total[..., kind] for kind in (VALID, INVALID, FIRST))
    valid_f1, invalid_f1 = _f1(tp, tn, valid, invalid), _f1(tn, tp, invalid, valid)
    return {
        "prmscore": valid_f1 if only_valid else (valid_f1 + invalid_f1) / 2,
        "valid_f1": valid_f1,
        "invalid_f1": invalid_f1,
        "step_accuracy": _ratio(tp + tn, valid + invalid),
        "valid_accuracy": _ratio(tp, valid),
        "invalid_accuracy": _ratio(tn, invalid),
        "first_error_accuracy": _ratio(found, errors),
    }


def _f1(right: Floats, other_right: Floats, of: Floats, others: Floats) -> Floats:
    """2 TP / (2 TP + FN + FP) for one kind of `of` steps: FN = of - TP, FP = others - TN."""
    return _ratio(2 * right, right + of + others - other_right, of)


def _ratio(part: Floats, whole: Floats, base: Floats | None = None) -> Floats:
    """Their quotient; nan where `base`, by default the whole, is 0."""
    exists = np.broadcast_to((whole if base is None else base) > 0, np.shape(whole))
    return np.asarray(np.divide(part, whole, out=np.full(np.shape(whole), np.nan), where=exists))


# --- thresholds -----------------------------------------------------------------------------------------------


def cuts(score: Floats) -> Floats:
    """Thresholds from "all valid" to "none valid", rising, [q]: between neighbouring scores, and beyond both ends."""
    values = np.unique(score[np.isfinite(score)])
    if not values.size:
        return np.zeros(1)
    middle = values[:-1] + np.diff(values) / 2
    middle = np.where(middle < values[1:], middle, values[:-1])  # neighbouring floats have nothing between them
    edges = np.concatenate([[np.nextafter(values[0], -np.inf)], middle, values[-1:]])
    chosen = np.linspace(0, len(edges) - 1, min(len(edges), MOST_CUTS)).round().astype(np.int64)
    return edges[chosen]


@dataclass(frozen=True, slots=True)
class Curves:
    """Right judgements on the pooled steps of each problem at every cut, [problems, q], and all of them, [problems]."""

    valid: Floats
    invalid: Floats
    all_valid: Floats
    all_invalid: Floats


def curves(steps: Steps, at: Floats) -> Curves:
    """What `judged_right` says of the pooled steps at all cuts together, by one histogram a problem."""
    found = []
    for kind in (steps.valid, ~steps.valid):
        there = kind & steps.pooled
        scored = there & ~np.isnan(steps.score)
        above = np.searchsorted(at, steps.score[scored])  # at so many cuts, the lowest ones, the step is called valid
        places = steps.problem[scored] * (len(at) + 1) + above
        bins = np.bincount(places, minlength=steps.problems * (len(at) + 1)).reshape(steps.problems, -1)
        invalid_calls = bins.cumsum(axis=1)[:, :-1].astype(float)
        everyone = np.bincount(steps.problem[there], minlength=steps.problems).astype(float)
        found.append((bins.sum(axis=1, keepdims=True) - invalid_calls, invalid_calls, everyone))
    (right_valid, _, all_valid), (_, right_invalid, all_invalid) = found
    return Curves(right_valid, right_invalid, all_valid, all_invalid)


def best_cuts(curve: Curves, weights: Floats, fold: Ints) -> Ints:
    """For each weighting [b, problems] and each fold, the cut of highest PRMScore on all other folds, [b, folds].

    A single fold has no others, and is judged by itself: the oracle. Of several best cuts the lowest.
    """
    names = np.unique(fold)
    parts = [_weighted(curve, weights, fold == name) for name in names]
    whole = [np.sum(several, axis=0) for several in zip(*parts, strict=True)]
    chosen = []
    for part in parts:
        tp, tn, valid, invalid = whole if len(parts) == 1 else [a - b for a, b in zip(whole, part, strict=True)]
        valid, invalid = valid[:, None], invalid[:, None]
        score = np.nan_to_num(_f1(tp, tn, valid, invalid) + _f1(tn, tp, invalid, valid))  # twice the PRMScore
        best = score >= score.max(axis=1, keepdims=True) * (1 - 1e-12)  # ties survive rounding
        chosen.append(best.argmax(axis=1))
    return np.stack(chosen, axis=1)


def _weighted(curve: Curves, weights: Floats, mine: Bools) -> list[Floats]:
    w = weights[:, mine]
    return [w @ part[mine] for part in (curve.valid, curve.invalid, curve.all_valid, curve.all_invalid)]


def tally(steps: Steps, at: Floats, chosen: Ints, weights: Floats, fold: Ints) -> Floats:
    """Right judgements when each fold is judged at its own cut: [b, folds] places in `at` -> [b, categories, KINDS]."""
    found = np.zeros((len(weights), steps.categories * KINDS))
    for place in np.unique(chosen):
        right = judged_right(steps, float(at[place])).reshape(steps.problems, -1)
        for column, name in enumerate(np.unique(fold)):
            rows, mine = np.flatnonzero(chosen[:, column] == place), fold == name
            if rows.size:
                found[rows] += weights[np.ix_(rows, mine)] @ right[mine]
    return found.reshape(len(weights), steps.categories, KINDS)


# --- what chance reaches ----------------------------------------------------------------------------------------


def flagged_at_random(total: Floats, rate: Floats) -> Floats:
    """Expected right judgements, [b, ..., KINDS], when every step is called invalid with probability `rate`, [b]."""
    share = np.stack([1 - rate, rate, rate], axis=-1)
    return total * share.reshape(len(rate), *[1] * (total.ndim - 2), KINDS)


def best_rate(total: Floats) -> Floats:
    """The rate of highest expected PRMScore on [b, KINDS] judgements: the share of invalid steps, [b].

    With v valid and i invalid steps and n = v + i, the formula's counts at rate q give v(1 - q) / (n + v - qn) for
    half of F1 and iq / (i + qn) for half of negative F1; the sum is concave, with slope 0 where q = i / n. There F1 is
    v / n, negative F1 is i / n, and so the PRMScore is one half whatever the labels are.
    """
    return _ratio(total[:, INVALID], total[:, VALID] + total[:, INVALID])
