"""Batches by padded tokens, worked out by hand; scoring, sampling, training and RL form theirs here."""

from __future__ import annotations

import random

import pytest

from prmbench.core.token_batches import longest_first, token_batches


def test_the_longest_come_first_and_ties_go_by_position_or_key() -> None:
    assert longest_first([5, 9, 5]) == [1, 0, 2]
    assert longest_first([5, 9, 5], ["b", "c", "a"]) == [1, 2, 0]


def test_batches_by_hand() -> None:
    """Budget 14: 100 is larger than that | 9 | 5 5 | 4 | what has no tokens. (9 and 5 would be padded to 18.)"""
    assert token_batches([5, 9, 0, 5, 4, 0, 100], 14) == [(6,), (1,), (0, 3), (4,), (2, 5)]
    assert token_batches([], 10) == []


def test_items_of_several_sequences_stay_together() -> None:
    """Budget 24: 2 x 6 and one more 6 are 18 | two more sequences of 6 would be 30 with them."""
    assert token_batches([6, 5, 4], 24, sequences=[2, 1, 2]) == [(0, 1), (2,)]


def test_a_share_of_the_items_is_batched_in_the_order_given() -> None:
    assert token_batches([9, 4, 4, 3], 8, order=[2, 3]) == [(2, 3)]


@pytest.mark.parametrize("budget", [1, 30, 10_000])
def test_every_batch_but_those_of_one_item_fits_the_budget(budget: int) -> None:
    generator = random.Random(budget)
    widths = [generator.choice([0, *range(1, 40)]) for _ in range(200)]
    sequences = [generator.choice([1, 2]) for _ in widths]
    batches = token_batches(widths, budget, sequences=sequences)
    assert [i for batch in batches for i in batch] == longest_first(widths)
    for batch in batches:
        assert len(batch) == 1 or sum(sequences[i] for i in batch) * widths[batch[0]] <= budget
        assert len({widths[i] > 0 for i in batch}) == 1
