"""Which first error a run predicts on each trace under a protocol, and what kind of hit or miss that is.

The same thresholds as the metric rows, down to the fold: counting the hits gives the accuracies of the table.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from prmbench.core.records import EvalProtocol, ScoredTrace
from prmbench.core.result_files import Run
from prmbench.metrics import first_error
from prmbench.tasks import FOLDS

HEADLINE = {"logratio": "step_sum", "value": "as_is", "prob": "as_is", "verdict": "vote"}
"""The readout that figures show for each kind of score."""
KINDS = ("exact", "early", "late", "missed", "passed", "false alarm", "unscored")
"""exact, early, late, missed: a trace with an error; passed, false alarm: one without."""


def thresholds(run: Run, protocol: EvalProtocol) -> dict[str, float]:
    """Trace id -> the threshold it is judged by; nan for `vote` and where the run has no such number."""
    found: dict[str, float] = {}
    for subset in run.result.manifest.subsets:
        traces = sorted((t for t in run.scores if t.subset == subset), key=lambda t: t.id)
        if protocol.threshold == "cross_validated" or (protocol.threshold == "calibrated" and protocol.on == subset):
            found |= _fold_thresholds(traces, protocol)
        else:
            one = _row_value(run, subset, protocol.key, "threshold")
            found |= {t.id: math.nan if one is None else one for t in traces}
    return found


def _fold_thresholds(traces: Sequence[ScoredTrace], protocol: EvalProtocol) -> dict[str, float]:
    data = first_error.sample(traces, protocol)
    fold = first_error.folds([t.cluster for t in traces], FOLDS)
    if len(set(fold)) < 2:  # noqa: PLR2004 - judge gives no number here either
        return {t.id: math.nan for t in traces}
    chosen = {
        int(f): float(first_error.best_threshold(data, (fold != f)[None].astype(float))[0]) for f in np.unique(fold)
    }
    return {t.id: chosen[int(f)] for t, f in zip(traces, fold, strict=True)}


def _row_value(run: Run, subset: str, protocol: str, metric: str) -> float | None:
    for row in run.result.rows:
        if (row.subset, row.protocol, row.metric) == (subset, protocol, metric):
            return row.value
    return None


def predict(trace: ScoredTrace, protocol: EvalProtocol, threshold: float) -> int | None:
    """Predicted first error, -1 for none; None when the trace is unscored or no critique could be parsed."""
    if protocol.readout == "vote":
        return None if trace.unscored else first_error.majority(trace.verdicts)
    scores = first_error.readout(trace, protocol)
    return None if scores is None or math.isnan(threshold) else first_error.first_below(scores, threshold)


def kind(predicted: int | None, label: int) -> str:
    """One of KINDS."""
    if predicted is None:
        return "unscored"
    if label < 0:
        return "passed" if predicted < 0 else "false alarm"
    if predicted == label:
        return "exact"
    if predicted < 0:
        return "missed"
    return "early" if predicted < label else "late"


def headline(run: Run) -> EvalProtocol | None:
    """The protocol that figures show: headline readout; calibrated, else native, fixed, oracle."""
    readout = HEADLINE[run.result.manifest.kind]
    keys = {row.protocol for row in run.result.rows if row.metric == "f1" and row.value is not None}
    parsed = sorted((EvalProtocol.parse(k) for k in keys if not k.startswith("floor/")), key=lambda p: p.key)
    for rule in ("calibrated", "native", "fixed", "oracle"):
        for protocol in parsed:
            if (protocol.readout, protocol.threshold, protocol.series) == (readout, rule, ""):
                return protocol
    return None
