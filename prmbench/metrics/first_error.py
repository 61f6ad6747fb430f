"""First-error F1: readouts, the exact optimal threshold, cross-validation and bootstrap weights.

Pure numpy functions of step scores and labels; tasks/steps.py applies them to the protocols of a run.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from prmbench.core.records import EvalProtocol, ScoredTrace, Tie

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

FOLDS, SPLITS = 5, 10
"""Parts of a split into folds, and splits over which cross-validated numbers are averaged."""


# --- readouts -----------------------------------------------------------------


def readout(trace: ScoredTrace, protocol: EvalProtocol) -> Floats | None:
    """Returns the numbers that are compared with a threshold, one per step; None when the trace is unscored.

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
    """Yields the readouts of all scored traces, grouped by length: their indices [m] and their readouts [m, k]."""
    by_length: dict[int, list[int]] = {}
    for index, trace in enumerate(traces):
        if not trace.unscored:
            by_length.setdefault(trace.steps, []).append(index)
    for indices in by_length.values():
        selected = [traces[index] for index in indices]
        values = np.array([t.also[protocol.series] if protocol.series else t.values for t in selected], dtype=float)
        counts = [t.tokens for t in selected] if protocol.readout in TOKEN_AVERAGED else []
        yield np.array(indices), _READOUTS[protocol.readout](values, np.array(counts, dtype=float))


_READOUTS: dict[str, Callable[[Floats, Floats], Floats]] = {
    "prefix_sum": lambda values, tokens: values.cumsum(axis=-1),
    "step_sum": lambda values, tokens: values,
    "prefix_mean": lambda values, tokens: values.cumsum(axis=-1) / tokens.cumsum(axis=-1),
    "step_mean": lambda values, tokens: values / tokens,
    "as_is": lambda values, tokens: values,
    "step_diff": lambda values, tokens: np.diff(values, prepend=0.0),
}
TOKEN_AVERAGED = ("prefix_mean", "step_mean")
"""Readouts that divide by numbers of tokens."""


def steps_to_first_error(
    traces: Sequence[ScoredTrace], protocol: EvalProtocol
) -> tuple[Floats, NDArray[np.bool_], Ints]:
    """Returns the readouts of all steps up to the first error, whether each is wrong, and its trace's index; [s] each.

    Steps after the first error are left out, because their labels are not defined; so are traces without a score.
    """
    scores, wrong, index = [np.zeros(0)], [np.zeros(0, dtype=bool)], [np.zeros(0, dtype=np.int64)]
    for indices, values in readouts(traces, protocol):
        error = np.array([_label(traces[i]) for i in indices], dtype=np.int64)[:, None]
        position = np.arange(values.shape[1])[None]
        counted = (error < 0) | (position <= error)
        scores.append(values[counted])
        wrong.append(np.broadcast_to(position == error, values.shape)[counted])
        index.append(np.broadcast_to(indices[:, None], values.shape)[counted])
    return np.concatenate(scores), np.concatenate(wrong), np.concatenate(index)


def break_ties(scores: Floats, tie: Tie, is_strict: bool = True) -> Floats:
    """Returns scores that no threshold equals in effect: ties are moved by one floating-point number to their label.

    Args:
        scores: Step scores of any shape.
        tie: The label of a step whose score equals the threshold.
        is_strict: Whether the comparison that follows is `score < threshold` for a wrong step, which makes a tie right;
            otherwise it is `score > threshold` for a right step, which makes it wrong.
    """
    if is_strict:
        return scores if tie == "right" else np.nextafter(scores, -math.inf)
    return scores if tie == "wrong" else np.nextafter(scores, math.inf)


def first_below(scores: Floats, threshold: float) -> int:
    """Returns the index of the first step whose score is strictly below the threshold, else -1."""
    below = np.flatnonzero(scores < threshold)
    return int(below[0]) if below.size else -1


def majority(verdicts: Sequence[int | None]) -> int | None:
    """Returns the most frequent parsed verdict, the first of several; None when none was parsed."""
    parsed = [v for v in verdicts if v is not None]
    return max(parsed, key=lambda v: (parsed.count(v), -parsed.index(v))) if parsed else None


# --- the interval of thresholds at which a trace is judged right -----------------------------


def match_interval(scores: Floats | None, first_error: int) -> tuple[float, float]:
    """Returns the interval (lo, hi] of thresholds under which the predicted first error is the labelled one.

    It is empty (lo >= hi) when no threshold gives that prediction, as for an unscored trace (None).
    """
    if scores is None:
        return math.inf, -math.inf
    lo, hi = match_intervals(scores[None], np.array([first_error]))
    return float(lo[0]), float(hi[0])


def match_intervals(scores: Floats, first_error: Ints) -> tuple[Floats, Floats]:
    """Computes `match_interval` for m traces of k steps: scores [m, k] and first errors [m] give lo [m] and hi [m]."""
    rows = np.arange(len(scores))
    # Column l is the lowest score before step l; the last column is that of all steps, for traces without an error.
    lowest = np.minimum.accumulate(np.pad(scores, ((0, 0), (1, 0)), constant_values=math.inf), axis=1)
    error_index = np.maximum(first_error, 0)
    lo = np.where(first_error < 0, -math.inf, scores[rows, error_index])
    return lo, lowest[rows, np.where(first_error < 0, scores.shape[1], error_index)]


@dataclass(frozen=True, slots=True)
class Sample:
    """The traces of one subset under one readout, reduced to what F1 needs. All arrays are [n].

    Where many scorers judge the same traces at once, `lo` and `hi` are [scorers, n].
    """

    lo: Floats
    hi: Floats
    has_error: NDArray[np.bool_]
    """True where the trace has a first error."""
    cluster: Ints
    """Which problem a trace belongs to, 0..clusters-1."""

    def __len__(self) -> int:
        return len(self.has_error)

    def matches(self, threshold: Floats) -> NDArray[np.bool_]:
        """Returns whether each trace is judged right at thresholds [b]: [b, n]; of many scorers, each at its own."""
        t = threshold[:, None]
        return (self.lo < t) & (t <= self.hi)


def sample(traces: Sequence[ScoredTrace], protocol: EvalProtocol) -> Sample:
    """Reduces labelled traces to match intervals; those of `vote` are (0, 1] for right verdicts, else empty."""
    label = np.array([_label(t) for t in traces], dtype=np.int64)
    lo, hi = np.full(len(traces), math.inf), np.full(len(traces), -math.inf)
    if protocol.readout == "vote":
        is_right = np.array([majority(t.verdicts) == t.label for t in traces], dtype=bool)
        lo[is_right], hi[is_right] = 0.0, 1.0
    else:
        for indices, scores in readouts(traces, protocol):
            lo[indices], hi[indices] = match_intervals(break_ties(scores, protocol.tie), label[indices])
    clusters = np.unique([t.cluster for t in traces], return_inverse=True)[1]
    return Sample(lo, hi, label >= 0, clusters.astype(np.int64))


def _label(trace: ScoredTrace) -> int:
    if trace.label is None:
        raise ValueError(f"trace {trace.id} has no label")
    return trace.label


def harmonic(error_accuracy: Floats, correct_accuracy: Floats) -> Floats:
    """Computes ProcessBench's F1: the harmonic mean of two accuracies (not precision and recall); 0 when both are 0."""
    total = error_accuracy + correct_accuracy
    return np.divide(2 * error_accuracy * correct_accuracy, total, out=np.zeros_like(total), where=total != 0)


def accuracies(data: Sample, is_right: NDArray[np.bool_], weights: Floats) -> tuple[Floats, Floats]:
    """Computes the weighted accuracies on traces with and without an error, each [b]; nan where there are none."""
    error, correct = (
        _ratio((weights * is_right)[:, group].sum(1), weights[:, group].sum(1))
        for group in (data.has_error, ~data.has_error)
    )
    return error, correct


def _ratio(numerator: Floats, denominator: Floats | np.integer | int) -> Floats:
    out = np.full(np.broadcast_shapes(np.shape(numerator), np.shape(denominator)), np.nan)
    np.divide(numerator, denominator, out=out, where=np.asarray(denominator) > 0)
    return out


# --- the exact optimum ------------------------------------------------------------------------------


def sweep(data: Sample, weights: Floats) -> tuple[Floats, Floats, Floats]:
    """Counts the traces that are judged right at every distinct threshold, for b weightings at once.

    F1 is constant between neighbouring interval ends, so sorting the ends gives every value that it takes.

    Returns:
        Edges [p + 1]; the weight of traces with an error that are judged right, [b, p]; the same for traces without
        one. Column j holds for thresholds in (edges[j], edges[j + 1]].
    """
    usable = data.lo < data.hi
    edges = np.unique(np.concatenate([[-np.inf], data.lo[usable], data.hi[usable], [np.inf]]))
    judged_right = []
    for group in (usable & data.has_error, usable & ~data.has_error):
        ends = np.concatenate([data.lo[group], data.hi[group]])
        order = np.argsort(ends, kind="stable")
        entering = np.concatenate([weights[:, group], -weights[:, group]], axis=1)[:, order]
        total = np.concatenate([np.zeros((len(weights), 1)), entering.cumsum(axis=1)], axis=1)
        judged_right.append(total[:, np.searchsorted(ends[order], edges[:-1], side="right")])
    return edges, judged_right[0], judged_right[1]


def best_threshold(data: Sample, weights: Floats) -> Floats:
    """Returns the threshold of highest F1 under each weighting: weights [b, n] give thresholds [b].

    Of several optimal intervals the lowest is taken, and of this its midpoint, or its finite end; 0 when every
    threshold is equally good.
    """
    return _optimum(*sweep(data, weights), data.has_error, weights)


def best_thresholds(data: Sample, weights: Floats) -> Floats:
    """Returns `best_threshold` of many scorers at once: weights [scorers or 1, b, n] give thresholds [scorers, b]."""
    usable = data.lo < data.hi
    ends = np.concatenate([data.lo, data.hi], axis=-1)
    order = ends.argsort(axis=-1)
    infinite = np.full((len(ends), 1), np.inf)
    edges = np.concatenate([-infinite, np.take_along_axis(ends, order, axis=-1), infinite], axis=-1)
    entering = weights * usable[:, None]
    change = np.take_along_axis(np.concatenate([entering, -entering], axis=-1), order[:, None], axis=-1)
    is_error = np.concatenate([data.has_error, data.has_error])[order][:, None]
    # Of equal ends only what all of them leave counts: the column after the last.
    column = np.arange(edges.shape[-1] - 1)
    column = np.where(edges[:, :-1] < edges[:, 1:], column, column[-1])
    column = np.minimum.accumulate(column[:, ::-1], axis=-1)[:, ::-1]
    total = (np.pad(part.cumsum(axis=-1), ((0, 0), (0, 0), (1, 0))) for part in (change * is_error, change * ~is_error))
    error, correct = (np.take_along_axis(part, column[:, None], axis=-1) for part in total)
    return _optimum(edges, error, correct, data.has_error, weights)


def _optimum(edges: Floats, error: Floats, correct: Floats, has_error: NDArray[np.bool_], weights: Floats) -> Floats:
    """The threshold of highest F1, [..., b], given what `sweep` returns: [..., p + 1] and twice [..., b, p]."""
    n_error, n_correct = (weights[..., group].sum(axis=-1, keepdims=True) for group in (has_error, ~has_error))
    total = error * n_correct + correct * n_error
    f1 = np.divide(error * correct, total, out=np.zeros_like(total), where=total > 0)  # half of F1: same optimum
    best = f1 >= f1.max(axis=-1, keepdims=True) * (1 - 1e-12)  # ties survive rounding
    first = best.argmax(axis=-1)
    ends_optimum = ~best & (np.arange(best.shape[-1]) > first[..., None])
    last = np.where(ends_optimum.any(axis=-1), ends_optimum.argmax(axis=-1), best.shape[-1])
    return _inside(*(np.take_along_axis(edges, at, axis=-1) for at in (first, last)))


def _inside(lo: Floats, hi: Floats) -> Floats:
    """A point inside each (lo, hi]: the midpoint, the finite end, or 0 when both ends are infinite."""
    finite_lo, finite_hi = np.where(np.isfinite(lo), lo, 0.0), np.where(np.isfinite(hi), hi, 0.0)
    middle = finite_lo + (finite_hi - finite_lo) / 2
    middle = np.where(middle > finite_lo, middle, finite_hi)
    point = np.where(np.isinf(lo), finite_hi, np.where(np.isinf(hi), np.nextafter(finite_lo, np.inf), middle))
    return np.where(np.isinf(lo) & np.isinf(hi), 0.0, point)


def accuracy_curve(traces: Sequence[ScoredTrace], protocol: EvalProtocol) -> tuple[Floats, Floats, Floats]:
    """Returns thresholds, error accuracy and correct accuracy, each [p]: one point per distinct result, exact."""
    data = sample(traces, protocol)
    edges, error, correct = sweep(data, np.ones((1, len(data))))
    n_error = data.has_error.sum()
    return _inside(edges[:-1], edges[1:]), _ratio(error[0], n_error), _ratio(correct[0], len(data) - n_error)


# --- resampling ---------------------------------------------------------------------------------------


def bootstrap_weights(cluster: Ints, replicates: int, seed: int) -> Floats:
    """Draws bootstrap weights, [replicates + 1, n]: row 0 is the sample, the others resample whole problems."""
    count = int(cluster.max()) + 1 if len(cluster) else 0
    if not count:
        return np.ones((replicates + 1, 0))
    rng = np.random.default_rng(seed)
    draws = rng.multinomial(count, np.full(count, 1 / count), size=replicates)
    return np.concatenate([np.ones((1, len(cluster))), draws[:, cluster]]).astype(float)


def folds(names: Sequence[str], k: int = FOLDS) -> Ints:
    """Returns the fold, 0..k-1, of each trace, given its problem's (hashed) name.

    Sorted names are assigned to folds in turn: all traces of a problem share a fold, and the order of the data does not
    matter.
    """
    in_turn: Ints = fold_splits(names, k, splits=1)[0]
    return in_turn


def fold_splits(names: Sequence[str], k: int = FOLDS, splits: int = SPLITS) -> Ints:
    """Returns the fold of each trace in several splits, [splits, n]: that of `folds`, then random ones of equal sizes.

    One split is one draw of luck: on a handful of traces its F1 can lie below that of all other splits.
    """
    rank = {name: i for i, name in enumerate(sorted(set(names)))}
    index = np.array([rank[name] for name in names], dtype=np.int64)
    in_turn = np.arange(len(rank)) % k
    drawn = (np.random.default_rng(split).permutation(in_turn) for split in range(1, splits))
    return np.stack([fold[index] for fold in (in_turn, *drawn)])


def out_of_fold_rates(data: Sample, fold: Ints) -> tuple[Floats, Floats]:
    """Judges every trace by thresholds tuned on the other folds.

    Args:
        data: The traces of one subset.
        fold: Fold of each trace in every split, [splits, n].

    Returns:
        The share of splits in which each trace is judged right, [n]; and the thresholds, [splits * folds].
    """
    numbers = np.unique(fold)
    held_out = (fold[:, None] == numbers[:, None]).reshape(-1, len(data))  # [splits * folds, n]
    thresholds = best_threshold(data, (~held_out).astype(float))
    return (data.matches(thresholds) & held_out).sum(axis=0) / len(fold), thresholds


def f1_at_rates(data: Sample, rate: Floats, weights: Floats) -> tuple[Floats, Floats, Floats]:
    """Computes F1, error accuracy and correct accuracy, each [b], if each trace is judged right at a rate, [n]."""
    error, correct = (
        _ratio(weights[:, group] @ rate[group], weights[:, group].sum(axis=1))
        for group in (data.has_error, ~data.has_error)
    )
    return harmonic(error, correct), error, correct


def modal_index(label: Ints) -> int:
    """Returns the most frequent first-error index, the lowest of several; 0 when there is no error."""
    errors = label[label >= 0]
    return int(np.bincount(errors).argmax()) if errors.size else 0
