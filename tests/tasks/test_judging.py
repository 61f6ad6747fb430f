"""Threshold rules, rows, intervals and comparisons, on scores made by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from prmbench import tasks
from prmbench.core.records import EvalProtocol, MetricRow, RunManifest, RunResult, ScoredTrace, UserError
from prmbench.metrics import first_error, floors, intervals


def manifest(kind: str = "prob", subsets: tuple[str, ...] = ("gsm8k", "math"), **more: object) -> RunManifest:
    facts = {
        "run_id": "r",
        "model": "m",
        "backend": "b",
        "input_format": "none",
        "boundary": "exact",
        "benchmark": "processbench",
        "benchmark_hash": "h",
        "n": 0,
        "config": {},
        "seed": 0,
        "scores_sha256": "",
        "fixed": 0.5,
    }
    return RunManifest(kind=kind, subsets=subsets, **{**facts, **more})  # type: ignore[arg-type]


def traces(subset: str, separation: float, n: int = 60, seed: int = 0, shift: float = 0.0) -> list[ScoredTrace]:
    """Steps score high before the first error and lower from it on; two traces a problem."""
    rng = np.random.default_rng([seed, len(subset)])
    collected = []
    for i in range(n):
        k = int(rng.integers(2, 6))
        label = int(rng.integers(-1, k))
        values = rng.random(k) + shift
        if label >= 0:
            values[label:] -= separation
        collected.append(
            ScoredTrace(f"{subset}-{i:03}", subset, label, int(label < 0), str(i // 2), k, tuple(values), (1,) * k)
        )
    return collected


def row(rows: tuple[MetricRow, ...], subset: str, protocol: str, metric: str = "f1") -> MetricRow:
    collected = [r for r in rows if (r.subset, r.protocol, r.metric) == (subset, protocol, metric)]
    assert len(collected) == 1, (subset, protocol, metric)
    return collected[0]


def f1_at(items: list[ScoredTrace], threshold: float) -> float:
    data = first_error.sample(items, EvalProtocol("as_is", "oracle"))
    error, correct = first_error.accuracies(data, data.matches(np.array([threshold])), np.ones((1, len(items))))
    return float(first_error.harmonic(error, correct)[0])


def test_fixed_uses_the_number_given() -> None:
    items = traces("gsm8k", 0.4)
    rows = tasks.judge(manifest(subsets=("gsm8k",), extra_protocols=("as_is/fixed:0.25",)), items)
    assert row(rows, "gsm8k", "as_is/fixed:0.5").value == pytest.approx(f1_at(items, 0.5))
    assert row(rows, "gsm8k", "as_is/fixed:0.25").value == pytest.approx(f1_at(items, 0.25))
    assert row(rows, "gsm8k", "as_is/fixed:0.25", "threshold").value == 0.25


def test_calibrated_tunes_on_its_subset_and_only_there() -> None:
    """math's scores lie 1 higher: the threshold of gsm8k must be used on it all the same."""
    items = traces("gsm8k", 0.5) + traces("math", 0.5, shift=1.0)
    rows = tasks.judge(manifest(), items)
    tuned = row(rows, "gsm8k", "as_is/oracle", "threshold").value
    assert row(rows, "math", "as_is/calibrated:gsm8k", "threshold").value == tuned
    assert row(rows, "math", "as_is/calibrated:gsm8k").value == pytest.approx(f1_at(items[60:], tuned))  # type: ignore[arg-type]
    assert row(rows, "math", "as_is/oracle").value > row(rows, "math", "as_is/calibrated:gsm8k").value + 0.1  # type: ignore[operator]


def test_the_calibration_subsets_own_cell_is_out_of_fold_and_marked() -> None:
    rows = tasks.judge(manifest(), traces("gsm8k", 0.3) + traces("math", 0.3))
    own = row(rows, "gsm8k", "as_is/calibrated:gsm8k")
    assert own.note == "out_of_fold"
    assert own.value == row(rows, "gsm8k", "as_is/cross_validated").value
    in_sample = row(rows, "gsm8k", "as_is/calibrated_in_sample:gsm8k")
    assert in_sample.note == ""
    assert in_sample.value == row(rows, "gsm8k", "as_is/oracle").value


def test_averages_of_calibrated_numbers_leave_the_calibration_subset_out() -> None:
    items = [t for name in ("gsm8k", "math", "omnimath") for t in traces(name, 0.3)]
    rows = tasks.judge(manifest(subsets=("gsm8k", "math", "omnimath")), items)
    cells = [row(rows, name, "as_is/calibrated:gsm8k").value for name in ("math", "omnimath")]
    averages = [r for r in rows if r.protocol == "as_is/calibrated:gsm8k" and "[" in r.subset and r.metric == "f1"]
    assert [(r.subset, r.note) for r in averages] == [("avg[math,omnimath]", "")]
    assert averages[0].value == pytest.approx((cells[0] + cells[1]) / 2)  # type: ignore[operator]
    assert row(rows, "avg[math,omnimath]", "floor/random_calibrated").value is not None
    assert row(rows, "avg[gsm8k,math,omnimath]", "as_is/oracle").note == ""
    two = tasks.judge(manifest(), items[:120])
    assert not [r for r in two if r.protocol == "as_is/calibrated:gsm8k" and "[" in r.subset]


def test_without_its_subset_calibrated_is_absent_with_the_reason() -> None:
    rows = tasks.judge(manifest(subsets=("math",)), traces("math", 0.3))
    absent = row(rows, "math", "as_is/calibrated:gsm8k")
    assert absent.value is None
    assert absent.note == "needs subset gsm8k, which this run does not have"


def test_cross_validation_by_hand() -> None:
    """A held-out fold is judged by the others' threshold: a trace whose own score alone would set it is missed."""
    facts = manifest(subsets=("s",))
    items = [
        ScoredTrace(f"{i}", "s", -1 if i % 2 else 0, None, f"p{i}", 1, (0.9 if i % 2 else 0.1,), (1,)) for i in range(8)
    ]
    outlier = ScoredTrace("8", "s", 0, None, "p8", 1, (0.6,), (1,))  # found only with a threshold above 0.6
    rows = tasks.judge(facts, [*items, outlier])
    assert row(rows, "s", "as_is/oracle").value == 1.0  # threshold in (0.6, 0.9]
    actual = row(rows, "s", "as_is/cross_validated", "error_accuracy").value
    assert actual == pytest.approx(4 / 5)  # without the outlier the others agree on 0.5, which misses it
    assert row(rows, "s", "as_is/cross_validated", "correct_accuracy").value == 1.0


def test_oracle_is_never_below_one_threshold_chosen_elsewhere() -> None:
    """Cross-validation has a threshold per fold, and so may even lie above the best single one."""
    rows = tasks.judge(manifest(), traces("gsm8k", 0.3) + traces("math", 0.3))
    for subset in ("gsm8k", "math"):
        best = row(rows, subset, "as_is/oracle").value
        assert row(rows, subset, "as_is/fixed:0.5").value <= best  # type: ignore[operator]
        assert row(rows, subset, "as_is/calibrated_in_sample:gsm8k").value <= best  # type: ignore[operator]


def test_the_interval_of_an_oracle_surrounds_what_the_population_allows() -> None:
    """On noise the best threshold is luck: the interval surrounds the mean of the oracle and the cross-validated F1."""
    rng = np.random.default_rng(0)
    items = [
        ScoredTrace(f"{i:02}", "s", int(rng.integers(-1, 2)), None, f"{i:02}", 2, tuple(rng.random(2)), (1, 1))
        for i in range(40)
    ]
    rows = tasks.judge(manifest(subsets=("s",), replicates=2000), items)
    oracle, held_out = row(rows, "s", "as_is/oracle"), row(rows, "s", "as_is/cross_validated")
    middle = (oracle.value + held_out.value) / 2  # type: ignore[operator]
    data = first_error.sample(items, EvalProtocol("as_is", "oracle"))
    weights = first_error.bootstrap_weights(data.cluster, 20_000, 1)
    threshold = np.array([row(rows, "s", "as_is/oracle", "threshold").value])
    rate, _ = first_error.out_of_fold_rates(data, first_error.fold_splits([t.cluster for t in items]))
    replicates = (
        first_error.f1_at_rates(data, data.matches(threshold)[0].astype(float), weights)[0]
        + first_error.f1_at_rates(data, rate, weights)[0]
    ) / 2
    expected = intervals.interval("share", middle, replicates[1:], 40)
    assert (oracle.lo, oracle.hi) == pytest.approx(expected, abs=0.01)
    assert oracle.value > middle + 0.02  # type: ignore[operator]


def test_every_rule_has_a_floor_of_random_scores_with_its_spread() -> None:
    items = traces("gsm8k", 0.3) + traces("math", 0.3)
    rows = tasks.judge(manifest(), items)
    subset = [t for t in sorted(items, key=lambda t: t.id) if t.subset == "math"]
    steps, label = np.array([t.steps for t in subset]), np.array([t.label for t in subset])
    expected = floors.random_oracle(steps, label)
    actual = row(rows, "math", "floor/random")
    assert (actual.value, actual.lo, actual.hi) == pytest.approx(
        (expected.mean(), *np.quantile(expected, [0.025, 0.975]))
    )
    assert row(rows, "math", "floor/random_flags").value == pytest.approx(floors.random_flags(steps, label).mean())
    assert row(rows, "gsm8k", "floor/random_calibrated").note == "out_of_fold"
    crossed = row(rows, "gsm8k", "floor/random_cross_validated")
    assert row(rows, "gsm8k", "floor/random_calibrated").value == crossed.value
    assert crossed.value < row(rows, "gsm8k", "floor/random").value - 0.02  # type: ignore[operator]
    only = tasks.judge(manifest(rules=("oracle",)), items)
    assert {r.protocol for r in only if "random" in r.protocol} == {"floor/random"}


def test_the_interval_is_a_95_percent_one() -> None:
    """Right traces only differ by a coin: compare with the binomial interval of correct_accuracy."""
    items = [ScoredTrace(f"{i:03}", "s", -1, None, str(i), 1, (float(i % 2),), (1,)) for i in range(400)]
    items.append(ScoredTrace("400", "s", 0, None, "400", 1, (-1.0,), (1,)))
    actual = row(tasks.judge(manifest(subsets=("s",)), items), "s", "as_is/fixed:0.5", "correct_accuracy")
    assert (actual.lo, actual.hi) == (
        pytest.approx(0.5 - 1.96 * 0.025, abs=0.01),
        pytest.approx(0.5 + 1.96 * 0.025, abs=0.01),
    )


@pytest.mark.parametrize(
    ("labels", "reason"), [((-1, -1), "no trace with an error"), ((0, 1), "no trace without an error")]
)
def test_a_subset_of_one_sort_has_no_f1_but_its_accuracy(labels: tuple[int, int], reason: str) -> None:
    items = [ScoredTrace(str(i), "s", at, None, str(i), 2, (0.9, 0.9), (1, 1)) for i, at in enumerate(labels)]
    rows = tasks.judge(manifest(subsets=("s",)), items)
    actual = row(rows, "s", "as_is/fixed:0.5")
    assert (actual.value, actual.lo, actual.note) == (None, None, reason)
    other = "correct_accuracy" if labels[0] < 0 else "error_accuracy"
    assert row(rows, "s", "as_is/fixed:0.5", other).value == (1.0 if labels[0] < 0 else 0.0)


def test_unscored_is_counted_and_wrong() -> None:
    items = traces("gsm8k", 5.0, n=20)  # fully separable
    blank = [replace(t, values=(), unscored="too long") if i < 5 else t for i, t in enumerate(items)]
    assert row(tasks.judge(manifest(subsets=("gsm8k",)), items), "gsm8k", "as_is/oracle").value == 1.0
    actual = row(tasks.judge(manifest(subsets=("gsm8k",)), blank), "gsm8k", "as_is/oracle")
    assert (actual.n, actual.unscored) == (20, 5)
    lost = [sum(t.label >= 0 for t in items[:5]), sum(t.label < 0 for t in items[:5])]
    whole = [sum(t.label >= 0 for t in items), sum(t.label < 0 for t in items)]
    accuracy = [1 - a / b for a, b in zip(lost, whole, strict=True)]
    assert actual.value == pytest.approx(2 * accuracy[0] * accuracy[1] / sum(accuracy))


def test_verdicts_are_judged_as_they_are() -> None:
    items = [
        ScoredTrace("a", "s", 1, None, "a", 2, verdicts=(1,)),
        ScoredTrace("b", "s", 0, None, "b", 2, verdicts=(1,)),
        ScoredTrace("c", "s", -1, None, "c", 2, verdicts=(-1,)),
        ScoredTrace("d", "s", -1, None, "d", 2, verdicts=(None,)),
    ]
    rows = tasks.judge(manifest("verdict", ("s",), fixed=None), items)
    assert row(rows, "s", "vote/native").value == 0.5
    assert {r.protocol for r in rows if not r.protocol.startswith("floor/")} == {"vote/native"}


def test_votes_that_cannot_be_read_are_counted() -> None:
    items = [
        ScoredTrace("a", "s", 1, None, "a", 2, verdicts=(1, None, None)),  # the vote that could be read decides
        ScoredTrace("b", "s", -1, None, "b", 2, verdicts=(None, None, None)),
        ScoredTrace("c", "s", -1, None, "c", 2, verdicts=(-1, -1, -1)),
        ScoredTrace("d", "t", 0, None, "d", 2, verdicts=(0, 0, 0)),
        ScoredTrace("e", "t", -1, None, "e", 2, verdicts=(-1, 0, -1)),
    ]
    rows = tasks.judge(manifest("verdict", ("s", "t"), fixed=None), items)
    assert row(rows, "s", "vote/native", "unparsed").value == pytest.approx(5 / 9)
    assert row(rows, "t", "vote/native", "unparsed").value == 0.0
    assert row(rows, "avg[s,t]", "vote/native", "unparsed").value == pytest.approx(5 / 18)
    assert row(rows, "s", "vote/native").value == pytest.approx(2 / 3)  # all right with an error, half without
    readable = tasks.judge(manifest("verdict", ("t",), fixed=None), items[3:])
    assert not [r for r in readable if r.metric == "unparsed"]


def test_order_of_the_scores_does_not_matter() -> None:
    items = traces("gsm8k", 0.3) + traces("math", 0.3)
    assert tasks.judge(manifest(), items) == tasks.judge(manifest(), items[::-1])


def test_protocols_that_the_scores_cannot_serve_are_refused() -> None:
    for key in ("prefix_sum/oracle", "logprob.as_is/oracle", "as_is/oracle@release", "as_is/native"):
        with pytest.raises(UserError, match="protocol"):
            tasks.resolve_protocols(manifest(), [key])


@pytest.mark.parametrize(
    "key",
    ["step_sum/oracle", "logprob.prefix_mean/calibrated:gsm8k", "as_is/fixed:0.5", "step_sum/cross_validated@release"],
)
def test_a_protocol_key_reads_back(key: str) -> None:
    assert EvalProtocol.parse(key).key == key


@pytest.mark.parametrize(
    "key",
    [
        *("", "step_sum", "step_sum/best", "mean/oracle", "step_sum/fixed", "step_sum/oracle@near"),
        *("step_sum/fixed:nan", "step_sum/calibrated", "step_sum/oracle:3", "step_sum/native:1"),
    ],
)
def test_an_unknown_protocol_is_refused(key: str) -> None:
    with pytest.raises(UserError, match="protocol"):
        EvalProtocol.parse(key)


def test_a_native_rule_reads_the_models_own_number() -> None:
    """Named by a user it must be the run's number, not the best one."""
    items = traces("gsm8k", 0.4)
    facts = manifest(subsets=("gsm8k",), native=0.3)
    rows = tasks.judge(facts, items)
    assert row(rows, "gsm8k", "as_is/native").value == pytest.approx(f1_at(items, 0.3))
    both = (RunResult(facts, ()), items)
    compared = tasks.compare(both, both, tasks.pairs(facts, facts, ("as_is/native",)))
    assert row(compared, "gsm8k", "as_is/native", "f1_a").value == pytest.approx(f1_at(items, 0.3))


def test_a_calibration_subset_of_one_sort_gives_no_threshold() -> None:
    right = [replace(t, label=-1) for t in traces("gsm8k", 0.0)]
    rows = tasks.judge(manifest(), right + traces("math", 0.3))
    for subset in ("gsm8k", "math"):
        absent = row(rows, subset, "as_is/calibrated:gsm8k")
        assert absent.value is None
        assert absent.note == "gsm8k has no trace with an error to tune on"


def test_a_number_that_one_subset_lacks_is_missing_from_the_average_only() -> None:
    """One subset has a single problem (no folds) and no outcomes; the other has all."""
    single = [replace(t, cluster="one", outcome=None) for t in traces("math", 0.3, n=6)]
    rows = tasks.judge(manifest(), traces("gsm8k", 0.3) + single)
    for protocol in ("as_is/cross_validated", "floor/outcome_oracle"):
        assert row(rows, "gsm8k", protocol).value is not None
        assert row(rows, "math", protocol).value is None
        assert row(rows, "avg[gsm8k,math]", protocol).value is None
    assert row(rows, "avg[gsm8k,math]", "as_is/cross_validated").note == "cross-validation needs two problems"


def test_a_fixed_threshold_keeps_all_its_digits() -> None:
    protocol = EvalProtocol.parse("as_is/fixed:0.123456789")
    assert protocol.at == 0.123456789
    assert EvalProtocol.parse(protocol.key) == protocol


# --- compare -------------------------------------------------------------------------------------------------


def runs(separations: tuple[float, float]) -> list[tuple[RunResult, list[ScoredTrace]]]:
    """Two models on the same traces: same labels, same noise, another separation."""
    return [(RunResult(manifest(), ()), traces("gsm8k", s) + traces("math", s)) for s in separations]


ORACLE = [(EvalProtocol("as_is", "oracle"),) * 2]


def test_a_run_does_not_differ_from_itself() -> None:
    a, b = runs((0.3, 0.3))
    rows = tasks.compare(a, b, ORACLE)
    actual = row(rows, "avg[gsm8k,math]", "as_is/oracle", "f1_difference")
    assert (actual.value, actual.lo, actual.hi) == (0.0, 0.0, 0.0)
    assert row(rows, "avg[gsm8k,math]", "as_is/oracle", "p_value").value == 1.0


def test_runs_that_were_judged_with_other_replicates_are_resampled_alike() -> None:
    a, (result, scores) = runs((0.1, 0.8))
    fewer = (replace(result, manifest=replace(result.manifest, replicates=50, seed=5)), scores)
    assert tasks.compare(a, fewer, ORACLE) == tasks.compare(a, (result, scores), ORACLE)


def test_a_better_model_is_found_better_with_the_right_sign() -> None:
    a, b = runs((0.1, 0.8))
    rows = tasks.compare(a, b, ORACLE)
    actual = row(rows, "math", "as_is/oracle", "f1_difference")
    assert actual.value == pytest.approx(
        row(rows, "math", "as_is/oracle", "f1_b").value - row(rows, "math", "as_is/oracle", "f1_a").value  # type: ignore[operator]
    )
    assert actual.value > 0.2  # type: ignore[operator]
    assert actual.lo > 0  # type: ignore[operator]
    assert row(rows, "math", "as_is/oracle", "p_value").value < 0.01  # type: ignore[operator]
    back = row(tasks.compare(b, a, ORACLE), "math", "as_is/oracle", "f1_difference")
    assert back.value == pytest.approx(-actual.value)  # type: ignore[operator]


def test_pairing_makes_the_difference_sharper_than_two_intervals() -> None:
    a, b = runs((0.5, 0.55))
    rows = tasks.compare(a, b, ORACLE)
    difference = row(rows, "math", "as_is/oracle", "f1_difference")
    alone = row(rows, "math", "as_is/oracle", "f1_a")
    assert difference.hi - difference.lo < 0.8 * (alone.hi - alone.lo)  # type: ignore[operator]


def test_unlike_protocols_and_unlike_data_are_refused() -> None:
    a, b = runs((0.3, 0.3))
    with pytest.raises(UserError, match="unlike threshold rules"):
        tasks.compare(a, b, [(EvalProtocol("as_is", "oracle"), EvalProtocol("as_is", "cross_validated"))])
    with pytest.raises(UserError, match="unlike threshold rules"):
        tasks.compare(a, b, [(EvalProtocol.parse("as_is/fixed:0.5"), EvalProtocol.parse("as_is/oracle"))])
    with pytest.raises(UserError, match="unlike threshold rules"):
        tasks.compare(a, b, [(EvalProtocol.parse("as_is/fixed:0.2"), EvalProtocol.parse("as_is/fixed:0.8"))])
    other = (RunResult(replace(b[0].manifest, benchmark_hash="other"), ()), b[1])
    with pytest.raises(UserError, match="benchmark hash"):
        tasks.compare(a, other, ORACLE)
    released = (RunResult(replace(b[0].manifest, boundary="release"), ()), b[1])
    with pytest.raises(UserError, match="boundary"):
        tasks.compare(a, released, ORACLE)


def test_kinds_without_a_common_readout_need_one_named_for_each() -> None:
    one, two = manifest("prob"), manifest("logratio")
    with pytest.raises(UserError, match="--against"):
        tasks.pairs(one, two)
    pair = tasks.pairs(one, two, ("as_is/oracle",), "step_sum/oracle")
    assert [p.key for p in pair[0]] == ["as_is/oracle", "step_sum/oracle"]


def test_a_run_may_ask_for_fewer_rules_and_replicates() -> None:
    scores = [*traces("gsm8k", 1.0), *traces("math", 0.5, seed=1)]
    every = tasks.judge(manifest(), scores)
    few = tasks.judge(replace(manifest(), rules=("oracle",), replicates=50), scores)
    assert {r.protocol.partition("/")[2] for r in few if not r.protocol.startswith("floor/")} == {"oracle"}
    key = lambda r: (r.subset, r.protocol, r.metric)  # noqa: E731
    values = {key(r): r.value for r in every}
    assert few
    assert all(values[key(r)] == r.value for r in few if r.metric != "mdd" and "avg[" not in r.subset)
    assert any(r.lo != q.lo for r in few for q in every if key(r) == key(q))


def test_several_protocols_are_compared_at_once_with_adjusted_p_values() -> None:
    a, b = runs((0.3, 0.6))
    every = tasks.compare(a, b, tasks.pairs(a[0].manifest, b[0].manifest))
    protocols = {r.protocol for r in every}
    assert len(protocols) > 2
    for protocol in protocols - {"as_is/calibrated:gsm8k"}:
        p, adjusted = (row(every, "math", protocol, metric).value for metric in ("p_value", "p_adjusted"))
        assert adjusted >= p  # type: ignore[operator]
    assert any(
        row(every, "math", p, "p_adjusted").value > row(every, "math", p, "p_value").value  # type: ignore[operator]
        for p in protocols
    )
    assert not [r for r in tasks.compare(a, b, ORACLE) if r.metric == "p_adjusted"]


@pytest.mark.parametrize("rule", ["as_is/oracle", "as_is/cross_validated", "as_is/calibrated:gsm8k", "as_is/fixed:0.5"])
def test_the_interval_of_a_comparison_agrees_with_its_p_and_its_numbers(rule: str) -> None:
    pairs = [(EvalProtocol.parse(rule),) * 2]
    decided = set()
    for second in (0.35, 0.5, 0.9):
        a, b = runs((0.3, second))
        rows = tasks.compare(a, b, pairs)
        for subset in ("gsm8k", "math"):
            numbers = [row(rows, subset, rule, m) for m in ("f1_a", "f1_b", "f1_difference", "p_value", "mdd")]
            first, other, gap, p, mdd = numbers
            assert gap.value == pytest.approx(other.value - first.value)  # type: ignore[operator]
            assert (gap.lo + gap.hi) / 2 == pytest.approx(gap.value)  # type: ignore[operator]
            assert (p.value < 0.05) == (gap.lo > 0 or gap.hi < 0)  # type: ignore[operator]
            assert mdd.value >= 0.5 * (gap.hi - gap.lo)  # type: ignore[operator]
            decided.add(p.value < 0.05)  # type: ignore[operator]
    assert decided == {True, False}


def test_runs_on_unlike_scales_are_compared_as_on_like_ones() -> None:
    """A tuned F1 does not change when all scores of a model are stretched, so neither does the test."""
    a, (result, scores) = runs((0.3, 0.6))
    stretched = [replace(t, values=tuple(100 * v + 50 for v in t.values)) for t in scores]
    for key in ("as_is/oracle", "as_is/cross_validated", "as_is/calibrated:gsm8k"):
        pairs = [(EvalProtocol.parse(key),) * 2]
        plain, other = (tasks.compare(a, (result, items), pairs) for items in (scores, stretched))
        for one, two in zip(plain, other, strict=True):
            assert one.value == pytest.approx(two.value)


def test_no_row_is_there_twice_where_the_run_lacks_the_calibration_subset() -> None:
    rows = tasks.judge(manifest(subsets=("easy", "hard")), traces("easy", 0.3) + traces("hard", 0.3))
    keys = [(r.subset, r.protocol, r.metric) for r in rows]
    assert len(keys) == len(set(keys))
