"""Runs of a board -> what the trace viewer shows: traces, scores by readout, and what each protocol says of each trace.

Every verdict is decided here; the page only shows, searches and filters.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from prmbench.core.records import READOUTS, EvalProtocol, ScoredTrace, Trace, text_hash
from prmbench.core.result_files import Run
from prmbench.metrics import first_error
from prmbench.report.verdicts import KINDS, headline, kind, predict, thresholds
from prmbench.tasks.wording import model_name, subset_rank

Texts = Mapping[str, Trace] | Callable[[str], Trace | None]
"""Where the page finds the text of a trace, by id."""


def view(runs: Sequence[Run], most: int, data: Texts | None = None) -> dict[str, Any]:
    """At most `most` traces, what every run says of them, their text where `data` has it, and how many there are."""
    facts = _facts(runs)
    chosen = choose(facts, most)
    traces = [_trace(t) for t in chosen]
    return {
        "traces": traces,
        "total": len(facts),
        "runs": [_run(run, chosen) for run in sorted(runs, key=partial(_place, {t.id for t in chosen}))],
        "texts": _texts(data, traces),
    }


def _place(shown: set[str], run: Run) -> tuple[bool, int]:
    """Models before baselines, and what says most of the traces shown first: it is what the viewer opens with."""
    known = sum(t.id in shown and not t.unscored for t in run.scores)
    return run.result.manifest.backend == "baseline", -known


def _facts(runs: Sequence[Run]) -> list[ScoredTrace]:
    """Every labelled trace that some run scored, by subset and id."""
    found: dict[str, ScoredTrace] = {}
    for run in runs:
        for trace in run.scores:
            if trace.label is not None:
                found.setdefault(trace.id, trace)
    return sorted(found.values(), key=_natural)


def _natural(trace: ScoredTrace) -> tuple[tuple[int, str], list[tuple[int, str]], str]:
    """math-2 before math-10."""
    parts = [(int(p), "") if p.isdigit() else (-1, p) for p in re.split(r"(\d{1,15})", trace.id) if p]
    return subset_rank(trace.subset), parts, trace.id


def choose(facts: Sequence[ScoredTrace], most: int) -> list[ScoredTrace]:
    """At most `most` traces, the same share of every subset, picked by the hash of their ids."""
    if len(facts) <= most:
        return list(facts)
    queues: dict[str, list[ScoredTrace]] = {}
    for trace in sorted(facts, key=lambda t: text_hash(t.id)):
        queues.setdefault(trace.subset, []).append(trace)
    place = {t.id: (i + 0.5) / len(queue) for queue in queues.values() for i, t in enumerate(queue)}
    kept = {t.id for t in sorted(facts, key=lambda t: (place[t.id], t.id))[:most]}
    return [t for t in facts if t.id in kept]


def _texts(data: Texts | None, traces: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Id -> problem and steps, for the traces that `data` knows and whose number of steps agrees."""
    if data is None:
        return {}
    found = ((t, data(t["id"]) if callable(data) else data.get(t["id"])) for t in traces)
    return {t["id"]: {"problem": x.prompt, "steps": x.steps} for t, x in found if x and len(x.steps) == t["k"]}


def _trace(facts: ScoredTrace) -> dict[str, Any]:
    return {"id": facts.id, "subset": facts.subset, "label": facts.label, "outcome": facts.outcome, "k": facts.steps}


def _run(run: Run, chosen: Sequence[ScoredTrace]) -> dict[str, Any]:
    """Scores per readout and verdicts per protocol, in the order of the traces shown."""
    manifest = run.result.manifest
    have = {t.id: t for t in run.scores}
    traces = [have.get(t.id) for t in chosen]
    keys = dict.fromkeys(r.protocol for r in run.result.rows if r.metric == "f1" and r.value is not None)
    protocols = [EvalProtocol.parse(key) for key in keys if not key.startswith("floor/")]
    names = {series: f"{series}." * bool(series) for series in ("", *manifest.series)}
    default = headline(run)
    return {
        "id": manifest.run_id,
        "model": model_name(manifest),
        "default": default.key if default else "",
        "readouts": {
            f"{prefix}{readout}": [_scores(t, EvalProtocol(readout, "oracle", series=series)) for t in traces]
            for series, prefix in names.items()
            for readout in READOUTS[manifest.kind]
            if readout != "vote"
        },
        "votes": [list(t.verdicts) if t else [] for t in traces] if manifest.kind == "verdict" else None,
        "unscored": {str(i): t.unscored for i, t in enumerate(traces) if t and t.unscored},
        "protocols": [_verdicts(run, p, traces) for p in sorted(protocols, key=lambda p: p.key)],
    }


def _scores(trace: ScoredTrace | None, protocol: EvalProtocol) -> list[float] | None:
    scores = None if trace is None else first_error.readout(trace, protocol)
    return None if scores is None else [float(f"{s:.5g}") for s in scores]


def _verdicts(run: Run, protocol: EvalProtocol, traces: Sequence[ScoredTrace | None]) -> dict[str, Any]:
    limits = thresholds(run, protocol)
    distinct = sorted({v for v in limits.values() if not math.isnan(v)})
    place = {v: i for i, v in enumerate(distinct)}
    predicted = [None if t is None else predict(t, protocol, limits[t.id]) for t in traces]
    kinds = [
        -1 if t is None or t.label is None else KINDS.index(kind(p, t.label))
        for t, p in zip(traces, predicted, strict=True)
    ]
    prefix = f"{protocol.series}." if protocol.series else ""
    return {
        "key": protocol.key,
        "rule": protocol.threshold,
        "readout": prefix + protocol.readout,
        "limits": [float(f"{v:.6g}") for v in distinct],
        "limit": [-1 if t is None else place.get(limits[t.id], -1) for t in traces],
        "predicted": predicted,
        "kind": kinds,
    }
