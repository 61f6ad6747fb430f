"""Selects the items that `--limit` keeps: evenly spaced, and of every class that occurs."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from typing import TypeVar

T = TypeVar("T")
G = TypeVar("G", bound=Hashable)
Classes = frozenset[str]
"""The classes that an item belongs to; empty where it is unlabelled, several for a group of items."""
ERROR, NO_ERROR = "with an error", "all right"
RIGHT, WRONG = "right outcome", "wrong outcome"


def spread(items: Sequence[T], limit: int | None, classes: Callable[[T], Classes] | None = None) -> list[T]:
    """Return `limit` evenly spaced items, in order, since published sets are sorted by label, subject or year.

    Args:
        items: The items to choose from.
        limit: Number of items; None returns all.
        classes: Returns the classes of an item. Where the evenly spaced items miss a class that occurs, the nearest
            item of that class replaces one whose own classes are still present without it, if there is one.
    """
    if limit is None or limit >= len(items):
        return list(items)
    chosen = [i * len(items) // limit for i in range(limit)]
    if classes is not None:
        chosen = _with_every_class(chosen, [classes(item) for item in items])
    return [items[i] for i in chosen]


def classes_of(first_error: int | None, outcome: int | None) -> Classes:
    """Return the classes of one solution: that of its label and that of its outcome, where it has these."""
    label = set() if first_error is None else {NO_ERROR if first_error < 0 else ERROR}
    answer = set() if outcome is None else {RIGHT if outcome else WRONG}
    return frozenset(label | answer)


def spread_groups(groups: Sequence[tuple[G, Classes]], limit: int | None) -> set[G]:
    """Return `limit` groups, selected as `spread` selects items, from rows given as (group, classes)."""
    classes: dict[G, Classes] = {}
    for group, row_classes in groups:
        classes[group] = classes.get(group, frozenset()) | row_classes
    return set(spread(list(classes), limit, classes.__getitem__))


def _with_every_class(chosen: list[int], item_classes: Sequence[Classes]) -> list[int]:
    """Exchange as few of the chosen indices as are needed to have every class."""
    for missing in sorted(frozenset().union(*item_classes)):
        counts = Counter(name for i in chosen for name in item_classes[i])
        if counts[missing]:
            continue
        candidates = [i for i, classes in enumerate(item_classes) if missing in classes]
        exchanges = [
            (abs(candidate - index), index, candidate)
            for index in chosen
            for candidate in _nearest(candidates, index)
            if all(counts[name] > 1 or name in item_classes[candidate] for name in item_classes[index])
        ]
        if exchanges:
            _, leaving, entering = min(exchanges)
            chosen = sorted({*chosen, entering} - {leaving})
    return chosen


def _nearest(candidates: Sequence[int], index: int) -> Sequence[int]:
    """Return the candidates just below and just above an index."""
    position = bisect_left(candidates, index)
    return candidates[max(position - 1, 0) : position + 1]
