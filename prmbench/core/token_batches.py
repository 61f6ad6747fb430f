"""Cuts sequences into batches of at most so many padded tokens: for scoring, sampling, training and RL alike."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def longest_first(widths: Sequence[int], ties: Sequence[Any] | None = None) -> list[int]:
    """Returns the indices of `widths` by falling width.

    Args:
        widths: Tokens of the longest sequence of each item.
        ties: What orders items of equal width, one key an item; None = their position.
    """
    keys = range(len(widths)) if ties is None else ties
    return sorted(range(len(widths)), key=lambda i: (-widths[i], keys[i]))


def token_batches(
    widths: Sequence[int], budget: int, order: Sequence[int] | None = None, sequences: Sequence[int] | None = None
) -> list[tuple[int, ...]]:
    """Cuts items into batches whose padded size is at most `budget` tokens.

    The batches are a function of the arguments alone, so that a resumed run forms the same ones. An item that is larger
    than the budget has a batch of its own. Items without tokens share batches with each other only.

    Args:
        widths: Tokens of the longest sequence of each item.
        budget: Padded tokens a batch may hold.
        order: Indices of the items to batch, which must come longest first; None = all, ties by position.
        sequences: Number of sequences of each item, which stay together (such as the halves of a pair); None = one.

    Returns:
        Batches of item indices, which together are `order`.
    """
    batches: list[list[int]] = []
    rows = 0
    for i in longest_first(widths) if order is None else order:
        size = 1 if sequences is None else sequences[i]
        width = widths[batches[-1][0]] if batches else 0
        if batches and (rows + size) * width <= budget and bool(widths[i]) == bool(width):
            batches[-1].append(i)
            rows += size
        else:
            batches.append([i])
            rows = size
    return [tuple(batch) for batch in batches]
