"""ECE, Brier, AUC, correlation and Platt scaling against scikit-learn and by hand; the rows of calibration runs."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from metric_rows import manifest, value
from sklearn import metrics

from prmbench import tasks
from prmbench.core.records import MetricRow, RunResult, ScoredTrace
from prmbench.metrics import calibration
from prmbench.metrics.calibration import Resampled


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
    actual = calibration.reliability(p, y, of, 2)
    assert actual.count.tolist() == [4, 4]
    assert actual.predicted[0] == pytest.approx([0.2, 0.8])
    assert actual.observed[0] == pytest.approx([0.0, 0.75])
    assert actual.ece[0] == pytest.approx((4 * 0.2 + 4 * 0.05) / 8)
    assert actual.ece[1] == pytest.approx((0.8 + abs(4.1 - 3.0)) / 9)


def test_a_constant_at_the_base_rate_has_no_calibration_error() -> None:
    _, target, of = case()
    same = np.full(len(target), target.mean())
    assert calibration.reliability(same, target, of).ece[0] == pytest.approx(0, abs=1e-12)
    assert calibration.brier(same, target, of)[0] == pytest.approx(target.var(), abs=1e-12)


@pytest.mark.parametrize("shift", [0.0, 7.0])
def test_platt_by_hand(shift: float) -> None:
    """Two values, each with its own mean target: the line goes through both log-odds, here -log 3 and log 3."""
    x = np.array([-1.0, -1.0, 3.0, 3.0]) + shift
    slope, intercept = calibration.fit_platt(x, np.array([0.5, 0.0, 1.0, 0.5]))
    assert slope == pytest.approx(np.log(9) / 4, rel=1e-5)
    assert intercept == pytest.approx(-np.log(3) + slope * (1 - shift), abs=1e-5)


def test_platt_is_the_optimum() -> None:
    """At the optimum residuals sum to nothing, alone and times x; a soft target counts by its value."""
    x, target, _ = case()
    slope, intercept = calibration.fit_platt(x, target)
    residual = calibration.sigmoid(slope * x + intercept) - target
    assert [residual.sum(), (residual * x).sum()] == pytest.approx([0, 0], abs=1e-5)
    assert slope > 0


def test_platt_gives_the_numbers_of_the_committed_results() -> None:
    """Recorded from the Newton's method that the first results were made with."""
    x, target, _ = case()
    assert calibration.fit_platt(x, target) == pytest.approx((0.534956097746, 0.130690765680), abs=1e-9)


@pytest.mark.parametrize("far", [1.0, 1e4])
def test_platt_stays_finite_on_what_one_value_separates(far: float) -> None:
    x = np.array([-2.0, -1.0, 1.0, 2.0]) * far
    slope, intercept = calibration.fit_platt(x, (x > 0).astype(float))
    p = calibration.sigmoid(slope * x + intercept)
    assert p == pytest.approx([0, 0, 1, 1], abs=1e-3)
    assert calibration.fit_platt(np.full(4, 0.1), np.array([1.0, 1, 1, 0])) == (0.0, pytest.approx(np.log(3), abs=1e-5))
    slope, intercept = calibration.fit_platt(x, np.ones(4))
    assert calibration.sigmoid(slope * x + intercept).min() > 0.999


def test_cross_fitting_never_sees_its_own_fold() -> None:
    x, target, of = case()
    fold = of.problem % 2
    actual = calibration.cross_fitted(x, target, fold)
    slope, intercept = calibration.fit_platt(x[fold == 1], target[fold == 1])
    assert actual[fold == 0] == pytest.approx(slope * x[fold == 0] + intercept)
    changed = np.where(fold == 0, 1 - target, target)
    again = calibration.cross_fitted(x, changed, fold)
    assert (again[fold == 0] == actual[fold == 0]).all()
    assert (again[fold == 1] != actual[fold == 1]).all()
    constant = calibration.cross_fitted_mean(target, fold)
    assert set(constant[fold == 0].tolist()) == {target[fold == 1].mean()}


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
    assert averaged == {"ece", "brier", "auc", "auc_q1", "auc_q2", "auc_q3", "auc_q4", "td_outcome_correlation"}
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
