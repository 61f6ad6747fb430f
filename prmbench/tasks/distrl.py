"""Task distrl: how right a policy is at each validation of its training, and what it gained from the first to the last.

A trace is a validation problem: `values` hold its mean accuracy over the samples, one number a validation.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from prmbench.core.records import RunManifest, ScoredTrace
from prmbench.metrics.first_error import Floats
from prmbench.tasks.metric_rows import Cell, Judged, Part, absent, of_subset, resampled, weighted_mean

GAIN = "policy/gain"
TRUNCATED = "truncated"


def validated_at(manifest: RunManifest) -> tuple[int, ...]:
    """The steps after which the policy was validated, rising; 0 is before training."""
    return tuple(manifest.config["validated_at"])


def metric(manifest: RunManifest) -> str:
    """`avg@8`: the mean accuracy over that many samples of a problem."""
    return f"avg@{manifest.config['samples']}"


def step_key(step: int) -> str:
    """Protocol of one validation."""
    return f"policy/step:{step}"


def keys(manifest: RunManifest) -> tuple[str, ...]:
    """A protocol per validation, then the gain where there are two."""
    steps = validated_at(manifest)
    return (*map(step_key, steps), *(GAIN,) * (len(steps) > 1))


def judged(manifest: RunManifest, scores: Sequence[ScoredTrace]) -> Judged:
    """All cells; every validation is resampled with the same problems, so the gain is paired."""
    parts: list[Part] = []
    cells: dict[str, dict[str, list[Cell]]] = {key: {} for key in keys(manifest)}
    for name in manifest.subsets:
        traces = of_subset(scores, name)
        parts.append(Part(name, len(traces), sum(bool(t.unscored) for t in traces), "no problem was validated"))
        for key, found in _cells(manifest, name, traces).items():
            cells[key][name] = found
    return Judged(tuple(parts), cells)


def _cells(manifest: RunManifest, subset: str, traces: Sequence[ScoredTrace]) -> dict[str, list[Cell]]:
    steps, name = validated_at(manifest), metric(manifest)
    index, weights = resampled(manifest, subset, [t.cluster for t in traces])
    accuracy = _by_problem(traces, [t.values for t in traces], index, weights.shape[1], len(steps))
    cut = _by_problem(traces, [t.also.get(TRUNCATED, ()) for t in traces], index, weights.shape[1], len(steps))
    found = {}
    for at, step in enumerate(steps):
        share = [Cell(TRUNCATED, weighted_mean(cut[at], weights))]
        if np.isnan(share[0].values[0]):
            share = absent([TRUNCATED], "not recorded")
        found[step_key(step)] = [Cell(name, weighted_mean(accuracy[at], weights)), *share]
    if len(steps) > 1:
        found[GAIN] = [Cell(name, weighted_mean(accuracy[-1] - accuracy[0], weights))]
    return found


def _by_problem(
    traces: Sequence[ScoredTrace], series: Sequence[Sequence[float]], index: np.ndarray, problems: int, steps: int
) -> Floats:
    """[steps, problems]: means over a problem's traces; nan where it has none, or none with the series."""
    total, count = np.zeros((steps, problems)), np.zeros(problems)
    for trace, values, number in zip(traces, series, index, strict=True):
        if not trace.unscored and len(values) == steps:
            total[:, number] += values
            count[number] += 1
    return np.divide(total, count, out=np.full_like(total, np.nan), where=count > 0)
