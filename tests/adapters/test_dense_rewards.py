"""Aggregations, placements and advantages, by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from prmbench.adapters.dense_rewards import aggregate, place, soft_min_weights, step_advantages, step_credits
from prmbench.core.records import Notice

VALUES = (0.9, 0.2, 0.5)


def test_soft_min_by_hand() -> None:
    """T = 1 and values 0 and ln 3: weights 3/4 and 1/4, so the sum is ln(3) / 4."""
    assert soft_min_weights([0.0, math.log(3)], 1.0) == pytest.approx([0.75, 0.25])
    assert aggregate([0.0, math.log(3)], "soft_min", 1.0) == pytest.approx(math.log(3) / 4)
    assert aggregate([0.0, 2 * math.log(3)], "soft_min", 2.0) == pytest.approx(2 * math.log(3) / 4)


@pytest.mark.parametrize(("temperature", "limit"), [(1e-4, 0.2), (1e6, (0.9 + 0.2 + 0.5) / 3)])
def test_soft_min_lies_between_the_lowest_value_and_the_mean(temperature: float, limit: float) -> None:
    assert aggregate(VALUES, "soft_min", temperature) == pytest.approx(limit, abs=1e-4)
    assert 0.2 < aggregate(VALUES, "soft_min", 0.3) < sum(VALUES) / 3


def test_soft_min_of_far_values_is_finite() -> None:
    assert aggregate([-900.0, 900.0], "soft_min", 0.1) == pytest.approx(-900)


@pytest.mark.parametrize(
    ("aggregation", "expected"),
    [("min", 0.2), ("mean", 1.6 / 3), ("last", 0.5), ("sum", 1.6), ("prod", math.log(0.9 * 0.2 * 0.5))],
)
def test_other_aggregations_by_hand(aggregation: str, expected: float) -> None:
    assert aggregate(VALUES, aggregation, probability=True) == pytest.approx(expected)


def test_the_product_of_scores_is_that_of_their_sigmoids() -> None:
    expected = math.log(1 / (1 + math.exp(-2))) + math.log(1 / (1 + math.exp(4)))
    assert aggregate([1.0, -2.0], "prod", beta=2.0) == pytest.approx(expected)


def test_step_credits_by_hand() -> None:
    assert step_credits(VALUES, "value") == pytest.approx([0.9, 0.2, 0.5])
    assert step_credits(VALUES, "difference") == pytest.approx([0.9, -0.7, 0.3])
    weighted = step_credits([0.0, math.log(3)], "soft_min", 1.0)
    assert weighted == pytest.approx([0.0, math.log(3) / 4])


def test_credits_sum_to_the_reward_that_they_divide() -> None:
    assert sum(step_credits(VALUES, "difference")) == pytest.approx(aggregate(VALUES, "last"))
    assert sum(step_credits(VALUES, "soft_min", 0.2)) == pytest.approx(aggregate(VALUES, "soft_min", 0.2))


def test_rewards_stand_at_the_last_tokens_of_steps() -> None:
    assert place([0.5, -1.0], [1, 3], 6) == [0, 0.5, 0, -1.0, 0, 0]
    assert place([0.5, 0.25], [2, 2], 3) == [0, 0, 0.75]  # two steps that end in one token
    assert place([], [], 2) == [0, 0]


def test_step_advantages_by_hand() -> None:
    """Means of a prompt's two completions: (1 + 3)/2 = 2 and 4, of which the mean is 3; scale n / (n - 1) = 2.

    First: 2 (1 - 3) = -4 and 2 (3 - 3) = 0, so -4 up to the first end, then 0. Second: 2 (4 - 3) = 2 up to its end.
    """
    rows = step_advantages([[1.0, 3.0], [4.0], None, [7.0]], [[1, 3], [2], [], [0]], [5, 4, 3, 2], ["a", "a", "a", "b"])
    assert rows[0] == pytest.approx([-4, -4, 0, 0, 0])
    assert rows[1] == pytest.approx([2, 2, 2, 0])
    assert rows[2] == [0, 0, 0], "an unscored completion is in no mean, and learns nothing"
    assert rows[3] == [0, 0], "it has nothing to compare with"


def test_step_advantages_do_not_depend_on_the_order_of_completions() -> None:
    rng = np.random.default_rng(0)
    numbers = [list(rng.normal(size=k)) for k in (1, 3, 2, 4)]
    ends = [list(range(2, 2 + 2 * len(row), 2)) for row in numbers]
    lengths, prompts = [9, 10, 7, 12], ["a", "b", "a", "b"]
    expected = step_advantages(numbers, ends, lengths, prompts)
    order = [2, 0, 3, 1]
    turned = step_advantages(*([column[i] for i in order] for column in (numbers, ends, lengths, prompts)))
    for row, i in zip(turned, order, strict=True):
        assert row == pytest.approx(expected[i])


def test_nothing_scored_gives_zeros_and_says_so() -> None:
    with pytest.warns(Notice, match="none of 1 completions has a score, so that nothing is learnt"):
        assert step_advantages([None], [[]], [2], ["a"]) == [[0, 0]]
    assert step_advantages([], [], [], []) == []
