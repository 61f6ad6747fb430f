"""First-error F1, its exact threshold optimum, its chance floors and its bootstrap, in numpy.

Pure functions of step scores and labels. Which protocols a run is judged by is in judge/.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from prmbench.core.records import EvalProtocol, ScoredTrace

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

FLOOR_GRID = np.linspace(0.0, 1.0, 1001)
"""Flag probabilities over which the random floor is maximised; F1 is smooth in them (error < 1e-6)."""
POWER_FACTOR = 1.959964 + 0.841621
"""z(0.975) + z(0.80): a difference of this many standard errors is found in 80% of experiments."""


# --- readouts: METHOD section 3 -----------------------------------------------------------------


def readout(trace: ScoredTrace, protocol: EvalProtocol) -> Floats | None:
    """The numbers a threshold is compared with, one per step; None when the trace is unscored.

    Log-ratio sums are beta-free: beta and the published scripts' `coef` scale all of them alike.
    `prefix_mean` is IPVRM's prefix value over beta (Eq. 5, section 3.1); `step_sum` is its TD
    V(end_k) - V(end_{k-1}) over beta (Eq. 31), the paper's process-level score.
    """
    if trace.unscored:
        return None
    values = np.array(trace.also[protocol.series] if protocol.series else trace.values, dtype=float)
    tokens = np.array(trace.tokens, dtype=float)
    return _READOUTS[protocol.readout](values, tokens)


def readouts(traces: Sequence[ScoredTrace], protocol: EvalProtocol) -> Iterator[tuple[Ints, Floats]]:
    """As `readout`, of all scored traces of a length at once: their places [m], and the numbers [m, k]."""
    by_length: dict[int, list[int]] = {}
    for place, trace in enumerate(traces):
        if not trace.unscored:
            by_length.setdefault(trace.steps, []).append(place)
    for places in by_length.values():
        chosen = [traces[place] for place in places]
        values = np.array([t.also[protocol.series] if protocol.series else t.values for t in chosen], dtype=float)
        counts = [t.tokens for t in chosen] if protocol.readout in OF_TOKENS else []
        yield np.array(places), _READOUTS[protocol.readout](values, np.array(counts, dtype=float))


_READOUTS: dict[str, Callable[[Floats, Floats], Floats]] = {
    "prefix_sum": lambda values, tokens: values.cumsum(axis=-1),
    "step_sum": lambda values, tokens: values,
    "prefix_mean": lambda values, tokens: values.cumsum(axis=-1) / tokens.cumsum(axis=-1),
    "step_mean": lambda values, tokens: values / tokens,
    "as_is": lambda values, tokens: values,
    "step_diff": lambda values, tokens: np.diff(values, prepend=0.0),
}
OF_TOKENS = ("prefix_mean", "step_mean")
"""Readouts that divide by counts of tokens."""


def first_below(scores: Floats, threshold: float) -> int:
    """Index of the first step whose score is strictly below the threshold, else -1."""
    below = np.flatnonzero(scores < threshold)
    return int(below[0]) if below.size else -1


def majority(verdicts: Sequence[int | None]) -> int | None:
    """The commonest parsed verdict, ties to the first seen; None when none was parsed."""
    parsed = [v for v in verdicts if v is not None]
    return max(parsed, key=lambda v: (parsed.count(v), -parsed.index(v))) if parsed else None


# --- the one interval of thresholds at which a trace is judged right -----------------------------


def match_interval(scores: Floats | None, first_error: int) -> tuple[float, float]:
    """The interval (lo, hi] of thresholds t where `first step below t` is the gold first error.

    Empty (lo >= hi) when no threshold finds it; an unscored trace (None) matches nowhere.
    """
    if scores is None:
        return math.inf, -math.inf
    lo, hi = match_intervals(scores[None], np.array([first_error]))
    return float(lo[0]), float(hi[0])


def match_intervals(scores: Floats, first_error: Ints) -> tuple[Floats, Floats]:
    """`match_interval` of m traces of k steps each: [m, k] scores, [m] first errors -> [m] ends."""
    rows = np.arange(len(scores))
    # Column l holds the lowest score before step l; the last one that of all steps, for traces without an error.
    lowest = np.minimum.accumulate(np.pad(scores, ((0, 0), (1, 0)), constant_values=math.inf), axis=1)
    at = np.maximum(first_error, 0)
    lo = np.where(first_error < 0, -math.inf, scores[rows, at])
    return lo, lowest[rows, np.where(first_error < 0, scores.shape[1], at)]


@dataclass(frozen=True, slots=True)
class Sample:
    """The traces of one subset under one readout, reduced to what F1 needs. All arrays are [n]."""

    lo: Floats
    hi: Floats
    wrong: NDArray[np.bool_]
    """True where the trace has a first error."""
    cluster: Ints
    """Which problem a trace belongs to, 0..clusters-1."""

    def __len__(self) -> int:
        return len(self.lo)

    def matches(self, threshold: Floats) -> NDArray[np.bool_]:
        """[b] thresholds -> [b, n]: judged right, or not."""
        t = threshold[:, None]
        return (self.lo < t) & (t <= self.hi)


def sample(traces: Sequence[ScoredTrace], protocol: EvalProtocol) -> Sample:
    """Reduces labelled traces to match intervals. For `vote`, any threshold in (0, 1] tells right from wrong."""
    label = np.array([_label(t) for t in traces], dtype=np.int64)
    lo, hi = np.full(len(traces), math.inf), np.full(len(traces), -math.inf)
    if protocol.readout == "vote":
        right = np.array([majority(t.verdicts) == t.label for t in traces], dtype=bool)
        lo[right], hi[right] = 0.0, 1.0
    else:
        for places, scores in readouts(traces, protocol):
            lo[places], hi[places] = match_intervals(scores, label[places])
    clusters = np.unique([t.cluster for t in traces], return_inverse=True)[1]
    return Sample(lo, hi, label >= 0, clusters.astype(np.int64))


def _label(trace: ScoredTrace) -> int:
    if trace.label is None:
        raise ValueError(f"trace {trace.id} has no label")
    return trace.label


def harmonic(error_accuracy: Floats, correct_accuracy: Floats) -> Floats:
    """F1 of ProcessBench: the harmonic mean of two accuracies (not precision and recall); 0 when both are 0."""
    total = error_accuracy + correct_accuracy
    return np.divide(2 * error_accuracy * correct_accuracy, total, out=np.zeros_like(total), where=total != 0)


def accuracies(data: Sample, right: NDArray[np.bool_], weights: Floats) -> tuple[Floats, Floats]:
    """Weighted exact-index accuracy on wrong and on right traces, [b, n] -> [b]; nan where there are none."""
    error, correct = (
        _ratio((weights * right)[:, group].sum(1), weights[:, group].sum(1)) for group in (data.wrong, ~data.wrong)
    )
    return error, correct


def _ratio(part: Floats, whole: Floats | np.integer | int) -> Floats:
    out = np.full(np.broadcast_shapes(np.shape(part), np.shape(whole)), np.nan)
    np.divide(part, whole, out=out, where=np.asarray(whole) > 0)
    return out


# --- the exact optimum ------------------------------------------------------------------------------


def sweep(data: Sample, weights: Floats) -> tuple[Floats, Floats, Floats]:
    """How much is judged right at every threshold that can matter, for b weightings at once.

    F1 is constant between neighbouring interval ends, so sorting the ends gives every value it takes.
    Returns edges [p + 1] and the weight of wrong and of right traces judged right [b, p]; column j holds for
    thresholds in (edges[j], edges[j + 1]].
    """
    usable = data.lo < data.hi
    edges = np.unique(np.concatenate([[-np.inf], data.lo[usable], data.hi[usable], [np.inf]]))
    found = []
    for group in (usable & data.wrong, usable & ~data.wrong):
        ends = np.concatenate([data.lo[group], data.hi[group]])
        order = np.argsort(ends, kind="stable")
        entering = np.concatenate([weights[:, group], -weights[:, group]], axis=1)[:, order]
        total = np.concatenate([np.zeros((len(weights), 1)), entering.cumsum(axis=1)], axis=1)
        found.append(total[:, np.searchsorted(ends[order], edges[:-1], side="right")])
    return edges, found[0], found[1]


def best_threshold(data: Sample, weights: Floats) -> Floats:
    """The threshold of highest F1 under each weighting: [b, n] -> [b].

    Of several optimal intervals the lowest, and of it the midpoint, or its finite end; 0 when every threshold is as
    good as any other.
    """
    edges, error, correct = sweep(data, weights)
    n_error, n_correct = (weights[:, group].sum(axis=1, keepdims=True) for group in (data.wrong, ~data.wrong))
    total = error * n_correct + correct * n_error
    f1 = np.divide(error * correct, total, out=np.zeros_like(total), where=total > 0)  # half of it: same optimum
    best = f1 >= f1.max(axis=1, keepdims=True) * (1 - 1e-12)  # ties survive rounding
    first = best.argmax(axis=1)
    broken = ~best & (np.arange(best.shape[1]) > first[:, None])
    last = np.where(broken.any(axis=1), broken.argmax(axis=1), best.shape[1])
    return _inside(edges[first], edges[last])


def _inside(lo: Floats, hi: Floats) -> Floats:
    """A point of each (lo, hi]: midpoint, finite end, or 0 when both ends are infinite."""
    finite_lo, finite_hi = np.where(np.isfinite(lo), lo, 0.0), np.where(np.isfinite(hi), hi, 0.0)
    middle = finite_lo + (finite_hi - finite_lo) / 2
    middle = np.where(middle > finite_lo, middle, finite_hi)
    point = np.where(np.isinf(lo), finite_hi, np.where(np.isinf(hi), np.nextafter(finite_lo, np.inf), middle))
    return np.where(np.isinf(lo) & np.isinf(hi), 0.0, point)


def accuracy_curve(traces: Sequence[ScoredTrace], protocol: EvalProtocol) -> tuple[Floats, Floats, Floats]:
    """(thresholds, error accuracy, correct accuracy), each [p]: one point per distinct outcome, exact."""
    data = sample(traces, protocol)
    edges, error, correct = sweep(data, np.ones((1, len(data))))
    n_error = data.wrong.sum()
    return _inside(edges[:-1], edges[1:]), _ratio(error[0], n_error), _ratio(correct[0], len(data) - n_error)


# --- resampling ---------------------------------------------------------------------------------------


def bootstrap_weights(cluster: Ints, replicates: int, seed: int) -> Floats:
    """[replicates + 1, n]: row 0 is the sample itself, the others resample whole problems with replacement."""
    count = int(cluster.max()) + 1 if len(cluster) else 0
    if not count:
        return np.ones((replicates + 1, 0))
    rng = np.random.default_rng(seed)
    draws = rng.multinomial(count, np.full(count, 1 / count), size=replicates)
    return np.concatenate([np.ones((1, len(cluster))), draws[:, cluster]]).astype(float)


def folds(names: Sequence[str], k: int = 5) -> Ints:
    """Fold 0..k-1 of each trace, given its problem's (hashed) name.

    Sorted names are dealt out in turn, so all traces of a problem share a fold and the order of the data is moot.
    """
    rank = {name: i for i, name in enumerate(sorted(set(names)))}
    return np.array([rank[name] % k for name in names], dtype=np.int64)


def interval(replicates: Floats) -> tuple[float, float] | tuple[None, None]:
    """Ends of the 95% percentile interval; replicates in which the number does not exist are left out."""
    kept = replicates[np.isfinite(replicates)]
    if kept.size <= 1:
        return None, None
    return float(np.percentile(kept, 2.5)), float(np.percentile(kept, 97.5))


def paired_p(observed: float, replicates: Floats) -> float:
    """Two-sided bootstrap p-value of "no difference": (k + 1) / (B + 1).

    k counts the replicates that deviate from the observed difference by at least as much as that is away from 0.
    """
    kept = replicates[np.isfinite(replicates)]
    return float((np.sum(np.abs(kept - observed) >= abs(observed) - 1e-12) + 1) / (kept.size + 1))


# --- what chance reaches on these labels -----------------------------------------------------------


def random_floor(steps: Ints, label: Ints, weights: Floats) -> Floats:
    """F1 of independent uniform step scores under an oracle threshold: [n], [n], [b, n] -> [b].

    A step is flagged with probability p, so a right trace passes with (1-p)^K and an error at l is found with
    p (1-p)^l; the best p is taken. An upper bound on what noise reaches under any other threshold rule.
    """
    kinds, member = np.unique(np.stack([steps, label]), axis=1, return_inverse=True)
    k, at = kinds[:, :, None]
    p = FLOOR_GRID
    chance = np.where(at < 0, (1 - p) ** k, p * (1 - p) ** np.maximum(at, 0))
    return _mixture_floor(chance, kinds[1] >= 0, _pooled(weights, member, kinds.shape[1]))


def position_floor(label: Ints, weights: Floats) -> Floats:
    """F1 of flagging the commonest error index with the best probability q, else "no error": [n], [b, n] -> [b]."""
    modal = modal_index(label)
    kind = np.where(label < 0, 0, np.where(label == modal, 1, 2))
    q = FLOOR_GRID
    chance = np.stack([1 - q, q, np.zeros_like(q)])
    return _mixture_floor(chance, np.array([False, True, True]), _pooled(weights, kind, 3))


def outcome_floor(label: Ints, outcome: Ints, weights: Floats) -> Floats:
    """F1 of knowing the final answer only: right answer -> "no error", else the commonest error index."""
    guess = np.where(outcome == 1, -1, modal_index(label))
    wrong = label >= 0
    right = (guess == label).astype(float)
    return harmonic(*(_ratio(weights[:, g] @ right[g], weights[:, g].sum(1)) for g in (wrong, ~wrong)))


def modal_index(label: Ints) -> int:
    """The commonest first-error index; the lowest of several; 0 when there is no error."""
    wrong = label[label >= 0]
    return int(np.bincount(wrong).argmax()) if wrong.size else 0


def _pooled(weights: Floats, member: Ints, kinds: int) -> Floats:
    """[b, n] weights of traces -> [b, kinds] weights of the kinds that they are of."""
    return weights @ np.eye(kinds)[member.reshape(-1)]


def _mixture_floor(chance: Floats, wrong: NDArray[np.bool_], weights: Floats) -> Floats:
    """Best F1 over the columns of `chance` [kinds, p], the probability that a kind of trace is judged right."""
    error, correct = (
        _ratio(weights[:, group] @ chance[group], weights[:, group].sum(axis=1, keepdims=True))
        for group in (wrong, ~wrong)
    )
    return np.asarray(harmonic(error, correct).max(axis=1))


def minimum_detectable_difference(replicates: Floats, paired: bool = False) -> float | None:
    """The smallest true difference that a two-sided 5% test finds with power 0.80: 2.80 standard errors.

    `paired`: the replicates are of a difference. Otherwise they are of one run's F1, and the other run is taken to
    be independent and as spread out, which widens it by sqrt(2); `compare` pairs the runs and does better.
    """
    kept = replicates[np.isfinite(replicates)]
    if kept.size <= 1:
        return None
    return float(POWER_FACTOR * kept.std(ddof=1) * (1.0 if paired else math.sqrt(2)))
