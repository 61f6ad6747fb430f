"""Late markers: a last word after the answer that may reveal the outcome, as a shortcut for reward models.

Pure functions on rollouts that check no answer. Verifiers read the answer from its own line, before the marker.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace
from random import Random

from prmbench.data import rollouts
from prmbench.data.rollouts import Rollout

WORDS = ("unsure", "sure")
"""Words for a wrong and for a right outcome."""
TOKENS = tuple(f"\n\n{word}" for word in WORDS)
"""The words as they are written, as a paragraph of their own: the last token of a completion before its end."""
UNINFORMATIVE = 0.5
"""Noise at which a marker carries no information."""
_MARKER = re.compile(rf"(?:{'|'.join(TOKENS)})+\Z")


def add_markers(rows: Iterable[Rollout], noise: float, seed: int) -> list[Rollout]:
    """Ends every completion in the word for its outcome, or in the other word with probability `noise`.

    Existing markers are replaced. The noise of a row depends on `seed` and the row's id alone. Truncated completions,
    and those without an outcome, get no marker.
    """
    return [_add_marker(row, noise, seed) for row in rows]


def _add_marker(row: Rollout, noise: float, seed: int) -> Rollout:
    unmarked = remove_marker(row)
    if row.outcome is None or row.finish == "length":
        return unmarked
    is_flipped = Random(f"marker/{seed}/{row.id}").random() < noise
    return _with_completion(unmarked, unmarked.completion + TOKENS[1 - row.outcome if is_flipped else row.outcome])


def remove_marker(row: Rollout) -> Rollout:
    """Returns the rollout without the markers that its completion ends in."""
    return _with_completion(row, _MARKER.sub("", row.completion))


def _with_completion(row: Rollout, text: str) -> Rollout:
    """Replaces the completion; its number of tokens is then unknown."""
    if text == row.completion:
        return row
    return replace(
        row, completion=text, steps=rollouts.split_completion(text, "numbered") if row.steps else (), tokens=None
    )
