"""Completions to pick among, and solutions whose prefixes have values: traces out of rollout files.

The files are rollouts.py's; here they become a benchmark: subsets, limits, and what makes one useless.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from prmbench.core.records import Task, Trace, UserError
from prmbench.data import files, rollouts, selection
from prmbench.data.rollouts import Rollout


def from_files(path: Path, split: str) -> list[Trace]:
    """Reads a folder (one file a subset) or one file. A row's `subset` wins over its file's name."""
    rows: list[Rollout] = []
    for file in files.data_files(path):
        rows += [replace(r, subset=r.subset or file.stem) for r in rollouts.read(file)]
    rollouts.warn_if_never_cut([r for r in rows if not r.steps], split, path.name)
    return [rollouts.trace(r, split) for r in rows]


def check(task: Task, traces: Sequence[Trace], source: str) -> None:
    """Raises UserError when no number of the task could come of these traces."""
    if task == "best_of_n":
        verified = Counter((t.subset, t.group) for t in traces if t.outcome is not None)
        if not verified:
            raise UserError(f"{source}: no completion has an outcome; `prmbench rollout` draws and verifies them")
        if max(verified.values()) == 1:
            raise UserError(f"{source}: one verified completion a prompt; best-of-N needs a choice, at least two")
    if task == "calibration" and not any(t.step_labels or t.outcome is not None for t in traces):
        raise UserError(f"{source}: no trace has step_labels or an outcome; there is nothing to hold values against")


def spread(traces: Sequence[Trace], limit: int | None) -> list[Trace]:
    """The traces of `limit` prompts at even distances, with both outcomes where there are both: groups stay whole."""
    chosen = selection.spread_groups([(t.group, selection.sorts_of(t.first_error, t.outcome)) for t in traces], limit)
    return [t for t in traces if t.group in chosen]


def content_hash(known: str, traces: Iterable[Trace]) -> str:
    """SHA-256 over the hash of what every task is about and what these tasks read besides, in id order."""
    digest = hashlib.sha256(known.encode())
    for t in sorted(traces, key=lambda t: t.id):
        digest.update(repr((t.id, t.group, t.answer, t.step_labels)).encode())
    return digest.hexdigest()
