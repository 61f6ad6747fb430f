"""Manifests for the judge, and its rows by name."""

from __future__ import annotations

from prmbench.core.records import MetricRow, RunManifest


def manifest(task: str, kind: str, subsets: tuple[str, ...] = ("s",), **more: object) -> RunManifest:
    facts = {"run_id": "r", "model": "m", "backend": "b", "input_format": "none", "boundary": "exact", "n": 0}
    told = {"benchmark": task, "benchmark_hash": "h", "config": {}, "seed": 0, "scores_sha256": ""}
    return RunManifest(task=task, kind=kind, subsets=subsets, **{**facts, **told, **more})  # type: ignore[arg-type]


def value(rows: tuple[MetricRow, ...], protocol: str, metric: str, subset: str = "s") -> MetricRow:
    found = [r for r in rows if (r.subset, r.protocol, r.metric) == (subset, protocol, metric)]
    assert len(found) == 1, (subset, protocol, metric)
    return found[0]
