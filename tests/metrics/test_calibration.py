"""ECE, Brier, AUC, correlation and Platt scaling against scikit-learn and by hand; the rows of calibration runs."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from metric_rows import manifest, value
from sklearn import metrics
from sklearn.linear_model import LogisticRegression

from prmbench import tasks
from prmbench.core.records import MetricRow, RunResult, ScoredTrace
from prmbench.metrics import calibration, first_error
from prmbench.metrics.calibration import Resampled
from prmbench.tasks import find_task
from prmbench.tasks.calibration import METRICS
from prmbench.tasks.metric_rows import resampled


def case(n: int = 400, seed: int = 0) -> tuple[np.ndarray, np.ndarray, Resampled]:
    """Log-odds with ties, soft targets that follow them, forty problems and three weightings of them."""
    rng = np.random.default_rng(seed)
    x = rng.normal(0, 2, n).round(1)
    target = (rng.random(n) < 1 / (1 + np.exp(-0.7 * x - 0.5))) * rng.choice([1.0, 0.75], n)
    problem = rng.integers(0, 40, n)
    draws = np.concatenate([np.ones((1, 40)), rng.multinomial(40, np.full(40, 1 / 40), 2)]).astype(float)
    return x, target, Resampled(problem, draws)


def expanded(of: Resampled, row: int) -> np.ndarray:
    """Indices of the predictions, each as often as its problem is drawn."""
    return np.repeat(np.arange(len(of.problem)), of.draws[row, of.problem].astype(int))


def test_brier_and_auc_are_scikit_learns_in_every_replicate() -> None:
    x, target, of = case()
    p, hard = calibration.sigmoid(x), target > 0.5
    brier, auc = calibration.brier(p, hard.astype(float), of), calibration.auc(x, hard, of)
    for row in range(3):
        drawn = expanded(of, row)
        assert brier[row] == pytest.approx(metrics.brier_score_loss(hard[drawn], p[drawn]), abs=1e-12)
        assert auc[row] == pytest.approx(metrics.roc_auc_score(hard[drawn], x[drawn]), abs=1e-12)
    soft = calibration.brier(p, target, of)
    assert soft[0] == pytest.approx(np.mean((p - target) ** 2), abs=1e-12)


def test_auc_by_hand() -> None:
    of = Resampled(np.arange(4), np.ones((1, 4)))
    yes = np.array([True, False, True, False])
    assert calibration.auc(np.array([3.0, 2.0, 2.0, 1.0]), yes, of)[0] == (1 + 1 + 0.5 + 1) / 4
    assert calibration.auc(np.zeros(4), yes, of)[0] == 0.5
    assert np.isnan(calibration.auc(np.arange(4.0), np.ones(4, dtype=bool), of)[0])
    nothing = calibration.auc(np.zeros(0), np.zeros(0, dtype=bool), Resampled(np.zeros(0, dtype=int), np.ones((2, 3))))
    assert np.isnan(nothing).all()
    assert len(nothing) == 2


def test_auc_of_scores_of_each_replicates_own_is_scikit_learns() -> None:
    x, target, of = case()
    own = np.stack([x, (2 * x).round(), np.where(of.problem % 2, x, -x)])
    own[0, 0] = np.nan
    hard = target > 0.5
    actual = calibration.auc(own, hard, of)
    assert np.isnan(actual[0])
    for row in (1, 2):
        drawn = expanded(of, row)
        assert actual[row] == pytest.approx(metrics.roc_auc_score(hard[drawn], own[row][drawn]), abs=1e-12)


def test_correlation_is_numpys_in_every_replicate() -> None:
    x, target, of = case()
    actual = calibration.pearson(x + 1e6, target, of)
    for row in range(3):
        drawn = expanded(of, row)
        assert actual[row] == pytest.approx(np.corrcoef(x[drawn], target[drawn])[0, 1], abs=1e-9)
    assert np.isnan(calibration.pearson(np.full(len(x), 0.1), target, of)).all()


def test_bins_are_of_equal_mass_and_ties_stay_together() -> None:
    rng = np.random.default_rng(1)
    assert np.bincount(calibration.equal_mass_bins(rng.permutation(100) / 100)).tolist() == [10] * 10
    order = calibration.equal_mass_bins(np.array([0.9, 0.1, 0.5, 0.3]), 2)
    assert order.tolist() == [1, 0, 1, 0]
    assert len(set(calibration.equal_mass_bins(np.full(57, 0.3)).tolist())) == 1
    mixed = calibration.equal_mass_bins(np.array([0.0] * 50 + [0.1, 0.2, 0.3, 0.4, 0.5] * 10))
    assert len(set(mixed[:50].tolist())) == 1
    assert mixed[50:55].tolist() == [5, 6, 7, 8, 9]


def test_ece_by_hand_and_in_a_replicate() -> None:
    """Two bins: predicted .2 and .8, observed 0 and .75; drawing the last problem twice moves only the upper one."""
    p = np.array([0.1, 0.2, 0.3, 0.2, 0.7, 0.8, 0.8, 0.9])
    y = np.array([0, 0, 0, 0, 1.0, 1, 1, 0])
    of = Resampled(np.arange(8), np.array([[1.0] * 8, [1, 1, 1, 1, 1, 1, 1, 2]]))
    actual = calibration.reliability(p, y, of, count=2)
    assert actual.count.tolist() == [4, 4]
    assert actual.predicted[0] == pytest.approx([0.2, 0.8])
    assert actual.observed[0] == pytest.approx([0.0, 0.75])
    assert actual.ece[0] == pytest.approx((4 * 0.2 + 4 * 0.05) / 8)
    assert actual.ece[1] == pytest.approx((0.8 + abs(4.1 - 3.0)) / 9)


def test_debiased_error_by_hand_and_in_a_replicate() -> None:
    """One bin, three problems with residuals .6, -.2 and .2: the squared mean less its variance between problems."""
    p = np.array([0.6, 0.8, 0.2])
    y = np.array([0.0, 1.0, 0.0])
    of = Resampled(np.arange(3), np.array([[1.0, 1, 1], [2, 1, 0]]))
    sample, replicate = calibration.reliability(p, y, of, count=1).rms
    mean = 0.6 / 3
    variance = ((0.6 - mean) ** 2 + (-0.2 - mean) ** 2 + (0.2 - mean) ** 2) / 9 * 3 / 2
    assert sample == pytest.approx(-np.sqrt(variance - mean**2))
    mean = 1.0 / 3
    variance = (2 * (0.6 - mean) ** 2 + (-0.2 - mean) ** 2) / 9 * 3 / 2
    assert replicate == pytest.approx(-np.sqrt(2 * variance - mean**2))


def simulated(problems: int, error: float, seed: int) -> tuple[np.ndarray, np.ndarray, Resampled]:
    """Predictions whose outcomes are rarer by `error`; the six predictions of a problem mostly share their luck."""
    rng = np.random.default_rng(seed)
    p = rng.uniform(0.2, 0.8, (problems, 6))
    luck = np.where(rng.random(p.shape) < 0.6, rng.random((problems, 1)), rng.random(p.shape))
    problem = np.repeat(np.arange(problems), 6)
    return p.ravel(), (luck < p - error).astype(float).ravel(), Resampled(problem, np.ones((1, problems)))


@pytest.mark.parametrize(("problems", "error"), [(40, 0.0), (200, 0.0), (200, 0.1), (40, 0.15)])
def test_noise_raises_the_ece_and_not_the_debiased_error(problems: int, error: float) -> None:
    tables = [calibration.reliability(*simulated(problems, error, seed)) for seed in range(300)]
    plain, debiased = (np.mean([getattr(table, name)[0] for table in tables]) for name in ("ece", "rms"))
    assert debiased == pytest.approx(error, abs=0.015)
    if not error:
        assert plain > 0.03, "which is all noise"


def test_the_interval_of_the_debiased_error_holds_the_truth() -> None:
    """Of 60 data sets nine tenths or more; it would miss most of them if replicates were debiased like the sample."""
    held = 0
    for seed in range(60):
        p, y, of = simulated(100, 0.1, seed)
        draws = np.random.default_rng(seed).multinomial(100, np.full(100, 0.01), 200)
        rms = calibration.reliability(p, y, Resampled(of.problem, np.concatenate([of.draws, draws]))).rms
        low, high = np.percentile(rms[1:], [2.5, 97.5])
        held += low <= 0.1 <= high
    assert held >= 54


def test_a_calibrated_model_shows_the_ece_that_its_sample_size_gives() -> None:
    """Against simulation from the start; prefixes that share their outcome show more of it."""
    p, _, _ = simulated(60, 0.0, 0)
    alone = np.arange(len(p))
    drawn = calibration.ece_if_calibrated(p, alone, 1, 1000, 0)
    rng = np.random.default_rng(9)
    by_hand = [
        calibration.reliability(p, (rng.random(len(p)) < p).astype(float), Resampled(alone, np.ones((1, len(p))))).ece[
            0
        ]
        for _ in range(300)
    ]
    assert drawn.mean() == pytest.approx(np.mean(by_hand), rel=0.05)
    assert np.percentile(drawn, 97.5) == pytest.approx(np.percentile(by_hand, 97.5), rel=0.1)
    assert calibration.ece_if_calibrated(p, alone // 6, 1, 1000, 0).mean() > 1.1 * drawn.mean()
    assert calibration.ece_if_calibrated(p, alone, 16, 1000, 0).mean() == pytest.approx(drawn.mean() / 4, rel=0.05)


@pytest.mark.parametrize(
    ("target", "k"), [([0.0, 1.0], 1), ([0.5, 0.25, 1.0], 4), ([1 / 3, 0.5], 6), ([0.33, 0.5], 100), ([2**-0.5], None)]
)
def test_the_number_of_continuations_is_the_smallest_that_gives_the_targets(target: list[float], k: int | None) -> None:
    assert calibration.continuations(np.array(target)) == k


def test_a_constant_at_the_base_rate_has_no_calibration_error() -> None:
    _, target, of = case()
    same = np.full(len(target), target.mean())
    assert calibration.reliability(same, target, of).ece[0] == pytest.approx(0, abs=1e-12)
    assert calibration.brier(same, target, of)[0] == pytest.approx(target.var(), abs=1e-12)


def test_log_odds_and_back() -> None:
    p = np.array([1e-6, 0.3, 0.999])
    assert calibration.sigmoid(calibration.log_odds(p)) == pytest.approx(p, rel=1e-9)
    assert np.isfinite(calibration.log_odds(np.array([0.0, 1.0]))).all()


# --- rows ---------------------------------------------------------------------------------------------------------


def traces(problems: int = 30, seed: int = 0, subset: str = "s") -> list[ScoredTrace]:
    """Two traces a problem; the step sums follow the change in success, which starts from one half."""
    rng = np.random.default_rng([seed, len(subset)])
    collected = []
    for i in range(2 * problems):
        steps = int(rng.integers(1, 7))
        change = rng.normal(0, 0.2, steps)
        success = np.clip((0.5 + change.cumsum()).round(1), 0, 1)
        values = np.diff(success, prepend=0.5) * 10 + rng.normal(0, 1, steps)
        collected.append(
            ScoredTrace(
                f"{subset}-{i:03}",
                subset,
                None,
                int(success[-1] > 0.5),
                f"{subset}-{i // 2}",
                steps,
                tuple(values.tolist()),
                tuple(rng.integers(1, 9, steps).tolist()),
                step_labels=tuple(success.tolist()),
            )
        )
    return collected


def flat(items: list[ScoredTrace], what: str) -> np.ndarray:
    read = {
        "prefix_sum": lambda t: np.cumsum(t.values),
        "prefix_mean": lambda t: np.cumsum(t.values) / np.cumsum(t.tokens),
        "step_sum": lambda t: np.array(t.values),
        "success": lambda t: np.array(t.step_labels),
        "position": lambda t: np.arange(1, t.steps + 1) / t.steps,
        "first": lambda t: np.arange(t.steps) == 0,
    }
    return np.concatenate([read[what](t) for t in items])


@pytest.mark.parametrize("readout", ["prefix_sum", "prefix_mean"])
def test_rows_by_scikit_learn(readout: str) -> None:
    items = traces()
    rows = tasks.judge(manifest("calibration", "logratio", beta=0.3), items)
    target, position = flat(items, "success"), flat(items, "position")
    p = 1 / (1 + np.exp(-0.3 * flat(items, readout)))
    key = f"{readout}/sigmoid"
    assert value(rows, key, "brier").value == pytest.approx(np.mean((p - target) ** 2))
    for name, low in (("auc", None), ("auc_q1", 0), ("auc_q2", 0.25), ("auc_q3", 0.5), ("auc_q4", 0.75)):
        chosen = target != 0.5
        if low is not None:
            chosen &= (position > low) & (position <= low + 0.25)
        actual = value(rows, key, name)
        assert actual.value == pytest.approx(metrics.roc_auc_score(target[chosen] > 0.5, p[chosen])), name
    even = int((target == 0.5).sum())
    assert even > 0
    assert value(rows, key, "auc").note == f"prefixes with a target of exactly one half left out: {even}"
    later = ~flat(items, "first")
    changes = np.concatenate([np.diff(t.step_labels) for t in items])
    by_numpy = np.corrcoef(flat(items, "step_sum")[later], changes)[0, 1]
    assert value(rows, key, "td_outcome_correlation").value == pytest.approx(by_numpy)
    assert by_numpy > 0.5


def test_reliability_rows_make_up_the_ece() -> None:
    items = traces()
    rows = tasks.judge(manifest("calibration", "logratio", beta=0.3), items)
    for key in ("prefix_sum/sigmoid", "prefix_mean/platt"):
        bins = [[value(rows, key, f"reliability_{w}_{i}").value for w in ("mean", "rate", "n")] for i in range(10)]
        total = sum(n for _, _, n in bins)
        assert total == sum(t.steps for t in items)
        ece = sum(abs(mean - rate) * n for mean, rate, n in bins) / total
        assert value(rows, key, "ece").value == pytest.approx(ece)
        assert [mean for mean, _, _ in bins] == sorted(mean for mean, _, _ in bins)
        assert max(n for _, _, n in bins) - min(n for _, _, n in bins) <= 3


def test_platt_mends_the_scale_and_keeps_to_its_fold() -> None:
    """Values ten times too far out: the sigmoid is overconfident, scaled it is better than a constant."""
    items = [replace(t, values=tuple(10 * v for v in t.values)) for t in traces()]
    rows = tasks.judge(manifest("calibration", "logratio"), items)
    plain, platt = (value(rows, f"prefix_sum/{s}", "brier").value for s in ("sigmoid", "platt"))
    assert platt < value(rows, "floor/constant", "brier").value < plain  # type: ignore[operator]
    assert value(rows, "prefix_sum/platt", "ece").value < value(rows, "prefix_sum/sigmoid", "ece").value  # type: ignore[operator]
    target = flat(items, "success")
    assert value(rows, "floor/constant", "brier").value == pytest.approx(target.var(), rel=0.1)
    assert value(rows, "floor/constant", "brier").value > target.var()  # type: ignore[operator]  # of the other fold


def test_platt_is_fitted_again_in_every_replicate() -> None:
    """Replicates of the Brier score and the AUC, from scikit-learn's fits to the problems that they draw."""
    items = traces()
    facts = manifest("calibration", "logratio", replicates=3)
    cells = {c.metric: c.values for c in find_task("calibration").judge(facts, items).cells["prefix_sum/platt"]["s"]}
    index, draws = resampled(facts, "s", [t.cluster for t in items])
    fold = np.repeat(first_error.folds([t.cluster for t in items], 2), [t.steps for t in items])
    x, target = flat(items, "prefix_sum")[:, None], flat(items, "success")
    for row in range(4):
        weight = np.repeat(draws[row, index], [t.steps for t in items])
        logits = np.empty(len(x))
        for held in (0, 1):
            rest = fold != held
            model = LogisticRegression(C=1e9, solver="newton-cholesky", tol=1e-12)
            twice = np.concatenate([weight[rest] * target[rest], weight[rest] * (1 - target[rest])])
            model.fit(np.concatenate([x[rest], x[rest]]), np.repeat([1, 0], rest.sum()), sample_weight=twice)
            logits[~rest] = model.decision_function(x[~rest])
        p = calibration.sigmoid(logits)
        assert cells["brier"][row] == pytest.approx(np.average((p - target) ** 2, weights=weight), abs=1e-7)
        decided = target != 0.5
        auc = metrics.roc_auc_score(target[decided] > 0.5, logits[decided], sample_weight=weight[decided])
        assert cells["auc"][row] == pytest.approx(auc, abs=1e-9)


def test_beside_the_ece_stands_what_a_calibrated_model_would_show() -> None:
    """Values that are log-odds of the outcomes: their ECE lies in the range, that of inflated ones does not."""
    rng = np.random.default_rng(4)
    logits = rng.normal(0, 1.5, (150, 3))
    items = [
        ScoredTrace(
            f"s-{i:03}", "s", None, 1, str(i // 2), 3, tuple(np.diff(row, prepend=0.0).tolist()), (1, 1, 1),
            step_labels=tuple((rng.binomial(4, calibration.sigmoid(row)) / 4).tolist()),
        )
        for i, row in enumerate(logits)
    ]  # fmt: skip
    fair, inflated = (
        tasks.judge(manifest("calibration", "logratio", beta=beta, replicates=99), items) for beta in (1.0, 4.0)
    )
    expected, ece = (value(fair, "prefix_sum/sigmoid", name) for name in ("ece_if_calibrated", "ece"))
    assert expected.lo < ece.value < expected.hi  # type: ignore[operator]
    assert expected.lo < expected.value < expected.hi  # type: ignore[operator]
    assert abs(value(fair, "prefix_sum/sigmoid", "calibration_rms").value) < 0.04  # type: ignore[arg-type]
    assert (
        value(inflated, "prefix_sum/sigmoid", "ece").value
        > value(inflated, "prefix_sum/sigmoid", "ece_if_calibrated").hi
    )  # type: ignore[operator]
    assert value(inflated, "prefix_sum/sigmoid", "calibration_rms").lo > 0.05  # type: ignore[operator]


def test_targets_that_are_no_shares_have_no_expectation_and_say_so() -> None:
    items = [replace(t, step_labels=tuple(0.1 + 2**-0.5 * label for label in t.step_labels)) for t in traces()]
    rows = tasks.judge(manifest("calibration", "logratio", replicates=9), items)
    assert missing(rows, "prefix_sum/sigmoid", "ece_if_calibrated").startswith("targets are no shares of at most 256")


def test_beta_scales_the_sigmoid_and_nothing_else() -> None:
    one, two = (tasks.judge(manifest("calibration", "logratio", beta=b), traces()) for b in (0.3, 3.0))
    for metric in ("auc", "td_outcome_correlation"):
        actual = [value(r, "prefix_mean/sigmoid", metric).value for r in (one, two)]
        assert actual[0] == pytest.approx(actual[1])
    assert value(one, "prefix_mean/sigmoid", "ece").value != value(two, "prefix_mean/sigmoid", "ece").value
    actual = [value(r, "prefix_mean/platt", "brier").value for r in (one, two)]
    assert actual[0] == pytest.approx(actual[1], abs=1e-6)


def test_without_monte_carlo_labels_the_outcome_is_the_target() -> None:
    items = [replace(t, step_labels=()) for t in traces()]
    items[0] = replace(items[0], outcome=None)
    items[1] = replace(items[1], values=(), unscored="too long")
    rows = tasks.judge(manifest("calibration", "prob"), [replace(t, values=expit(t.values)) for t in items])
    kept = items[2:]
    target = np.concatenate([[t.outcome] * t.steps for t in kept]).astype(float)
    p = np.concatenate([expit(t.values) for t in kept])
    actual = value(rows, "as_is/identity", "brier")
    assert actual.value == pytest.approx(np.mean((p - target) ** 2))
    assert actual.note == "unscored traces left out: 1; traces without an outcome left out: 1"
    assert (actual.n, actual.unscored) == (60, 1)
    added = np.concatenate([np.diff(expit(t.values)) for t in kept])
    known = np.concatenate([[t.outcome] * (t.steps - 1) for t in kept])
    correlation = value(rows, "as_is/identity", "td_outcome_correlation").value
    assert correlation == pytest.approx(np.corrcoef(added, known)[0, 1])


def expit(values: tuple[float, ...]) -> tuple[float, ...]:
    return tuple((1 / (1 + np.exp(-np.array(values)))).tolist())


def test_outcomes_do_not_mix_with_monte_carlo_labels() -> None:
    items = traces()
    mixed = [replace(t, step_labels=()) if i < 3 else t for i, t in enumerate(items)]
    rows = tasks.judge(manifest("calibration", "logratio"), mixed)
    actual = value(rows, "prefix_sum/sigmoid", "brier")
    assert actual.note == "traces without Monte-Carlo labels left out: 3"
    expected = value(tasks.judge(manifest("calibration", "logratio"), items[3:]), "prefix_sum/sigmoid", "brier")
    assert actual.value == pytest.approx(expected.value)


def test_the_kinds_and_their_protocols() -> None:
    facts = manifest("calibration", "logratio", series=("logprob",))
    assert tasks.protocol_keys(facts)[:2] == ("prefix_sum/sigmoid", "prefix_sum/platt")
    assert tasks.protocol_keys(facts)[-1] == "logprob.prefix_mean/platt"
    assert tasks.protocol_keys(replace(facts, kind="value", series=())) == ("as_is/sigmoid", "as_is/platt")
    assert tasks.protocol_keys(replace(facts, kind="prob", series=())) == ("as_is/identity", "as_is/platt")
    assert tasks.protocol_keys(replace(facts, kind="verdict", series=())) == ()


def test_averages_are_of_scalars_and_intervals_hold_the_value() -> None:
    items = traces() + traces(subset="tt", problems=20)
    facts = manifest("calibration", "logratio", ("s", "tt"))
    rows = tasks.judge(facts, items)
    averaged = {r.metric for r in rows if r.subset == "avg[s,tt]" and r.protocol == "prefix_sum/platt"}
    assert averaged == set(METRICS)
    for row in rows:
        if row.metric in ("brier", "auc", "td_outcome_correlation"):
            assert row.lo < row.value < row.hi  # type: ignore[operator]
    assert tasks.judge(facts, items[::-1]) == rows


def missing(rows: tuple[MetricRow, ...], key: str, metric: str) -> str:
    row = value(rows, key, metric)
    assert row.value is None
    return row.note


def test_what_cannot_be_known_says_why() -> None:
    facts = manifest("calibration", "logratio")
    single = [replace(t, cluster="one") for t in traces()]
    rows = tasks.judge(facts, single)
    assert missing(rows, "prefix_sum/platt", "brier") == "cross-fitting needs two problems"
    assert missing(rows, "floor/constant", "ece") == "cross-fitting needs two problems"
    assert missing(rows, "prefix_sum/sigmoid", "calibration_rms") == "needs two problems in a bin"
    assert value(rows, "prefix_sum/sigmoid", "brier").value is not None
    good = [replace(t, step_labels=(1.0,) * t.steps) for t in traces()]
    assert missing(tasks.judge(facts, good), "prefix_sum/sigmoid", "auc_q2") == "needs good and bad prefixes"
    bare = [replace(t, step_labels=(), outcome=None) for t in traces()]
    assert missing(tasks.judge(facts, bare), "prefix_sum/sigmoid", "brier") == "no labelled prefix"


def test_runs_are_compared_metric_by_metric() -> None:
    facts, items = manifest("calibration", "logratio"), traces()
    noise = [replace(t, values=tuple(-v for v in t.values)) for t in items]
    rows = tasks.compare((RunResult(facts, ()), noise), (RunResult(facts, ()), items), tasks.pairs(facts, facts))
    assert value(rows, "prefix_sum/sigmoid auc", "auc_difference").lo > 0.2  # type: ignore[operator]
    assert value(rows, "prefix_sum/sigmoid brier", "brier_difference").hi < 0  # type: ignore[operator]
    assert not [r for r in rows if "reliability" in r.metric]
