"""Best-of-N: expected accuracy of picking or voting among N completions, over all N-subsets of M.

Pure numpy functions of one problem's M completions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import chain, combinations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

MAX_SUBSETS = 100_000
"""Up to this many N-subsets are all visited; of more, `SAMPLED_SUBSETS` are sampled."""
SAMPLED_SUBSETS = 10_000
_CHUNK = 1024
"""Subsets evaluated together; their arrays fit into a processor's cache."""
_TINY = 5e-324
_TIE = 1e-12
"""Relative difference below which two sums of weights are equal, since the order of summation changes last digits."""


def group_sizes(largest: int) -> tuple[int, ...]:
    """Returns the N that are reported: 2, 4, 8, ... and the group size itself."""
    powers = tuple(2**k for k in range(1, largest.bit_length()) if 2**k < largest)
    return (*powers, largest) if largest > 1 else ()


# --- step scores -> one score a completion ------------------------------------------------------------


def log_sigmoid(x: Floats) -> Floats:
    """Computes log(1 / (1 + exp(-x))) without overflow."""
    return np.asarray(-np.logaddexp(0.0, -x))


AGGREGATIONS: dict[str, Callable[[Floats], Floats]] = {
    "last": lambda x: x[..., -1],
    "min": lambda x: x.min(axis=-1),
    "mean": lambda x: x.mean(axis=-1),
    "sum": lambda x: x.sum(axis=-1),
}


def aggregate(x: Floats, aggregation: str, beta: float, probability: bool) -> Floats:
    """Aggregates step scores into completion scores.

    Args:
        x: Step scores, [..., k].
        aggregation: One of `AGGREGATIONS`, or `prod` for the log of the product of the steps' probabilities.
        beta: Scale of scores that are not probabilities: sigmoid(beta * x) is one.
        probability: Whether the scores are probabilities.

    Returns:
        [...]
    """
    if aggregation != "prod":
        return AGGREGATIONS[aggregation](x)
    return np.asarray((np.log(np.maximum(x, _TINY)) if probability else log_sigmoid(beta * x)).sum(axis=-1))


def log_weights(scores: Floats, aggregation: str, beta: float, probability: bool) -> Floats:
    """Returns the log of each completion's voting weight, which is its probability, [m]; see `aggregate`."""
    if aggregation == "prod":
        return scores
    return np.log(np.maximum(scores, _TINY)) if probability else log_sigmoid(beta * scores)


# --- closed forms ----------------------------------------------------------------------------------------


def best_of(scores: Floats, outcomes: Floats, n: int) -> float:
    """Computes the expected outcome of the highest-scoring of n completions, over all n-subsets; ties share the win."""
    return float(expected_best_of(scores[None], outcomes, (n,))[0, 0])


def expected_best_of(scores: Floats, outcomes: Floats, counts: Sequence[int]) -> Floats:
    """Computes `best_of` for p rankings of the same M completions and k values of n at once.

    In descending order of scores, rank i (from 1) wins C(M - i, n - 1) / C(M, n) of the n-subsets; tied completions
    share the ranks that they occupy.

    Args:
        scores: [p, M], higher is better.
        outcomes: [M].
        counts: The k values of n, each at most M.

    Returns:
        [p, k]
    """
    rows, m = scores.shape
    order = np.argsort(-scores, axis=1, kind="stable")
    ranked = np.take_along_axis(scores, order, axis=1)
    starts_block = np.ones((rows, m), dtype=bool)
    starts_block[:, 1:] = ranked[:, 1:] != ranked[:, :-1]
    block_number = starts_block.ravel().cumsum() - 1  # tied completions of a row have the same number
    means = np.bincount(block_number, weights=outcomes[order].ravel()) / np.bincount(block_number)
    wins = np.stack([_wins(m, n) for n in counts], axis=1)
    return np.asarray(means[block_number].reshape(rows, m) @ wins)


@lru_cache(maxsize=1024)
def _wins(m: int, n: int) -> Floats:
    """Share of the n-subsets of m that each rank wins, [m]."""
    return np.array([math.comb(m - rank, n - 1) / math.comb(m, n) for rank in range(1, m + 1)])


def pass_at(outcomes: Floats, n: int) -> float:
    """Computes pass@n, the unbiased estimate 1 - C(M - c, n) / C(M, n) with c correct among M completions."""
    m, correct = len(outcomes), int(outcomes.sum())
    return 1.0 - math.comb(m - correct, n) / math.comb(m, n)


# --- votes -----------------------------------------------------------------------------------------------


def is_exact(m: int, n: int) -> bool:
    """Whether all n-subsets of m are visited instead of a sample."""
    return math.comb(m, n) <= MAX_SUBSETS


def all_subsets(m: int, n: int) -> Bools:
    """Returns every n-subset of m as a row of a boolean mask, [C(m, n), m]."""
    count = math.comb(m, n)
    index = np.fromiter(chain.from_iterable(combinations(range(m), n)), np.int64, count * n).reshape(count, n)
    return _masks(index, m)


def sampled_subsets(m: int, n: int, seed: int) -> Bools:
    """Samples n-subsets of m uniformly, as rows of a boolean mask, [SAMPLED_SUBSETS, m]."""
    order = np.random.default_rng(seed).random((SAMPLED_SUBSETS, m)).argpartition(n - 1, axis=1)
    return _masks(order[:, :n], m)


def _masks(index: Ints, m: int) -> Bools:
    masks = np.zeros((len(index), m), dtype=bool)
    np.put_along_axis(masks, index, True, axis=1)
    return masks


def vote(answers: Ints, log_weights: Floats, outcomes: Floats, subsets: Bools) -> tuple[Floats, Floats]:
    """Computes the expected outcome of a weighted vote among the completions of a subset, for p weightings at once.

    Equal answers share their mean outcome, and tied answers share the win.

    Args:
        answers: [m], equal numbers for equal answers; -1 for a completion without an answer, which never wins.
        log_weights: [p, m]; -inf for no weight.
        outcomes: [m].
        subsets: Boolean masks, [s, m].

    Returns:
        The mean over subsets, [p], and the variance between them, [p].
    """
    weights = _relative_weights(log_weights).T
    members = [np.flatnonzero(answers == a) for a in np.unique(answers[answers >= 0])]
    if not members:
        return np.zeros(len(log_weights)), np.zeros(len(log_weights))
    answer_outcomes = np.array([outcomes[voters].mean() for voters in members])
    values = [
        _winner_outcomes(subsets[start : start + _CHUNK], weights, members, answer_outcomes)
        for start in range(0, len(subsets), _CHUNK)
    ]
    value = np.concatenate(values)
    return value.mean(axis=0), value.var(axis=0)


def _winner_outcomes(subsets: Bools, weights: Floats, members: Sequence[Ints], answer_outcomes: Floats) -> Floats:
    """Outcome of the winning answer in each subset, [s, p]; 0 for subsets without an answer."""
    in_subset = subsets.astype(float)
    total = np.stack([in_subset[:, voters] @ weights[voters] for voters in members])
    total[np.stack([~subsets[:, voters].any(axis=1) for voters in members])] = -1.0
    wins = total >= total.max(axis=0) * (1 - _TIE)  # false for absent answers: their -1 is below the product
    return np.asarray(np.tensordot(answer_outcomes, wins, 1) / np.maximum(wins.sum(axis=0), 1))


def _relative_weights(log_weights: Floats) -> Floats:
    """Weights relative to the largest of their row, so that they cannot all underflow; the winner stays the same."""
    largest = log_weights.max(axis=1, keepdims=True)
    return np.exp(log_weights - np.where(np.isfinite(largest), largest, 0.0))
