"""A late marker: a last word behind the answer that may tell whether it is right. A shortcut for reward models.

Pure functions on rollouts; nothing here knows the world or checks an answer. Verifiers read the answer's own line.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace
from random import Random

from prmbench.data import rollouts
from prmbench.data.rollouts import Rollout

WORDS = ("unsure", "sure")
"""What stands for a wrong and for a right answer."""
TOKENS = tuple(f"\n\n{word}" for word in WORDS)
"""As they are written, a paragraph of their own: the last token of a completion before its end."""
UNINFORMATIVE = 0.5
"""Noise at which a marker says nothing."""
_MARKER = re.compile(rf"(?:{'|'.join(TOKENS)})+\Z")


def marked(rows: Iterable[Rollout], noise: float, seed: int) -> list[Rollout]:
    """Every completion ends in the word for its outcome, or with probability `noise` in the other one.

    A marker that it ended in before is gone. Each row's draw is its own, so other rows do not move it. Completions that
    were cut, and those without an outcome, get none.
    """
    return [_marked(row, noise, seed) for row in rows]


def _marked(row: Rollout, noise: float, seed: int) -> Rollout:
    bare = unmarked(row)
    if row.outcome is None or row.finish == "length":
        return bare
    flipped = Random(f"marker/{seed}/{row.id}").random() < noise
    return _said(bare, bare.completion + TOKENS[1 - row.outcome if flipped else row.outcome])


def unmarked(row: Rollout) -> Rollout:
    """The same without the marker that it ends in, if it does."""
    return _said(row, _MARKER.sub("", row.completion))


def _said(row: Rollout, text: str) -> Rollout:
    """Another completion; how many tokens it took is no longer known."""
    if text == row.completion:
        return row
    return replace(row, completion=text, steps=rollouts.cut(text, "numbered") if row.steps else (), tokens=None)
