"""How well scores separate wrong steps from right ones, without any threshold: AUROC and average precision.

scikit-learn has both for one weighting of the steps at a time. Here they are computed for a thousand weightings at
once, which is what intervals need; the tests compare them with scikit-learn's in every replicate.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from prmbench.metrics.first_error import Floats, Ints

Bools = NDArray[np.bool_]

_CHUNK = 128
"""Replicates that are processed at a time, to bound memory."""


class Ranking(NamedTuple):
    """Areas under the curves of a ranking, [b] each; nan in replicates without both classes."""

    auroc: Floats
    """Probability that a positive scores lower than a negative, where equal scores count half; chance is 0.5."""
    auprc: Floats
    """Average precision of flagging the lowest scores first, where equal scores are flagged together; chance, and a
    constant score, reach the share of positives."""


def rank_low_scores(score: Floats, positive: Bools, group: Ints, weights: Floats) -> Ranking:
    """Computes how well low scores find positives, which are wrong steps in first-error data.

    Args:
        score: [s]; a lower one says that a step is likelier positive.
        positive: [s].
        group: What each step is drawn with, its trace or its problem, [s] in 0..n-1.
        weights: How often each group is drawn in each replicate, [b, n].
    """
    cuts = np.unique(score[positive])
    # Both curves only change slope at the scores of positives. So negatives are counted in 2 k + 1 bins: on the k
    # distinct scores of positives (odd bins), below, between and above them (even bins).
    bins = np.searchsorted(cuts, score, "left") + np.searchsorted(cuts, score, "right")
    positives = _membership(group[positive], bins[positive] // 2, weights.shape[1], len(cuts))
    negatives = _membership(group[~positive], bins[~positive], weights.shape[1], 2 * len(cuts) + 1)
    chunks = [weights[start : start + _CHUNK] for start in range(0, len(weights), _CHUNK)]
    areas = [_areas(chunk @ positives, chunk @ negatives) for chunk in chunks]
    return Ranking(*(np.concatenate([area[i] for area in areas]) for i in range(2)))


def _areas(positives: Floats, negatives: Floats) -> tuple[Floats, Floats]:
    """AUROC and average precision, [b], from positives on each cut, [b, k], and negatives by bin, [b, 2 k + 1]."""
    n_positive, n_negative = positives.sum(axis=1), negatives.sum(axis=1)
    false_alarms = negatives.cumsum(axis=1)[:, 1::2]  # negatives whose score is at most the cut
    pairs_won = positives * (n_negative[:, None] - false_alarms + negatives[:, 1::2] / 2)
    hits = positives.cumsum(axis=1)
    precision = _ratio(hits, hits + false_alarms)
    auprc = _ratio(np.nansum(positives * precision, axis=1), n_positive)
    return _ratio(pairs_won.sum(axis=1), n_positive * n_negative), np.where(n_negative > 0, auprc, np.nan)


def _membership(group: Ints, column: Ints, groups: int, columns: int) -> sparse.csr_array:
    """Counts steps by group and column, [groups, columns]."""
    return sparse.csr_array((np.ones(len(group)), (group, column)), shape=(groups, columns))


def _ratio(numerator: Floats, denominator: Floats) -> Floats:
    out = np.full(np.shape(numerator), np.nan)
    return np.asarray(np.divide(numerator, denominator, out=out, where=denominator > 0))
