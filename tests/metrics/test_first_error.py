"""First-error F1 against brute force, scikit-learn and hand-worked numbers."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, roc_auc_score, roc_curve

from prmbench.core.records import EvalProtocol, Readout, ScoredTrace
from prmbench.metrics import first_error

AS_IS = EvalProtocol("as_is", "oracle")


def trace(
    values: list[float], label: int, name: str = "t", tokens: tuple[int, ...] = (), **more: object
) -> ScoredTrace:
    return ScoredTrace(
        id=name,
        subset="s",
        label=label,
        outcome=None,
        cluster=name,
        steps=len(values),
        values=tuple(values),
        tokens=tokens,
        **more,
    )


@st.composite
def traces(draw: st.DrawFn) -> list[ScoredTrace]:
    """2 to 12 traces with ties, unscored ones among them."""
    collected = []
    for n in range(draw(st.integers(2, 12))):
        values = draw(st.lists(st.integers(0, 5).map(float), min_size=1, max_size=5))
        label = draw(st.integers(-1, len(values) - 1))
        reason = draw(st.sampled_from(["", "", "", "too long"]))
        collected.append(trace(values, label, str(n), unscored=reason))
    return collected


def f1_by_hand(items: list[ScoredTrace], weights: np.ndarray, threshold: float) -> float:
    """The definition, trace by trace: no intervals."""
    right = [t.unscored == "" and first_by_hand(t.values, threshold) == t.label for t in items]
    accuracy = []
    for wanted in (True, False):
        chosen = [(w, r) for t, w, r in zip(items, weights, right, strict=True) if (t.label >= 0) is wanted]
        total = sum(w for w, _ in chosen)
        accuracy.append(sum(w * r for w, r in chosen) / total if total else 0.0)
    return 2 * accuracy[0] * accuracy[1] / sum(accuracy) if sum(accuracy) else 0.0


def first_by_hand(values: tuple[float, ...], threshold: float) -> int:
    return next((i for i, v in enumerate(values) if v < threshold), -1)


# --- readouts ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("readout", "expected"),
    [
        ("prefix_sum", [6.0, 4.0, 7.0]),
        ("step_sum", [6.0, -2.0, 3.0]),
        ("prefix_mean", [3.0, 1.0, 1.4]),  # 6/2, 4/4, 7/5
        ("step_mean", [3.0, -1.0, 3.0]),
        ("as_is", [6.0, -2.0, 3.0]),
        ("step_diff", [6.0, -8.0, 5.0]),
    ],
)
def test_readouts_by_hand(readout: Readout, expected: list[float]) -> None:
    actual = first_error.readout(trace([6.0, -2.0, 3.0], 1, tokens=(2, 2, 1)), EvalProtocol(readout, "oracle"))
    assert actual == pytest.approx(expected)


def test_a_series_of_its_own_name() -> None:
    item = trace([1.0, 2.0], 1, tokens=(1, 1), also={"logprob": (-3.0, -4.0)})
    assert first_error.readout(item, EvalProtocol("prefix_sum", "oracle", series="logprob")) == pytest.approx(
        [-3.0, -7.0]
    )


def test_prefix_value_and_its_td_telescope() -> None:
    """Eq. (5): the TDs (step sums) of a trace add up to its last prefix value."""
    item = trace([0.5, -1.5, 2.25], 0, tokens=(3, 1, 4))
    td = first_error.readout(item, EvalProtocol("step_sum", "oracle"))
    value = first_error.readout(item, EvalProtocol("prefix_sum", "oracle"))
    assert td is not None
    assert value is not None
    assert td.cumsum() == pytest.approx(value)
    assert value[-1] / 8 == pytest.approx(first_error.readout(item, EvalProtocol("prefix_mean", "oracle"))[-1])  # type: ignore[index]


# --- decision and F1 ------------------------------------------------------------------------------------------


def test_first_below_is_strict() -> None:
    scores = np.array([0.5, 0.3, 0.1])
    assert [first_error.first_below(scores, t) for t in (0.1, 0.3, 0.31, 0.6)] == [-1, 2, 1, 0]


@pytest.mark.parametrize(
    ("values", "label", "expected"),
    [
        ([3.0, 1.0, 2.0], -1, (-math.inf, 1.0)),  # right: any threshold up to the smallest score
        ([3.0, 1.0, 2.0], 0, (3.0, math.inf)),
        ([3.0, 1.0, 2.0], 1, (1.0, 3.0)),
        ([3.0, 1.0, 2.0], 2, (2.0, 1.0)),  # step 1 is always flagged before step 2: empty
    ],
)
def test_match_interval_by_hand(values: list[float], label: int, expected: tuple[float, float]) -> None:
    assert first_error.match_interval(np.array(values), label) == expected


@given(traces(), st.floats(-1, 6))
def test_f1_is_its_definition(items: list[ScoredTrace], threshold: float) -> None:
    data = first_error.sample(items, AS_IS)
    weights = np.ones((1, len(items)))
    error, correct = first_error.accuracies(data, data.matches(np.array([threshold])), weights)
    actual = first_error.harmonic(np.nan_to_num(error), np.nan_to_num(correct))[0]
    assert actual == pytest.approx(f1_by_hand(items, weights[0], threshold))


@given(traces(), st.integers(0, 5))
def test_optimum_equals_brute_force(items: list[ScoredTrace], seed: int) -> None:
    data = first_error.sample(items, AS_IS)
    weights = first_error.bootstrap_weights(data.cluster, 4, seed)
    candidates = np.arange(-1, 7, 0.25)  # scores are 0..5, so every outcome lies between or on these
    for row, threshold in zip(weights, first_error.best_threshold(data, weights), strict=True):
        best = max(f1_by_hand(items, row, t) for t in candidates)
        assert f1_by_hand(items, row, threshold) == pytest.approx(best)


@given(traces(), st.integers(0, 5))
def test_many_scorers_at_once_are_one_after_the_other(items: list[ScoredTrace], seed: int) -> None:
    """Others' scores of the same traces, with ties and unscored ones, under several weightings."""
    first = first_error.sample(items, AS_IS)
    shuffle = np.random.default_rng(seed).permuted
    ends = [(first.lo, first.hi), *(shuffle(np.stack([first.lo, first.hi]), axis=0) for _ in range(2))]
    scorers = [replace(first, lo=lo, hi=hi) for lo, hi in ends]
    weights = first_error.bootstrap_weights(first.cluster, 4, seed)
    many = replace(first, lo=np.array([s.lo for s in scorers]), hi=np.array([s.hi for s in scorers]))
    assert first_error.best_thresholds(many, weights[None]).tolist() == [
        first_error.best_threshold(scorer, weights).tolist() for scorer in scorers
    ]
    own = np.stack([weights, weights[::-1], np.ones_like(weights)])
    assert first_error.best_thresholds(many, own).tolist() == [
        first_error.best_threshold(*pair).tolist() for pair in zip(scorers, own, strict=True)
    ]


@given(traces())
def test_optimum_does_not_move_with_an_increasing_map(items: list[ScoredTrace]) -> None:
    mapped = [trace([math.exp(v / 3) - 7 for v in t.values], t.label or 0, t.id, unscored=t.unscored) for t in items]
    relabelled = [trace(list(t.values), t.label or 0, t.id, unscored=t.unscored) for t in items]
    best = []
    for version in (relabelled, mapped):
        data, ones = first_error.sample(version, AS_IS), np.ones((1, len(items)))
        threshold = first_error.best_threshold(data, ones)[0]
        best.append(f1_by_hand(version, ones[0], threshold))
    assert best[0] == pytest.approx(best[1])


def test_of_several_optima_the_lowest_and_of_it_the_midpoint() -> None:
    items = [trace([4.0], -1, "a"), trace([2.0], 0, "b")]  # every threshold in (2, 4] is perfect
    data = first_error.sample(items, AS_IS)
    assert first_error.best_threshold(data, np.ones((1, 2)))[0] == 3.0
    two_optima = [*items, trace([9.0], -1, "c"), trace([7.0], 0, "d")]  # (2, 4] and (7, 9]: three of four right
    assert first_error.best_threshold(first_error.sample(two_optima, AS_IS), np.ones((1, 4)))[0] == 3.0


def test_an_open_optimum_gives_its_finite_end() -> None:
    right = first_error.sample([trace([4.0], -1)], AS_IS)
    assert first_error.best_threshold(right, np.ones((1, 1)))[0] == 0.0  # F1 is 0 everywhere: nothing to prefer
    mixed = first_error.sample([trace([4.0], 0, "a"), trace([5.0, 4.5], 0, "b"), trace([6.0], -1, "c")], AS_IS)
    assert first_error.best_threshold(mixed, np.ones((1, 3)))[0] == 5.5


def test_unscored_is_wrong_in_both_groups() -> None:
    items = [
        trace([1.0], -1, "a"),
        trace([0.0], 0, "b"),
        trace([1.0], -1, "c", unscored="x"),
        trace([0.0], 0, "d", unscored="x"),
    ]
    data = first_error.sample(items, AS_IS)
    error, correct = first_error.accuracies(data, data.matches(np.array([0.5])), np.ones((1, 4)))
    assert (error[0], correct[0]) == (0.5, 0.5)


def test_majority_ignores_what_could_not_be_parsed() -> None:
    assert first_error.majority((None, 2, 1, 1, None)) == 1
    assert first_error.majority((3, -1)) == 3  # a tie goes to the first seen
    assert first_error.majority((None,)) is None


# --- scikit-learn -----------------------------------------------------------------------------------------------


def test_one_step_traces_give_the_roc_curve() -> None:
    """With one step a trace, correct accuracy is specificity and error accuracy is sensitivity."""
    rng = np.random.default_rng(0)
    wrong = rng.random(200) < 0.4
    scores = np.round(rng.normal(size=200) - wrong, 1)  # ties included
    items = [trace([s], 0 if w else -1, str(n)) for n, (s, w) in enumerate(zip(scores, wrong, strict=True))]
    _, error, correct = first_error.accuracy_curve(items, AS_IS)
    ours = sorted(set(zip(1 - correct, error, strict=True)))
    fpr, tpr, _ = roc_curve(wrong, -scores, drop_intermediate=False)
    assert np.array(ours) == pytest.approx(np.array(sorted(set(zip(fpr, tpr, strict=True)))))
    area = np.trapezoid([e for _, e in ours], [f for f, _ in ours])
    assert area == pytest.approx(roc_auc_score(wrong, -scores))


def test_accuracies_are_scikit_learns() -> None:
    rng = np.random.default_rng(1)
    items = [trace(list(rng.random(4)), int(rng.integers(-1, 4)), str(n)) for n in range(100)]
    data = first_error.sample(items, AS_IS)
    error, correct = first_error.accuracies(data, data.matches(np.array([0.3])), np.ones((1, 100)))
    said = np.array([first_by_hand(t.values, 0.3) for t in items])
    gold = np.array([t.label for t in items])
    assert error[0] == pytest.approx(accuracy_score(gold[gold >= 0], said[gold >= 0]))
    assert correct[0] == pytest.approx(accuracy_score(gold[gold < 0], said[gold < 0]))


# --- resampling -----------------------------------------------------------------------------------------------------


def test_problems_are_resampled_whole() -> None:
    cluster = np.array([0, 0, 1, 2, 2, 2])
    weights = first_error.bootstrap_weights(cluster, 50, seed=3)
    assert (weights[0] == 1).all()
    assert (weights[:, 0] == weights[:, 1]).all()
    assert (weights[:, 3] == weights[:, 5]).all()
    assert (weights[:, 0] + weights[:, 2] + weights[:, 3] == 3).all()  # three problems are drawn each time
    assert len(np.unique(weights, axis=0)) > 3


def test_clustering_widens_the_interval_of_repeated_problems() -> None:
    rng = np.random.default_rng(0)
    hit = np.repeat(rng.random(50) < 0.5, 4).astype(float)  # four identical traces a problem
    spread = [
        (first_error.bootstrap_weights(cluster, 2000, 0)[1:] @ hit / 200).std()
        for cluster in (np.repeat(np.arange(50), 4), np.arange(200))
    ]
    assert spread[0] == pytest.approx(math.sqrt(0.25 / 50), rel=0.1)  # binomial over 50 problems
    assert spread[1] == pytest.approx(math.sqrt(0.25 / 200), rel=0.1)


def test_folds_keep_problems_together_and_balance() -> None:
    names = ["b", "a", "c", "a", "d", "e", "b", "f"]
    fold = first_error.folds(names, 3)
    assert fold[1] == fold[3]
    assert fold[0] == fold[6]
    assert sorted(np.bincount([fold[names.index(n)] for n in sorted(set(names))])) == [2, 2, 2]
    assert list(first_error.folds(names[::-1], 3)) == list(fold[::-1])


def test_splits_are_random_but_for_the_first_and_keep_problems_together() -> None:
    names = ["b", "a", "c", "a", "d", "e", "b", "f"]
    splits = first_error.fold_splits(names, 3, splits=6)
    assert list(splits[0]) == list(first_error.folds(names, 3))
    assert len(np.unique(splits, axis=0)) > 3
    for fold in splits:
        assert fold[1] == fold[3]
        assert fold[0] == fold[6]
        assert sorted(np.bincount([fold[names.index(n)] for n in sorted(set(names))])) == [2, 2, 2]
    assert (first_error.fold_splits(names[::-1], 3, splits=6) == splits[:, ::-1]).all()


def test_out_of_fold_rates_by_hand() -> None:
    """Each trace is judged by the threshold that is best on the other folds, and splits are averaged."""
    rng = np.random.default_rng(0)
    items = [trace(list(rng.random(3)), int(rng.integers(-1, 3)), str(n)) for n in range(30)]
    data, fold = first_error.sample(items, AS_IS), first_error.fold_splits([t.cluster for t in items], 3, splits=4)
    rate, thresholds = first_error.out_of_fold_rates(data, fold)
    expected = np.zeros(30)
    for split in fold:
        for k in range(3):
            others = [t for t, f in zip(items, split, strict=True) if f != k]
            tuned = first_error.best_threshold(first_error.sample(others, AS_IS), np.ones((1, len(others))))[0]
            for i in np.flatnonzero(split == k):
                expected[i] += first_by_hand(items[i].values, tuned) == items[i].label
    assert rate == pytest.approx(expected / 4)
    assert thresholds.shape == (12,)
    weights = np.ones((1, 30))
    f1, error, correct = first_error.f1_at_rates(data, rate, weights)
    label = np.array([t.label for t in items])
    assert error[0] == pytest.approx(rate[label >= 0].mean())
    assert correct[0] == pytest.approx(rate[label < 0].mean())
    assert f1[0] == pytest.approx(2 * error[0] * correct[0] / (error[0] + correct[0]))
