"""Best-of-N, pass@N and votes against a plain walk over all subsets; and the rows of best_of_n and policy runs."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
from metric_rows import manifest, value
from scipy import stats

from prmbench import tasks
from prmbench.core.records import RunResult, ScoredTrace, UserError
from prmbench.metrics import best_of_n

# --- closed forms against brute force -------------------------------------------------------------------------


def walked(m: int, n: int, value: object) -> float:
    return float(np.mean([value(list(subset)) for subset in combinations(range(m), n)]))  # type: ignore[operator]


def drawn_case(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores of few distinct values (so with ties), outcomes, answers; some completions name no answer."""
    rng = np.random.default_rng(seed)
    m = int(rng.integers(3, 9))
    answers = rng.integers(-1, 3, m)
    worth = rng.integers(0, 2, 3)
    return rng.integers(0, 4, m) / 2.0, np.where(answers < 0, 0.0, worth[answers]), answers


@pytest.mark.parametrize("seed", range(12))
def test_best_of_is_the_mean_over_all_subsets_with_ties_shared(seed: int) -> None:
    scores, outcomes, _ = drawn_case(seed)
    scores[0] = -np.inf  # unscored: last, whatever the others have

    def picked(subset: list[int]) -> float:
        top = scores[subset].max()
        return float(np.mean([outcomes[i] for i in subset if scores[i] == top]))

    for n in range(1, len(scores) + 1):
        expected = walked(len(scores), n, picked)
        assert best_of_n.best_of(scores, outcomes, n) == pytest.approx(expected, abs=1e-12)


def test_best_of_by_hand() -> None:
    """Scores 3 > 2 = 2 > 1, right are the best and one of the tied: among 3 pairs with the best it wins."""
    outcomes = np.array([1.0, 0.0, 1.0, 0.0])
    scores = np.array([3.0, 2.0, 2.0, 1.0])
    assert best_of_n.best_of(scores, outcomes, 2) == pytest.approx((3 * 1 + 3 * 0.5) / 6)
    assert best_of_n.best_of(-scores, outcomes, 2) == pytest.approx((3 * 0 + 2 * 0.5 + 1 * 0.5) / 6)
    assert best_of_n.best_of(scores, outcomes, 4) == 1.0
    assert best_of_n.best_of(np.zeros(4), outcomes, 3) == 0.5  # no opinion: chance


@pytest.mark.parametrize("seed", range(6))
def test_pass_at_is_the_mean_over_all_subsets(seed: int) -> None:
    _, outcomes, _ = drawn_case(seed)
    for n in range(1, len(outcomes) + 1):
        expected = walked(len(outcomes), n, lambda s: float(outcomes[s].max()))
        assert best_of_n.pass_at(outcomes, n) == pytest.approx(expected, abs=1e-12)


def vote_by_hand(subset: list[int], answers: np.ndarray, weights: np.ndarray, outcomes: np.ndarray) -> float:
    total: Counter[int] = Counter()
    for i in subset:
        if answers[i] >= 0:
            total[int(answers[i])] += weights[i]
    if not total:
        return 0.0
    best = max(total.values())
    worth = [float(outcomes[answers == a].mean()) for a, w in total.items() if abs(w - best) <= 1e-12 * best]
    return float(np.mean(worth))


@pytest.mark.parametrize("seed", range(12))
def test_votes_are_the_mean_over_all_subsets(seed: int) -> None:
    scores, outcomes, answers = drawn_case(seed)
    log_weights = np.stack([np.zeros(len(scores)), best_of_n.log_sigmoid(scores - 1), -30.0 * scores])
    for n in range(1, len(scores) + 1):
        actual, _ = best_of_n.vote(answers, log_weights, outcomes, best_of_n.all_subsets(len(scores), n))
        for weights, share in zip(np.exp(log_weights), actual, strict=True):
            expected = walked(len(scores), n, lambda s, w=weights: vote_by_hand(s, answers, w, outcomes))
            assert share == pytest.approx(expected, abs=1e-12)


def test_votes_by_hand() -> None:
    """Answers a a b b -, all four: a tie, b right. Weights make it a's or b's. Nobody without answers wins."""
    answers, outcomes = np.array([0, 0, 1, 1, -1]), np.array([0.0, 0.0, 1.0, 1.0, 1.0])
    whole = best_of_n.all_subsets(5, 5)
    log_weights = np.log([[1, 1, 1, 1, 9.0], [1, 1, 1, 0.9, 1], [0.1, 0.1, 0.1, 0.2, 1]])
    actual, variance = best_of_n.vote(answers, log_weights, outcomes, whole)
    assert actual.tolist() == [0.5, 0.0, 1.0]
    assert variance.tolist() == [0.0, 0.0, 0.0]
    nobody, _ = best_of_n.vote(np.array([-1, -1]), np.zeros((1, 2)), np.ones(2), best_of_n.all_subsets(2, 1))
    assert nobody.tolist() == [0.0]


def test_a_sum_of_equal_weights_in_another_order_is_a_tie() -> None:
    weights = np.array([[0.1, 0.2, 0.3, 0.3, 0.2, 0.1]])
    assert 0.1 + 0.2 + 0.3 != 0.3 + 0.2 + 0.1
    answers, outcomes = np.array([0, 0, 0, 1, 1, 1]), np.array([0.0, 0, 0, 1, 1, 1])
    actual, _ = best_of_n.vote(answers, np.log(weights), outcomes, best_of_n.all_subsets(6, 6))
    assert actual[0] == 0.5


def test_weights_that_underflow_still_vote() -> None:
    """Products of many small probabilities: e^-2000 is 0 in floating point, and twice it more than once it."""
    answers, outcomes = np.array([0, 1, 1]), np.array([0.0, 1.0, 1.0])
    log_weights = np.array([[-2000.0, -2000.1, -2000.1], [-np.inf, -3000.0, -np.inf]])
    actual, _ = best_of_n.vote(answers, log_weights, outcomes, best_of_n.all_subsets(3, 3))
    assert actual.tolist() == [1.0, 1.0]


def test_drawn_subsets_are_of_the_size_and_agree_with_all() -> None:
    rng = np.random.default_rng(3)
    answers = rng.integers(-1, 4, 12)
    outcomes = np.where(answers == 1, 1.0, 0.0)
    drawn = best_of_n.sampled_subsets(12, 5, 7)
    assert drawn.shape == (best_of_n.SAMPLED_SUBSETS, 12)
    assert set(drawn.sum(axis=1).tolist()) == {5}
    assert drawn.mean(axis=0) == pytest.approx(np.full(12, 5 / 12), abs=0.02)
    assert (drawn == best_of_n.sampled_subsets(12, 5, 7)).all()
    assert (drawn != best_of_n.sampled_subsets(12, 5, 8)).any()
    one = np.zeros((1, 12))
    exact, _ = best_of_n.vote(answers, one, outcomes, best_of_n.all_subsets(12, 5))
    actual, variance = best_of_n.vote(answers, one, outcomes, drawn)
    assert 0 < exact[0] < 1
    assert abs(actual[0] - exact[0]) < 4 * math.sqrt(variance[0] / best_of_n.SAMPLED_SUBSETS)


def test_sizes() -> None:
    assert [best_of_n.group_sizes(n) for n in (0, 1, 2, 3, 8, 12, 16)] == [
        (),
        (),
        (2,),
        (2, 3),
        (2, 4, 8),
        (2, 4, 8, 12),
        (2, 4, 8, 16),
    ]
    assert best_of_n.is_exact(64, 3)
    assert not best_of_n.is_exact(64, 4)


@pytest.mark.parametrize(("how", "expected"), [("last", -1.0), ("min", -3.0), ("mean", 0.0), ("sum", 0.0)])
def test_aggregations(how: str, expected: float) -> None:
    assert best_of_n.aggregate(np.array([4.0, -3.0, -1.0]), how, 2.0, probability=False) == expected


def test_a_product_is_of_probabilities() -> None:
    x = np.array([1.5, -0.5])
    by_hand = math.log(1 / (1 + math.exp(-3))) + math.log(1 / (1 + math.exp(1)))
    assert best_of_n.aggregate(x, "prod", 2.0, probability=False) == pytest.approx(by_hand, abs=1e-12)
    p = np.array([0.5, 0.25])
    assert best_of_n.aggregate(p, "prod", 2.0, probability=True) == pytest.approx(math.log(0.125), abs=1e-12)
    assert math.isfinite(best_of_n.aggregate(np.array([0.0, 1.0]), "prod", 1.0, probability=True))
    for scores, how, probability, expected in (
        (x, "last", False, [1 / (1 + math.exp(-3)), 1 / (1 + math.exp(1))]),
        (p, "min", True, [0.5, 0.25]),
        (np.log(p), "prod", False, [0.5, 0.25]),
    ):
        actual = best_of_n.log_weights(scores, how, 2.0, probability=probability)
        assert np.exp(actual) == pytest.approx(expected)


# --- rows of best_of_n ------------------------------------------------------------------------------------------


def completions(subset: str = "s", problems: int = 5, m: int = 6, seed: int = 0) -> list[ScoredTrace]:
    """Log-ratio scores of two or three steps, higher on average where the outcome is right; four answers, one right."""
    rng = np.random.default_rng([seed, len(subset)])
    collected = []
    for p in range(problems):
        for k in range(m):
            answer = int(rng.integers(0, 5))
            steps = int(rng.integers(2, 4))
            values = rng.normal(0.4 if answer == 1 else -0.4, 1, steps).round(1)
            collected.append(
                ScoredTrace(
                    f"{subset}-{p}/{k}",
                    subset,
                    None,
                    int(answer == 1),
                    f"{subset}-{p}",
                    steps,
                    tuple(values.tolist()),
                    tuple(rng.integers(1, 9, steps).tolist()),
                    answer="" if answer == 0 else f"a{answer}",
                    finish="stop",
                )
            )
    return collected


def groups(items: list[ScoredTrace]) -> list[list[ScoredTrace]]:
    names = sorted({t.cluster for t in items})
    return [[t for t in items if t.cluster == name] for name in names]


SCORES = {
    "step_sum/min": lambda t: min(t.values),
    "step_sum/last": lambda t: t.values[-1],
    "prefix_sum/last": lambda t: sum(t.values),
    "prefix_mean/last": lambda t: sum(t.values) / sum(t.tokens),
    "step_mean/mean": lambda t: float(np.mean(np.array(t.values) / np.array(t.tokens))),
    "step_sum/prod": lambda t: -float(np.log1p(np.exp(-0.5 * np.array(t.values))).sum()),
}


@pytest.mark.parametrize("key", sorted(SCORES))
@pytest.mark.parametrize("n", [2, 4, 6])
def test_rows_are_the_mean_over_problems_of_the_walk_over_subsets(key: str, n: int) -> None:
    items = completions()
    rows = tasks.judge(manifest("best_of_n", "logratio", beta=0.5), items)
    best, weighted, majority, passed, chance = [], [], [], [], []
    for group in groups(items):
        scores = np.array([SCORES[key](t) for t in group]).round(12)
        outcomes = np.array([t.outcome for t in group], dtype=float)
        answers = np.array([int(t.answer[1]) if t.answer else -1 for t in group])
        weights = np.exp(scores) if key.endswith("prod") else 1 / (1 + np.exp(-0.5 * scores))

        def picked(subset: list[int], scores: np.ndarray = scores, outcomes: np.ndarray = outcomes) -> float:
            return float(outcomes[subset][scores[subset] == scores[subset].max()].mean())

        best.append(walked(6, n, picked))
        weighted.append(walked(6, n, lambda s, a=answers, w=weights, o=outcomes: vote_by_hand(s, a, w, o)))
        majority.append(walked(6, n, lambda s, a=answers, o=outcomes: vote_by_hand(s, a, np.ones(6), o)))
        passed.append(walked(6, n, lambda s, o=outcomes: float(o[s].max())))
        chance.append(outcomes.mean())
    assert value(rows, key, f"best_of@{n}").value == pytest.approx(np.mean(best), abs=1e-9)
    assert value(rows, key, f"weighted_vote@{n}").value == pytest.approx(np.mean(weighted), abs=1e-9)
    assert value(rows, key, f"gain@{n}").value == pytest.approx(np.mean(best) - np.mean(chance), abs=1e-9)
    assert value(rows, "floor/majority", f"majority@{n}").value == pytest.approx(np.mean(majority), abs=1e-9)
    assert value(rows, "floor/pass", f"pass@{n}").value == pytest.approx(np.mean(passed), abs=1e-9)
    assert value(rows, "floor/random", "accuracy").value == pytest.approx(np.mean(chance), abs=1e-12)


def test_every_rule_has_its_rows_and_the_average_is_over_subsets() -> None:
    items = completions("s") + completions("tt", problems=9)
    facts = manifest("best_of_n", "logratio", ("s", "tt"), series=("other",))
    items = [replace(t, also={"other": t.values[::-1]}) for t in items]
    rows = tasks.judge(facts, items)
    keys = tasks.protocol_keys(facts)
    assert len(keys) == 2 * 4 * 5
    assert {r.protocol for r in rows} == {*keys, "floor/random", "floor/majority", "floor/pass"}
    for protocol, metric in (("other.step_sum/last", "best_of@4"), ("floor/random", "accuracy")):
        parts = [value(rows, protocol, metric, s) for s in ("s", "tt")]
        average = value(rows, protocol, metric, "avg[s,tt]")
        assert average.value == pytest.approx(np.mean([p.value for p in parts]))
        assert average.n == 30 + 54
    assert value(rows, "other.step_sum/last", "best_of@2").value != value(rows, "step_sum/last", "best_of@2").value
    assert tasks.judge(facts, items[::-1]) == rows


def test_the_gain_is_paired() -> None:
    """Between problems accuracy varies a lot, what picking adds does not: the gain is known far better than either."""
    items = []
    for p in range(40):
        outcomes = [1, 1, 1, 0] if p % 2 else [1, 0, 0, 0]
        items += [
            ScoredTrace(f"{p}/{k}", "s", None, y, f"{p:02}", 1, (float(y),), (1,)) for k, y in enumerate(outcomes)
        ]
    rows = tasks.judge(manifest("best_of_n", "logratio"), items)
    best, gain = (value(rows, "step_sum/last", m) for m in ("best_of@2", "gain@2"))
    assert gain.value == pytest.approx(0.5 * (1 - 0.75 + 0.5 - 0.25))
    assert best.hi - best.lo > 0.1  # type: ignore[operator]
    # All 40 problems gain alike; a quarter with the standard error of 40 problems that share a sign.
    half = 0.25 / np.sqrt(40) * stats.t.ppf(0.975, 39)
    assert (gain.lo, gain.hi) == (pytest.approx(0.25 - half), pytest.approx(0.25 + half))


def test_what_is_unscored_ranks_last_and_votes_with_nothing() -> None:
    items = [
        ScoredTrace("0", "s", None, 1, "p", 1, unscored="too long", answer="x"),
        ScoredTrace("1", "s", None, 0, "p", 1, (-50.0,), (1,), answer="y"),
        ScoredTrace("2", "s", None, 1, "p", 0, answer="x"),  # said nothing: it has no step
    ]
    rows = tasks.judge(manifest("best_of_n", "logratio"), items)
    actual = value(rows, "step_sum/last", "best_of@2")
    assert actual.value == pytest.approx((0 + 0 + 1) / 3)  # only the pair without the scored one is right
    assert (actual.n, actual.unscored) == (3, 1)
    assert value(rows, "step_sum/last", "weighted_vote@3").value == 0.0
    assert value(rows, "floor/majority", "majority@3").value == 1.0


def test_what_is_unverified_is_left_out_and_told() -> None:
    items = completions(problems=4, m=4)
    lost = [replace(t, outcome=None) if t.id == "s-0/0" else t for t in items]
    rows = tasks.judge(manifest("best_of_n", "logratio"), lost)
    kept = tasks.judge(manifest("best_of_n", "logratio"), [t for t in items if t.id != "s-0/0"])
    for metric in ("best_of@2", "weighted_vote@4", "gain@4"):
        actual, expected = (value(r, "prefix_mean/min", metric) for r in (rows, kept))
        assert actual.value == pytest.approx(expected.value)
        assert "unverified completions left out: 1" in actual.note
        assert actual.n == 16
    assert "3 of 4 problems, those with 4 verified completions" in value(rows, "floor/pass", "pass@4").note
    assert "of 4 problems" not in value(rows, "floor/pass", "pass@2").note
    nothing = tasks.judge(manifest("best_of_n", "logratio"), [replace(t, outcome=None) for t in items])
    assert value(nothing, "floor/random", "accuracy").note == "unverified completions left out: 16"
    assert value(nothing, "floor/random", "accuracy").value is None


def test_without_answers_there_is_no_vote() -> None:
    rows = tasks.judge(manifest("best_of_n", "logratio"), [replace(t, answer="") for t in completions()])
    for protocol, metric in (("step_sum/last", "weighted_vote@2"), ("floor/majority", "majority@4")):
        assert value(rows, protocol, metric).value is None
        assert value(rows, protocol, metric).note == "the completions name no answers"
    assert value(rows, "step_sum/last", "best_of@2").value is not None


def test_large_groups_are_drawn_and_say_so() -> None:
    items = completions(problems=2, m=30)
    rows = tasks.judge(manifest("best_of_n", "logratio"), items)
    drawn = value(rows, "floor/majority", "majority@8")
    assert "10000 drawn subsets a problem, standard error 0.00" in drawn.note
    assert value(rows, "floor/majority", "majority@4").note == ""
    assert value(rows, "floor/majority", "majority@30").note == ""
    assert tasks.judge(manifest("best_of_n", "logratio"), items[::-1]) == rows
    assert value(tasks.judge(manifest("best_of_n", "logratio", seed=1), items), "floor/majority", "majority@8") != drawn


def test_a_critics_score_is_the_share_of_passes() -> None:
    verdicts = [(-1, -1, 0), (-1, 2, None), (-1, -1, -1)]
    items = [
        ScoredTrace(str(k), "s", None, int(k == 0), "p", 3, verdicts=v, answer=str(k)) for k, v in enumerate(verdicts)
    ]
    facts = manifest("best_of_n", "verdict")
    assert tasks.protocol_keys(facts) == ("vote/mean",)
    rows = tasks.judge(facts, items)
    assert value(rows, "vote/mean", "best_of@2").value == pytest.approx(1 / 3)  # 0 beats 1, but 2 beats 0


def test_probabilities_vote_as_they_are() -> None:
    p = [0.9, 0.5, 0.45]
    items = [
        ScoredTrace(str(k), "s", None, int(k > 0), "p", 1, (x,), (1,), answer="ab"[k > 0]) for k, x in enumerate(p)
    ]
    rows = tasks.judge(manifest("best_of_n", "prob"), items)
    assert value(rows, "as_is/last", "weighted_vote@3").value == 1.0  # 0.5 + 0.45 > 0.9
    assert value(rows, "as_is/last", "best_of@3").value == 0.0


# --- rows of a policy ---------------------------------------------------------------------------------------------

DRAWN = {"temperature": 0.6, "top_p": 0.95, "top_k": 0, "group_size": 4}


def outcome(subset: str, problem: int, k: int, right: int | None, **more: object) -> ScoredTrace:
    answer = "" if right is None else f"a{right}"
    facts = {"tokens": (7,), "finish": "stop", "answer": answer, **more}
    reason = "timeout" if right is None else ""
    name = f"{subset}-{problem}"
    return ScoredTrace(f"{name}/{k}", subset, None, right, name, 2, unscored=reason, **facts)  # type: ignore[arg-type]


def policy_run() -> list[ScoredTrace]:
    rows = {("s", 0): [1, 1, 0, 0], ("s", 1): [0, 0, 0, 0], ("tt", 0): [1, 1, 1, 0]}
    return [outcome(s, p, k, right) for (s, p), outcomes in rows.items() for k, right in enumerate(outcomes)]


def test_policy_rows_by_hand() -> None:
    items = policy_run()
    items[4] = replace(items[4], finish="length")
    rows = tasks.judge(manifest("policy", "outcome", ("s", "tt"), config=DRAWN), items)
    key = "sampled/t0.6,p0.95,n4"
    assert {r.protocol for r in rows} == {key}
    expected = {
        ("s", "avg@4"): 0.25,
        ("tt", "avg@4"): 0.75,
        ("avg[s,tt]", "avg@4"): 0.5,
        ("micro[s,tt]", "avg@4"): 5 / 12,
        ("s", "pass@1"): 0.25,
        ("s", "pass@2"): (1 - 1 / 6) / 2,
        ("s", "pass@4"): 0.5,
        ("micro[s,tt]", "pass@4"): 2 / 3,
        ("s", "majority@4"): 0.25,  # a tie of right and wrong, and a problem without a right one
        ("tt", "majority@4"): 1.0,
        ("s", "truncated"): 1 / 8,
        ("avg[s,tt]", "truncated"): 1 / 16,
        ("micro[s,tt]", "truncated"): 1 / 12,
        ("s", "unverified"): 0.0,
    }
    for (subset, metric), number in expected.items():
        assert value(rows, key, metric, subset).value == pytest.approx(number), (subset, metric)
    assert value(rows, key, "avg@4", "micro[s,tt]").n == 12
    assert {r.metric for r in rows} == {"avg@4", "pass@1", "pass@2", "pass@4", "majority@4", "truncated", "unverified"}


def test_what_the_verifier_could_not_judge_is_not_wrong() -> None:
    items = policy_run()
    items[2] = outcome("s", 0, 2, None)
    rows = tasks.judge(manifest("policy", "outcome", ("s", "tt"), config=DRAWN), items)
    key = "sampled/t0.6,p0.95,n4"
    assert value(rows, key, "avg@4").value == pytest.approx((2 / 3 + 0) / 2)
    assert value(rows, key, "avg@4").note == "unverified completions left out: 1"
    assert value(rows, key, "avg@4").unscored == 1
    assert value(rows, key, "unverified").value == pytest.approx(1 / 8)
    assert value(rows, key, "pass@2").value == pytest.approx((1 + 0) / 2)
    assert value(rows, key, "pass@4").value == 0.0  # the problem with three left cannot say
    assert value(rows, key, "pass@4").note.startswith("1 of 2 problems, those with 4 verified completions")


@pytest.mark.parametrize(
    ("changed", "key"),
    [
        ({}, "sampled/t0.6,p0.95,n4"),
        ({"top_k": 20}, "sampled/t0.6,p0.95,n4,k20"),
        ({"temperature": 0.0, "group_size": 1}, "greedy"),
        ({"temperature": 1.0, "top_p": 1.0}, "sampled/t1,p1,n4"),
    ],
)
def test_a_policys_protocol_says_how_it_was_sampled(changed: dict[str, object], key: str) -> None:
    assert tasks.protocol_keys(manifest("policy", "outcome", config={**DRAWN, **changed})) == (key,)


def test_unknown_protocols_are_refused_with_the_known_ones() -> None:
    facts = manifest("policy", "outcome", config=DRAWN)
    assert tasks.resolve_protocols(facts, ("sampled/t0.6,p0.95,n4",)) == ("sampled/t0.6,p0.95,n4",)
    with pytest.raises(UserError, match=r"sampled/t0\.6,p0\.95,n4"):
        tasks.resolve_protocols(facts, ("greedy",))
    with pytest.raises(UserError, match="step_sum/min"):
        tasks.resolve_protocols(manifest("best_of_n", "logratio"), ("step_sum/oracle",))


# --- run against run ----------------------------------------------------------------------------------------------


def test_policies_are_compared_on_the_same_problems() -> None:
    facts = manifest("policy", "outcome", ("s", "tt"), config=DRAWN)
    worse = policy_run()
    better = [replace(t, outcome=1, answer="a1") if t.id == "s-1/0" else t for t in worse]
    sides = (RunResult(facts, ()), worse), (RunResult(replace(facts, seed=9), ()), better)
    rows = tasks.compare(*sides, tasks.pairs(facts, facts))
    key = "sampled/t0.6,p0.95,n4"
    for suffix, expected in (("a", 0.25), ("b", 0.375), ("difference", 0.125)):
        assert value(rows, f"{key} avg@4", f"avg@4_{suffix}").value == pytest.approx(expected)
    assert value(rows, f"{key} avg@4", "avg@4_difference", "tt").value == 0.0
    assert value(rows, f"{key} avg@4", "p_value", "tt").value is None  # one problem says nothing of others
    assert value(rows, f"{key} avg@4", "avg@4_difference", "avg[s,tt]").value == pytest.approx(0.0625)


def test_best_of_n_runs_are_compared_by_name() -> None:
    facts = manifest("best_of_n", "logratio")
    items = completions()
    flat = [replace(t, values=(0.0,) * t.steps) for t in items]
    sides = (RunResult(facts, ()), flat), (RunResult(facts, ()), items)
    rows = tasks.compare(*sides, tasks.pairs(facts, facts, ("step_sum/min",), "prefix_mean/last"))
    name = "step_sum/min vs prefix_mean/last best_of@4"
    own = tasks.judge(facts, items)
    assert value(rows, name, "best_of@4_b").value == value(own, "prefix_mean/last", "best_of@4").value
    assert value(rows, name, "best_of@4_a").value == pytest.approx(value(own, "floor/random", "accuracy").value)
    with pytest.raises(UserError, match="task"):
        tasks.pairs(facts, replace(facts, task="calibration"))
