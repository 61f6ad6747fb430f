"""Which items `--limit` takes: at even distances, and of both sorts where there are both. Reads no files."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from typing import TypeVar

T = TypeVar("T")
G = TypeVar("G", bound=Hashable)
Sorts = frozenset[str]
"""What an item contributes to a selection that needs both sorts: nothing, one of them, or (a group) both."""
ERROR, ALL_RIGHT = "with an error", "all right"
RIGHT, WRONG = "right outcome", "wrong outcome"


def spread(items: Sequence[T], limit: int | None, sorts: Callable[[T], Sorts] | None = None) -> list[T]:
    """Take `limit` items at even distances, in their order: published sets are ordered by label, subject or year.

    Args:
        items: What to choose from.
        limit: How many to take; None takes all.
        sorts: The sorts that an item is of. Where even distances miss a sort that the items have, the nearest item of
            that sort takes the place of one whose own sorts are still there without it, if there is such a place.
    """
    if limit is None or limit >= len(items):
        return list(items)
    chosen = [i * len(items) // limit for i in range(limit)]
    if sorts is not None:
        chosen = _with_every_sort(chosen, [sorts(item) for item in items])
    return [items[i] for i in chosen]


def sorts_of(first_error: int | None, outcome: int | None) -> Sorts:
    """Return the sorts of one solution: of its label and of its outcome, each where it is known."""
    label = set() if first_error is None else {ALL_RIGHT if first_error < 0 else ERROR}
    answer = set() if outcome is None else {RIGHT if outcome else WRONG}
    return frozenset(label | answer)


def spread_groups(groups: Sequence[tuple[G, Sorts]], limit: int | None) -> set[G]:
    """Choose `limit` groups among rows that name their group and are of some sorts, as `spread` chooses items."""
    sorts: dict[G, Sorts] = {}
    for group, own in groups:
        sorts[group] = sorts.get(group, frozenset()) | own
    return set(spread(list(sorts), limit, sorts.__getitem__))


def _with_every_sort(chosen: list[int], of: Sequence[Sorts]) -> list[int]:
    """The chosen indices, with as few of them exchanged as are needed to have every sort; the same if all are there."""
    for wanted in sorted(frozenset().union(*of)):
        times = Counter(sort for i in chosen for sort in of[i])
        if times[wanted]:
            continue
        candidates = [i for i, sorts in enumerate(of) if wanted in sorts]
        exchanges = [
            (abs(candidate - index), index, candidate)
            for index in chosen
            for candidate in _nearest(candidates, index)
            if all(times[sort] > 1 or sort in of[candidate] for sort in of[index])
        ]
        if exchanges:
            _, leaving, entering = min(exchanges)
            chosen = sorted({*chosen, entering} - {leaving})
    return chosen


def _nearest(candidates: Sequence[int], index: int) -> Sequence[int]:
    """The candidates just below and just above an index."""
    place = bisect_left(candidates, index)
    return candidates[max(place - 1, 0) : place + 1]
