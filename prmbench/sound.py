"""Is a result from elsewhere well-formed? Types, ranges and lengths, so that judging never meets a surprise.

Whether it may be *listed* (commit, clean tree) is the report's business.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import fields
from numbers import Real
from typing import Any, get_args

from prmbench.schema import READOUTS, Boundary, MetricRow, RunManifest, RunResult, ScoredTrace, UserError

NAME = re.compile(r"[\w.+-]+")
"""What a subset or a series may be called: names stand in protocol keys, averages and tables."""
TEXTS = ("run_id", "model", "backend", "input_format", "benchmark", "benchmark_hash", "scores_sha256", "calibrate_on")


def check(result: RunResult, scores: Sequence[ScoredTrace], where: str) -> None:
    """Raises UserError naming the first thing that is not as it should be."""
    faults = (*_manifest(result.manifest), *_rows(result.rows))
    for fault in faults:
        raise UserError(f"{where}: {fault}")
    for trace in scores:
        for fault in _trace(trace, result.manifest):
            raise UserError(f"{where}: scores of {str(trace.id)[:60]!r}: {fault}")


def _manifest(manifest: RunManifest) -> Iterator[str]:
    wrong = [name for name in TEXTS if not isinstance(getattr(manifest, name), str)]
    wrong += [name for name in ("n", "seed", "benchmark_version") if not _whole(getattr(manifest, name))]
    wrong += [f for f in ("native", "fixed") if getattr(manifest, f) is not None and not _finite(getattr(manifest, f))]
    if wrong:
        yield f"manifest field {wrong[0]!r} is {getattr(manifest, wrong[0])!r}"
    if manifest.kind not in READOUTS or manifest.boundary not in get_args(Boundary):
        yield f"manifest has kind {manifest.kind!r} and boundary {manifest.boundary!r}, unknown to this version"
    for names in (manifest.subsets, manifest.series, (manifest.calibrate_on,)):
        if not isinstance(names, tuple) or not all(isinstance(n, str) and NAME.fullmatch(n) for n in names):
            yield f"names {names!r} in the manifest: letters, digits and . + - _ only"


def _rows(rows: Sequence[MetricRow]) -> Iterator[str]:
    for row in rows:
        numbers = [getattr(row, f.name) for f in fields(row) if f.name in ("value", "lo", "hi")]
        texts = (row.subset, row.protocol, row.metric, row.note)
        fine = all(isinstance(t, str) for t in texts) and _whole(row.n) and _whole(row.unscored)
        if not fine or not all(v is None or _finite(v) for v in numbers):
            yield f"malformed row {row!r}"


def _trace(trace: ScoredTrace, manifest: RunManifest) -> Iterator[str]:
    if not all(isinstance(t, str) for t in (trace.id, trace.subset, trace.cluster, trace.unscored)):
        yield "id, subset, cluster and unscored must be texts"
    if not _whole(trace.steps) or not _whole(trace.label) or not -1 <= (trace.label or 0) < trace.steps:
        yield f"label {trace.label!r} of {trace.steps!r} steps"
    if trace.outcome not in (None, 0, 1):
        yield f"outcome {trace.outcome!r}"
    if trace.unscored:
        return
    if manifest.kind == "verdict":
        if not all(v is None or _whole(v) for v in trace.verdicts):
            yield f"verdicts {trace.verdicts!r}"
        return
    series = {"values": trace.values, **{name: trace.also.get(name, ()) for name in manifest.series}}
    for name, values in series.items():
        if len(values) != trace.steps or not all(map(_finite, values)):
            yield f"{name} must be one finite number for each of {trace.steps} steps"
    if manifest.kind == "logratio" and not (len(trace.tokens) == trace.steps and all(_whole(t) for t in trace.tokens)):
        yield f"tokens must be one count for each of {trace.steps} steps"


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _finite(value: Any) -> bool:
    return isinstance(value, Real) and math.isfinite(value)
