"""Is a result from elsewhere well-formed? Types, ranges and lengths, so that judging never meets a surprise.

Whether it may be *listed* (commit, clean tree) is the report's business.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from numbers import Real
from typing import Any, get_args

from prmbench.schema import READOUTS, Boundary, MetricRow, RunManifest, RunResult, ScoredTrace, Task, UserError

NAME = re.compile(r"[\w.+-]+")
"""What a subset or a series may be called: names stand in protocol keys, averages and tables."""
TEXTS = ("run_id", "model", "backend", "input_format", "benchmark", "benchmark_hash", "scores_sha256", "calibrate_on")
WHOLES = ("n", "seed", "benchmark_version", "replicates", "tokens", "completion_tokens")
SAMPLING = ("temperature", "top_p", "top_k", "group_size")
"""What a policy's protocol is named by."""
FINISHES = ("", "stop", "length")
OF_OUTCOMES = ("policy", "distrl")
"""Tasks that score no steps."""
OF_FIRST_ERRORS = ("steps", "format_shift")
"""Tasks of which every trace has a label."""


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
    wrong += [name for name in WHOLES if not _whole(getattr(manifest, name))]
    wrong += [] if _finite(manifest.seconds) else ["seconds"]
    optional = {name: getattr(manifest, name) for name in ("native", "fixed", "beta", "cost", "memory_gib")}
    wrong += [name for name, value in optional.items() if value is not None and not _finite(value)]
    if wrong:
        yield f"manifest field {wrong[0]!r} is {getattr(manifest, wrong[0])!r}"
    if manifest.kind not in READOUTS or manifest.boundary not in get_args(Boundary):
        yield f"manifest has kind {manifest.kind!r} and boundary {manifest.boundary!r}, unknown to this version"
    if manifest.task not in get_args(Task) or (manifest.task in OF_OUTCOMES) != (manifest.kind == "outcome"):
        yield f"manifest has task {manifest.task!r} on {manifest.kind!r} scores, unknown to this version"
    if not isinstance(manifest.config, dict):
        yield f"manifest field 'config' is {manifest.config!r}"
    elif manifest.task == "policy":
        told = {name: manifest.config.get(name) for name in SAMPLING}
        yield from (f"manifest config has {name} {value!r}" for name, value in told.items() if not _finite(value))
    elif manifest.task == "distrl":
        yield from _training(manifest.config)
    for names in (manifest.subsets, manifest.series, (manifest.calibrate_on,)):
        if not isinstance(names, tuple) or not all(isinstance(n, str) and NAME.fullmatch(n) for n in names):
            yield f"names {names!r} in the manifest: letters, digits and . + - _ only"


def _training(config: Mapping[str, Any]) -> Iterator[str]:
    """When the policy was validated, and by how many samples."""
    steps, samples = config.get("validated_at"), config.get("samples")
    if (
        not isinstance(steps, list | tuple)
        or not steps
        or not all(map(_whole, steps))
        or sorted(set(steps)) != [*steps]
    ):
        yield f"manifest config has validated_at {steps!r}, which must be rising steps"
    if not _whole(samples):
        yield f"manifest config has samples {samples!r}"


def _rows(rows: Sequence[MetricRow]) -> Iterator[str]:
    for row in rows:
        numbers = [getattr(row, f.name) for f in fields(row) if f.name in ("value", "lo", "hi")]
        texts = (row.subset, row.protocol, row.metric, row.note)
        fine = all(isinstance(t, str) for t in texts) and _whole(row.n) and _whole(row.unscored)
        if not fine or not all(v is None or _finite(v) for v in numbers):
            yield f"malformed row {row!r}"


def _trace(trace: ScoredTrace, manifest: RunManifest) -> Iterator[str]:
    texts = (trace.id, trace.subset, trace.cluster, trace.unscored, trace.answer)
    if not all(isinstance(t, str) for t in texts) or trace.finish not in FINISHES:
        yield f"id, subset, cluster, unscored and answer must be texts, finish one of {FINISHES}"
    if not _whole(trace.steps) or not _label(trace, manifest):
        yield f"label {trace.label!r} of {trace.steps!r} steps"
    if trace.outcome not in (None, 0, 1):
        yield f"outcome {trace.outcome!r}"
    labels = trace.step_labels
    if labels and not (len(labels) == trace.steps and all(_finite(v) and 0 <= v <= 1 for v in labels)):
        yield f"step_labels must be one number from 0 to 1 for each of {trace.steps} steps"
    if manifest.task == "validity" and not (labels and set(labels) <= {0, 1}):
        yield f"step_labels must be 0 or 1 for each of {trace.steps} steps"
    if not trace.unscored:
        yield from _scores(trace, manifest)


def _label(trace: ScoredTrace, manifest: RunManifest) -> bool:
    """Step F1 needs a label, and so a step; elsewhere there may be neither."""
    if manifest.task not in OF_FIRST_ERRORS and trace.label is None:
        return trace.steps >= 0
    return _whole(trace.label) and -1 <= (trace.label or 0) < trace.steps


def _scores(trace: ScoredTrace, manifest: RunManifest) -> Iterator[str]:
    if manifest.task == "distrl":
        yield from _validations(trace, manifest)
        return
    if manifest.kind == "outcome":
        if trace.values or trace.outcome is None or not all(map(_whole, trace.tokens)):
            yield "a policy's completion has an outcome and a count of tokens, and no values"
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


def _validations(trace: ScoredTrace, manifest: RunManifest) -> Iterator[str]:
    count = len(manifest.config["validated_at"])
    for name, values in {"values": trace.values, **trace.also}.items():
        if trace.steps != count or len(values) != count or not all(_finite(v) and 0 <= v <= 1 for v in values):
            yield f"{name} must be one number from 0 to 1 for each of {count} validations"


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _finite(value: Any) -> bool:
    return isinstance(value, Real) and math.isfinite(value)
