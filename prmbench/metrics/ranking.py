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


class Ranking(NamedTuple):
    """Areas under the curves of a ranking, [b] each; nan in replicates without both wrong steps and right ones."""

    auroc: Floats
    """Probability that a wrong step scores lower than a right one, where equal scores count half; chance is 0.5."""
    auprc: Floats
    """Average precision of flagging the lowest scores first, where steps of equal score are flagged together; chance,
    and a constant score, reach the share of wrong steps."""


def rank_wrong_steps(score: Floats, wrong: Bools, trace: Ints, weights: Floats) -> Ranking:
    """Computes how well low scores find wrong steps.

    Args:
        score: Score of each step, [s]; a lower one says that the step is likelier wrong.
        wrong: Whether each step is wrong, [s].
        trace: The trace of each step, [s] in 0..n-1.
        weights: How often each trace is drawn in each replicate, [b, n].
    """
    cuts = np.unique(score[wrong])
    # Both curves only change slope at the scores of wrong steps. So right steps are counted in 2 k + 1 bins: on the k
    # distinct scores of wrong steps (odd bins), below, between and above them (even bins).
    bins = np.searchsorted(cuts, score, "left") + np.searchsorted(cuts, score, "right")
    wrong_counts = _counts(trace[wrong], bins[wrong] // 2, weights, len(cuts))
    right_counts = _counts(trace[~wrong], bins[~wrong], weights, 2 * len(cuts) + 1)
    n_wrong, n_right = wrong_counts.sum(axis=1), right_counts.sum(axis=1)
    right_flagged = right_counts.cumsum(axis=1)[:, 1::2]  # right steps whose score is at most the cut
    tied = right_counts[:, 1::2]
    wrong_flagged = wrong_counts.cumsum(axis=1)
    pairs_won = wrong_counts * (n_right[:, None] - right_flagged + tied / 2)
    precision = _ratio(wrong_flagged, wrong_flagged + right_flagged)
    auprc = _ratio(np.nansum(wrong_counts * precision, axis=1), n_wrong)
    return Ranking(_ratio(pairs_won.sum(axis=1), n_wrong * n_right), np.where(n_right > 0, auprc, np.nan))


def _counts(trace: Ints, column: Ints, weights: Floats, columns: int) -> Floats:
    """Sums the weights of steps by column: [b, columns]."""
    by_trace = sparse.csr_array(
        (np.ones(len(trace)), (trace, column)), shape=(weights.shape[1], columns), dtype=np.float64
    )
    return np.asarray(weights @ by_trace)


def _ratio(numerator: Floats, denominator: Floats) -> Floats:
    out = np.full(np.shape(numerator), np.nan)
    return np.asarray(np.divide(numerator, denominator, out=out, where=denominator > 0))
