"""Chance floors of first-error F1: what random scores, positions alone or final answers alone reach on given labels.

A rule that tunes a threshold finds a good one for noise, too, so random scores are judged under the same rule as a
model: their floor is the expected F1 of random scorers that tune as the model does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import lru_cache, wraps
from typing import ParamSpec

import numpy as np
from numpy.typing import NDArray

from prmbench.metrics import first_error
from prmbench.metrics.first_error import Floats, Ints, Sample, harmonic, modal_index

P = ParamSpec("P")
RANDOM_SCORERS = 200
"""Random scorers behind each floor; their mean has a standard error of about 0.1 points on a thousand traces."""
_RATES = np.linspace(0.0, 1.0, 1001)
"""Rates over which a floor is maximised; F1 is smooth in them (error < 1e-6)."""
_AT_ONCE = 20
"""Random scorers that are judged at once, which divides their number: fast on few traces, small on many."""
_CACHED = 256
"""Floors in memory: all runs on the same traces share theirs."""


def _cached(function: Callable[P, Floats]) -> Callable[P, Floats]:
    """Keeps the results of a function of integer arrays, by their contents."""
    of_any: Callable[..., Floats] = function

    @lru_cache(maxsize=_CACHED)
    def of_bytes(*arrays: tuple[bytes, tuple[int, ...]]) -> Floats:
        return of_any(*(np.frombuffer(data, dtype=np.int64).reshape(shape) for data, shape in arrays))

    @wraps(function)
    def of_arrays(*arrays: P.args, **_: P.kwargs) -> Floats:
        return of_bytes(*((a.tobytes(), a.shape) for a in (np.asarray(x, dtype=np.int64) for x in arrays)))

    return of_arrays


@_cached
def random_oracle(steps: Ints, label: Ints) -> Floats:
    """Computes the F1 of random scorers, [RANDOM_SCORERS], each under its best threshold on these very traces.

    Args:
        steps: Number of steps, [n].
        label: Index of the first error, -1 for none, [n].
    """
    return np.concatenate([_f1(data, data.matches(_tuned(data))) for data in _scorers(steps, label, seed=0)])


@_cached
def random_cross_validated(steps: Ints, label: Ints, fold: Ints) -> Floats:
    """Computes the F1 of random scorers, [RANDOM_SCORERS], with thresholds tuned on the other folds.

    Args:
        steps: [n].
        label: [n].
        fold: Fold of each trace in every split, [splits, n]. Each scorer has one of the splits: their mean is the same.
    """
    numbers, number = np.unique(fold, return_inverse=True)
    splits = number.reshape(fold.shape)[np.arange(RANDOM_SCORERS) % len(fold)].reshape(-1, _AT_ONCE, len(label))
    f1 = []
    for data, split in zip(_scorers(steps, label, seed=0), splits, strict=True):
        is_tuned_on = split[:, None] != np.arange(len(numbers))[:, None]
        tuned = first_error.best_thresholds(data, is_tuned_on.astype(float))
        threshold = np.take_along_axis(tuned, split, axis=1)
        f1.append(_f1(data, (data.lo < threshold) & (threshold <= data.hi)))
    return np.concatenate(f1)


@_cached
def random_calibrated(steps: Ints, label: Ints, tuning_steps: Ints, tuning_label: Ints) -> Floats:
    """Computes the F1 of random scorers, [RANDOM_SCORERS], each with the threshold that is best on other traces."""
    # The seeds differ, so that traces that are in both sets are not scored alike.
    pairs = zip(_scorers(steps, label, seed=0), _scorers(tuning_steps, tuning_label, seed=1), strict=True)
    return np.concatenate([_f1(data, data.matches(_tuned(tuned_on))) for data, tuned_on in pairs])


@_cached
def random_flags(steps: Ints, label: Ints) -> Floats:
    """Computes the F1 of flagging each step at random, [RANDOM_SCORERS], at the rate with the best expected F1.

    This is the floor of thresholds that are not tuned.
    """
    rate, _ = best_flag_rate(steps, label, np.ones(len(label)))
    return np.concatenate([_f1(data, data.matches(np.array([rate]))) for data in _scorers(steps, label, seed=0)])


def best_flag_rate(steps: Ints, label: Ints, weights: Floats) -> tuple[float, float]:
    """Computes the rate at which flagging steps at random has the best expected F1, and that F1.

    At rate p a trace without an error passes with probability (1 - p)^K, and an error at step l is exactly found with
    probability p (1 - p)^l.

    Args:
        steps: Number of steps, [n].
        label: Index of the first error, -1 for none, [n].
        weights: How much each trace counts, [n].
    """
    k, error_index = steps[:, None], label[:, None]
    chance = np.where(error_index < 0, (1 - _RATES) ** k, _RATES * (1 - _RATES) ** np.maximum(error_index, 0))
    error, correct = (np.average(chance[kind], axis=0, weights=weights[kind]) for kind in (label >= 0, label < 0))
    f1 = harmonic(error, correct)
    best = int(f1.argmax())
    return float(_RATES[best]), float(f1[best])


def _scorers(steps: Ints, label: Ints, seed: int) -> Iterator[Sample]:
    """The traces under random scorers, some at once: independent uniform scores, of which a share p lies below p."""
    rng = np.random.default_rng(seed)
    is_step = np.arange(steps.max(initial=1)) < steps[:, None]
    for _ in range(RANDOM_SCORERS // _AT_ONCE):
        scores = np.where(is_step, rng.random((_AT_ONCE, *is_step.shape)), np.inf)
        ends = first_error.match_intervals(scores.reshape(-1, is_step.shape[1]), np.tile(label, _AT_ONCE))
        lo, hi = (end.reshape(_AT_ONCE, -1) for end in ends)
        yield Sample(lo, hi, label >= 0, np.arange(len(label)))


def _tuned(data: Sample) -> Floats:
    """Each scorer's best threshold."""
    return first_error.best_thresholds(data, np.ones((1, 1, len(data))))[:, 0]


def _f1(data: Sample, is_right: NDArray[np.bool_]) -> Floats:
    """Each scorer's F1."""
    return harmonic(*first_error.accuracies(data, is_right, np.ones((1, len(data)))))


# --- floors without chance ---------------------------------------------------------------------------------


def position_floor(label: Ints, weights: Floats) -> Floats:
    """Computes the F1, [b], of predicting the most frequent error index with the best probability q, else none."""
    is_modal = label == modal_index(label)
    has_error = label >= 0
    hit = weights[:, has_error] @ is_modal[has_error] / np.maximum(weights[:, has_error].sum(axis=1), 1e-300)
    f1 = harmonic(hit[:, None] * _RATES, np.broadcast_to(1 - _RATES, (len(weights), len(_RATES)))).max(axis=1)
    exists = (weights[:, has_error].sum(axis=1) > 0) & (weights[:, ~has_error].sum(axis=1) > 0)
    return np.where(exists, f1, np.nan)


def outcome_floor(label: Ints, outcome: Ints, weights: Floats) -> Floats:
    """Computes the F1, [b], of predicting "no error" for right final answers, else the most frequent error index."""
    guess = np.where(outcome == 1, -1, modal_index(label))
    is_right: NDArray[np.bool_] = guess == label
    data = Sample(np.zeros(len(label)), np.ones(len(label)), label >= 0, np.arange(len(label)))
    return first_error.f1_at_rates(data, is_right.astype(float), weights)[0]
