"""Benchmarks stored as rollout files (best-of-N, policy, calibration): reading, limits and checks.

The file format is defined in rollouts.py.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from prmbench.core.records import Trace
from prmbench.data import files, rollouts, selection
from prmbench.data.field_names import Fields
from prmbench.data.rollouts import Rollout


def from_files(path: Path, split: str, names: Fields | None = None) -> list[Trace]:
    """Return the traces of one file, or of a folder with one file per subset; a row's `subset` overrides its name."""
    rows: list[Rollout] = []
    for file in files.data_files(path):
        rows += [replace(r, subset=r.subset or file.stem) for r in rollouts.read(file, names)]
    rollouts.warn_if_never_split([r for r in rows if not r.steps], split, path.name)
    return [rollouts.to_trace(r, split) for r in rows]


def select_prompts(traces: Sequence[Trace], limit: int | None) -> list[Trace]:
    """Return all traces of `limit` evenly spaced prompts, with both outcomes among them where the traces have both."""
    chosen = selection.spread_groups([(t.group, selection.classes_of(t.first_error, t.outcome)) for t in traces], limit)
    return [t for t in traces if t.group in chosen]


def content_hash(base_hash: str, traces: Iterable[Trace]) -> str:
    """Return the SHA-256 of `base_hash` and of the fields that only these tasks read, in the order of the ids."""
    digest = hashlib.sha256(base_hash.encode())
    for t in sorted(traces, key=lambda t: t.id):
        digest.update(repr((t.id, t.group, t.answer, t.step_labels)).encode())
    return digest.hexdigest()
