"""PRMScore: counts and formulas by hand, thresholds and floors against brute force, groups, unscored steps, compare."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise, product

import numpy as np
import pytest

from prmbench import tasks
from prmbench.core.records import MetricRow, RunManifest, RunResult, ScoredTrace, UserError
from prmbench.metrics import first_error, intervals, step_validity
from prmbench.tasks import metric_rows
from prmbench.tasks.validity import GROUPS

CATEGORIES = tuple(name for names in GROUPS.values() for name in names)


def manifest(subsets: Sequence[str], kind: str = "prob", **more: object) -> RunManifest:
    facts = {
        "run_id": "r",
        "model": "m",
        "backend": "b",
        "input_format": "none",
        "boundary": "exact",
        "benchmark": "prmbench_preview",
        "benchmark_hash": "h",
        "n": 0,
        "config": {},
        "seed": 0,
        "scores_sha256": "",
        "fixed": 0.5,
        "task": "validity",
        "replicates": 40,
    }
    return RunManifest(kind=kind, subsets=tuple(subsets), **{**facts, **more})  # type: ignore[arg-type]


def trace(name: str, labels: str, values: Sequence[float] | None, subset: str, problem: str = "") -> ScoredTrace:
    """`labels`: v or x for each step."""
    gold = tuple(1.0 if c == "v" else 0.0 for c in labels)
    facts = ScoredTrace(name, subset, labels.find("x"), None, problem or name, len(labels), step_labels=gold)
    if values is None:
        return replace(facts, unscored="too long")
    return replace(facts, values=tuple(values), tokens=(2,) * len(values))


def rows_of(facts: RunManifest, items: Sequence[ScoredTrace]) -> dict[tuple[str, str, str], MetricRow]:
    return {(r.subset, r.protocol, r.metric): r for r in tasks.judge(facts, items)}


def drawn(subsets: Sequence[str], n: int = 15, seed: int = 0, coarse: bool = False) -> list[ScoredTrace]:
    """`n` problems, in every subset one trace of each; scores a little lower on invalid steps."""
    rng = np.random.default_rng(seed)
    collected = []
    for subset, i in product(subsets, range(n)):
        clean = subset in ("multi_solutions", "correct")
        labels = "".join("v" if clean or rng.random() < 0.7 else "x" for _ in range(int(rng.integers(1, 6))))
        values = rng.random(len(labels)) - 0.3 * np.array([c == "x" for c in labels])
        collected.append(trace(f"{subset}_{i}", labels, values.round(1) if coarse else values, subset, f"p{i}"))
    return collected


# --- by hand --------------------------------------------------------------------------------------------------


def test_every_number_by_hand() -> None:
    """Threshold 0.5, and a model of which a score of exactly 0.5 is wrong: it is called invalid."""
    items = [
        trace("a", "vvxv", (0.9, 0.5, 0.6, 0.8), "circular"),  # right, FN, FP, right; the first error is missed
        trace("b", "xxv", (0.2, 0.7, 0.1), "circular"),  # right, FP, FN; the first error is found
        trace("c", "vv", (0.9, 0.9), "circular"),
    ]
    right = rows_of(manifest(["circular"]), items)  # a score of exactly 0.5 is right
    assert right["circular", "as_is/fixed:0.5", "valid_accuracy"].value == pytest.approx(5 / 6)
    rows = rows_of(replace(manifest(["circular"]), tie="wrong"), items)
    tp, fp, tn, fn = 4, 2, 1, 2
    f1, negative = Fraction(2 * tp, 2 * tp + fp + fn), Fraction(2 * tn, 2 * tn + fn + fp)
    wanted = {
        "prmscore": (f1 + negative) / 2,
        "valid_f1": f1,
        "invalid_f1": negative,
        "step_accuracy": Fraction(5, 9),
        "valid_accuracy": Fraction(4, 6),
        "invalid_accuracy": Fraction(1, 3),
        "first_error_accuracy": Fraction(1, 2),
    }
    for metric, value in wanted.items():
        assert rows["circular", "as_is/fixed:0.5", metric].value == pytest.approx(float(value)), metric
        if metric != "prmscore":
            assert ("avg[circular]", "as_is/fixed:0.5", metric) not in rows
        assert rows["micro[circular]", "as_is/fixed:0.5", metric].value == pytest.approx(float(value)), metric
    assert rows["micro[circular]", "as_is/fixed:0.5", "threshold"].value == 0.5
    spread = rows["circular", "as_is/fixed:0.5", "mdd"].value  # of the PRMScore, and of nothing else
    assert spread is not None
    assert spread > 0
    assert rows["circular", "as_is/fixed:0.5", "prmscore"].n == 3


def test_all_steps_of_an_unscored_trace_are_judged_wrongly() -> None:
    seen = trace("a", "vx", (0.9, 0.1), "circular")
    rows = rows_of(manifest(["circular"]), [seen, trace("b", "vvx", None, "circular")])
    for name in ("circular", "micro[circular]"):
        tp, fn, tn, fp = 1, 2, 1, 1  # of the unscored: two valid steps missed, one invalid step passed
        assert rows[name, "as_is/fixed:0.5", "valid_f1"].value == pytest.approx(2 * tp / (2 * tp + fn + fp))
        assert rows[name, "as_is/fixed:0.5", "invalid_f1"].value == pytest.approx(2 * tn / (2 * tn + fn + fp))
        assert rows[name, "as_is/fixed:0.5", "step_accuracy"].value == pytest.approx(2 / 5)
        assert rows[name, "as_is/fixed:0.5", "first_error_accuracy"].value == pytest.approx(1 / 2)
        assert rows[name, "as_is/oracle", "step_accuracy"].value == pytest.approx(2 / 5)
        assert rows[name, "as_is/fixed:0.5", "prmscore"].unscored == 1


def test_groups_are_means_of_categories_and_the_whole_pools_steps() -> None:
    items = drawn([*CATEGORIES, "correct"])
    rows = rows_of(manifest([*reversed(CATEGORIES), "correct"]), items)  # their order does not matter
    key = "as_is/fixed:0.5"
    value = {name: rows[name, key, "prmscore"].value for name in CATEGORIES}
    for members in GROUPS.values():
        group = rows[f"avg[{','.join(members)}]", key, "prmscore"]
        assert group.value == pytest.approx(np.mean([value[m] for m in members]))
        assert group.note == ""
        assert group.n == 15 * len(members)
    whole = f"micro[{','.join(CATEGORIES)}]"
    steps = [
        (v > 0.5, g == 1.0)
        for t in items
        if t.subset != "correct"
        for v, g in zip(t.values, t.step_labels, strict=True)
    ]
    tp, fp, tn, fn = (sum(pair == wanted for pair in steps) for wanted in ((1, 1), (1, 0), (0, 0), (0, 1)))
    pooled = (2 * tp / (2 * tp + fp + fn) + 2 * tn / (2 * tn + fp + fn)) / 2
    assert rows[whole, key, "prmscore"].value == pytest.approx(pooled)
    assert rows[whole, key, "prmscore"].value != pytest.approx(np.mean(list(value.values())), abs=1e-3)
    assert rows[whole, key, "prmscore"].n == 15 * 9
    assert {name for name, _, _ in rows if "[" in name} == {
        whole,
        *(f"avg[{','.join(members)}]" for members in GROUPS.values()),
    }


def test_f1_alone_scores_multi_solutions_and_twins_have_no_score() -> None:
    rows = rows_of(
        manifest(["multi_solutions", "correct", "circular"]), drawn(["multi_solutions", "correct", "circular"])
    )
    key = "as_is/fixed:0.5"
    multi = rows["multi_solutions", key, "prmscore"]
    assert multi.value == rows["multi_solutions", key, "valid_f1"].value != 1.0
    for name, metric in (
        ("multi_solutions", "invalid_f1"),
        ("correct", "prmscore"),
        ("correct", "first_error_accuracy"),
    ):
        assert (rows[name, key, metric].value, rows[name, key, metric].note) == (None, "no invalid step")
    assert rows["correct", key, "step_accuracy"].value == rows["correct", key, "valid_accuracy"].value


def test_a_partial_group_is_named_by_what_it_holds_and_noted() -> None:
    rows = rows_of(
        manifest(["circular", "missing_condition", "deception"]), drawn(["circular", "missing_condition", "deception"])
    )
    key = "as_is/oracle"
    assert rows["avg[circular]", key, "prmscore"].note == "simplicity without redundency"
    assert rows["avg[missing_condition,deception]", key, "prmscore"].note == "sensitivity without multi_solutions"
    whole = rows["micro[circular,missing_condition,deception]", key, "prmscore"]
    assert whole.note.startswith("overall without redundency, counterfactual")
    assert not any("soundness" in r.note for r in rows.values() if r.note != whole.note)


def test_nothing_to_tune_on_is_said() -> None:
    rows = rows_of(manifest(["correct"]), drawn(["correct"]))
    assert rows["correct", "as_is/oracle", "step_accuracy"].note == "no valid step to tune on"
    assert rows["correct", "as_is/fixed:0.5", "step_accuracy"].value is not None
    assert not any("[" in name for name, _, _ in rows)
    rows = rows_of(manifest(["multi_solutions"]), drawn(["multi_solutions"]))
    assert rows["multi_solutions", "as_is/cross_validated", "prmscore"].note == "no invalid step to tune on"
    one = [trace("a", "vx", (0.9, 0.1), "circular", "p")]
    rows = rows_of(manifest(["circular"]), one)
    assert rows["circular", "as_is/cross_validated", "prmscore"].note == "cross-validation needs two problems"
    assert rows["circular", "as_is/oracle", "prmscore"].value == 1.0


# --- thresholds -----------------------------------------------------------------------------------------------


def score_at(items: Sequence[ScoredTrace], threshold: float) -> float:
    """PRMScore of the pooled steps, counted one by one."""
    counts = dict.fromkeys(product((True, False), repeat=2), 0)
    for t in items:
        if t.subset != "correct":
            for k, label in enumerate(t.step_labels):
                called = (t.values[k] > threshold) if t.values else label != 1.0
                counts[called, label == 1.0] += 1
    tp, fp, tn, fn = (counts[key] for key in ((True, True), (True, False), (False, False), (False, True)))
    return (2 * tp / (2 * tp + fp + fn) + 2 * tn / (2 * tn + fp + fn)) / 2


def every_threshold(items: Sequence[ScoredTrace]) -> list[float]:
    values = sorted({v for t in items if t.subset != "correct" for v in t.values})
    return [values[0] - 1, *((a + b) / 2 for a, b in pairwise(values)), values[-1]]


@pytest.mark.parametrize(("seed", "coarse"), [(0, False), (1, False), (2, True), (3, True)])
def test_oracle_is_the_best_of_all_thresholds(seed: int, coarse: bool) -> None:
    """The twins have scores of another level, and must not move it."""
    items = drawn(["circular", "deception", "correct"], seed=seed, coarse=coarse)
    items = [replace(t, values=tuple(v + 5 for v in t.values)) if t.subset == "correct" else t for t in items]
    items.append(trace("late", "vxv", None, "circular"))
    rows = rows_of(manifest(["circular", "deception", "correct"]), items)
    actual = rows["micro[circular,deception]", "as_is/oracle", "prmscore"].value
    at = rows["micro[circular,deception]", "as_is/oracle", "threshold"].value
    assert actual == pytest.approx(max(score_at(items, t) for t in every_threshold(items)))
    assert at is not None
    assert score_at(items, at) == pytest.approx(actual)


def held_out_hits(items: Sequence[ScoredTrace]) -> tuple[list[list[float]], list[float]]:
    """Share of splits in which each step is judged right by the others' best threshold; and all thresholds."""
    names = sorted({t.cluster for t in items})
    hits = [[0.0] * t.steps for t in items]
    chosen = []
    splits = first_error.fold_splits(names)
    for fold in [dict(zip(names, split, strict=True)) for split in splits]:
        for number in range(5):
            others = [t for t in items if fold[t.cluster] != number]
            scores = {t: score_at(others, t) for t in every_threshold(items)}
            best = min(t for t, s in scores.items() if s >= max(scores.values()) - 1e-12)
            chosen.append(best)
            for i, t in enumerate(items):
                if fold[t.cluster] == number:
                    for k, (value, label) in enumerate(zip(t.values, t.step_labels, strict=True)):
                        hits[i][k] += ((value > best) == (label == 1.0)) / len(splits)
    return hits, chosen


def score_of_hits(items: Sequence[ScoredTrace], hits: Sequence[Sequence[float]], weights: Sequence[float]) -> float:
    """PRMScore of steps that are judged right at these rates, with a weight for each trace."""
    totals = dict.fromkeys(("tp", "tn", "v", "x"), 0.0)
    for t, row, weight in zip(items, hits, weights, strict=True):
        for hit, label in zip(row, t.step_labels, strict=True):
            totals["v" if label else "x"] += weight
            totals["tp" if label else "tn"] += weight * hit
    tp, tn, v, x = totals.values()
    return (2 * tp / (tp + v + x - tn) + 2 * tn / (tn + x + v - tp)) / 2


def test_cross_validation_judges_each_problem_by_the_others_threshold() -> None:
    """Folds hold all categories of a problem; judgements are averaged over the splits into folds."""
    items = drawn(["circular", "deception"], seed=5)
    hits, chosen = held_out_hits(items)
    rows = rows_of(manifest(["circular", "deception"]), items)
    whole = "micro[circular,deception]"
    actual = rows[whole, "as_is/cross_validated", "prmscore"].value
    assert actual == pytest.approx(score_of_hits(items, hits, [1.0] * len(items)))
    assert len(set(chosen)) > 1  # else the test would not tell the folds apart
    assert rows[whole, "as_is/cross_validated", "threshold"].value == pytest.approx(np.median(chosen))


def test_the_interval_of_an_oracle_surrounds_what_the_population_allows() -> None:
    """It is centred on the mean of the oracle's and the cross-validated PRMScore; thresholds stay put in replicates."""
    items = drawn(["circular", "deception"], n=8, seed=7)
    names = sorted({t.cluster for t in items})
    facts = manifest(["circular", "deception"])
    rows = rows_of(facts, items)
    row, at = (rows["micro[circular,deception]", "as_is/oracle", m] for m in ("prmscore", "threshold"))
    oracle = [
        [float((v > at.value) == (y == 1.0)) for v, y in zip(t.values, t.step_labels, strict=True)] for t in items
    ]
    held_out, _ = held_out_hits(items)
    _, weights = metric_rows.resampled(facts, "validity", [t.cluster for t in items])
    middle = []
    for draw in weights:
        often = [draw[names.index(t.cluster)] for t in items]
        middle.append((score_of_hits(items, oracle, often) + score_of_hits(items, held_out, often)) / 2)
    expected = intervals.interval("share", middle[0], np.array(middle[1:]), len(names))
    assert (row.lo, row.hi) == pytest.approx(expected)
    assert row.value > middle[0]


@pytest.mark.parametrize("coarse", [False, True])
def test_curves_count_what_each_cut_would(coarse: bool) -> None:
    rng = np.random.default_rng(4)
    n = 60
    score = rng.random(n).round(1 if coarse else 9)
    score[::7] = np.nan
    valid, problem, category = rng.random(n) < 0.7, rng.integers(0, 5, n), rng.integers(0, 3, n)
    steps = step_validity.Steps(score, valid, ~valid, problem, category, category > 0, 5, 3)
    at = step_validity.candidate_thresholds(score[steps.pooled])
    actual = step_validity.threshold_counts(steps, at)
    for k, cut in enumerate(at):
        right = step_validity.correct_at(steps, float(cut))[:, 1:].sum(axis=1)
        assert actual.valid[:, k].tolist() == right[:, step_validity.VALID].tolist()
        assert actual.invalid[:, k].tolist() == right[:, step_validity.INVALID].tolist()
    total = step_validity.totals(steps)[:, 1:].sum(axis=1)
    assert actual.all_valid.tolist() == total[:, step_validity.VALID].tolist()
    assert actual.all_invalid.tolist() == total[:, step_validity.INVALID].tolist()


def test_cuts_part_neighbouring_floats_and_are_few() -> None:
    low = 0.5
    high = np.nextafter(low, 1)
    at = step_validity.candidate_thresholds(np.array([high, low, np.nan, low]))
    assert [int(sum(np.array([low, high]) > t)) for t in at] == [2, 1, 0]
    many = step_validity.candidate_thresholds(np.random.default_rng(0).random(5000))
    assert len(many) == step_validity.MAX_THRESHOLDS
    assert (np.diff(many) > 0).all()
    assert step_validity.candidate_thresholds(np.full(3, np.nan)).tolist() == [0.0]


def test_many_scores_lose_little() -> None:
    items = drawn(["circular"], n=250, seed=3)
    row = rows_of(manifest(["circular"], replicates=1), items)["circular", "as_is/oracle", "prmscore"]
    best = max(score_at(items, t) for t in every_threshold(items))
    assert row.value == pytest.approx(best, abs=2e-3)


# --- floors ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("valid", "invalid"), [(7, 3), (1, 1), (50, 2), (3, 17)])
def test_flagging_at_random_reaches_one_half_at_best(valid: int, invalid: int) -> None:
    """The derivation, against a grid of rates."""
    total = np.array([[valid, invalid, invalid]], dtype=float)

    def score(rate: float) -> float:
        right = step_validity.flagged_at_random(total, np.array([rate]))
        assert right[0].tolist() == pytest.approx([valid * (1 - rate), invalid * rate, invalid * rate])
        return float(step_validity.metrics(right, total)["prmscore"][0])

    best = step_validity.best_rate(total)[0]
    assert best == pytest.approx(invalid / (valid + invalid))
    assert score(best) == pytest.approx(0.5)
    assert max(score(rate) for rate in np.linspace(0, 1, 501)) <= 0.5 + 1e-12


def test_the_expected_counts_are_those_of_many_draws() -> None:
    """Large samples of random flags score what the floor says, also where its rate is not the category's own."""
    items = drawn(["circular", "multi_solutions"], n=150, seed=1)
    rows = rows_of(manifest(["circular", "multi_solutions"]), items)
    share = float(np.mean([label == 0 for t in items for label in t.step_labels]))
    rng = np.random.default_rng(0)
    noise = [replace(t, values=tuple(rng.random(t.steps))) for t in items for _ in range(20)]
    noise = [replace(t, id=f"{t.id}.{i}") for i, t in enumerate(noise)]
    facts = manifest(["circular", "multi_solutions"], extra_protocols=(f"as_is/fixed:{share!r}",), replicates=1)
    seen = rows_of(facts, noise)
    key = next(k for _, k, _ in seen if k.startswith("as_is/fixed") and k != "as_is/fixed:0.5")
    for name in ("circular", "multi_solutions", "micro[circular,multi_solutions]"):
        floor = rows[name, "floor/random", "prmscore"].value
        assert seen[name, key, "prmscore"].value == pytest.approx(floor, abs=0.01), name
    assert rows["micro[circular,multi_solutions]", "floor/random", "prmscore"].value == pytest.approx(0.5)
    assert rows["multi_solutions", "floor/random", "prmscore"].value > 0.8  # type: ignore[operator]


def test_all_valid_floor_by_hand() -> None:
    items = [trace("a", "vvx", (0.1,) * 3, "circular"), trace("b", "vv", (0.1,) * 2, "multi_solutions")]
    rows = rows_of(manifest(["circular", "multi_solutions"]), items)
    assert rows["circular", "floor/all_valid", "prmscore"].value == pytest.approx(2 * 2 / (2 * 2 + 1) / 2)
    assert rows["multi_solutions", "floor/all_valid", "prmscore"].value == 1.0
    assert rows["micro[circular,multi_solutions]", "floor/all_valid", "prmscore"].value == pytest.approx(8 / 9 / 2)
    assert rows["circular", "floor/all_valid", "first_error_accuracy"].value == 0.0


# --- protocols, intervals, runs ------------------------------------------------------------------------------------


def test_protocols_are_those_of_the_kind_without_calibrated() -> None:
    facts = manifest(["circular"], "logratio", native=0.0, fixed=0.0)
    rules = ("native", "fixed:0", "cross_validated", "oracle")
    readouts = ("prefix_sum", "step_sum", "prefix_mean", "step_mean")
    assert tasks.protocol_keys(facts) == tuple(f"{r}/{rule}" for r in readouts for rule in rules)
    assert tasks.protocol_keys(manifest(["circular"], "verdict")) == ()
    with pytest.raises(UserError, match=r"prmbench_preview has as_is/fixed:0.5, as_is/cross_validated, as_is/oracle"):
        tasks.resolve_protocols(manifest(["circular"]), ["as_is/calibrated:gsm8k"])
    with pytest.raises(UserError, match="it needs a score for every step"):
        tasks.resolve_protocols(manifest(["circular"], "verdict"), ["vote/native"])
    assert tasks.resolve_protocols(manifest(["circular"]), ["as_is/fixed:0.25"]) == ("as_is/fixed:0.25",)


def test_readouts_are_read() -> None:
    """Sums of one, two and minus four: the prefix sum falls below zero at the third step only."""
    items = [trace("a", "vvx", (1.0, 2.0, -4.0), "circular"), trace("b", "vxx", (1.0, -2.0, 0.5), "circular")]
    rows = rows_of(manifest(["circular"], "logratio", fixed=0.0), items)
    assert rows["circular", "prefix_sum/fixed:0", "step_accuracy"].value == 1.0
    assert rows["circular", "step_sum/fixed:0", "step_accuracy"].value == pytest.approx(5 / 6)


def test_scores_order_does_not_matter() -> None:
    items = drawn(["circular", "deception", "correct"])
    facts = manifest(["circular", "deception", "correct"])
    assert tasks.judge(facts, items) == tasks.judge(facts, items[::-1])


def test_problems_are_drawn_together_in_all_categories() -> None:
    """Two categories with equal scores: their mean varies as much as either does."""
    items = drawn(["redundency"], n=20)
    both = [*items, *(replace(t, id=f"x{t.id}", subset="circular") for t in items)]
    rows = rows_of(manifest(["redundency", "circular"]), both)
    ends = {
        (r.lo, r.hi)
        for (name, key, metric), r in rows.items()
        if (key, metric) == ("as_is/fixed:0.5", "prmscore") and name != "micro[redundency,circular]"
    }
    assert len(ends) == 1


def test_unlabelled_steps_are_refused() -> None:
    bare = replace(trace("a", "vx", (0.1, 0.2), "circular"), step_labels=())
    half = replace(bare, step_labels=(1.0, 0.5))
    for item in (bare, half):
        with pytest.raises(UserError, match="a: task validity needs a label 0 or 1 for each of its 2 steps"):
            tasks.judge(manifest(["circular"]), [item])
        with pytest.raises(UserError, match="step_labels must be 0 or 1"):
            tasks.judging.check_scores(manifest(["circular"]), [item], "x.json")


def test_compare_pairs_problems_and_refuses_unlike_rules() -> None:
    subsets = ["circular", "deception", "correct"]
    one, two = drawn(subsets), drawn(subsets, coarse=True)
    facts = manifest(subsets)
    runs = (RunResult(facts, ()), one), (RunResult(replace(facts, seed=3, model="n"), ()), two)
    pairs = tasks.pairs(facts, facts, ["as_is/oracle", "as_is/fixed:0.25"])
    rows = {(r.subset, r.protocol, r.metric): r for r in tasks.compare(*runs, pairs)}
    values = [rows_of(facts, x) for x in (one, two)]
    for name in ("circular", "avg[deception]", "micro[circular,deception]"):
        a, b = (v[name, "as_is/oracle", "prmscore"].value for v in values)
        assert rows[name, "as_is/oracle prmscore", "prmscore_difference"].value == pytest.approx(b - a)  # type: ignore[operator]
        assert rows[name, "as_is/oracle prmscore", "p_value"].value is not None
    assert not any(name.startswith("avg[circular,deception,") for name, _, _ in rows)
    assert rows["circular", "as_is/fixed:0.25 prmscore", "prmscore_a"].value is not None
    with pytest.raises(UserError, match="unlike threshold rules"):
        tasks.compare(*runs, tasks.pairs(facts, facts, ["as_is/oracle"], "as_is/cross_validated"))
    with pytest.raises(UserError, match="unlike threshold rules"):
        tasks.compare(*runs, tasks.pairs(facts, facts, ["as_is/fixed:0.2"], "as_is/fixed:0.3"))
