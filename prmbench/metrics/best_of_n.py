"""Picking among completions: expected best-of-N, pass@N, majority and weighted vote over all N-subsets, in numpy.

Pure functions of one problem's M completions. Which scores are ranked and what is reported is judge's business.
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

MOST_SUBSETS = 100_000
"""Up to so many N-subsets are all visited; of more, `DRAWN` are drawn."""
DRAWN = 10_000
_CHUNK = 1024
"""Subsets that are looked at together: what they take fits a processor's cache."""
_TINY = 5e-324
_TIE = 1e-12
"""Relative difference of two sums of weights below which they are equal: sums of the same weights in another order."""


def sizes(largest: int) -> tuple[int, ...]:
    """The N that are reported: 2, 4, 8, ... and the group size itself."""
    powers = tuple(2**k for k in range(1, largest.bit_length()) if 2**k < largest)
    return (*powers, largest) if largest > 1 else ()


# --- step scores -> one score a completion ------------------------------------------------------------


def log_sigmoid(x: Floats) -> Floats:
    """log(1 / (1 + exp(-x))), without overflow."""
    return np.asarray(-np.logaddexp(0.0, -x))


AGGREGATIONS: dict[str, Callable[[Floats], Floats]] = {
    "last": lambda x: x[..., -1],
    "min": lambda x: x.min(axis=-1),
    "mean": lambda x: x.mean(axis=-1),
    "sum": lambda x: x.sum(axis=-1),
}


def aggregate(x: Floats, how: str, beta: float, probability: bool) -> Floats:
    """Step scores [..., k] -> the completions' scores [...]. `prod` is the log of a product of probabilities.

    `probability`: the scores are probabilities already; otherwise sigmoid(beta * x) is one.
    """
    if how != "prod":
        return AGGREGATIONS[how](x)
    return np.asarray((np.log(np.maximum(x, _TINY)) if probability else log_sigmoid(beta * x)).sum(axis=-1))


def log_weight(scores: Floats, how: str, beta: float, probability: bool) -> Floats:
    """Log of the weight with which a completion votes: its probability, [m] -> [m]."""
    if how == "prod":
        return scores
    return np.log(np.maximum(scores, _TINY)) if probability else log_sigmoid(beta * scores)


# --- closed forms ----------------------------------------------------------------------------------------


def best_of(scores: Floats, outcomes: Floats, n: int) -> float:
    """Expected outcome of the best score among n of the M completions, over all n-subsets; ties are broken evenly."""
    return float(best_of_each(scores[None], outcomes, (n,))[0, 0])


def best_of_each(scores: Floats, outcomes: Floats, counts: Sequence[int]) -> Floats:
    """`best_of` for p rankings of the same M completions and k counts at once.

    Sorted from the best, place i (from 1) wins C(M - i, n - 1) / C(M, n) of the n-subsets; tied completions share the
    places that they occupy.

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
    opens = np.ones((rows, m), dtype=bool)
    opens[:, 1:] = ranked[:, 1:] != ranked[:, :-1]
    block = opens.ravel().cumsum() - 1  # numbers of the blocks of ties, row after row
    means = np.bincount(block, weights=outcomes[order].ravel()) / np.bincount(block)
    wins = np.stack([_wins(m, n) for n in counts], axis=1)
    return np.asarray(means[block].reshape(rows, m) @ wins)


@lru_cache(maxsize=1024)
def _wins(m: int, n: int) -> Floats:
    """[m]: the share of n-subsets of m in which each place is the best one there."""
    return np.array([math.comb(m - place, n - 1) / math.comb(m, n) for place in range(1, m + 1)])


def pass_at(outcomes: Floats, n: int) -> float:
    """Chance that n of the M completions hold a right one: 1 - C(M - c, n) / C(M, n), unbiased."""
    m, right = len(outcomes), int(outcomes.sum())
    return 1.0 - math.comb(m - right, n) / math.comb(m, n)


# --- votes -----------------------------------------------------------------------------------------------


def is_exact(m: int, n: int) -> bool:
    """Whether all n-subsets of m are visited."""
    return math.comb(m, n) <= MOST_SUBSETS


def all_subsets(m: int, n: int) -> Bools:
    """Every n-subset of m as a row, [C(m, n), m]."""
    count = math.comb(m, n)
    index = np.fromiter(chain.from_iterable(combinations(range(m), n)), np.int64, count * n).reshape(count, n)
    return _rows(index, m)


def drawn_subsets(m: int, n: int, seed: int) -> Bools:
    """`DRAWN` n-subsets of m, each as likely as any other, [DRAWN, m]."""
    order = np.random.default_rng(seed).random((DRAWN, m)).argpartition(n - 1, axis=1)
    return _rows(order[:, :n], m)


def _rows(index: Ints, m: int) -> Bools:
    found = np.zeros((len(index), m), dtype=bool)
    np.put_along_axis(found, index, True, axis=1)
    return found


def vote(answers: Ints, log_weights: Floats, outcomes: Floats, subsets: Bools) -> tuple[Floats, Floats]:
    """Expected outcome of the answer with the most weight in a subset, for p weightings at once, and its variance.

    `answers` [m]: equal numbers vote together, -1 has no answer and never wins; `log_weights` [p, m], -inf = no
    weight; `outcomes` [m]; `subsets` [s, m]. Equal answers share their mean outcome, tied answers share the win.
    Returns the mean over subsets [p] and the variance between them [p].
    """
    weights = _relative(log_weights).T
    members = [np.flatnonzero(answers == a) for a in np.unique(answers[answers >= 0])]
    if not members:
        return np.zeros(len(log_weights)), np.zeros(len(log_weights))
    worth = np.array([outcomes[mine].mean() for mine in members])
    values = [
        _winners_worth(subsets[at : at + _CHUNK], weights, members, worth) for at in range(0, len(subsets), _CHUNK)
    ]
    value = np.concatenate(values)
    return value.mean(axis=0), value.var(axis=0)


def _winners_worth(subsets: Bools, weights: Floats, members: Sequence[Ints], worth: Floats) -> Floats:
    """What the heaviest answer is worth in each subset, [s, p]; 0 where no answer is held."""
    held = subsets.astype(float)
    total = np.stack([held[:, mine] @ weights[mine] for mine in members])
    total[np.stack([~subsets[:, mine].any(axis=1) for mine in members])] = -1.0
    wins = total >= total.max(axis=0) * (1 - _TIE)  # an answer that nobody gave does not reach its own -1
    return np.asarray(np.tensordot(worth, wins, 1) / np.maximum(wins.sum(axis=0), 1))


def _relative(log_weights: Floats) -> Floats:
    """Weights in units of the largest one of their row: who wins stays the same, and nothing underflows for all."""
    top = log_weights.max(axis=1, keepdims=True)
    return np.exp(log_weights - np.where(np.isfinite(top), top, 0.0))
