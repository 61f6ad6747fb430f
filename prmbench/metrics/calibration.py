"""Calibration metrics over resampled problems: ECE with and without its bias, Brier score, AUC and correlation.

They are computed for a thousand weightings of the problems at once, from targets anywhere in [0, 1]: scikit-learn's
AUC takes one weighting at a time (some forty times as long), its Brier score needs targets of 0 or 1, and its
calibration curve has no weights. The tests compare them with scikit-learn's where both exist.

Pure functions of predictions and targets [n] in [0, 1]; results are [b], one for each bootstrap replicate. Predictions
are [n], or [b, n] where each replicate has its own, as after Platt scaling (platt.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import sparse, special

from prmbench.metrics import ranking

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

BINS = 10
MOST_CONTINUATIONS = 256
"""The largest number of continuations of which Monte-Carlo targets are recognised as shares."""
_CLIP = 1e-9
_FLAT = 1e-12
_CHUNK = 64
"""Replicates that are processed at a time, to bound memory."""
_CHUNK_CELLS = 2**22
"""Largest size of a [b, n] array of predictions."""


@dataclass(frozen=True, slots=True)
class Resampled:
    """The problem of each of n predictions, [n], and how often each problem is drawn in each replicate, [b, c]."""

    problem: Ints
    draws: Floats
    first: int = 0
    """Number of the first replicate; number 0 is the sample itself."""

    @property
    def weights(self) -> Floats:
        """How often each prediction is drawn, [b, n]."""
        return self.draws[:, self.problem]

    def sums(self, values: Floats) -> Floats:
        """Sums values [n] or [n, k] over predictions in each replicate: [b] or [b, k]."""
        per_problem = np.zeros((self.draws.shape[1], *values.shape[1:]))
        np.add.at(per_problem, self.problem, values)
        return np.asarray(self.draws @ per_problem)

    def chunks(self) -> Iterator[Resampled]:
        """Yields some replicates at a time, so that predictions of their own need little memory."""
        size = max(1, _CHUNK_CELLS // max(1, len(self.problem)))
        for start in range(0, len(self.draws), size):
            yield Resampled(self.problem, self.draws[start : start + size], self.first + start)

    def select(self, selected: Bools) -> Resampled:
        """Returns the same resampling for a subset of the predictions."""
        return Resampled(self.problem[selected], self.draws, self.first)


def sigmoid(x: Floats) -> Floats:
    """Computes 1 / (1 + exp(-x)) without overflow."""
    return np.asarray(special.expit(x))


def log_odds(p: Floats) -> Floats:
    """Computes the inverse of `sigmoid`; probabilities are first clipped to [1e-9, 1 - 1e-9]."""
    return np.asarray(special.logit(np.clip(p, _CLIP, 1 - _CLIP)))


def _ratio(numerator: Floats, denominator: Floats) -> Floats:
    return np.asarray(
        np.divide(numerator, denominator, out=np.full(np.shape(numerator), np.nan), where=denominator > 0)
    )


# --- how far predictions are from targets ---------------------------------------------------------------


def brier(p: Floats, target: Floats, resampling: Resampled) -> Floats:
    """Computes the mean squared difference of prediction and target, [b]."""
    squares = (p - target) ** 2
    total = resampling.sums(squares) if p.ndim == 1 else (resampling.weights * squares).sum(axis=1)
    return _ratio(total, resampling.sums(np.ones(len(target))))


def equal_mass_bins(p: Floats, count: int = BINS) -> Ints:
    """Returns each prediction's equal-mass bin, 0..count-1; equal predictions share the bin of their median rank."""
    _, index_of_value, counts = np.unique(p, return_inverse=True, return_counts=True)
    middle = counts.cumsum() - counts / 2
    return np.floor(count * middle / len(p)).astype(np.int64)[index_of_value]


@dataclass(frozen=True, slots=True)
class Reliability:
    """Reliability diagram: mean prediction and mean target by bin, nan where a bin is empty."""

    predicted: Floats
    """[b, bins] mean prediction."""
    observed: Floats
    """[b, bins] mean target."""
    count: Ints
    """[bins] number of predictions in the sample."""
    ece: Floats
    """[b] expected calibration error: mean absolute difference of the two, weighted by the bins' mass. Sampling noise
    alone makes it positive."""
    rms: Floats
    """[b] debiased root-mean-square calibration error; see `_debiased`."""


def reliability(
    p: Floats, target: Floats, resampling: Resampled, bins: Ints | None = None, count: int = BINS
) -> Reliability:
    """Computes the reliability diagram.

    Args:
        p: Predictions, [n] or [b, n].
        target: [n].
        resampling: The replicates.
        bins: The bin of each prediction in all replicates, [n]; None: equal-mass bins of the (first) predictions.
        count: Number of bins.
    """
    bins = equal_mass_bins(p if p.ndim == 1 else p[0], count) if bins is None else bins
    mass_by_problem, target_by_problem = (
        _by_problem(x[None], bins, count, resampling)[0] for x in (np.ones(len(target)), target)
    )
    mass = resampling.draws @ mass_by_problem
    parts = []
    for start in range(0, len(resampling.draws), _CHUNK):
        rows = slice(start, start + _CHUNK)
        predicted_by_problem = _by_problem(p[rows] if p.ndim > 1 else p[None], bins, count, resampling)
        draws = resampling.draws[rows]
        residual = predicted_by_problem - target_by_problem
        rms = _debiased(residual, mass_by_problem, draws, resampling.first + start)
        parts.append((_weigh(draws, predicted_by_problem), rms))
    predicted, rms = (np.concatenate(part) for part in zip(*parts, strict=True))
    observed = resampling.draws @ target_by_problem
    ece = _ratio(np.abs(predicted - observed).sum(axis=1), mass.sum(axis=1))
    in_sample = np.bincount(bins, minlength=count).astype(np.int64)
    return Reliability(_ratio(predicted, mass), _ratio(observed, mass), in_sample, ece, rms)


def _by_problem(values: Floats, bins: Ints, count: int, resampling: Resampled) -> Floats:
    """Sums values [b, n] by problem and bin: [b, problems, bins]."""
    problems = resampling.draws.shape[1]
    cell = resampling.problem * count + bins
    membership = sparse.csr_array(
        (np.ones(len(cell)), (np.arange(len(cell)), cell)), shape=(len(cell), problems * count)
    )
    return np.asarray(values @ membership).reshape(len(values), problems, count)


def _weigh(draws: Floats, by_problem: Floats) -> Floats:
    """Sums over problems as often as they are drawn: [b, bins]; `by_problem` is [1 or b, problems, bins]."""
    return np.asarray(draws @ by_problem[0] if len(by_problem) == 1 else np.einsum("bp,bpk->bk", draws, by_problem))


def _debiased(residual: Floats, mass: Floats, draws: Floats, first: int) -> Floats:
    """Computes the debiased l2 calibration error of Kumar et al. 2019 (Verified uncertainty calibration), [b].

    The square of a bin's mean residual overstates its squared error by the variance of that mean, which is taken off.
    Here the variance is that between problems, since predictions of one problem are not independent. The weighted sum
    over bins is unbiased, also where there is no error, and so it may be negative; the root keeps the sign. A replicate
    adds the noise of drawing to that of the sample, and so twice the variance is taken off. Bins with one problem are
    left out; nan where all are.

    Args:
        residual: Prediction minus target, summed by problem and bin, [1 or b, problems, bins].
        mass: Number of predictions by problem and bin, [problems, bins].
        draws: How often each problem is drawn, [b, problems].
        first: Number of the first of these replicates; number 0 is the sample.
    """
    total = draws @ mass
    mean = _ratio(_weigh(draws, residual), total)
    squares = _weigh(draws, residual**2) - 2 * mean * _weigh(draws, residual * mass) + mean**2 * (draws @ mass**2)
    problems = draws @ (mass > 0)
    variance = _ratio(squares * problems, total**2 * (problems - 1))
    is_sample = np.arange(first, first + len(draws)) == 0
    excess = mean**2 - np.where(is_sample, 1, 2)[:, None] * variance
    known = problems > 1  # a bin with one problem says nothing of its noise
    square = _ratio(np.where(known, total * excess, 0).sum(axis=1), np.where(known, total, 0).sum(axis=1))
    return np.asarray(np.sign(square) * np.sqrt(np.abs(square)))


def continuations(target: Floats) -> int | None:
    """Returns the smallest k for which every target is a share of k; None if there is none up to 256."""
    for k in range(1, MOST_CONTINUATIONS + 1):
        if np.allclose(k * target, np.round(k * target), rtol=0, atol=1e-6):
            return k
    return None


def ece_if_calibrated(p: Floats, shared: Ints, continuations: int, draws: int, seed: int) -> Floats:
    """Draws the ECE that a perfectly calibrated model with these predictions would show, [draws].

    Outcomes are drawn from the predictions: each target is the share of right continuations among as many as the real
    ones have. Predictions that share one outcome, as the prefixes of a trace share its final answer, compare one random
    number with each of them.

    Args:
        p: Predictions, [n].
        shared: Which outcome each prediction is about, [n] in 0..m-1.
        continuations: Number of continuations behind a target; 1 for outcomes.
        draws: How often outcomes are drawn.
        seed: Seed of the draws.
    """
    rng = np.random.default_rng(seed)
    membership = np.eye(BINS)[equal_mass_bins(p)]
    outcomes = int(shared.max()) + 1 if len(shared) else 0
    size = max(1, _CHUNK_CELLS // max(1, len(p)))
    errors = []
    for start in range(0, draws, size):
        rows = min(size, draws - start)
        target = (
            (rng.random((rows, outcomes))[:, shared] < p).astype(float)
            if continuations == 1
            else rng.binomial(continuations, np.clip(p, 0, 1), (rows, len(p))) / continuations
        )
        errors.append(np.abs((p - target) @ membership).sum(axis=1) / len(p))
    return np.concatenate(errors)


# --- do higher values mean better odds? -------------------------------------------------------------------


def auc(score: Floats, positive: Bools, resampling: Resampled) -> Floats:
    """Computes the area under the ROC curve, [b]: ties count half; nan without both positives and negatives.

    Args:
        score: [n], or [b, n] where replicates have scores of their own.
        positive: [n].
        resampling: The replicates.
    """
    if score.ndim == 1:
        return ranking.rank_low_scores(-score, positive, resampling.problem, resampling.draws).auroc
    order = np.argsort(score, axis=1)
    ranked, weight = (np.take_along_axis(x, order, axis=1) for x in (score, resampling.weights))
    is_positive = positive[order]
    negatives = np.pad((weight * ~is_positive).cumsum(axis=1), ((0, 0), (1, 0)))  # those before each place
    starts, ends = _tie_ends(ranked)
    lower, not_higher = (np.take_along_axis(negatives, at, axis=1) for at in (starts, ends))
    pairs_won = (weight * is_positive * (lower + not_higher) / 2).sum(axis=1)
    n_positive, n_negative = (weight * is_positive).sum(axis=1), negatives[:, -1]
    return np.where(np.isnan(score).any(axis=1), np.nan, _ratio(pairs_won, n_positive * n_negative))


def _tie_ends(ranked: Floats) -> tuple[Ints, Ints]:
    """For each place of rising scores [b, n], the first place of equal score and the one after the last."""
    n = ranked.shape[1]
    places = np.broadcast_to(np.arange(n), ranked.shape)
    rises = np.diff(ranked, axis=1) > 0
    edge = np.ones((len(ranked), 1), dtype=bool)
    starts = np.maximum.accumulate(np.where(np.concatenate([edge, rises], axis=1), places, 0), axis=1)
    ends = np.where(np.concatenate([rises, edge], axis=1), places + 1, n)
    return starts, np.minimum.accumulate(ends[:, ::-1], axis=1)[:, ::-1]


def pearson(x: Floats, y: Floats, resampling: Resampled) -> Floats:
    """Computes Pearson's correlation, [b]; nan where one of the two is constant."""
    if not len(x):
        return np.full(len(resampling.draws), np.nan)
    x, y = x - x.mean(), y - y.mean()  # centring leaves the correlation and saves digits
    mass, sx, sy, sxx, syy, sxy = resampling.sums(np.stack([np.ones(len(x)), x, y, x * x, y * y, x * y], axis=1)).T
    spread = np.maximum(mass * sxx - sx * sx, 0) * np.maximum(mass * syy - sy * sy, 0)
    is_constant = spread <= _FLAT * (mass * sxx) * (mass * syy)
    out = np.full(len(mass), np.nan)
    return np.asarray(np.divide(mass * sxy - sx * sy, np.sqrt(spread), out=out, where=~is_constant))
