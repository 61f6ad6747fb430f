"""Random search: ranges, equal numbers of trials, and the rule by which it ends."""

from __future__ import annotations

from dataclasses import replace
from math import log

import pytest

from prmbench.studies.miniature import reward_model_tuning
from prmbench.studies.miniature.random_search import Range, Round, Search, Trial, mean_or_zero, rounds

RATE = Range(0.01, 1.0)
MARGIN = Range(0.0, 2.0, "linear", fixed_low=True)
SEARCH = Search({"a": {"rate": RATE, "margin": MARGIN}, "b": {"rate": RATE}}, first=16, further=4, limit=24)


def run(search: Search, value: dict[str, float]) -> list[Round]:
    """Runs a search whose trials have the value of minus the distance of their log rate from a target."""
    values: dict[str, float] = {}
    done = []
    for new in rounds(search, values):
        done.append(new)
        values |= {t.key: -abs(log(t.values["rate"] / value[t.name])) for t in new.trials}
    return done


# --- ranges ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("span", "position", "value"), [(RATE, 0.0, 0.01), (RATE, 0.5, 0.1), (RATE, 1.0, 1.0), (MARGIN, 0.25, 0.5)]
)
def test_positions_lie_on_the_scale_of_the_range(span: Range, position: float, value: float) -> None:
    assert span.at(position) == pytest.approx(value)
    assert span.position(value) == pytest.approx(position)


@pytest.mark.parametrize(
    ("span", "value", "side"),
    [
        (RATE, 0.0155, "low"),
        (RATE, 0.0162, None),
        (RATE, 0.62, None),
        (RATE, 0.64, "high"),
        (MARGIN, 0.01, None),
        (MARGIN, 1.81, "high"),
        (replace(MARGIN, fixed_low=False), 0.01, "low"),
    ],
)
def test_the_outer_tenth_is_the_edge_but_not_at_a_fixed_end(span: Range, value: float, side: str | None) -> None:
    assert span.side(value) == side


def test_a_range_grows_at_the_side_asked_for() -> None:
    longer = RATE.extended("high", RATE.width / 2)
    assert (longer.low, longer.high) == (0.01, 10.0)
    part = RATE.part("high", longer)
    assert [part.low, part.high] == pytest.approx([0.631, 10.0], rel=1e-2)
    lower = RATE.extended("low", RATE.width / 2)
    assert (lower.low, lower.high) == (0.001, 1.0)
    part = RATE.part("low", lower)
    assert [part.low, part.high] == pytest.approx([0.001, 0.0158], rel=1e-2)


# --- rounds ---------------------------------------------------------------------------------------------


def test_a_search_ends_after_one_round_when_every_best_trial_is_inside() -> None:
    (only,) = run(SEARCH, {"a": 0.1, "b": 0.2})
    assert [t.key for t in only.trials] == [f"{name}-{i:02}" for name in "ab" for i in range(16)]
    assert all(0.01 <= t.values["rate"] <= 1 for t in only.trials)
    assert all(0 <= t.values["margin"] <= 2 for t in only.trials if t.name == "a")
    rates = [[t.values["rate"] for t in only.trials if t.name == name] for name in "ab"]
    assert rates[0] == rates[1]  # the same positions for every name
    assert len(set(rates[0])) == 16


def test_one_best_trial_at_an_edge_gives_all_names_further_trials() -> None:
    first, second, *_ = run(SEARCH, {"a": 0.1, "b": 5.0})
    assert first.extended == {}
    assert second.extended == {"b": {"rate": "high"}}
    assert {name: sum(t.name == name for t in second.trials) for name in "ab"} == {"a": 4, "b": 4}
    assert (second.ranges["b"]["rate"].low, second.ranges["b"]["rate"].high) == (0.01, 10.0)
    assert second.ranges["a"] == first.ranges["a"]
    assert all(0.63 <= t.values["rate"] <= 10 for t in second.trials if t.name == "b")
    assert [t.number for t in second.trials] == [16, 17, 18, 19] * 2


@pytest.mark.parametrize(("limit", "numbers"), [(24, [16, 4, 4]), (18, [16, 2]), (16, [16])])
def test_a_search_ends_at_the_limit_with_equal_numbers(limit: int, numbers: list[int]) -> None:
    done = run(replace(SEARCH, limit=limit), {"a": 1e-9, "b": 0.1})
    assert [len(r.trials) for r in done] == [2 * n for n in numbers]


def test_a_search_waits_for_the_values_of_a_round_and_repeats_itself() -> None:
    assert len(list(rounds(SEARCH, {}))) == 1
    assert run(SEARCH, {"a": 0.1, "b": 5.0}) == run(SEARCH, {"a": 0.1, "b": 5.0})
    other = run(replace(SEARCH, seed=1), {"a": 0.1, "b": 0.1})
    assert other[0].trials != run(SEARCH, {"a": 0.1, "b": 0.1})[0].trials


def test_the_rule_names_its_numbers() -> None:
    rule = replace(SEARCH, first=5, further=3, limit=11).rule()
    for words in ("5 trials", "3 further trials", "11 trials", "outer 10%"):
        assert words in rule


# --- values ---------------------------------------------------------------------------------------------


def test_a_trial_that_diverged_counts_as_zero() -> None:
    assert mean_or_zero([0.8, None]) == 0.4


# --- the search of the reward models --------------------------------------------------------------------


def test_every_loss_gets_at_least_sixteen_trials_in_ranges_of_equal_width() -> None:
    search = reward_model_tuning.SEARCH
    assert search.first >= 16
    assert len(reward_model_tuning.VALIDATION_SEEDS) >= 4
    for space in search.spaces.values():
        assert {"learning_rate", "beta"} <= set(space) <= {"learning_rate", "beta", "margin"}
        assert all(space[name].width == pytest.approx(log(100)) for name in ("learning_rate", "beta"))
    with_margin = {loss for loss, space in search.spaces.items() if "margin" in space}
    assert with_margin == {"ipvrm", "ipvrm_early", "ipvrm_late", "q_rm"}


def test_recipes_of_trials() -> None:
    recipe = reward_model_tuning.recipe_of(Trial("dpo_rm", 3, 0, {"learning_rate": 0.002, "beta": 1.5}))
    assert (recipe.loss, recipe.learning_rate, recipe.beta, recipe.margin) == ("dpo_rm", 0.002, 1.5, None)
