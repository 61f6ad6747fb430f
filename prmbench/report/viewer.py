"""Page data of the trace viewer: traces, scores by readout, and the verdict of each protocol on each trace.

Every verdict is computed here; the page only shows, searches and filters.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from prmbench.core.records import READOUTS, EvalProtocol, ScoredTrace, Trace, text_hash
from prmbench.core.result_files import Run
from prmbench.metrics import first_error
from prmbench.report.critiques import read_critiques
from prmbench.report.verdicts import KINDS, headline_protocol, predict, thresholds, verdict_kind
from prmbench.tasks.wording import run_name, subset_rank

TraceTexts = Mapping[str, Trace] | Callable[[str], Trace | None]
"""Texts of traces by id."""


def trace_view(runs: Sequence[Run], max_traces: int, data: TraceTexts | None = None) -> dict[str, Any]:
    """Returns at most `max_traces` traces, with every run's scores and verdicts, known texts, and the total count."""
    labelled = _labelled_traces(runs)
    shown = choose_traces(labelled, max_traces)
    traces = [_trace_data(t) for t in shown]
    return {
        "traces": traces,
        "total": len(labelled),
        "runs": [_run_data(run, shown) for run in sorted(runs, key=partial(_viewer_order, {t.id for t in shown}))],
        "texts": _texts(data, traces),
    }


def _viewer_order(shown: set[str], run: Run) -> tuple[bool, int]:
    """Sort key: models before baselines, then runs by how many shown traces they scored; the viewer opens the first."""
    scored_count = sum(t.id in shown and not t.unscored for t in run.scores)
    return run.result.manifest.backend == "baseline", -scored_count


def _labelled_traces(runs: Sequence[Run]) -> list[ScoredTrace]:
    """Every labelled trace that some run scored, sorted by subset and id."""
    trace_by_id: dict[str, ScoredTrace] = {}
    for run in runs:
        for trace in run.scores:
            if trace.label is not None:
                trace_by_id.setdefault(trace.id, trace)
    return sorted(trace_by_id.values(), key=_natural_order)


def _natural_order(trace: ScoredTrace) -> tuple[tuple[int, str], list[tuple[int, str]], str]:
    """Sort key that puts math-2 before math-10."""
    parts = [(int(p), "") if p.isdigit() else (-1, p) for p in re.split(r"(\d{1,15})", trace.id) if p]
    return subset_rank(trace.subset), parts, trace.id


def choose_traces(traces: Sequence[ScoredTrace], max_traces: int) -> list[ScoredTrace]:
    """Returns at most `max_traces` traces, the same share of every subset, chosen by the hash of their ids."""
    if len(traces) <= max_traces:
        return list(traces)
    queues: dict[str, list[ScoredTrace]] = {}
    for trace in sorted(traces, key=lambda t: text_hash(t.id)):
        queues.setdefault(trace.subset, []).append(trace)
    relative_rank = {t.id: (i + 0.5) / len(queue) for queue in queues.values() for i, t in enumerate(queue)}
    chosen_ids = {t.id for t in sorted(traces, key=lambda t: (relative_rank[t.id], t.id))[:max_traces]}
    return [t for t in traces if t.id in chosen_ids]


def _texts(data: TraceTexts | None, traces: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Problem and steps by trace id, for the traces whose text is known and has the right number of steps."""
    pairs = ((t, look_up(data, t["id"])) for t in traces)
    return {t["id"]: {"problem": x.prompt, "steps": x.steps} for t, x in pairs if x and len(x.steps) == t["k"]}


def look_up(data: TraceTexts | None, name: str) -> Trace | None:
    """Returns the trace of this id; None where its text is not known."""
    return None if data is None else data(name) if callable(data) else data.get(name)


def round_score(score: float) -> float:
    """Returns a score with as many digits as the page holds."""
    return float(f"{score:.5g}")


def _trace_data(trace: ScoredTrace) -> dict[str, Any]:
    return {"id": trace.id, "subset": trace.subset, "label": trace.label, "outcome": trace.outcome, "k": trace.steps}


def _run_data(run: Run, chosen: Sequence[ScoredTrace]) -> dict[str, Any]:
    """Scores per readout and verdicts per protocol, in the order of the traces shown."""
    manifest = run.result.manifest
    trace_by_id = {t.id: t for t in run.scores}
    traces = [trace_by_id.get(t.id) for t in chosen]
    keys = dict.fromkeys(r.protocol for r in run.result.rows if r.metric == "f1" and r.value is not None)
    parsed = (EvalProtocol.parse(key) for key in keys if not key.startswith("floor/"))
    protocols = [replace(protocol, tie=manifest.tie) for protocol in parsed]
    names = {series: f"{series}." * bool(series) for series in ("", *manifest.series)}
    default_protocol = headline_protocol(run)
    return {
        "id": manifest.run_id,
        "model": run_name(run),
        "default": default_protocol.key if default_protocol else "",
        "readouts": {
            f"{prefix}{readout}": [_scores(t, EvalProtocol(readout, "oracle", series=series)) for t in traces]
            for series, prefix in names.items()
            for readout in READOUTS[manifest.kind]
            if readout != "vote"
        },
        "votes": [list(t.verdicts) if t else [] for t in traces] if manifest.kind == "verdict" else None,
        "critiques": read_critiques(run, {t.id for t in chosen}),
        "unscored": {str(i): t.unscored for i, t in enumerate(traces) if t and t.unscored},
        "protocols": [_protocol_data(run, p, traces) for p in sorted(protocols, key=lambda p: p.key)],
    }


def _scores(trace: ScoredTrace | None, protocol: EvalProtocol) -> list[float] | None:
    scores = None if trace is None else first_error.readout(trace, protocol)
    return None if scores is None else [round_score(s) for s in scores]


def _protocol_data(run: Run, protocol: EvalProtocol, traces: Sequence[ScoredTrace | None]) -> dict[str, Any]:
    threshold_by_id = thresholds(run, protocol)
    distinct_thresholds = sorted({v for v in threshold_by_id.values() if not math.isnan(v)})
    index_of = {v: i for i, v in enumerate(distinct_thresholds)}
    predicted = [None if t is None else predict(t, protocol, threshold_by_id[t.id]) for t in traces]
    kinds = [
        -1 if t is None or t.label is None else KINDS.index(verdict_kind(p, t.label))
        for t, p in zip(traces, predicted, strict=True)
    ]
    prefix = f"{protocol.series}." if protocol.series else ""
    return {
        "key": protocol.key,
        "rule": protocol.threshold,
        "readout": prefix + protocol.readout,
        "limits": [float(f"{v:.6g}") for v in distinct_thresholds],
        "limit": [-1 if t is None else index_of.get(threshold_by_id[t.id], -1) for t in traces],
        "predicted": predicted,
        "kind": kinds,
    }
